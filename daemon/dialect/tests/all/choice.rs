//! Which dialect a checkpoint has.

use std::collections::BTreeSet;

use minisgl_dialect::{Checkpoint, by_name, choose, names};
use serde_json::Value;

/// Architecture, what the template says, a token of the vocabulary, and the dialect. The templates are look-alikes: what
/// a family is known by, in a template as short as can be.
const CHECKPOINTS: &[(&str, &str, &str, &str)] = &[
    ("GptOssForCausalLM", "", "", "gpt_oss"),
    ("", "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}", "", "gpt_oss"),
    ("Gemma4ForConditionalGeneration", "", "", "gemma4"),
    ("", "{{ '<|tool_call>call:' + call.name + '{' }}", "", "gemma4"),
    (
        "DeepseekV3ForCausalLM",
        "<|tool_call_begin|>{{ id }}<|tool_call_argument_begin|>{{ arguments }}",
        "",
        "kimi_k2",
    ),
    (
        "DeepseekV3ForCausalLM",
        "{{ t.type + '<｜tool▁sep｜>' + t.name + '\\n```json\\n' }}",
        "",
        "deepseek_v3",
    ),
    (
        "Qwen2ForCausalLM",
        "{{ 'function<｜tool▁sep｜>' + name + '```json' }}<think>",
        "",
        "deepseek_v3",
    ),
    (
        "DeepseekV3ForCausalLM",
        "{{ t.name + '<｜tool▁sep｜>' + arguments }}</think>",
        "",
        "deepseek_v31",
    ),
    (
        "MiniMaxM2ForCausalLM",
        "{%- set begin = '<minimax:tool_call>' -%}<invoke name=",
        "",
        "minimax_m2",
    ),
    ("MistralForCausalLM", "{{ '[TOOL_CALLS][' }}", "", "mistral"),
    (
        "Mistral3ForConditionalGeneration",
        "{{ '[TOOL_CALLS]' + name + '[ARGS]' }}[THINK]",
        "",
        "mistral",
    ),
    ("Cohere2ForCausalLM", "<|START_THINKING|><|START_ACTION|>[", "", "command"),
    ("CohereForCausalLM", "{{ '\\nAction:\\n```json\\n[' }}\"tool_name\": ", "", "command"),
    ("NemotronHForCausalLM", "{{ '<TOOLCALL>[' }}<think>", "", "nemotron"),
    ("NemotronHForCausalLM", "<tool_call>\n<function=f>\n<parameter=p>", "", "nemotron"),
    ("Glm4MoeForCausalLM", "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>", "", "glm"),
    (
        "GraniteForCausalLM",
        "respond only with <|tool_call|> followed by a JSON list",
        "",
        "granite",
    ),
    (
        "GraniteMoeHybridForCausalLM",
        "<tool_call>\n{\"name\": <function-name>}\n</tool_call>",
        "",
        "granite",
    ),
    ("Phi3ForCausalLM", "<|tool|>{{ tools }}<|/tool|>", "<|tool_call|>", "phi4"),
    ("Phi3ForCausalLM", "<|user|>{{ m.content }}<|end|>", "", "plain"),
    ("SmolLM3ForCausalLM", "{% if xml_tools %}<tool_call>{% endif %}", "", "smollm3"),
    ("Qwen3MoeForCausalLM", "<tool_call>\n<function=f>\n<parameter=p>\nvalue", "", "qwen3_coder"),
    ("Qwen3ForCausalLM", "<tool_call>\n{\"name\": <function-name>}<think>", "", "hermes"),
    ("Qwen2ForCausalLM", "<tool_call>\n{\"name\": <function-name>}", "", "hermes"),
    (
        "LlamaForCausalLM",
        "Environment: ipython\n{\"name\": function name, \"parameters\": ..}",
        "",
        "llama",
    ),
    ("Llama4ForConditionalGeneration", "{{ m.content }}", "", "llama"),
    ("LlamaForCausalLM", "{{ m.content }}", "<|python_tag|>", "llama"),
    ("Gemma3ForConditionalGeneration", "<start_of_turn>model\n", "", "gemma3"),
    ("Qwen2ForCausalLM", "{{ content.split('</think>')[-1] }}", "", "think"),
    ("Olmo3ForCausalLM", "{{ m.content }}", "<think>", "think"),
    ("LlamaForCausalLM", "{{ m.content }}", "", "plain"),
    ("LlamaForCausalLM", "<function=name>{{ arguments }}</function><|python_tag|>", "", "plain"),
    ("MiniMaxM3ForCausalLM", "{{ ns + '<tool_call>' }}<invoke name=\"f\">", "", "plain"),
    ("", "", "", "plain"),
];

