//! The text side of a folder: what it says of itself, and its jobs.
//!
//! Owns: tokenizer and template of one model. Must never: answer a job with more than fits into a frame.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use minisgl_proto::text::{
    Conversation, JOB_TOKENS_MAX, NAMED_TOKEN_BYTES_MAX, PROMPT_END_BYTES, TEMPLATE_TOLD_BYTES_MAX,
    TextAnswer, TextFault, TextInfo, TextJob,
};

use crate::dialect;
use crate::encode::Encoder;
use crate::files::{Files, LoadError};
use crate::template::{ChatTemplate, TemplateError};
use crate::vocabulary;

/// The special tokens that the daemon is told by name.
const NAMED: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

/// Tokenizer and template of one model.
pub struct TextSide {
    encoder: Option<Encoder>,
    template: Option<ChatTemplate>,
}

impl TextSide {
    /// Reads a folder, as far as its files are there, and tries its template; `dialect` is the one that somebody chose for it.
    /// Slow.
    ///
    /// # Errors
    /// A file is broken.
    pub fn load(dir: &Path, dialect: Option<&str>) -> Result<(TextSide, TextInfo), LoadError> {
        let files = Files::read(dir)?;
        let path = dir.join("tokenizer.json");
        let mut info = TextInfo {
            named: told(&files.special),
            template_source: told_source(&files.templates),
            defaults: files.defaults.clone(),
            ..TextInfo::default()
        };
        let encoder = match vocabulary::load(&path, &files)? {
            None => None,
            Some(tokenizer) => {
                let eos = files.special.iter().find(|(name, _)| name == "eos_token");
                let eos = eos.map(|(_, content)| content.as_str());
                let (table, notes) = vocabulary::table(&tokenizer, eos, &path)?;
                let token_bytes_max = table.token_bytes_max;
                info.vocabulary = Some(table);
                info.notes.extend(notes);
                Some(Encoder::new(tokenizer, token_bytes_max))
            }
        };
        info.dialect = dialect::find(dir, dialect, &files, info.vocabulary.as_ref())?.to_owned();
        let template = ChatTemplate::new(dir, files)?;
        if let Some(template) = &template {
            let (traits, notes) = template.traits();
            info.has_template = true;
            info.template = traits;
            info.notes.extend(notes);
        }
        Ok((TextSide { encoder, template }, info))
    }

    /// Does a job.
    ///
    /// # Errors
    /// See [`TextFault`].
    pub fn run(&self, job: TextJob, abandoned: &AtomicBool) -> Result<TextAnswer, TextFault> {
        match job {
            TextJob::Encode { texts, add_special, tokens_max } => {
                let encoder = self.encoder()?;
                let mut left = JOB_TOKENS_MAX;
                let mut lists = Vec::with_capacity(texts.len());
                for text in texts {
                    let ids =
                        encoder.encode(&text, add_special, tokens_max.min(left), abandoned)?;
                    left = left.saturating_sub(ids.len() as u32);
                    lists.push(ids);
                }
                Ok(TextAnswer::Tokens(lists))
            }
            TextJob::EncodeChat { conversation, tokens_max } => {
                let encoder = self.encoder()?;
                let template = self.template.as_ref().ok_or(TextFault::NoTemplate)?;
                let conversation: Conversation = serde_json::from_str(&conversation)
                    .map_err(|why| TextFault::TemplateFailed(why.to_string()))?;
                let prompt = template.render(&conversation, abandoned).map_err(fault)?;
                drop(conversation);
                let tokens_max = tokens_max.min(JOB_TOKENS_MAX);
                let ids = encoder.encode(&prompt, false, tokens_max, abandoned)?;
                Ok(TextAnswer::Prompt { ids, end: end_of(&prompt).to_owned() })
            }
            TextJob::Decode { lists, skip_special } => {
                let encoder = self.encoder()?;
                let texts = lists.iter().map(|ids| encoder.decode(ids, skip_special));
                texts.collect::<Result<_, _>>().map(TextAnswer::Texts)
            }
        }
    }

