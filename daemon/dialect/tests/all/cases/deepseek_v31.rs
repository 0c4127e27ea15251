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
];
