use crate::support::Case;

const fn case(output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "mistral", prompt: "[/INST]", output, parts }
}

pub const CASES: &[Case] = &[
    case("A list: [1, 2] and [T.", &["T \"A list: [1, 2] and [T.\""]),
    case(
        "[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}, \"id\": \"abcdefghi\"}, {\"name\": \"now\", \"arguments\": {}}]",
        &["C0 get_weather {\"city\": \"Paris\"}", "C1 now {}"],
    ),
    case(
        "[THINK]Hm.[/THINK]Look: [TOOL_CALLS]get_weather[ARGS]{\"city\": \"Paris\", \"days\": [{}]}[TOOL_CALLS]now[ARGS]{}",
        &[
            "R \"Hm.\"",
            "T \"Look:\"",
            "C0 get_weather {\"city\": \"Paris\", \"days\": [{}]}",
            "C1 now {}",
        ],
    ),
    case(
        "[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{\"city\": \"x\"}",
        &["C0 get_weather#abcdefghi {\"city\": \"x\"}"],
    ),
    case("[TOOL_CALLS]now{\"a\": 1}\n", &["C0 now {\"a\": 1}"]),
    case("[TOOL_CALLS]{\"name\": \"now\", \"arguments\": {}} b", &["C0 now {}", "T \"b\""]),
    // A raw line break in a string.
    case("[TOOL_CALLS]f[ARGS]{\"a\": \"x\n\ty\"}", &["C0 f {\"a\": \"x\\n\\ty\"}"]),
    // Broken.
    case("[TOOL_CALLS]now and then", &["T \"[TOOL_CALLS]now and then\""]),
    case("[TOOL_CALLS]now[ARGS]\"x\"", &["T \"[TOOL_CALLS]now[ARGS]\\\"x\\\"\""]),
    case("[TOOL_CALLS]now[ARGS]{\"a\": x} b", &["C0 now {\"a\":  broken", "T \"x} b\""]),
    case("[TOOL_CALLS][{\"name\": \"now\", \"arguments\": {\"a\"", &["C0 now {\"a\" cut"]),
    case(
        "[TOOL_CALLS][{\"name\": \"now\", \"arguments\": {}}, {\"nam\": 1}] b",
        &["C0 now {}", "T \", {\\\"nam\\\": 1}] b\""],
    ),
    case("[THINK]never [TOOL_CALLS]now[ARGS]{}", &["R \"never\"", "C0 now {}"]),
    case("[TOOL_CALLS", &["T \"[TOOL_CALLS\""]),
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case("[TOOL_CALLS]write_file[ARGS]{\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] [TOOL_CALLS]now[ARGS]{} é💧\\u00e9\\tz\"}[TOOL_CALLS]plan[ARGS]{\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] [TOOL_CALLS]now[ARGS]{} é💧\\u00e9\\tz\"}", "C1 plan {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
    case("[TOOL_CALLS] [{\"name\": \"write_file\", \"arguments\": {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] }] é💧\\u00e9\\tz\"}}, {\"name\": \"plan\", \"arguments\": {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}}]", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] }] é💧\\u00e9\\tz\"}", "C1 plan {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
];
