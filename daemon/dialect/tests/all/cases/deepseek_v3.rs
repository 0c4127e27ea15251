use crate::support::Case;

const fn case(prompt: &'static str, output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "deepseek_v3", prompt, output, parts }
}

const TURN: &str = "<｜Assistant｜>";

pub const CASES: &[Case] = &[
    case(
        TURN,
        "<think>\nHm.\n</think>\n\nI look.\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Paris\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        &["R \"Hm.\"", "T \"I look.\"", "C0 get_weather {\"city\": \"Paris\"}", "C1 now {}"],
    ),
    case("<｜Assistant｜><think>\n", "Hm.\n</think>\nYes.", &["R \"Hm.\"", "T \"Yes.\""]),
    case(
        TURN,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}<｜tool▁call▁end｜><｜tool▁calls▁end｜> b",
        &["C0 now {}", "T \"b\""],
    ),
    case(
        TURN,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": 1, b}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        &["C0 f {\"a\": 1,  broken", "T \"b}\\n```\""],
    ),
    case(
        TURN,
        "<｜tool▁call▁begin｜>function f\n{}<｜tool▁call▁end｜>",
        &["T \"<｜tool▁call▁begin｜>function f\\n{}<｜tool▁call▁end｜>\""],
    ),
    case(
        TURN,
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": [",
        &["C0 f {\"a\": [ cut"],
    ),
    case(
        "<｜Assistant｜><think>\n",
        "I call now.\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        &["R \"I call now.\"", "C0 now {}"],
    ),
    case(TURN, "a <｜b｜> c <｜tool▁call", &["T \"a <｜b｜> c <｜tool▁call\""]),
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case(TURN, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>write_file\n```json\n{\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] ```<｜tool▁call▁end｜> é💧\\u00e9\\tz\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>plan\n```json\n{\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] ```<｜tool▁call▁end｜> é💧\\u00e9\\tz\"}", "C1 plan {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
];
