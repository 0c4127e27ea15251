use crate::support::Case;

const fn case(output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "plain", prompt: "", output, parts }
}

pub const CASES: &[Case] = &[
    case("It rains.\n", &["T \"It rains.\\n\""]),
    case(
        " <think>Hm.</think> <tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>\n",
        &["T \" <think>Hm.</think>\"", "C0 now {}"],
    ),
    case("[now()] 💧 <tool_c", &["T \"[now()] 💧 <tool_c\""]),
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case("<tool_call>{\"name\": \"write_file\", \"arguments\": {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] </tool_call> é💧\\u00e9\\tz\"}}</tool_call>\n<tool_call>{\"name\": \"plan\", \"arguments\": {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}}</tool_call>", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] </tool_call> é💧\\u00e9\\tz\"}", "C1 plan {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
    case("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": tru}}</tool_call>.", &["C0 f {\"a\": tru broken", "T \"}}.\""]),
    case("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"", &["C0 f {\"a\": \" cut"]),
];
