//! `minisgld reload`: asks the running daemon to read its configuration again, and waits for its word.
//!
//! A signal would be answered by nothing, and a check by another process reads as another user, with other flags.
//!
//! Owns: the call. Must never: read more of the configuration than where the admin socket is.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use minisgl_proto::admin::AdminError;
use minisgl_proto::reload::ReloadReply;

use crate::cli::ServeArgs;
use crate::config::{CONFIG_PATH, Config};

const REQUEST: &[u8] = b"POST /admin/v1/reload HTTP/1.1\r\nHost: minisgld\r\nContent-Length: 0\r\n\
                         Connection: close\r\n\r\n";
/// Reading files takes the daemon no time; one that starts at this moment answers later.
const ANSWER_MAX: Duration = Duration::from_secs(50);
/// Bytes of an answer, at most.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Asks, and prints what changed.
///
/// # Errors
/// No daemon answers, or it refuses; then its configuration is as it was.
pub fn ask(args: &ServeArgs) -> anyhow::Result<()> {
    let socket = socket(args);
    let answer = call(&socket).with_context(|| {
        format!(
            "no daemon answers on the admin socket {}; name another with --socket",
            socket.display()
        )
    })?;
    let reply = parse(&answer)?;
    let list = |keys: &[String]| if keys.is_empty() { "nothing".into() } else { keys.join(", ") };
    println!("ok: changed: {}", list(&reply.changed));
    if !reply.restart.is_empty() {
        println!("changed, and needs a restart: {}", list(&reply.restart));
    }
    Ok(())
}

/// Where the daemon's admin socket is. The rest of the file is the daemon's to judge.
fn socket(args: &ServeArgs) -> PathBuf {
    let configured = || {
        let path = args.config.as_deref().unwrap_or(Path::new(CONFIG_PATH));
        let file: toml::Table = std::fs::read_to_string(path).ok()?.parse().ok()?;
        Some(PathBuf::from(file.get("admin")?.get("socket")?.as_str()?))
    };
    let default = || Config::socket_place().socket();
    args.socket.clone().or_else(configured).unwrap_or_else(default)
}

fn call(socket: &Path) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.write_all(REQUEST)?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

fn parse(answer: &str) -> anyhow::Result<ReloadReply> {
    let (head, body) = answer.split_once("\r\n\r\n").context("the daemon gave no answer")?;
    if head.starts_with("HTTP/1.1 200 ") {
        return serde_json::from_str(body).context("the daemon is of another version");
    }
    match serde_json::from_str::<AdminError>(body) {
        Ok(error) => bail!("the daemon refuses: {}", error.message),
        Err(_) => bail!("the daemon is of another version: {head}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_an_error_in_the_daemons_words() {
        let refused =
            "HTTP/1.1 400 Bad Request\r\nx: y\r\n\r\n{\"code\":\"invalid\",\"message\":\"line 3\"}";
        let error = parse(refused).unwrap_err().to_string();
        assert_eq!(error, "the daemon refuses: line 3");
        let done = "HTTP/1.1 200 OK\r\n\r\n{\"changed\":[\"[log] level\"],\"restart\":[]}";
        assert_eq!(parse(done).unwrap().changed, ["[log] level"]);
        assert!(parse("").unwrap_err().to_string().contains("no answer"));
        assert!(
            parse("HTTP/1.1 404 Not Found\r\n\r\n").unwrap_err().to_string().contains("version")
        );
    }

    #[test]
    fn the_socket_is_found_in_a_file_that_is_wrong_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("minisgld.toml");
        std::fs::write(&path, "[admin]\nsocket = \"/x/admin.sock\"\n[http]\nnonsense = 1\n")
            .unwrap();
        let args = ServeArgs { config: Some(path), ..ServeArgs::default() };
        assert_eq!(socket(&args), Path::new("/x/admin.sock"));
        let args = ServeArgs { socket: Some("/y".into()), ..args };
        assert_eq!(socket(&args), Path::new("/y"));
    }
}
