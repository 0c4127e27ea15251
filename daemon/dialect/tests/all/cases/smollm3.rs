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
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case(TURN, "<tool_call>{\"name\": \"write_file\", \"arguments\": {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] </tool_call> é💧\\u00e9\\tz\"}}</tool_call>\n<tool_call>{\"name\": \"plan\", \"arguments\": {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}}</tool_call>", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] </tool_call> é💧\\u00e9\\tz\"}", "C1 plan {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
    case(TURN, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": tru}}</tool_call>.", &["C0 f {\"a\": tru broken", "T \"}}.\""]),
];