    fn encoder(&self) -> Result<&Encoder, TextFault> {
        self.encoder.as_ref().ok_or(TextFault::NoTokenizer)
    }
}

/// The special tokens that clients ask for by name.
fn told(special: &[(String, String)]) -> Vec<(String, String)> {
    let is_told = |(name, token): &&(String, String)| {
        NAMED.contains(&&**name) && token.len() <= NAMED_TOKEN_BYTES_MAX
    };
    special.iter().filter(is_told).cloned().collect()
}

/// The template that a conversation without tools gets, unless it is too long to be told.
fn told_source(templates: &[(String, String)]) -> Option<String> {
    let (_, source) = templates.iter().find(|(name, _)| name == "default")?;
    Some(source.clone()).filter(|source| source.len() <= TEMPLATE_TOLD_BYTES_MAX)
}

/// The end of a prompt's text.
fn end_of(prompt: &str) -> &str {
    let mut start = prompt.len().saturating_sub(PROMPT_END_BYTES);
    while !prompt.is_char_boundary(start) {
        start += 1;
    }
    &prompt[start..]
}

fn fault(error: TemplateError) -> TextFault {
    match error {
        TemplateError::Refused(why) => TextFault::Refused(why),
        TemplateError::Failed(why) => TextFault::TemplateFailed(why),
        TemplateError::Abandoned => TextFault::Abandoned,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::tiny::{BOS, byte_level};

    #[test]
    fn what_clients_ask_for_by_name_is_told_within_limits() {
        let load = |eos: &str, template: &str| {
            let dir = tempfile::tempdir().unwrap();
            let config = json!({"bos_token": "<s>", "eos_token": {"content": eos}, "image_token": "<i>",
                                "chat_template": template});
            std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
            TextSide::load(dir.path(), None).unwrap().1
        };
        let named = |info: &TextInfo, name: &str| {
            info.named.iter().find(|(own, _)| own == name).map(|(_, token)| token.clone())
        };
        let info = load("</s>", "{{ messages }}");
        assert_eq!(named(&info, "bos_token").as_deref(), Some("<s>"));
        assert_eq!(named(&info, "eos_token").as_deref(), Some("</s>"));
        assert_eq!((named(&info, "image_token"), named(&info, "pad_token")), (None, None));
        assert_eq!(info.template_source.as_deref(), Some("{{ messages }}"));
        let info = load(&"x".repeat(257), &"x".repeat((64 << 10) + 1));
        assert_eq!((named(&info, "eos_token"), info.template_source), (None, None));
        assert!(info.has_template, "it is used all the same");
    }

    /// transformers 5.24 drops both flags where there is a `tokenizer.json`: its post-processor alone decides.
    #[test]
    fn the_post_processor_decides_what_is_put_around_a_prompt_and_no_flag() {
        let mut bare = byte_level();
        bare["post_processor"] = Value::Null;
        for (tokenizer, right) in [(byte_level(), vec![BOS, 97, 98]), (bare, vec![97, 98])] {
            for (bos, eos) in [(true, true), (false, true), (true, false), (false, false)] {
                let dir = tempfile::tempdir().unwrap();
                let config = json!({"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>",
                    "eos_token": "<|im_end|>", "add_bos_token": bos, "add_eos_token": eos});
                let write = |name: &str, json: &Value| {
                    std::fs::write(dir.path().join(name), json.to_string()).unwrap();
                };
                write("tokenizer.json", &tokenizer);
                write("tokenizer_config.json", &config);
                let (side, _) = TextSide::load(dir.path(), None).unwrap();
                let texts = vec!["ab".to_owned()];
                let job = TextJob::Encode { texts, add_special: true, tokens_max: 9 };
                let answer = side.run(job, &AtomicBool::new(false)).unwrap();
                let TextAnswer::Tokens(lists) = answer else { panic!("{answer:?}") };
                assert_eq!(lists.concat(), right, "add_bos_token {bos}, add_eos_token {eos}");
            }
        }
    }
}
