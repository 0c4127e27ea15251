use crate::support::Case;

const fn case(prompt: &'static str, output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "glm", prompt, output, parts }
}

const TURN: &str = "<|assistant|>";

pub const CASES: &[Case] = &[
    case(
        TURN,
        "\n<think>Hm.</think>\nI look.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
        &["R \"Hm.\"", "T \"I look.\"", "C0 get_weather {\"city\": \"Paris\", \"days\": 2}"],
    ),
    case(
        TURN,
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>\n\"é\"\n</arg_value></tool_call><tool_call>now</tool_call>b",
        &["C0 get_weather {\"city\": \"\\n\\\"é\\\"\\n\"}", "C1 now {}", "T \"b\""],
    ),
    case(
        "<|assistant|><think>",
        "Hm.</think><tool_call>plan<arg_key>steps</arg_key><arg_value>[{\"a\": null}]</arg_value><arg_key>note</arg_key><arg_value>nu</arg_value><arg_key>either</arg_key><arg_value>[1]</arg_value></tool_call>",
        &["R \"Hm.\"", "C0 plan {\"steps\": [{\"a\": null}], \"note\": \"nu\", \"either\": [1]}"],
    ),
    case(
        TURN,
        "<tool_call>write_file<arg_key>content</arg_key><arg_value>a</arg_value>b</arg_value></tool_call>",
        &["C0 write_file {\"content\": \"a</arg_value>b\"}"],
    ),
    // Broken and cut.
    case(TURN, "<tool_call>a name</tool_call>", &["T \"<tool_call>a name</tool_call>\""]),
    case(
        TURN,
        "<tool_call>now<arg_key>a</arg_key>1<arg_value>",
        &["C0 now {\"a\":  broken", "T \"1<arg_value>\""],
    ),
    case(
        TURN,
        "<tool_call>now<arg_key>a</arg_key><arg_value>x</arg_val",
        &["C0 now {\"a\": \"x</arg_val cut"],
    ),
    case(
        TURN,
        "<tool_call>plan<arg_key>steps</arg_key><arg_value>[1, 2",
        &["C0 plan {\"steps\":  cut"],
    ),
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case(TURN, "<tool_call>write_file\n<arg_key>path</arg_key>\n<arg_value>a b.md</arg_value>\n<arg_key>content</arg_key>\n<arg_value># A\n\"q\" \\ {x} [y] </tool_call> é💧\n</arg_value>\n</tool_call>\n<tool_call>plan\n<arg_key>steps</arg_key>\n<arg_value>[[\"a\"], {\"b\": \"</arg_value>\"}]</arg_value>\n<arg_key>deep</arg_key>\n<arg_value>{\"k\": {\"l\": {}}}</arg_value>\n<arg_key>done</arg_key>\n<arg_value>false</arg_value>\n</tool_call>", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] </tool_call> é💧\\n\"}", "C1 plan {\"steps\": [[\"a\"], {\"b\": \"</arg_value>\"}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
    case(TURN, "<think></think>\nIt is 3 < 5.\n", &["T \"It is 3 < 5.\\n\""]),
];
