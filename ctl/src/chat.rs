//! `chat`: a conversation over the OpenAI routes.
//!
//! Owns: the turns so far, the prompt line and its commands. Ctrl-C stops the answer; what came of
//! it stays part of the conversation.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use minisgl_proto::admin::{ModelState, ModelStatus};
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};
use serde_json::{Value, json};

use crate::args::{ChatArgs, Format};
use crate::chat_tools::{Call, Tools};
use crate::client::Client;
use crate::error::CtlError;
use crate::output::{note, print, print_answer, print_json, print_thought};

const ROUTE: &str = "/v1/chat/completions";
/// Bytes of a prompt read from standard input at most.
const PROMPT_BYTES_MAX: u64 = 8 << 20;
/// Answers to one turn that call tools, at most.
const ROUNDS_MAX: usize = 32;
/// Lines of history kept.
const HISTORY_LINES: usize = 1000;
const HELP: &str = "\
/reset         forget the conversation
/system TEXT   set the system message (without TEXT: show it) and forget the conversation
/help          show this
/quit          leave (or Ctrl-D)
Ctrl-C stops an answer. A line that ends with \\ goes on in the next.";

/// Runs the command.
pub async fn run(client: &Client, args: &ChatArgs, format: Format) -> Result<(), CtlError> {
    let prompt = match &args.prompt {
        Some(prompt) => Some(prompt.clone()),
        None if std::io::stdin().is_terminal() => None,
        None => Some(read_prompt()?),
    };
    let model = match &args.model {
        Some(model) => model.clone(),
        None => only_ready(&client.get::<Vec<ModelStatus>>("/admin/v1/models").await?)?,
    };
    let tools = args.tools.as_deref().map(Tools::read).transpose()?.unwrap_or_default();
    let (system, turns) = (args.system.clone(), Vec::new());
    let mut chat = Chat { client, args, model, system, turns, tools };
    match (prompt, format) {
        (Some(prompt), Format::Table) => chat.say(prompt, false).await,
        (Some(prompt), Format::Json) => chat.say_json(prompt).await,
        (None, Format::Table) => chat.converse().await,
        (None, Format::Json) => {
            Err(CtlError::Usage("-o json needs a prompt: --prompt TEXT, or a pipe".to_string()))
        }
    }
}

/// All of standard input.
fn read_prompt() -> Result<String, CtlError> {
    let mut text = String::new();
    std::io::stdin()
        .take(PROMPT_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| CtlError::Usage(format!("standard input cannot be read: {error}")))?;
    if text.len() as u64 > PROMPT_BYTES_MAX {
        return Err(CtlError::Usage(format!("the prompt is longer than {PROMPT_BYTES_MAX} bytes")));
    }
    if text.trim().is_empty() {
        return Err(CtlError::Usage("standard input holds no prompt".to_string()));
    }
    Ok(text)
}

/// The model that is meant when none is named.
fn only_ready(models: &[ModelStatus]) -> Result<String, CtlError> {
    let ready: Vec<&str> = models
        .iter()
        .filter(|model| model.state == ModelState::Ready)
        .map(|model| model.name.as_str())
        .collect();
    match ready[..] {
        [only] => Ok(only.to_string()),
        [] => Err(CtlError::NotFound(
            "no model is ready; see: minisglctl ps, or load one: minisglctl load PATH_OR_REPO"
                .to_string(),
        )),
        _ => Err(CtlError::Usage(format!("which model? ready are: {}", ready.join(", ")))),
    }
}

struct Chat<'a> {
    client: &'a Client,
    args: &'a ChatArgs,
    model: String,
    system: Option<String>,
    /// Messages after the system message.
    turns: Vec<Value>,
    tools: Tools,
}

/// What came of a stream.
#[derive(Default)]
struct Said {
    text: String,
    thought: String,
    calls: Vec<Call>,
    /// Whether its calls are all there.
    ended: bool,
}

impl Said {
    fn is_nothing(&self) -> bool {
        self.text.is_empty() && self.calls.is_empty()
    }

