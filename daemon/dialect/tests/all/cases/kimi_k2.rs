use crate::support::Case;

const fn case(prompt: &'static str, output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "kimi_k2", prompt, output, parts }
}

const TURN: &str = "<|im_assistant|>assistant<|im_middle|>";

pub const CASES: &[Case] = &[
    case(
        TURN,
        "<think>Hm.</think>I look.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{\"city\": \"Paris\"}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        &[
            "R \"Hm.\"",
            "T \"I look.\"",
            "C0 get_weather#functions.get_weather:0 {\"city\": \"Paris\"}",
            "C1 now#functions.now:1 {}",
        ],
    ),
    case(
        TURN,
        "<|tool_calls_section_begin|><|tool_call_begin|> now:3 <|tool_call_argument_begin|> {\"a\": 1} <|tool_call_end|><|tool_calls_section_end|>",
        &["C0 now#now:3 {\"a\": 1}"],
    ),
    case(
        TURN,
        "<think>I call. <|tool_calls_section_begin|><|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        &["R \"I call.\"", "C0 now#functions.now:0 {}"],
    ),
    case(TURN, "◁think▷Hm.◁/think▷Yes.", &["R \"Hm.\"", "T \"Yes.\""]),
    case(
        TURN,
        "<|tool_call_begin|>functions.f\n<|tool_call_argument_begin|>{}",
        &["T \"<|tool_call_begin|>functions.f\\n<|tool_call_argument_begin|>{}\""],
    ),
    case(
        TURN,
        "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{\"a\": 1]<|tool_call_end|><|tool_calls_section_end|>",
        &["C0 f#functions.f:0 {\"a\": 1 broken", "T \"]\""],
    ),
    case(
        TURN,
        "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{\"a\": ",
        &["C0 f#functions.f:0 {\"a\":  cut"],
    ),
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case(TURN, "<|tool_calls_section_begin|><|tool_call_begin|>functions.write_file:0<|tool_call_argument_begin|>{\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] <|tool_call_end|> é💧\\u00e9\\tz\"}<|tool_call_end|><|tool_call_begin|>functions.plan:1<|tool_call_argument_begin|>{\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}<|tool_call_end|><|tool_calls_section_end|>", &["C0 write_file#functions.write_file:0 {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] <|tool_call_end|> é💧\\u00e9\\tz\"}", "C1 plan#functions.plan:1 {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
];
