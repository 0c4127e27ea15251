use crate::support::Case;

const fn case(prompt: &'static str, output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "smollm3", prompt, output, parts }
}

const TURN: &str = "<|im_start|>assistant\n";

pub const CASES: &[Case] = &[
    case(
        TURN,
        "<think>\nhm\n</think>\n<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>\n",
        &["R \"hm\"", "C0 now {}"],
    ),
    case(TURN, "<code>f(1)</code>", &["T \"<code>f(1)</code>\""]),
    case(TURN, "<tool_call>{\"name\": \"now\"", &["T \"<tool_call>{\\\"name\\\": \\\"now\\\"\""]),
    case(
        TURN,
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": [1, 2]}}</tool_call><tool_call>{\"name\": \"now\", \"arguments\": {\"b\": \"c\"",
        &["C0 f {\"a\": [1, 2]}", "C1 now {\"b\": \"c\" cut"],
    ),
];
