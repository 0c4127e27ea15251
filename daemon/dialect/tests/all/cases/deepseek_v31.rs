use crate::support::Case;

const fn case(prompt: &'static str, output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "deepseek_v31", prompt, output, parts }
}

const TURN: &str = "<｜Assistant｜></think>";

pub const CASES: &[Case] = &[
    case(
        TURN,
        "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Paris\"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        &["T \"I look.\"", "C0 get_weather {\"city\": \"Paris\"}", "C1 now {}"],
    ),
    case("<｜Assistant｜><think>", "Hm.</think>Yes.", &["R \"Hm.\"", "T \"Yes.\""]),
    case(TURN, "<｜tool▁call▁begin｜>now<｜tool▁sep｜><｜tool▁call▁end｜>", &["C0 now {}"]),
    case(
        TURN,
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>x<｜tool▁call▁end｜>",
        &["T \"<｜tool▁call▁begin｜>now<｜tool▁sep｜>x<｜tool▁call▁end｜>\""],
    ),
    case(
        TURN,
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{\"a\": \"b\"",
        &["C0 now {\"a\": \"b\" cut"],
    ),
    case(
        TURN,
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{\"a\": \"b\"]<｜tool▁call▁end｜><｜tool▁calls▁end｜>.",
        &["C0 now {\"a\": \"b\" broken", "T \"].\""],
    ),
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case(TURN, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>write_file<｜tool▁sep｜>{\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] <｜tool▁call▁end｜> é💧\\u00e9\\tz\"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>plan<｜tool▁sep｜>{\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}<｜tool▁call▁end｜><｜tool▁calls▁end｜>", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] <｜tool▁call▁end｜> é💧\\u00e9\\tz\"}", "C1 plan {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
];
