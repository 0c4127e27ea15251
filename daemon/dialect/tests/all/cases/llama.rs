use crate::support::Case;

const fn case(prompt: &'static str, output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "llama", prompt, output, parts }
}

const TURN: &str = "<|start_header_id|>assistant<|end_header_id|>\n\n";

pub const CASES: &[Case] = &[
    case(
        TURN,
        "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}",
        &["C0 get_weather {\"city\": \"Paris\"}"],
    ),
    case(
        TURN,
        "{\"type\": \"function\", \"name\": \"now\", \"parameters\": {}}; {\"name\": \"get_weather\", \"parameters\": {\"days\": 1}}",
        &["C0 now {}", "C1 get_weather {\"days\": 1}"],
    ),
    case(
        TURN,
        "<|python_tag|>{\"name\": \"now\", \"parameters\": {}}\n{\"name\": \"f\", \"parameters\": {\"a\": 1}}",
        &["C0 now {}", "C1 f {\"a\": 1}"],
    ),
    case(
        TURN,
        "<|python_tag|>brave_search.call(query=\"x y\")",
        &["C0 brave_search {\"query\": \"x y\"}"],
    ),
    case(TURN, "<|python_tag|>print(1)", &["T \"<|python_tag|>print(1)\""]),
    case(
        TURN,
        "[get_weather(city=\"Paris\", days=-2), plan(steps=['a', \"b\\n\"], deep={\"k\": (1, None)}, done=False,)]",
        &[
            "C0 get_weather {\"city\": \"Paris\", \"days\": -2}",
            "C1 plan {\"steps\": [\"a\", \"b\\n\"], \"deep\": {\"k\": [1, null]}, \"done\": false}",
        ],
    ),
    case(
        TURN,
        "<|python_start|>[now(), f(a='''x \"y\"\nz''')]<|python_end|> b",
        &["C0 now {}", "C1 f {\"a\": \"x \\\"y\\\"\\nz\"}", "T \"b\""],
    ),
    // As the template of Llama 4 writes calls, behind a text that may be empty.
    case(
        TURN,
        "<|python_start|><|python_end|>{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}",
        &["C0 get_weather {\"city\": \"Paris\"}"],
    ),
    case(
        TURN,
        "<|python_start|>I look.<|python_end|>{\"name\": \"now\", \"parameters\": {}}{\"name\": \"get_weather\", \"parameters\": {\"days\": 1}}",
        &["T \"I look.\"", "C0 now {}", "C1 get_weather {\"days\": 1}"],
    ),
    case(TURN, "<|python_start|>print(1)<|python_end|>", &["T \"print(1)\""]),
    case(TURN, "Write <|python_start|> so.", &["T \"Write <|python_start|> so.\""]),
    // No calls.
    case(
        TURN,
        "{\"answer\": 42, \"name\": \"x\"}",
        &["T \"{\\\"answer\\\": 42, \\\"name\\\": \\\"x\\\"}\""],
    ),
    case(
        TURN,
        "{\"name\": \"Bob\", \"parameters\": {}}",
        &["T \"{\\\"name\\\": \\\"Bob\\\", \\\"parameters\\\": {}}\""],
    ),
    case(
        TURN,
        "Text {\"name\": \"now\", \"parameters\": {}}",
        &["T \"Text {\\\"name\\\": \\\"now\\\", \\\"parameters\\\": {}}\""],
    ),
    case(TURN, "[see(a)] and [b]", &["T \"[see(a)] and [b]\""]),
    case(TURN, "{\"name\": \"now\", \"parameters\": {}}; then", &["C0 now {}", "T \"; then\""]),
    // Broken and cut.
    case(
        TURN,
        "[get_weather(city=\"Paris\", days=two)]",
        &["C0 get_weather {\"city\": \"Paris\", \"days\":  broken", "T \"two)]\""],
    ),
    case(
        TURN,
        "[get_weather(city=\"Paris\", days=",
        &["C0 get_weather {\"city\": \"Paris\", \"days\":  cut"],
    ),
    case(
        TURN,
        "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Par",
        &["C0 get_weather {\"city\": \"Par cut"],
    ),
    case(TURN, "  {\"name\": \"ge", &["T \"  {\\\"name\\\": \\\"ge\""]),
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case(TURN, "{\"name\": \"write_file\", \"parameters\": {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] ; { é💧\\u00e9\\tz\"}}", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] ; { é💧\\u00e9\\tz\"}"]),
    case(TURN, "{\"name\": \"plan\", \"parameters\": {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}}", &["C0 plan {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
    case(TURN, "[write_file(path=\"a b.md\", content=\"# A\\n\\\"q\\\" \\\\ {x} [y] )] é💧'\"), plan(steps=[[\"a\"], {\"b\": [1, -2.5e3, True, None]}], deep={\"k\": {\"l\": {}}}, done=False)]", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] )] é💧'\"}", "C1 plan {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
];
