//! HTTP over a Unix socket: one connection a call.
//!
//! Owns: connecting, sending, and turning error answers into [`CtlError`]. Must never: print.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use minisgl_proto::admin::AdminError;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::error::CtlError;

/// Bytes of an answer that is taken whole, at most.
const BODY_BYTES_MAX: usize = 256 << 20;
/// Bytes of a line of a streamed answer, at most.
const LINE_BYTES_MAX: usize = 16 << 20;
/// How long a daemon may think about a question that needs no work.
const QUICK: Duration = Duration::from_secs(30);

/// The daemon, by its socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Connects with every call, not now.
    pub fn new(socket: PathBuf) -> Self {
        Client { socket }
    }

    /// Where the daemon is looked for.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks something that needs no work.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CtlError> {
        decode(&self.get_bytes(path).await?)
    }

    /// Asks something that may take so long.
    pub async fn get_within<T: DeserializeOwned>(
        &self,
        path: &str,
        patience: Duration,
    ) -> Result<T, CtlError> {
        decode(&self.get_bytes_within(path, patience).await?)
    }

    /// As [`Client::get`], not decoded.
    pub async fn get_bytes(&self, path: &str) -> Result<Bytes, CtlError> {
        self.get_bytes_within(path, QUICK).await
    }

    async fn get_bytes_within(&self, path: &str, patience: Duration) -> Result<Bytes, CtlError> {
        let work =
            async { whole(good(self.send(Method::GET, path, Bytes::new()).await?).await?).await };
        tokio::time::timeout(patience, work).await.unwrap_or_else(|_| {
            let why = format!("it took the call but gave no answer in {} s", patience.as_secs());
            Err(CtlError::Unreachable { socket: self.socket.clone(), why })
        })
    }

    /// Has something done, however long it takes.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CtlError> {
        decode(&whole(self.post_open(path, body).await?).await?)
    }

    /// Has something done that answers line by line.
    pub async fn post_lines(&self, path: &str, body: &impl Serialize) -> Result<Lines, CtlError> {
        let body = self.post_open(path, body).await?.into_body();
        Ok(Lines { body, buffer: Vec::new(), searched: 0, ended: false })
    }

    async fn post_open(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Response<Incoming>, CtlError> {
        let body = serde_json::to_vec(body)
            .map_err(|error| CtlError::Failed(format!("the request does not encode: {error}")))?;
        good(self.send(Method::POST, path, body.into()).await?).await
    }

    /// Sends a request and returns the answer, whatever its status.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, CtlError> {
        let stream =
            UnixStream::connect(&self.socket).await.map_err(|error| self.not_connected(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(cut)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| CtlError::Usage(format!("{path:?} is no path: {error}")))?;
        sender.send_request(request).await.map_err(cut)
    }

    fn not_connected(&self, error: &std::io::Error) -> CtlError {
        let socket = self.socket.clone();
        match error.kind() {
            ErrorKind::PermissionDenied => CtlError::Refused(format!(
                "you may not open {}: run this as root, or as a member of the socket's group",
                socket.display()
            )),
            ErrorKind::NotFound => {
                CtlError::Unreachable { socket, why: "there is no such socket".to_string() }
            }
            ErrorKind::ConnectionRefused => CtlError::Unreachable {
                socket,
                why: "the socket is there, but nobody listens".to_string(),
            },
            _ => CtlError::Unreachable { socket, why: error.to_string() },
        }
    }
}

/// Takes a whole answer.
pub async fn whole(response: Response<Incoming>) -> Result<Bytes, CtlError> {
    let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|error| CtlError::Failed(format!("the answer was cut: {error}")))?;
    Ok(body.to_bytes())
}

fn cut(error: hyper::Error) -> CtlError {
    CtlError::Failed(format!("the daemon closed the connection: {error}"))
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CtlError> {
    serde_json::from_slice(body).map_err(|error| {
        CtlError::Failed(format!(
            "the daemon's answer makes no sense ({error}); compare: minisglctl version"
        ))
    })
}

/// Passes a good answer on, and makes an error of any other.
async fn good(response: Response<Incoming>) -> Result<Response<Incoming>, CtlError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    Err(error_of(status, &whole(response).await?))
}

/// The error that an answer's status and body tell of: an admin error or an OpenAI one.
pub fn error_of(status: StatusCode, body: &[u8]) -> CtlError {
    if let Ok(error) = serde_json::from_slice::<AdminError>(body) {
        return error.into();
    }
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let message = match value["error"]["message"].as_str() {
        Some(message) => message.to_string(),
        None => format!("{status}: {}", String::from_utf8_lossy(&body[..body.len().min(500)])),
    };
    match status {
        StatusCode::NOT_FOUND => CtlError::NotFound(message),
        StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::CONFLICT
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::SERVICE_UNAVAILABLE => CtlError::Refused(message),
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => CtlError::Usage(message),
        _ => CtlError::Failed(message),
    }
}

/// The lines of a streamed answer, as they come.
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
    /// This many bytes of the buffer hold no line end.
    searched: usize,
    ended: bool,
}

impl Lines {
    /// The next line, decoded; `None` after the last.
    pub async fn next_json<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CtlError> {
        let Some(line) = self.next().await? else { return Ok(None) };
        serde_json::from_str(&line).map(Some).map_err(|error| {
            CtlError::Failed(format!("the daemon sent a line that makes no sense: {error}"))
        })
    }

    /// The next line without its end, or `None` after the last. Can be cancelled.
    pub async fn next(&mut self) -> Result<Option<String>, CtlError> {
        loop {
            let end = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n');
            if let Some(end) = end {
                let rest = self.buffer.split_off(self.searched + end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                self.searched = 0;
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_string()));
            }
            self.searched = self.buffer.len();
            if self.ended {
                return Ok(None); // half a line was cut off; whoever waits for a last word misses it
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(CtlError::Failed("the daemon's answer has an endless line".into()));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => return Err(cut(error)),
                None => self.ended = true,
            }
        }
    }
}

/// All but what may stand in a path as it is (RFC 3986, unreserved).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Writes a model's name as one segment of a path.
pub fn segment(name: &str) -> String {
    utf8_percent_encode(name, ESCAPED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_one_segment() {
        assert_eq!(segment("Qwen/Qwen3-32B"), "Qwen%2FQwen3-32B");
        assert_eq!(segment("a%?ä"), "a%25%3F%C3%A4");
    }

    #[test]
    fn openai_errors_are_understood() {
        let body = br#"{"error": {"message": "no such model", "type": "x", "code": null}}"#;
        let error = error_of(StatusCode::NOT_FOUND, body);
        assert_eq!((error.exit_code(), error.to_string()), (4, "no such model".to_string()));
        let error = error_of(StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(error.exit_code(), 6);
    }
}