    fn to_json(&self) -> Value {
        let mut message = json!({"role": "assistant", "content": self.text});
        if !self.thought.is_empty() {
            message["reasoning_content"] = self.thought.as_str().into();
        }
        if !self.calls.is_empty() {
            message["tool_calls"] = self.calls.iter().map(Call::to_json).collect();
        }
        message
    }
}

/// What a line of the conversation asks for.
#[derive(Debug, PartialEq)]
enum Input {
    Nothing,
    Say(String),
    Reset,
    System(Option<String>),
    Help,
    Quit,
    Unknown(String),
}

fn parse(line: &str) -> Input {
    let line = line.trim();
    let Some(command) = line.strip_prefix('/') else {
        return if line.is_empty() { Input::Nothing } else { Input::Say(line.to_string()) };
    };
    let (word, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    match word {
        "reset" => Input::Reset,
        "system" => Input::System(Some(rest.trim().to_string()).filter(|text| !text.is_empty())),
        "help" | "?" => Input::Help,
        "quit" | "exit" | "bye" => Input::Quit,
        other => Input::Unknown(format!("/{other}")),
    }
}

impl Chat<'_> {
    async fn converse(&mut self) -> Result<(), CtlError> {
        let failed = |error: ReadlineError| CtlError::Failed(format!("the terminal: {error}"));
        let config = Config::builder()
            .max_history_size(HISTORY_LINES)
            .and_then(|config| config.history_ignore_dups(true))
            .map_err(failed)?
            .auto_add_history(true)
            .build();
        let mut editor = DefaultEditor::with_config(config).map_err(failed)?;
        let history = history_file();
        if let Some(path) = &history {
            let _ = editor.load_history(path); // there is none the first time
        }
        note(&format!("Talking to {}. /help shows the commands.", self.model));
        loop {
            match parse(&match read_line(&mut editor) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => {
                    note("(/quit or Ctrl-D leaves)");
                    continue;
                }
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(failed(error)),
            }) {
                Input::Nothing => {}
                Input::Say(text) => match self.say(text, true).await {
                    Err(CtlError::BrokenPipe) => return Err(CtlError::BrokenPipe),
                    // The conversation outlives a worker that is being restarted.
                    Err(error) => note(&format!("{error}")),
                    Ok(()) => {}
                },
                Input::Reset => {
                    self.turns.clear();
                    note("The conversation is forgotten.");
                }
                Input::System(None) => note(self.system.as_deref().unwrap_or("(none)")),
                Input::System(text) => {
                    self.system = text;
                    self.turns.clear();
                    note("The system message is set; the conversation is forgotten.");
                }
                Input::Help => note(HELP),
                Input::Quit => break,
                Input::Unknown(word) => note(&format!("There is no {word}; see /help.")),
            }
        }
        if let Some(path) = &history
            && let Err(error) = save_history(&mut editor, path)
        {
            note(&format!("the history was not saved in {}: {error}", path.display()));
        }
        Ok(())
    }

    fn body(&self, stream: bool) -> Value {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<Value> = system.chain(self.turns.iter().cloned()).collect();
        let mut body = json!({"model": self.model, "messages": messages, "stream": stream});
        let options = [
            ("max_tokens", self.args.max_tokens.map(Value::from)),
            ("temperature", self.args.temperature.map(Value::from)),
            ("top_p", self.args.top_p.map(Value::from)),
            ("seed", self.args.seed.map(Value::from)),
        ];
        for (name, value) in options {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        if !self.tools.told.is_empty() {
            body["tools"] = self.tools.told.clone().into();
        }
        body
    }

    /// Answers as one JSON object, as the API gives it.
    async fn say_json(&mut self, text: String) -> Result<(), CtlError> {
        self.turns.push(json!({"role": "user", "content": text}));
        let answer: Value = self.client.post(ROUTE, &self.body(false)).await?;
        print_json(&answer)
    }

    /// Adds a turn and streams the answer to it; where the answer calls tools, goes on with their results. A turn without any
    /// answer is taken back.
    async fn say(&mut self, text: String, interruptible: bool) -> Result<(), CtlError> {
        self.turns.push(json!({"role": "user", "content": text}));
        for _ in 0..ROUNDS_MAX {
            let mut said = Said::default();
            let result = if interruptible {
                tokio::select! {
                    result = self.stream(&mut said) => result,
                    _ = tokio::signal::ctrl_c() => {
                        // A call that is cut off has no result.
                        said.calls.clear();
                        print(" [stopped]")
                    }
                }
            } else {
                self.stream(&mut said).await
            };
            if result.is_err() {
                said.calls.clear();
            }
            if said.is_nothing() {
                // A result may stand last; what was said before goes with it.
                while self.turns.pop().is_some_and(|turn| turn["role"] != "user") {}
            } else {
                self.turns.push(said.to_json());
                if !said.text.is_empty() {
                    print("\n")?;
                }
            }
            result?;
            if said.calls.is_empty() {
                return Ok(());
            }
            for call in &said.calls {
                note(&format!("[{}({})]", call.name, call.arguments));
                let run = async {
                    match said.ended {
                        true => self.tools.run(call).await,
                        // What is cut off may mean something else.
                        false => "Error: the call was cut off, and was not made".to_owned(),
                    }
                };
                let result = tokio::select! {
                    result = run => result,
                    _ = tokio::signal::ctrl_c(), if interruptible => {
                        // The program goes with its future; the turn, which has calls without results, is taken back.
                        while self.turns.pop().is_some_and(|turn| turn["role"] != "user") {}
                        return print(" [stopped]\n");
                    }
                };
                self.turns.push(call.result(&result));
            }
        }
        Err(CtlError::Failed(format!(
            "the model called tools {ROUNDS_MAX} times without an answer"
        )))
    }

    async fn stream(&self, said: &mut Said) -> Result<(), CtlError> {
        let mut lines = self.client.post_lines(ROUTE, &self.body(true)).await?;
        while let Some(line) = lines.next().await? {
            let Some(data) = line.strip_prefix("data:").map(str::trim_start) else { continue };
            if data == "[DONE]" {
                return Ok(());
            }
            let chunk: Value = serde_json::from_str(data).map_err(|error| {
                CtlError::Failed(format!("a chunk of the answer makes no sense: {error}"))
            })?;
            if let Some(message) = chunk["error"]["message"].as_str() {
                return Err(CtlError::Failed(message.to_string()));
            }
            let delta = &chunk["choices"][0]["delta"];
            if let Some(text) = delta["reasoning_content"].as_str() {
                print_thought(text)?;
                said.thought.push_str(text);
            }
            if let Some(text) = delta["content"].as_str().filter(|text| !text.is_empty()) {
                if said.text.is_empty() && !said.thought.is_empty() {
                    print_thought("\n")?;
                }
                print_answer(text)?;
                said.text.push_str(text);
            }
            Call::join(&mut said.calls, delta);
            said.ended |= chunk["choices"][0]["finish_reason"] == "tool_calls";
        }
        Err(CtlError::Failed("the answer was cut off".to_string()))
    }
}

