use crate::support::Case;

const fn case(output: &'static str, parts: &'static [&'static str]) -> Case {
    Case { dialect: "gpt_oss", prompt: "<|end|><|start|>assistant", output, parts }
}

pub const CASES: &[Case] = &[
    case(
        "<|channel|>analysis<|message|>Think of it.<|end|><|start|>assistant<|channel|>final<|message|>It is\n 3 < 5.<|return|>",
        &["R \"Think of it.\"", "T \"It is\\n 3 < 5.\""],
    ),
    // The recipient behind the channel, before it, and with a content type that has no marker.
    case(
        "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Paris\"}<|call|>",
        &["R \"Look.\"", "C0 get_weather {\"city\": \"Paris\"}"],
    ),
    case(
        " to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>{\"days\": 2}<|call|><|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}",
        &["C0 get_weather {\"days\": 2}", "C1 now {}"],
    ),
    // A preamble; a final answer in JSON, whose type is no recipient.
    case(
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>{\"a\": 1}",
        &["T \"I look.{\\\"a\\\": 1}\""],
    ),
    // A call in the analysis channel; one of a tool by its bare name; one that is none of ours.
    case(
        "<|channel|>analysis to=functions.now <|constrain|>json<|message|> {} <|call|>",
        &["C0 now {}"],
    ),
    case("<|channel|>commentary to=now<|message|>{}<|call|>", &["C0 now {}"]),
    case("<|channel|>analysis to=python code<|message|>print(1)<|call|>", &["R \"print(1)\""]),
    // No channel at all; broken and cut ones.
    case("Just text, to=me.", &["T \"Just text, to=me.\""]),
    case(
        "<|channel|>commentary to=functions.now<|message|>{\"a\": x}<|call|>",
        &["C0 now {\"a\":  broken", "T \"x}\""],
    ),
    case("<|channel|>commentary to=functions.now<|message|>soon<|call|>", &["T \"soon\""]),
    case("<|channel|>commentary to=functions.now<|message|><|call|>", &["C0 now {}"]),
    case("<|channel|>commentary to=functions.now<|message|>{\"a\": [", &["C0 now {\"a\": [ cut"]),
    case("<|channel|>final<|message|>half <|ret", &["T \"half <|ret\""]),
    Case {
        dialect: "gpt_oss",
        prompt: "<|start|>assistant<|channel|>analysis<|message|>I have",
        output: " to go.<|end|><|start|>assistant<|channel|>final<|message|>ok",
        parts: &["R \" to go.\"", "T \"ok\""],
    },
    Case {
        dialect: "gpt_oss",
        prompt: "<|start|>assistant<|channel|>final<|message|>",
        output: "ok",
        parts: &["T \"ok\""],
    },
    // Hard ones: closing markers inside values, quotes, other scripts, deep values; and what was cut or broken.
    case("<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary to=functions.write_file <|constrain|>json<|message|>{\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] <call> é💧\\u00e9\\tz\"}<|call|>", &["R \"Look.\"", "C0 write_file {\"path\": \"a b.md\", \"content\": \"# A\\n\\\"q\\\" \\\\ {x} [y] <call> é💧\\u00e9\\tz\"}"]),
    case("<|channel|>commentary to=functions.plan <|constrain|>json<|message|>{\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}<|call|>", &["C0 plan {\"steps\": [[\"a\"], {\"b\": [1, -2.5e3, true, null]}], \"deep\": {\"k\": {\"l\": {}}}, \"done\": false}"]),
];
