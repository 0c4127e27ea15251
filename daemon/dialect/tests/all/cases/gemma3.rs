use crate::support::Case;

const fn case(prompt: &'static str, output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "gemma3", prompt, output, parts }
}

const TURN: &str = "<start_of_turn>model\n";

pub const CASES: &[Case] = &[
    case(
        TURN,
        "[get_weather(city=\"Paris\", days=2), now()]",
        &["C0 get_weather {\"city\": \"Paris\", \"days\": 2}", "C1 now {}"],
    ),
    case(
        TURN,
        "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}",
        &["C0 get_weather {\"city\": \"Paris\"}"],
    ),
    case(TURN, "```json\n{\"name\": \"now\", \"parameters\": {}}\n```", &["C0 now {}"]),
    case(
        TURN,
        "I look:\n```tool_code\nget_weather(city='Paris')\n```\n",
        &["T \"I look:\"", "C0 get_weather {\"city\": \"Paris\"}"],
    ),
    case(TURN, "```python\nnow()\n```", &["T \"```python\\nnow()\\n```\""]),
    case(
        TURN,
        "{\"name\": \"Bob\", \"parameters\": {}}",
        &["T \"{\\\"name\\\": \\\"Bob\\\", \\\"parameters\\\": {}}\""],
    ),
    case(TURN, "[1, 2]", &["T \"[1, 2]\""]),
    case(TURN, "[other(a=1)]", &["T \"[other(a=1)]\""]),
    case(TURN, "[now(1)]", &["T \"[now(1)]\""]),
    case(TURN, "[get_weather(city=\"Par", &["C0 get_weather {\"city\": \"Par cut"]),
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case(TURN, "[write_file(path=\"a b.md\", content=\"# A\\n\\\"q\\\" \\\\ {x} [y] )] é💧'\"), plan(steps=[[\"a\"], {\"b\": [1, -2.5e3, True, None]}], deep={\"k\": {\"l\": {}}}, done=False)]", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] )] é💧'\"}", "C1 plan {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
    case(TURN, "[get_weather(city=\"Paris\", days=two)]", &["C0 get_weather {\"city\": \"Paris\", \"days\":  broken", "T \"two)]\""]),
];
