use crate::support::Case;

const fn case(prompt: &'static str, output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "gemma4", prompt, output, parts }
}

const TURN: &str = "<|turn>model\n";

pub const CASES: &[Case] = &[
    case(
        TURN,
        "<|channel>thought\nHm.\n<channel|>I look.<|tool_call>call:get_weather{city:<|\"|>Paris \"é\"<|\"|>,days:2}<tool_call|>",
        &[
            "R \"Hm.\"",
            "T \"I look.\"",
            "C0 get_weather {\"city\": \"Paris \\\"é\\\"\", \"days\": 2}",
        ],
    ),
    case(
        TURN,
        "<|tool_call>call:plan{deep:{a:true,<|\"|>b c<|\"|>:[1.5,<|\"|>x<|\"|>,null,{}]},steps:[]}<tool_call|><|tool_call>call:now{}<tool_call|>",
        &[
            "C0 plan {\"deep\": {\"a\": true, \"b c\": [1.5, \"x\", null, {}]}, \"steps\": []}",
            "C1 now {}",
        ],
    ),
    case(
        TURN,
        "<|tool_call>call:f{ a : None , b:bare word }<tool_call|> c",
        &["C0 f {\"a\": null, \"b\": \"bare word\"}", "T \"c\""],
    ),
    case("<|turn>model\n<|channel>thought\n<channel|>", "Yes.", &["T \"Yes.\""]),
    case("<|turn>model\n<|channel>thought\n", "Hm.<channel|>Yes.", &["R \"Hm.\"", "T \"Yes.\""]),
    // Broken and cut.
    case(TURN, "<|tool_call>f{a:1}<tool_call|>", &["T \"<|tool_call>f{a:1}<tool_call|>\""]),
    case(TURN, "<|tool_call>call:f{a:1,b}<tool_call|>.", &["C0 f {\"a\": 1 broken", "T \"b}.\""]),
    case(TURN, "<|tool_call>call:f{a:<|\"|>x", &["C0 f {\"a\": \"x cut"]),
    case(TURN, "<|tool_call>call:f{a:[1,2", &["C0 f {\"a\": [1,  cut"]),
    case(TURN, "<|tool_call>call:f{}", &["C0 f {}"]),
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case(TURN, "<|tool_call>call:write_file{content:<|\"|># A\n\"q\" \\ {x} [y] <tool_call|> é💧<|\"|>,path:<|\"|>a b.md<|\"|>}<tool_call|><|tool_call>call:plan{deep:{k:{l:{}}},done:false,steps:[[<|\"|>a<|\"|>],{b:[1,-2.5,true,null]}]}<tool_call|>", &["C0 write_file {\"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] <tool_call|> é💧\", \"path\": \"a b.md\"}", "C1 plan {\"deep\": {\"k\": {\"l\": {}}}, \"done\": false, \"steps\": [[\"a\"], {\"b\": [1, -2.5, true, null]}]}"]),
];
