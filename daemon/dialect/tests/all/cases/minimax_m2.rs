use crate::support::Case;

const fn case(prompt: &'static str, output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "minimax_m2", prompt, output, parts }
}

const TURN: &str = "]~b]ai\n<think>\n";

pub const CASES: &[Case] = &[
    case(
        TURN,
        "Hm.\n</think>\n\nI look.\n<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">Paris \"é\"</parameter>\n<parameter name=\"days\">2</parameter>\n</invoke>\n<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>",
        &[
            "R \"Hm.\"",
            "T \"I look.\"",
            "C0 get_weather {\"city\": \"Paris \\\"é\\\"\", \"days\": 2}",
            "C1 now {}",
        ],
    ),
    case(
        TURN,
        "a</think><minimax:tool_call><invoke name=\"write_file\"><parameter name=\"content\">\n<parameter name=\"x\">y</parameter> z\n</parameter></invoke></minimax:tool_call> b",
        &[
            "R \"a\"",
            "C0 write_file {\"content\": \"\\n<parameter name=\\\"x\\\">y</parameter> z\\n\"}",
            "T \"b\"",
        ],
    ),
    case("]~b]ai\n", "<minimax:tool_call>\n<invoke>", &["T \"<minimax:tool_call>\\n<invoke>\""]),
    case(
        "]~b]ai\n",
        "<minimax:tool_call>\n<invoke name=\"now\">\n<parameter name=\"a\">1</parameter>\n</minimax:tool_call>",
        &["C0 now {\"a\": 1}"],
    ),
    case(
        "]~b]ai\n",
        "<minimax:tool_call>\n<invoke name=\"now\">\n<parameter name=\"a\">1</parameter>\n</inv",
        &["C0 now {\"a\": \"1</parameter>\\n</inv cut"],
    ),
    case(
        "]~b]ai\n",
        "<minimax:tool_call>\n<invoke name=\"now\">\n</invoke>\nThat is it.</minimax:tool_call>",
        &["C0 now {}", "T \"That is it.\""],
    ),
];
