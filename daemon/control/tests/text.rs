//! Text processes that are this very test binary, run again: how they die, and what becomes of their jobs.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod common;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Daemon, config};
use minisgl_control::{Inspector, RegistryConfig, Text, TextConfig, WorkerCommand};
use minisgl_proto::frame::{self, HEADER_BYTES};
use minisgl_proto::text::{FromText, TextAnswer, TextFault, TextInfo, TextJob, ToText};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
#[ignore = "the fake worker of the other tests"]
fn fake_worker() {
    common::fake::run();
}

/// Answers with the length of a text, but for those that say what else to do.
#[test]
#[ignore = "the fake text process of the other tests"]
fn fake_text() {
    let mut socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    if socket.peer_addr().is_err() {
        return; // somebody runs every ignored test by hand
    }
    let out = Arc::new(Mutex::new(socket.try_clone().unwrap()));
    let say = |out: &Mutex<UnixStream>, frame: FromText| {
        let mut bytes = Vec::new();
        frame::encode(&frame, &mut bytes).unwrap();
        out.lock().unwrap().write_all(&bytes).unwrap();
    };
    while let Some(frame) = receive(&mut socket) {
        match frame {
            ToText::Load(spec) => {
                // Whole at once: the test reads it while another process takes the first one's place.
                let (part, pid) = (spec.dir.join("pid.part"), spec.dir.join("pid"));
                std::fs::write(&part, std::process::id().to_string()).unwrap();
                std::fs::rename(part, pid).unwrap();
                match std::fs::read_to_string(spec.dir.join("how")).as_deref() {
                    Ok("fail") => {
                        say(&out, FromText::LoadFailed("tokenizer.json is broken".into()))
                    }
                    Ok("die") => std::process::abort(),
                    Ok("hang") => std::thread::sleep(Duration::from_secs(60)),
                    _ => {
                        let notes = vec!["it knows no tools".to_string()];
                        say(
                            &out,
                            FromText::Loaded(Box::new(TextInfo { notes, ..TextInfo::default() })),
                        );
                    }
                }
            }
            ToText::Job { id, job } => {
                let out = Arc::clone(&out);
                std::thread::spawn(move || {
                    let TextJob::Encode { texts, .. } = job else { panic!("{job:?}") };
                    let (word, argument) = texts[0].split_once(':').unwrap_or((&texts[0], ""));
                    match word {
                        "die" => std::process::abort(),
                        "die-once" if !Path::new(argument).exists() => {
                            std::fs::write(argument, "").unwrap();
                            std::process::abort();
                        }
                        "hang" => std::thread::sleep(Duration::from_secs(60)),
                        "wait" => {
                            std::thread::sleep(Duration::from_millis(argument.parse().unwrap()))
                        }
                        _ => {}
                    }
                    let answer = Ok(TextAnswer::Tokens(vec![vec![texts[0].len() as u32]]));
                    say(&out, FromText::Done { id, answer });
                });
            }
            ToText::Abandon(_) => {}
        }
    }
}

fn receive(socket: &mut UnixStream) -> Option<ToText> {
    let mut header = [0; HEADER_BYTES];
    socket.read_exact(&mut header).ok()?;
    let mut payload = vec![0; frame::payload_bytes(header).unwrap()];
    socket.read_exact(&mut payload).ok()?;
    Some(frame::decode(&payload).unwrap())
}

fn text_config() -> TextConfig {
    TextConfig {
        command: WorkerCommand {
            program: std::env::current_exe().unwrap(),
            args: ["fake_text", "--exact", "--ignored", "--nocapture"]
                .iter()
                .map(Into::into)
                .collect(),
            env: Vec::new(),
        },
        job: Duration::from_secs(30),
        ..TextConfig::default()
    }
}

struct House {
    folder: tempfile::TempDir,
    text: Text,
}

impl House {
    async fn new(config: TextConfig) -> House {
        let folder = tempfile::tempdir().unwrap();
        let text = Text::start(&config, folder.path()).await.unwrap();
        House { folder, text }
    }

    fn start(&self, text: &str) -> Result<minisgl_control::text::Answer, TextFault> {
        let job =
            TextJob::Encode { texts: vec![text.to_string()], add_special: false, tokens_max: 9 };
        self.text.run(job)
    }

    /// The text's answer, which is its length.
    async fn ask(&self, text: &str) -> Result<u32, TextFault> {
        match self.start(text)?.await? {
            TextAnswer::Tokens(lists) => Ok(lists[0][0]),
            other => panic!("{other:?}"),
        }
    }

