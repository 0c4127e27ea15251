use crate::support::Case;

const fn case(prompt: &'static str, output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "command", prompt, output, parts }
}

const TURN: &str = "<|CHATBOT_TOKEN|>";

pub const CASES: &[Case] = &[
    case(
        TURN,
        "<|START_THINKING|>I will look.<|END_THINKING|><|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}},\n    {\"tool_call_id\": \"1\", \"tool_name\": \"now\", \"parameters\": {}}\n]<|END_ACTION|>",
        &["R \"I will look.\"", "C0 get_weather {\"city\": \"Paris\"}", "C1 now {}"],
    ),
    case(
        TURN,
        "<|START_RESPONSE|>It is <co>3</co: 0:[0]>.<|END_RESPONSE|>",
        &["T \"It is <co>3</co: 0:[0]>.\""],
    ),
    case(
        TURN,
        "<|START_ACTION|>{\"tool_name\": \"now\", \"parameters\": {}}<|END_ACTION|>",
        &["C0 now {}"],
    ),
    case(
        TURN,
        "Action:\n```json\n[\n    {\n        \"tool_name\": \"get_weather\",\n        \"parameters\": {\n            \"city\": \"Paris\"\n        }\n    }\n]```",
        &["C0 get_weather {\n            \"city\": \"Paris\"\n        }"],
    ),
    case(TURN, "Action: none", &["T \"Action: none\""]),
    case(
        TURN,
        "<|START_ACTION|>[{\"tool_name\": \"f\", \"parameters\": {\"a\": }}]<|END_ACTION|>",
        &["C0 f {\"a\":  broken", "T \"}}]\""],
    ),
    case("<|CHATBOT_TOKEN|><|START_THINKING|>", "plan <|END_THIN", &["R \"plan <|END_THIN\""]),
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case(TURN, "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"write_file\", \"parameters\": {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] <|END_ACTION|> é💧\\u00e9\\tz\"}},\n    {\"tool_call_id\": \"1\", \"tool_name\": \"plan\", \"parameters\": {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}}\n]<|END_ACTION|>", &["C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] <|END_ACTION|> é💧\\u00e9\\tz\"}", "C1 plan {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
    case(TURN, "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"get_weather\", \"parameters\": {\"city\": \"Par", &["C0 get_weather {\"city\": \"Par cut"]),
];
