use crate::support::Case;

const fn case(prompt: &'static str, output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "granite", prompt, output, parts }
}

const TURN: &str = "<|start_of_role|>assistant<|end_of_role|>";

pub const CASES: &[Case] = &[
    case(
        TURN,
        "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}, {\"name\": \"now\", \"arguments\": {}}]",
        &["C0 get_weather {\"city\": \"Paris\"}", "C1 now {}"],
    ),
    case(
        TURN,
        "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
        &["C0 now {}", "C1 f {\"a\": 1}"],
    ),
    case(
        TURN,
        "<think>Hm.</think> <response>It is 3.</response>",
        &["R \"Hm.\"", "T \"It is 3.\""],
    ),
    case(
        TURN,
        "Here is my thought process:\n\nHm.\n\nHere is my response: Yes.",
        &["R \"Hm.\"", "T \"Yes.\""],
    ),
    case(
        TURN,
        "As XML: <response>1</response>. Here is my thought process: a",
        &["T \"As XML: <response>1</response>. Here is my thought process: a\""],
    ),
    case(TURN, "Here is my dog.", &["T \"Here is my dog.\""]),
    // Broken and cut.
    case(
        TURN,
        "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"a\" 1}}]",
        &["C0 f {\"a\"  broken", "T \"1}}]\""],
    ),
    case(TURN, "<|tool_call|>none", &["T \"<|tool_call|>none\""]),
    case(
        TURN,
        "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"a\": \"b",
        &["C0 f {\"a\": \"b cut"],
    ),
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case(TURN, "<|tool_call|>[{\"name\": \"write_file\", \"arguments\": {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] </tool_call> é💧\\u00e9\\tz\"}}, {\"name\": \"plan\", \"arguments\": {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}}]", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] </tool_call> é💧\\u00e9\\tz\"}", "C1 plan {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
    case(TURN, "<tool_call>\n{\"name\": \"write_file\", \"arguments\": {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] </tool_call> é💧\\u00e9\\tz\"}}\n</tool_call>", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] </tool_call> é💧\\u00e9\\tz\"}"]),
];
