use crate::support::Case;

const fn case(prompt: &'static str, output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "qwen3_coder", prompt, output, parts }
}

const TURN: &str = "<|im_start|>assistant\n";
const THINKS: &str = "<|im_start|>assistant\n<think>\n";

pub const CASES: &[Case] = &[
    case(
        THINKS,
        "Look.\n</think>\n\nI look.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis \"é\"\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
        &[
            "R \"Look.\"",
            "T \"I look.\"",
            "C0 get_weather {\"city\": \"Paris \\\"é\\\"\", \"days\": 2}",
        ],
    ),
    // Several, one without arguments, one without the outer tag.
    case(
        TURN,
        "<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call>\n<function=get_weather>\n<parameter=unit>C</parameter>\n</function>\n</tool_call>\n<function=now></function></tool_call> b",
        &["C0 now {}", "C1 get_weather {\"unit\": \"C\"}", "C2 now {}", "T \"b\""],
    ),
    // Types.
    case(
        TURN,
        "<tool_call>\n<function=plan>\n<parameter=steps>\n[\"a\", {\"b\": 1.50}]\n</parameter>\n<parameter=done>\nTrue\n</parameter>\n<parameter=note>\nnull\n</parameter>\n<parameter=scale>\n1e-3\n</parameter>\n<parameter=any>\n{\"k\": []}\n</parameter>\n<parameter=either>\n[1, 2\n</parameter>\n</function>\n</tool_call>",
        &[
            "C0 plan {\"steps\": [\"a\", {\"b\": 1.50}], \"done\": true, \"note\": null, \"scale\": 1e-3, \"any\": {\"k\": []}, \"either\": \"[1, 2\"}",
        ],
    ),
    case(
        TURN,
        "<tool_call>\n<function=plan>\n<parameter=steps>\n['a', True]\n</parameter>\n<parameter=deep>\n{'x': None}\n</parameter>\n<parameter=note>\nnullable\n</parameter>\n<parameter=done>\nmaybe\n</parameter>\n<parameter=new>\n12\n</parameter>\n</function>\n</tool_call>",
        &[
            "C0 plan {\"steps\": [\"a\", true], \"deep\": {\"x\": null}, \"note\": \"nullable\", \"done\": \"maybe\", \"new\": 12}",
        ],
    ),
    // A value with its own closing tag and line breaks, one whose closing tag is missing.
    case(
        TURN,
        "<tool_call>\n<function=write_file>\n<parameter=content>\n\n<a>x</parameter> is a tag\n</parameter\n\n</parameter>\n<parameter=path>\nb</function>\n</tool_call>",
        &[
            "C0 write_file {\"content\": \"\\n<a>x</parameter> is a tag\\n</parameter\\n\", \"path\": \"b\"}",
        ],
    ),
    // No call, a broken one, cut ones.
    case(
        TURN,
        "Use <tool_call> and <function=f> tags",
        &["T \"Use <tool_call> and <function=f> tags\""],
    ),
    case(
        TURN,
        "<tool_call>\n{\"name\": \"now\"}\n</tool_call>",
        &["T \"<tool_call>\\n{\\\"name\\\": \\\"now\\\"}\\n</tool_call>\""],
    ),
    case(
        TURN,
        "<tool_call>\n<function=now>\n<parameter=a>\n1\n</parameter>\n<paramter=b>",
        &["C0 now {\"a\": \"1\\n</parameter>\\n<paramter=b> cut"],
    ),
    case(
        TURN,
        "<tool_call>\n<function=now>\n<parameter=a b{>\n1\n</parameter>\n</function>\n</tool_call>.",
        &["C0 now { broken", "T \"a b{>\\n1\\n</parameter>\\n</function>.\""],
    ),
    case(
        TURN,
        "<tool_call>\n<function=write_file>\n<parameter=content>\nabc\n</param",
        &["C0 write_file {\"content\": \"abc\\n</param cut"],
    ),
    case(TURN, "<tool_call>\n<function=now>\n</function>\n</tool_", &["C0 now {}"]),
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case(TURN, "<tool_call>\n<function=write_file>\n<parameter=path>\na b.md\n</parameter>\n<parameter=content>\n# A\n\"q\" \\ {x} [y] </tool_call> é💧\n\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=plan>\n<parameter=steps>\n[[\"a\"], {\"b\": \"</parameter>\"}]\n</parameter>\n<parameter=deep>\n{\"k\": {\"l\": {}}}\n</parameter>\n<parameter=done>\nfalse\n</parameter>\n</function>\n</tool_call>", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] </tool_call> é💧\\n\"}", "C1 plan {\"steps\": [[\"a\"], {\"b\": \"</parameter>\"}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
    case(TURN, "<tool_call>\n<function=write_file>\n<parameter=content>\n<function>\nx\n</function>\n</parameter>\n<parameter=path>\na\n</parameter>\n</function>\n</tool_call>", &["C0 write_file {\"content\": \"<function>\\nx\\n</function>\", \"path\": \"a\"}"]),
    // A whole call inside a value, as a file about calls has it, cannot be told from an argument without its end.
    case(TURN, "<tool_call>\n<function=write_file>\n<parameter=content>\n<function=now>\n</function>\n</tool_call>\n<parameter=x>\n</parameter>\n<parameter=path>\na\n</parameter>\n</function>\n</tool_call>", &["C0 write_file {\"content\": \"<function=now>\"}", "T \"<parameter=x>\\n</parameter>\\n<parameter=path>\\na\\n</parameter>\\n</function>\\n</tool_call>\""]),
];
