use crate::support::Case;

const fn case(prompt: &'static str, output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "nemotron", prompt, output, parts }
}

const TURN: &str = "<SPECIAL_11>Assistant\n<think>\n";

pub const CASES: &[Case] = &[
    case(
        TURN,
        "Hm.\n</think>\n\n<TOOLCALL>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}, {\"name\": \"now\", \"arguments\": {}}]</TOOLCALL>",
        &["R \"Hm.\"", "C0 get_weather {\"city\": \"Paris\"}", "C1 now {}"],
    ),
    case(
        TURN,
        "Hm.</think>\n<tool_call>\n<function=get_weather>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n",
        &["R \"Hm.\"", "C0 get_weather {\"days\": 3}"],
    ),
    case("<think></think>", "<TOOLCALL>[]</TOOLCALL>", &["T \"<TOOLCALL>[]</TOOLCALL>\""]),
    case(
        "<think></think>",
        "<TOOLCALL>[{\"name\": \"f\", \"arguments\": {\"a\": 1",
        &["C0 f {\"a\": 1 cut"],
    ),
    case(
        "<think></think>",
        "<TOOLCALL>[{\"name\": \"f\", \"arguments\": {\"a\": 1}} and</TOOLCALL>.",
        &["C0 f {\"a\": 1}", "T \"and.\""],
    ),
    case(
        "<think></think>",
        "<TOOLCALL>[{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}]</TOOLCALL>",
        &["C0 f {\"a\": 1}"],
    ),
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case("<think></think>", "<TOOLCALL>[{\"name\": \"write_file\", \"arguments\": {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] ]</TOOLCALL> é💧\\u00e9\\tz\"}}, {\"name\": \"plan\", \"arguments\": {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}}]</TOOLCALL>", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] ]</TOOLCALL> é💧\\u00e9\\tz\"}", "C1 plan {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
    case("<think></think>", "<TOOLCALL>[{\"name\": \"f\", \"arguments\": {\"a\": tru}}]</TOOLCALL>", &["C0 f {\"a\": tru broken", "T \"}}]\""]),
];
