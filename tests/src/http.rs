//! As much of an HTTP/1.1 client as the tests need: one request a connection, whole answers or
//! server-sent events, over TCP or a Unix socket, and the freedom to misbehave.
//!
//! It is no crate's client: tests block, and half of them write what no client would (a body that never comes, half a head),
//! on the same connections. hyper's client would need a runtime beside the tests and a bridge from its bodies to `Read`,
//! as long as the reader of chunks here.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

/// An answer that takes longer is a failure.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Who is asked.
#[derive(Clone, Debug)]
pub enum Server {
    /// The OpenAI API.
    Tcp(SocketAddr),
    /// The admin API.
    Unix(PathBuf),
}

/// A whole answer.
#[derive(Debug)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body, decoded from chunks.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("status {}, not JSON ({e}): {}", self.status, self.text()))
    }

    /// The body as JSON of a successful answer.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

impl Server {
    /// Sends a request with a JSON body (none if `Null`) and reads the whole answer.
    pub fn call(&self, method: &str, path: &str, body: &Value) -> io::Result<Response> {
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.send(method, path, &bytes)
    }

    /// Sends these bytes as body, whatever they are, and reads the whole answer.
    pub fn send(&self, method: &str, path: &str, body: &[u8]) -> io::Result<Response> {
        let mut connection = self.connect()?;
        connection.write_all(head(method, path, body.len()).as_bytes())?;
        match connection.write_all(body) {
            // A server may answer before it has read everything.
            Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
            done => done?,
        }
        let (status, headers, mut body) = read_head(connection)?;
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes)?;
        Ok(Response { status, headers, body: bytes })
    }

    /// Announces a body of `bytes` bytes, sends none of it, and reads the answer.
    pub fn announce(&self, method: &str, path: &str, bytes: usize) -> io::Result<Response> {
        let mut connection = self.connect()?;
        connection.write_all(head(method, path, bytes).as_bytes())?;
        let (status, headers, mut body) = read_head(connection)?;
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes)?;
        Ok(Response { status, headers, body: bytes })
    }

    /// Posts `body` and reads server-sent events one by one. Dropping them closes the connection.
    pub fn events(&self, path: &str, body: &Value) -> io::Result<Events> {
        let mut connection = self.connect()?;
        let bytes = body.to_string();
        connection.write_all((head("POST", path, bytes.len()) + &bytes).as_bytes())?;
        let (status, _, mut body) = read_head(connection)?;
        if status != 200 {
            let mut text = String::new();
            body.read_to_string(&mut text)?;
            return Err(io::Error::other(format!("status {status}: {text}")));
        }
        Ok(Events { lines: BufReader::new(body) })
    }

    /// Posts `body` and returns the answer's lines as they come.
    pub fn lines(&self, path: &str, body: &Value) -> io::Result<impl Iterator<Item = String>> {
        let mut connection = self.connect()?;
        let bytes = body.to_string();
        connection.write_all((head("POST", path, bytes.len()) + &bytes).as_bytes())?;
        let (_, _, body) = read_head(connection)?;
        Ok(BufReader::new(body).lines().map_while(Result::ok))
    }

    /// A bare connection.
    pub fn connect(&self) -> io::Result<Connection> {
        Ok(match self {
            Server::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(SILENCE_MAX))?;
                stream.set_write_timeout(Some(SILENCE_MAX))?;
                stream.set_nodelay(true)?;
                Connection::Tcp(stream)
            }
            Server::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(SILENCE_MAX))?;
                Connection::Unix(stream)
            }
        })
    }
}

/// The request line and headers of a JSON request.
pub fn head(method: &str, path: &str, body_bytes: usize) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {body_bytes}\r\n\r\n"
    )
}

/// The events of a stream.
pub struct Events {
    lines: BufReader<Body>,
}

impl Events {
    /// The next event's data as JSON; `None` after `[DONE]` or when the stream ends.
    ///
    /// # Errors
    /// The connection broke, or an event is not JSON.
    pub fn next_event(&mut self) -> io::Result<Option<Value>> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            match line.trim_end().strip_prefix("data:").map(str::trim) {
                None => {}
                Some("[DONE]") => return Ok(None),
                Some(data) => return Ok(Some(serde_json::from_str(data)?)),
            }
        }
    }

    /// Every event that is left.
    pub fn rest(mut self) -> io::Result<Vec<Value>> {
        let mut events = Vec::new();
        while let Some(event) = self.next_event()? {
            events.push(event);
        }
        Ok(events)
    }
}

/// A connection of either kind.
#[derive(Debug)]
pub enum Connection {
    /// To the OpenAI API.
    Tcp(TcpStream),
    /// To the admin API.
    Unix(UnixStream),
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Connection::Tcp(stream) => stream.read(buffer),
            Connection::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Connection::Tcp(stream) => stream.write(bytes),
            Connection::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Headers = Vec<(String, String)>;

fn read_head(connection: Connection) -> io::Result<(u16, Headers, Body)> {
    let mut reader = BufReader::new(connection);
    let first = read_line(&mut reader)?;
    let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no HTTP answer: {first:?}")))?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(&mut reader)?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let find = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    let left = match (find("transfer-encoding"), find("content-length")) {
        (Some(_), _) => Left::Chunked { in_chunk: 0 },
        (None, Some(bytes)) => Left::Bytes(bytes.parse().map_err(io::Error::other)?),
        (None, None) => Left::UntilClosed,
    };
    Ok((status, headers, Body { reader, left }))
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "the server closed the connection"));
    }
    Ok(line.trim_end().to_owned())
}

/// How much of a body is to come.
enum Left {
    Bytes(u64),
    Chunked { in_chunk: u64 },
    UntilClosed,
    Nothing,
}

struct Body {
    reader: BufReader<Connection>,
    left: Left,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = match &mut self.left {
            Left::Nothing | Left::Bytes(0) => return Ok(0),
            Left::UntilClosed => return self.reader.read(buffer),
            Left::Bytes(left) => left,
            Left::Chunked { in_chunk } => {
                if *in_chunk == 0 {
                    let size = read_line(&mut self.reader)?;
                    *in_chunk = u64::from_str_radix(&size, 16).map_err(io::Error::other)?;
                    if *in_chunk == 0 {
                        self.left = Left::Nothing;
                        return Ok(0);
                    }
                }
                in_chunk
            }
        };
        let most = buffer.len().min(usize::try_from(*available).unwrap_or(usize::MAX));
        let count = self.reader.read(&mut buffer[..most])?;
        if count == 0 {
            let message = "the server closed the connection in the middle of an answer";
            return Err(io::Error::new(ErrorKind::UnexpectedEof, message));
        }
        *available -= count as u64;
        if let Left::Chunked { in_chunk: 0 } = self.left {
            read_line(&mut self.reader)?;
        }
        Ok(count)
    }
}
