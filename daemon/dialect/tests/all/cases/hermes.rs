use crate::support::Case;

const fn case(prompt: &'static str, output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "hermes", prompt, output, parts }
}

const TURN: &str = "<|im_start|>assistant\n";
const THINKS: &str = "<|im_start|>assistant\n<think>\n";

pub const CASES: &[Case] = &[
    case(TURN, "It is 3 < 5, é 💧.\n", &["T \"It is 3 < 5, é 💧.\\n\""]),
    case(
        TURN,
        "<think>\nThey want weather.\n</think>\n\nLet me look.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 2}}\n</tool_call>",
        &[
            "R \"They want weather.\"",
            "T \"Let me look.\"",
            "C0 get_weather {\"city\": \"Paris\", \"days\": 2}",
        ],
    ),
    // Several, with text behind.
    case(
        TURN,
        "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"arguments\": {\"city\": \"é\\n\\u00e9\"}, \"name\": \"get_weather\"}\n</tool_call>\nDone.",
        &["C0 now {}", "C1 get_weather {\"city\": \"é\\n\\u00e9\"}", "T \"Done.\""],
    ),
    // The template opened the thought.
    case(THINKS, "a\n</think>\n\nb", &["R \"a\"", "T \"b\""]),
    case(THINKS, "never closed", &["R \"never closed\""]),
    case(THINKS, "<think>\ntwice</think>b", &["R \"twice\"", "T \"b\""]),
    // A call inside a thought that is not closed; a marker that is only thought about.
    case(
        THINKS,
        "I use <tool_call> now.\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
        &["R \"I use <tool_call> now.\"", "C0 now {}"],
    ),
    // A marker in plain text, half a marker, a call of a name that nobody knows.
    case(
        TURN,
        "Use <tool_call> and <tool_c, </think>.",
        &["T \"Use <tool_call> and <tool_c, </think>.\""],
    ),
    case(
        TURN,
        "<tool_call>{\"name\": \"other\", \"arguments\": {\"x\": [1, {\"y\": null}]}}</tool_call>",
        &["C0 other {\"x\": [1, {\"y\": null}]}"],
    ),
    // Two objects between the tags, a list, arguments in a string, without arguments, raw line breaks in strings.
    case(
        TURN,
        "<tool_call>\n{\"name\": \"now\"}\n{\"name\": \"now\", \"arguments\": null}\n</tool_call>",
        &["C0 now {}", "C1 now {}"],
    ),
    case(
        TURN,
        "<tool_call>[{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"f\", \"parameters\": {\"a\": 1}}]</tool_call>",
        &["C0 now {}", "C1 f {\"a\": 1}"],
    ),
    case(
        TURN,
        "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": \\\"b\\\"}\"}</tool_call>",
        &["C0 f {\"a\": \"b\"}"],
    ),
    case(
        TURN,
        "<tool_call>{\"name\": \"write_file\", \"arguments\": {\"content\": \"a\n\tb\"}}</tool_call>",
        &["C0 write_file {\"content\": \"a\\n\\tb\"}"],
    ),
    // A brace too few, one too many, no closing tag.
    case(
        TURN,
        "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"a\": 1}\n</tool_call>\nok",
        &["C0 now {\"a\": 1}", "T \"ok\""],
    ),
    case(
        TURN,
        "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}}\n</tool_call>",
        &["C0 now {}", "T \"}\""],
    ),
    case(
        TURN,
        "<tool_call>{\"name\": \"now\", \"arguments\": {}} then",
        &["C0 now {}", "T \"then\""],
    ),
    // No call at all: text, every character of it.
    case(
        TURN,
        "a <tool_call>\n{\"nam\": \"now\", \"arguments\": {}}\n</tool_call> b",
        &[
            "T \"a <tool_call>\\n{\\\"nam\\\": \\\"now\\\", \\\"arguments\\\": {}}\\n</tool_call> b\"",
        ],
    ),
    case(
        TURN,
        "<tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
        &["T \"<tool_call>\\n\"", "C0 now {}"],
    ),
    case(
        TURN,
        "<tool_call>\n{\"name\": \"get_we",
        &["T \"<tool_call>\\n{\\\"name\\\": \\\"get_we\""],
    ),
    // Cut, and broken when it had begun.
    case(
        TURN,
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Par",
        &["C0 get_weather {\"city\": \"Par cut"],
    ),
    case(
        TURN,
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1,}}\n</tool_call> b",
        &["C0 f {\"a\": 1, broken", "T \"}}b\""],
    ),
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case(TURN, "<tool_call>\n{\"name\": \"write_file\", \"arguments\": {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] </tool_call> é💧\\u00e9\\tz\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"plan\", \"arguments\": {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}}\n</tool_call>", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] </tool_call> é💧\\u00e9\\tz\"}", "C1 plan {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
];