/// One entry, over several lines if they end with a backslash.
fn read_line(editor: &mut DefaultEditor) -> Result<String, ReadlineError> {
    let mut entry = editor.readline(">>> ")?;
    while entry.ends_with('\\') {
        entry.pop();
        entry.push('\n');
        entry.push_str(&editor.readline("... ")?);
    }
    Ok(entry)
}

/// `$XDG_STATE_HOME/minisgl/chat_history`, by default under `~/.local/state`.
fn history_file() -> Option<PathBuf> {
    let path = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute());
    let state = path("XDG_STATE_HOME").or_else(|| Some(path("HOME")?.join(".local/state")))?;
    Some(state.join("minisgl/chat_history"))
}

fn save_history(editor: &mut DefaultEditor, path: &PathBuf) -> rustyline::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    editor.save_history(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        assert_eq!(parse("  "), Input::Nothing);
        assert_eq!(parse(" hello /quit "), Input::Say("hello /quit".into()));
        assert_eq!(parse("/reset"), Input::Reset);
        assert_eq!(parse("/system be brief "), Input::System(Some("be brief".into())));
        assert_eq!(parse("/system"), Input::System(None));
        assert_eq!(parse("/quit"), Input::Quit);
        assert_eq!(parse("/?"), Input::Help);
        assert_eq!(parse("/systematic"), Input::Unknown("/systematic".into()));
    }
}
