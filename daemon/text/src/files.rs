//! What the files of a model's folder say of tokens and templates, as transformers reads them.
//!
//! | file | what counts |
//! |---|---|
//! | `tokenizer_config.json` | `chat_template`, special tokens, `added_tokens_decoder`, `split_special_tokens` |
//! | `special_tokens_map.json` | special tokens, before the configuration's, where there is no `added_tokens_decoder` |
//! | `added_tokens.json` | tokens by content, likewise |
//! | `chat_template.jinja`, `additional_chat_templates/*.jinja` | templates; they win over the configuration's |
//! | `generation_config.json` | recommended sampling |
//!
//! Owns: which file wins. Must never: read a file of more than [`FILE_BYTES_MAX`].

mod special;

use std::path::{Path, PathBuf};

use minisgl_proto::text::GenerationDefaults;
use serde_json::{Map, Value};
use special::Special;
use tokenizers::AddedToken;

/// Bytes of a file at most; the largest tokenizer.json known has 34 MB.
pub const FILE_BYTES_MAX: u64 = 256 << 20;
/// Templates of a folder at most.
const TEMPLATES_MAX: usize = 64;
/// How a file begins that Git LFS left in place of the real one.
const LFS: &[u8] = b"version https://git-lfs";

/// Why a model folder has no text side.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Unreadable, or not what it should be.
    #[error("{path} cannot be used: {why}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The chat template is broken.
    #[error("the chat template \"{name}\" of {dir} does not parse: {why}")]
    Template {
        /// Folder of the model.
        dir: PathBuf,
        /// The template's name.
        name: String,
        /// What and where.
        why: String,
    },
}

/// What the files say.
#[derive(Debug, Default)]
pub struct Files {
    /// Chat templates by name.
    pub templates: Vec<(String, String)>,
    /// `bos_token` and its kind, by name, which templates may mention.
    pub special: Vec<(String, String)>,
    /// Tokens that the tokenizer must know, in the order in which they get ids; these flags count.
    pub added: Vec<AddedToken>,
    /// Those that it must know after these. Of one that is added already, its own flags count.
    pub more: Vec<More>,
    /// Special tokens in a text are spelled out.
    pub split_special: bool,
    /// Recommended sampling.
    pub defaults: GenerationDefaults,
}

/// A token that the tokenizer must know.
#[derive(Debug)]
pub struct More {
    /// With the flags that it gets if it is not added already.
    pub token: AddedToken,
    /// It is special in any case.
    pub named: bool,
}

impl Files {
    /// Reads a folder's files, as far as they are there.
    ///
    /// # Errors
    /// One is broken.
    pub fn read(dir: &Path) -> Result<Files, LoadError> {
        let config = json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let mut files = Files {
            templates: templates(dir, &config)?,
            split_special: config.get("split_special_tokens") == Some(&Value::Bool(true)),
            defaults: defaults(&dir.join("generation_config.json"))?,
            ..Files::default()
        };
        // Where the configuration has all tokens, the older files do not count.
        let decoder = config.get("added_tokens_decoder").and_then(Value::as_object).cloned();
        let map = match decoder {
            Some(_) => None,
            None => json(&dir.join("special_tokens_map.json"))?,
        };
        let special = Special::read(config, map.unwrap_or_default());
        match decoder {
            Some(decoder) => {
                let mut tokens: Vec<(u64, AddedToken)> = decoder
                    .iter()
                    .filter_map(|(id, token)| Some((id.parse().ok()?, added_token(token)?)))
                    .collect();
                tokens.sort_by_key(|(id, _)| *id);
                files.added.extend(tokens.into_iter().map(|(_, token)| token));
            }
            None => {
                let tokens = json(&dir.join("added_tokens.json"))?.unwrap_or_default();
                let mut tokens: Vec<(u64, String)> = tokens
                    .into_iter()
                    .filter_map(|(content, id)| Some((id.as_u64()?, content)))
                    .collect();
                tokens.sort();
                let tokens = tokens.into_iter().map(|(_, content)| {
                    let is_special = special.names(&content);
                    AddedToken::from(content, is_special).normalized(!is_special)
                });
                files.more.extend(tokens.map(|token| More { token, named: false }));
            }
        }
        for (name, value) in &special.named {
            let Some(token) = added_token(value).map(|token| token.special(true)) else { continue };
            files.special.push((name.clone(), token.content.clone()));
            files.more.push(More { token, named: true });
        }
        let extra = special.extra.iter().filter_map(added_token);
        files.more.extend(extra.map(|token| More { token, named: false }));
        Ok(files)
    }
}

