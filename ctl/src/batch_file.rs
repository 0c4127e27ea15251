//! The two files of a batch, in the OpenAI batch format: one JSON object a line.
//!
//! Owns: what a line may hold, and the repair of an output that a crash has torn. Must never: hold
//! a whole file in memory; of what was read only the ids stay.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::CtlError;

/// Bytes of a line at most.
const LINE_BYTES_MAX: u64 = 64 << 20;
/// U+FEFF in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Where requests may go.
const URLS: [&str; 2] = ["/v1/chat/completions", "/v1/completions"];

/// A request.
#[derive(Debug, Deserialize)]
pub struct Item {
    /// The caller's name for it.
    pub custom_id: String,
    /// Always POST.
    method: String,
    /// One of [`URLS`].
    pub url: String,
    /// What is sent.
    pub body: Map<String, Value>,
    /// Its line in the file, from 1.
    #[serde(skip)]
    pub line: usize,
}

/// An answer.
#[derive(Debug, Serialize)]
pub struct Record {
    /// Names this line.
    pub id: String,
    /// As in the request.
    pub custom_id: String,
    /// What came back.
    pub response: Answer,
    /// Always null: a request without an answer has no line, so that the next run sends it again.
    pub error: Option<Value>,
}

/// What came back for a request.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// HTTP status.
    pub status_code: u16,
    /// The server's name for it.
    pub request_id: String,
    /// The answer's body.
    pub body: Value,
}

/// Lines of a file with their numbers; the last may lack its end.
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: usize,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, CtlError> {
        let file = File::open(path)
            .map_err(|error| CtlError::Usage(format!("cannot read {}: {error}", path.display())))?;
        Ok(Lines { path: path.to_path_buf(), reader: BufReader::new(file), number: 0 })
    }

    /// The next line with its end.
    fn next(&mut self) -> Result<Option<Vec<u8>>, CtlError> {
        let mut line = Vec::new();
        let read = (&mut self.reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        self.number += 1;
        match read {
            Ok(0) => Ok(None),
            Ok(bytes) if bytes as u64 == LINE_BYTES_MAX => Err(self.wrong("is too long")),
            Ok(_) => Ok(Some(line)),
            Err(error) => Err(self.wrong(&format!("cannot be read: {error}"))),
        }
    }

    fn wrong(&self, what: &str) -> CtlError {
        CtlError::Usage(format!("{} line {} {what}", self.path.display(), self.number))
    }
}

/// The requests of a file, each checked.
pub struct Items(Lines);

impl Items {
    /// Opens a file of requests.
    pub fn open(path: &Path) -> Result<Self, CtlError> {
        Ok(Items(Lines::open(path)?))
    }

    fn check(&self, item: &Item) -> Result<(), CtlError> {
        if item.method != "POST" {
            return Err(self
                .0
                .wrong(&format!("has the method {:?}; it must be POST", item.method)));
        }
        if !URLS.contains(&item.url.as_str()) {
            let urls = URLS.join(" or ");
            return Err(self.0.wrong(&format!("has the url {:?}; it must be {urls}", item.url)));
        }
        if item.body.get("stream").is_some_and(|stream| *stream != Value::Bool(false)) {
            return Err(self.0.wrong("asks for a stream; a batch has whole answers only"));
        }
        Ok(())
    }
}

impl Iterator for Items {
    type Item = Result<Item, CtlError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = match self.0.next() {
                Ok(line) => line?,
                Err(error) => return Some(Err(error)),
            };
            if self.0.number == 1
                && (line.starts_with(b"\xff\xfe") || line.starts_with(b"\xfe\xff"))
            {
                return Some(Err(self.0.wrong("is UTF-16; save the file as UTF-8")));
            }
            // Some editors and exports begin a file with one.
            let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&line);
            if line.trim_ascii().is_empty() {
                continue;
            }
            let item = serde_json::from_slice::<Item>(line)
                .map_err(|error| self.0.wrong(&format!("is no batch request: {error}")))
                .and_then(|mut item| {
                    item.line = self.0.number;
                    self.check(&item).map(|()| item)
                });
            return Some(item);
        }
    }
}

/// Checks every request of a file; returns their ids.
pub fn ids(path: &Path) -> Result<HashSet<String>, CtlError> {
    let mut items = Items::open(path)?;
    let mut ids = HashSet::new();
    while let Some(item) = items.next() {
        let Item { custom_id, .. } = item?;
        if let Some(twice) = ids.replace(custom_id) {
            return Err(items
                .0
                .wrong(&format!("has the custom_id {twice:?}, which was there before")));
        }
    }
    Ok(ids)
}

/// The file of answers, locked against a second batch.
pub struct Out {
    path: PathBuf,
    file: File,
}

