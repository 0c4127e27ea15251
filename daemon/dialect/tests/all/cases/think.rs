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
];