    fn pid(&self) -> Pid {
        pid_in(self.folder.path())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn pid_in(dir: &Path) -> Pid {
    Pid::from_raw(std::fs::read_to_string(dir.join("pid")).unwrap().parse().unwrap())
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < common::PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_job_that_kills_its_process_twice_is_refused_alone() {
    let house = House::new(text_config()).await;
    let first = house.pid();
    let (killer, a, b, c) = tokio::join!(
        house.ask("die"),
        house.ask("wait:200"),
        house.ask("wait:210"),
        house.ask("short")
    );
    assert!(
        matches!(&killer, Err(TextFault::Killed(why)) if why.contains("2 times")),
        "{killer:?}"
    );
    assert_eq!((a, b, c), (Ok(8), Ok(8), Ok(5)));
    assert_ne!(house.pid(), first);
    assert_eq!(house.ask("after").await, Ok(5));
}

#[tokio::test]
async fn a_job_that_saw_one_death_is_tried_again() {
    let house = House::new(text_config()).await;
    let mark = house.file("mark");
    let text = format!("die-once:{}", mark.display());
    assert_eq!(house.ask(&text).await, Ok(text.len() as u32));
    // Killed by somebody else, with nothing to do: another is there at once.
    let first = house.pid();
    kill(first, Signal::SIGKILL).unwrap();
    until("another process", || house.pid() != first).await;
    assert_eq!(house.ask("abc").await, Ok(3));
}

#[tokio::test]
async fn a_job_that_takes_too_long_is_refused_and_those_beside_it_are_done() {
    let house = House::new(TextConfig { job: Duration::from_millis(700), ..text_config() }).await;
    let late = house.start("hang").unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (late, beside) = tokio::join!(late, house.ask("wait:600"));
    assert!(
        matches!(&late, Err(TextFault::Killed(why)) if why.contains("longer than 0.7 s")),
        "{late:?}"
    );
    assert_eq!(beside, Ok(8));
}

#[tokio::test]
async fn a_job_keeps_its_place_until_its_work_has_stopped() {
    let house = House::new(TextConfig { jobs_max: 2, bytes_max: 20, ..text_config() }).await;
    let left = house.start("wait:400").unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(left);
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Of the bytes of both, one is over the limit.
    let busy = house.start("thirteen byte").map(drop);
    assert!(matches!(&busy, Err(TextFault::Busy(why)) if why.contains("bytes")), "{busy:?}");
    let held = house.start("wait:1").unwrap();
    let busy = house.start("").map(drop);
    assert!(matches!(&busy, Err(TextFault::Busy(why)) if why.contains("limit is 2")), "{busy:?}");
    held.await.unwrap();
    until("the place is free", || house.start("thirteen byte").is_ok()).await;
    // One job alone may have more.
    until("all places are free", || house.start(&"x".repeat(21)).is_ok()).await;
}

#[tokio::test]
async fn a_job_that_waits_leaves_with_its_client() {
    let house = House::new(TextConfig { jobs_max: 5, ..text_config() }).await;
    let inside: Vec<_> = (0..4).map(|_| house.start("wait:500").unwrap()).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(house.start("die").unwrap());
    until("the place is free", || house.start("").is_ok()).await;
    for answer in inside {
        answer.await.unwrap();
    }
}

#[tokio::test]
async fn a_process_that_does_not_load_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let config = TextConfig { load: Duration::from_millis(1500), ..text_config() };
    for (how, words) in [
        ("fail", "tokenizer.json is broken"),
        ("die", "ended the process"),
        ("hang", "longer than 1.5 s"),
    ] {
        std::fs::write(folder.path().join("how"), how).unwrap();
        let why = Text::start(&config, folder.path()).await.unwrap_err();
        assert!(why.contains(words), "{why}");
        let pid = pid_in(folder.path());
        until("it is gone", || kill(pid, None).is_err()).await;
    }
}

#[tokio::test]
async fn a_process_that_cannot_be_started_again_is_said_to_be_gone() {
    let house = House::new(text_config()).await;
    std::fs::write(house.file("how"), "fail").unwrap();
    let why = house.ask("die").await;
    assert!(matches!(&why, Err(TextFault::Gone(why)) if why.contains("broken")), "{why:?}");
    std::fs::remove_file(house.file("how")).unwrap();
    until("it is tried again", || house.pid() != Pid::from_raw(0)).await;
    let began = Instant::now();
    while house.ask("abc").await != Ok(3) {
        assert!(began.elapsed() < common::PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_models_process_ends_with_it_and_its_notes_are_in_the_status() {
    let text = text_config();
    let runtime = tokio::runtime::Handle::current();
    let inspector =
        Inspector(Arc::new(move |dir| runtime.block_on(Text::start(&text, dir)).map(Some)));
    let daemon = Daemon::with(RegistryConfig { inspector, ..config() });
    let status = daemon.load("m").await.unwrap();
    assert_eq!(status.notes, ["it knows no tools"]);
    let pid = pid_in(Path::new(&status.source));
    assert!(kill(pid, None).is_ok());
    daemon.registry.unload("m", true).await.unwrap();
    until("the process is gone", || kill(pid, None).is_err()).await;
}