impl Out {
    /// Opens or creates it, repairs a torn last line, and returns the ids that have an answer.
    pub fn open(path: &Path) -> Result<(Self, HashSet<String>), CtlError> {
        let out = |file| Out { path: path.to_path_buf(), file };
        let file = OpenOptions::new().read(true).append(true).create(true).open(path);
        let mut out = out(file.map_err(|error| {
            CtlError::Usage(format!("cannot write {}: {error}", path.display()))
        })?);
        match out.file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let path = path.display();
                return Err(CtlError::Refused(format!("another batch is writing {path}")));
            }
            Err(TryLockError::Error(error)) => return Err(out.failed(&error)),
        }
        let done = out.read_and_repair()?;
        Ok((out, done))
    }

    fn read_and_repair(&mut self) -> Result<HashSet<String>, CtlError> {
        #[derive(Deserialize)]
        struct Done {
            custom_id: String,
        }
        let mut lines = Lines::open(&self.path)?;
        let mut done = HashSet::new();
        let mut good_bytes = 0;
        while let Some(line) = lines.next()? {
            let whole = line.ends_with(b"\n");
            match serde_json::from_slice::<Done>(&line) {
                Ok(record) => {
                    done.insert(record.custom_id);
                    if !whole {
                        self.write(b"\n")?;
                    }
                }
                Err(_) if line.trim_ascii().is_empty() && whole => {}
                Err(error) if whole => {
                    return Err(lines.wrong(&format!("is no batch answer ({error})")));
                }
                Err(_) => self.file.set_len(good_bytes).map_err(|error| self.failed(&error))?,
            }
            good_bytes += line.len() as u64;
        }
        self.file.seek(SeekFrom::End(0)).map_err(|error| self.failed(&error))?;
        Ok(done)
    }

    /// Appends an answer, whole in one write.
    pub fn append(&mut self, record: &Record) -> Result<(), CtlError> {
        let mut line = serde_json::to_vec(record)
            .map_err(|error| CtlError::Failed(format!("an answer does not encode: {error}")))?;
        line.push(b'\n');
        self.write(&line)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CtlError> {
        self.file.write_all(bytes).map_err(|error| self.failed(&error))
    }

    /// Waits until the answers are on the disk.
    pub fn sync(&self) -> Result<(), CtlError> {
        self.file.sync_all().map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &std::io::Error) -> CtlError {
        CtlError::Failed(format!("{}: {error}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn request(id: &str) -> String {
        format!(
            "{{\"custom_id\": \"{id}\", \"method\": \"POST\", \"url\": \"/v1/completions\", \
             \"body\": {{\"model\": \"m\", \"prompt\": \"x\"}}}}\n"
        )
    }

    #[test]
    fn wrong_requests_are_named_by_their_line() {
        let good = request("a");
        assert_eq!(ids(file(&format!("{good}\n{}", request("b"))).path()).unwrap().len(), 2);
        let cases = [
            ("{".to_string(), "is no batch request"),
            (good.clone(), "custom_id \"a\", which was there before"),
            (request("b").replace("POST", "GET"), "must be POST"),
            (request("b").replace("/v1/", "/v2/"), "must be /v1/chat/completions or"),
            (request("b").replace("\"model\"", "\"stream\": true, \"model\""), "asks for a stream"),
        ];
        for (bad, expected) in cases {
            let file = file(&format!("{good}{bad}"));
            let error = ids(file.path()).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(text.contains("line 2") && text.contains(expected), "{text}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_request() {
        let text = format!("\u{feff}{}{}", request("a"), request("b"));
        assert_eq!(ids(file(&text).path()).unwrap().len(), 2);
        let utf16: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let file = file("");
        std::fs::write(file.path(), utf16).unwrap();
        let error = ids(file.path()).unwrap_err().to_string();
        assert!(error.contains("line 1 is UTF-16; save the file as UTF-8"), "{error}");
    }

    #[test]
    fn a_torn_last_line_is_repaired() {
        let line = |id: &str| format!("{{\"custom_id\": \"{id}\"}}\n");
        let (a, b) = (line("a"), line("b"));
        let cases = [
            (String::new(), 0, String::new()),
            (format!("{a}{b}"), 2, format!("{a}{b}")),
            (format!("{a}{}", &b[..b.len() - 3]), 1, a.clone()),
            (format!("{a}{}", b.trim_end()), 2, format!("{a}{b}")),
            ("{\"cust".to_string(), 0, String::new()),
        ];
        for (before, done, after) in cases {
            let file = file(&before);
            let (_out, ids) = Out::open(file.path()).unwrap();
            assert_eq!(ids.len(), done, "{before:?}");
            assert_eq!(std::fs::read_to_string(file.path()).unwrap(), after);
        }
    }

    #[test]
    fn a_file_that_is_something_else_is_left_alone() {
        let file = file("dear diary\n{\"custom_id\": \"a\"}\n");
        let error = Out::open(file.path()).err().unwrap();
        assert!(error.to_string().contains("line 1 is no batch answer"), "{error}");
        assert!(std::fs::read_to_string(file.path()).unwrap().starts_with("dear diary\n"));
    }

    #[test]
    fn two_batches_do_not_write_one_file() {
        let file = file("");
        let _first = Out::open(file.path()).unwrap();
        assert_eq!(Out::open(file.path()).err().unwrap().exit_code(), 5);
    }
}