#[test]
fn a_checkpoint_has_the_dialect_of_its_family() {
    let mut seen = BTreeSet::new();
    for &(architecture, template, token, name) in CHECKPOINTS {
        let has_token = |text: &str| !token.is_empty() && text == token;
        let dialect = choose(&Checkpoint { architecture, template, has_token: &has_token });
        assert_eq!(dialect.name, name, "of {architecture} with {template:?} and {token:?}");
        seen.insert(name);
    }
    let all: BTreeSet<&str> = names().collect();
    assert_eq!(seen, all, "every dialect is chosen by some checkpoint");
}

#[test]
fn a_name_gives_its_dialect_and_another_all_names() {
    for name in names() {
        assert_eq!(by_name(name).unwrap().name, name);
    }
    let error = by_name("qwen").err().unwrap();
    assert!(
        error.contains("\"qwen\"") && error.contains("hermes") && error.contains("gpt_oss"),
        "{error}"
    );
}

#[test]
fn a_prompt_says_whether_it_opened_a_thought() {
    let is = |name: &str, prompt: &str, continued: &str| {
        by_name(name).unwrap().is_in_thought(prompt, continued)
    };
    assert!(is("hermes", "<|im_start|>assistant\n<think>\n", ""));
    assert!(!is("hermes", "<|im_start|>assistant\n<think>\n\n</think>\n\n", ""));
    assert!(!is("hermes", "what is <think>?<|im_end|>\n<|im_start|>assistant\n", ""));
    assert!(is("hermes", "assistant\n<think>\nI", "<think>\nI"));
    assert!(is("hermes", "assistant\n<think>\nI", "I"));
    assert!(!is("hermes", "assistant\n<think>a</think>I", "<think>a</think>I"));
    assert!(!is("deepseek_v31", "<｜Assistant｜></think>", ""));
    assert!(is("gemma4", "<|turn>model\n<|channel>thought\n", ""));
    assert!(!is("gemma4", "<|turn>model\n<|channel>thought\n<channel|>", ""));
    assert!(is("mistral", "[THINK]", ""));
    assert!(is("kimi_k2", "◁think▷", ""));
    assert!(is("gpt_oss", "<|start|>assistant<|channel|>analysis<|message|>", ""));
    assert!(!is("plain", "<think>", ""));
}

/// Real templates by their files' names, where `MINISGL_CORPUS` says where they are (tests/fixtures/make_corpus.py).
const TEMPLATES: &[(&str, &str)] = &[
    ("CohereForAI-c4ai-command-r7b", "command"),
    ("CohereForAI-c4ai-command-r-plus", "command"),
    ("Cohere2MoE", "command"),
    ("GLM-4.6", "glm"),
    ("GLM-4.7", "glm"),
    ("Kimi-K2", "kimi_k2"),
    ("moonshotai-Kimi-K2", "kimi_k2"),
    ("MiniMax-M2", "minimax_m2"),
    ("MiniMax-M3", "plain"),
    ("Mistral-Small", "mistral"),
    ("mistralai-", "mistral"),
    ("unsloth-mistral", "mistral"),
    ("NVIDIA-Nemotron-Nano-v2", "nemotron"),
    ("NVIDIA-Nemotron-3", "qwen3_coder"),
    ("NousResearch-", "hermes"),
    ("Qwen-", "hermes"),
    ("Qwen3-Coder", "qwen3_coder"),
    ("Qwen3.5", "qwen3_coder"),
    ("deepseek-ai-DeepSeek-R1", "deepseek_v3"),
    ("deepseek-ai-DeepSeek-V3.1", "deepseek_v31"),
    ("deepseek-ai-DeepSeek-V3.2", "think"),
    ("google-gemma-4", "gemma4"),
    ("google-gemma-2", "plain"),
    ("ibm-granite-", "granite"),
    ("meta-llama-", "llama"),
    ("microsoft-Phi-3.5", "plain"),
    ("openai-gpt-oss", "gpt_oss"),
];

#[test]
fn real_templates_have_the_dialect_of_their_family() {
    let Some(path) = std::env::var_os("MINISGL_CORPUS") else {
        eprintln!("skipped: MINISGL_CORPUS is not set; `cargo xtask test` makes the corpus");
        return;
    };
    let corpus: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut seen = BTreeSet::new();
    for template in corpus["templates"].as_array().unwrap() {
        let (file, text) =
            (template["name"].as_str().unwrap(), template["template"].as_str().unwrap());
        let Some((prefix, name)) = TEMPLATES.iter().find(|(prefix, _)| file.starts_with(prefix))
        else {
            continue;
        };
        let dialect =
            choose(&Checkpoint { architecture: "", template: text, has_token: &|_| false });
        assert_eq!(dialect.name, *name, "of {file}");
        seen.insert(*prefix);
    }
    assert_eq!(seen.len(), TEMPLATES.len(), "{seen:?}");
}