/// A token, as a string, which is special, or as an object with its flags.
fn added_token(value: &Value) -> Option<AddedToken> {
    if let Some(content) = value.as_str() {
        return Some(AddedToken::from(content, true)).filter(|token| !token.content.is_empty());
    }
    let content = value["content"].as_str().filter(|content| !content.is_empty())?;
    let flag = |name: &str, default| value[name].as_bool().unwrap_or(default);
    let special = flag("special", false);
    Some(
        AddedToken::from(content, special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !special)),
    )
}

/// The chat templates: of the configuration a string, a list of named ones, or an object by name; then files.
fn templates(dir: &Path, config: &Map<String, Value>) -> Result<Vec<(String, String)>, LoadError> {
    let mut found: Vec<(String, String)> = match config.get("chat_template") {
        Some(Value::String(template)) => vec![("default".to_owned(), template.clone())],
        Some(Value::Array(named)) => named
            .iter()
            .filter_map(|one| {
                Some((one["name"].as_str()?.into(), one["template"].as_str()?.into()))
            })
            .collect(),
        Some(Value::Object(named)) => named
            .iter()
            .filter_map(|(name, template)| Some((name.clone(), template.as_str()?.to_owned())))
            .collect(),
        _ => Vec::new(),
    };
    let mut put = |name: String, template: String| {
        found.retain(|(other, _)| *other != name);
        found.push((name, template));
    };
    // The form that transformers wrote for a short while.
    if let Some(legacy) = json(&dir.join("chat_template.json"))?
        && let Some(Value::String(template)) = legacy.get("chat_template")
    {
        put("default".to_owned(), template.clone());
    }
    if let Some(template) = text(&dir.join("chat_template.jinja"))? {
        put("default".to_owned(), template);
    }
    let folder = std::fs::read_dir(dir.join("additional_chat_templates"));
    let mut paths: Vec<PathBuf> = folder
        .into_iter()
        .flatten()
        .flatten()
        .take(TEMPLATES_MAX)
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|end| end == "jinja")) {
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        if let (Some(name), Some(template)) = (name, text(path)?) {
            put(name, template);
        }
    }
    found.truncate(TEMPLATES_MAX);
    Ok(found)
}

fn defaults(path: &Path) -> Result<GenerationDefaults, LoadError> {
    let Some(fields) = json(path)? else { return Ok(GenerationDefaults::default()) };
    serde_json::from_value(Value::Object(fields)).map_err(|why| broken(path, why))
}

/// A file that holds a JSON object; `None` when there is no such file.
fn json(path: &Path) -> Result<Option<Map<String, Value>>, LoadError> {
    let Some(bytes) = bytes(path)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|why| broken(path, why))
}

fn text(path: &Path) -> Result<Option<String>, LoadError> {
    let Some(bytes) = bytes(path)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|_| broken(path, "it is not UTF-8"))
}

/// A file's bytes; `None` when there is no such file.
///
/// # Errors
/// It is unreadable, too large, or a pointer of Git LFS.
pub fn bytes(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(broken(path, why)),
    };
    if size > FILE_BYTES_MAX {
        return Err(broken(path, format!("it has {size} bytes, the limit is {FILE_BYTES_MAX}")));
    }
    let bytes = std::fs::read(path).map_err(|why| broken(path, why))?;
    if bytes.starts_with(LFS) {
        let remedy = "it is a pointer of Git LFS, not the file itself; run `git lfs pull` in the model's folder";
        return Err(broken(path, remedy));
    }
    Ok(Some(match bytes.strip_prefix(b"\xef\xbb\xbf") {
        Some(rest) => rest.to_vec(),
        None => bytes,
    }))
}

/// The error of a file.
pub fn broken(path: &Path, why: impl ToString) -> LoadError {
    LoadError::File { path: path.to_path_buf(), why: why.to_string() }
}
