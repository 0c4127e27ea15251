use crate::support::Case;

const fn case(prompt: &'static str, output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "think", prompt, output, parts }
}

pub const CASES: &[Case] = &[
    case(
        "",
        "<think>a b\n\nc</think>\n\n<think>d</think> e <think> f",
        &["R \"a b\\n\\ncd\"", "T \"e <think> f\""],
    ),
    case("<think>", "\na\n</think>b\n\n", &["R \"a\"", "T \"b\\n\\n\""]),
    case("<think>\n", "</think>\nb", &["T \"b\""]),
    case("", "a </think> b <thin", &["T \"a </think> b <thin\""]),
    case("", "  a <tool_call>{}", &["T \"  a <tool_call>{}\""]),
    case(
        "<think>",
        "a</think>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
        &["R \"a\"", "C0 now {}"],
    ),
    case("x <think> y", "a", &["T \"a\""]),
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case("", "<tool_call>{\"name\": \"write_file\", \"arguments\": {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] </tool_call> é💧\\u00e9\\tz\"}}</tool_call>\n<tool_call>{\"name\": \"plan\", \"arguments\": {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}}</tool_call>", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] </tool_call> é💧\\u00e9\\tz\"}", "C1 plan {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
    case("<think>", "a</think><tool_call>{\"name\": \"f\", \"arguments\": {\"a\": tru}}</tool_call>.", &["R \"a\"", "C0 f {\"a\": tru broken", "T \"}}.\""]),
    case("<think>", "a</think><tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"", &["R \"a\"", "C0 f {\"a\": \" cut"]),
];
