use crate::support::Case;

const fn case(prompt: &'static str, output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "phi4", prompt, output, parts }
}

const TURN: &str = "<|assistant|>";

pub const CASES: &[Case] = &[
    case(
        TURN,
        "I look.<|tool_call|>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}<|/tool_call|>",
        &["T \"I look.\"", "C0 get_weather {\"city\": \"Paris\"}"],
    ),
    case(
        TURN,
        "<|tool_call|>[{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"f\", \"arguments\": {\"a\": 1}}]</|tool_call|>\n",
        &["C0 now {}", "C1 f {\"a\": 1}"],
    ),
    case(
        TURN,
        "functools[{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"f\", \"parameters\": {\"a\": []}}]",
        &["C0 now {}", "C1 f {\"a\": []}"],
    ),
    case(TURN, "import functools\nfunctools.cache", &["T \"import functools\\nfunctools.cache\""]),
    case(TURN, "<think>a</think>b", &["R \"a\"", "T \"b\""]),
    case(
        TURN,
        "<|tool_call|>{\"name\": \"f\", \"arguments\": {\"a\": tru}}<|/tool_call|> b",
        &["C0 f {\"a\": tru broken", "T \"}}b\""],
    ),
    case(TURN, "functools[{\"name\": \"f\", \"arguments\": {\"a\": \"", &["C0 f {\"a\": \" cut"]),
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case(TURN, "<|tool_call|>[{\"name\": \"write_file\", \"arguments\": {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] <|/tool_call|> é💧\\u00e9\\tz\"}}, {\"name\": \"plan\", \"arguments\": {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}}]<|/tool_call|>", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] <|/tool_call|> é💧\\u00e9\\tz\"}", "C1 plan {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
];
