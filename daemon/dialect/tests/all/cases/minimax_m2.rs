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
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case("]~b]ai\n", "<minimax:tool_call>\n<invoke name=\"write_file\">\n<parameter name=\"path\">a b.md</parameter>\n<parameter name=\"content\"># A\n\"q\" \\ {x} [y] </minimax:tool_call> é💧\n</parameter>\n</invoke>\n<invoke name=\"plan\">\n<parameter name=\"steps\">[[\"a\"], {\"b\": \"</parameter>\"}]</parameter>\n<parameter name=\"deep\">{\"k\": {\"l\": {}}}</parameter>\n<parameter name=\"done\">false</parameter>\n</invoke>\n</minimax:tool_call>", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] </minimax:tool_call> é💧\\n\"}", "C1 plan {\"steps\": [[\"a\"], {\"b\": \"</parameter>\"}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
    case("]~b]ai\n", "<minimax:tool_call>\n<invoke name=\"now\">\n<parameter name=\"a b{\">1</parameter>\n</invoke>\n</minimax:tool_call>", &["C0 now { broken", "T \"\\\"a b{\\\">1</parameter>\\n</invoke>\""]),
    case("]~b]ai\n", "<minimax:tool_call>\n<invoke name=\"write_file\">\n<parameter name=\"content\">a</invoke>\nb</parameter>\n<parameter name=\"path\">a</parameter>\n</invoke>\n</minimax:tool_call>", &["C0 write_file {\"content\": \"a</invoke>\\nb\", \"path\": \"a\"}"]),
];
