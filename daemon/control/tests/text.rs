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
    let mut dir = PathBuf::new();
    while let Some(frame) = receive(&mut socket) {
        match frame {
            ToText::Load(spec) => {
                dir.clone_from(&spec.dir);
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
                let (out, dir) = (Arc::clone(&out), dir.clone());
                std::thread::spawn(move || {
                    let TextJob::Encode { texts, .. } = job else { panic!("{job:?}") };
                    let (word, argument) = texts[0].split_once(':').unwrap_or((&texts[0], ""));
                    match word {
                        "die" => std::process::abort(),
                        "die-once" if !Path::new(argument).exists() => {
                            std::fs::write(argument, "").unwrap();
                            std::process::abort();
                        }
                        "hold" => {
                            std::fs::write(dir.join(format!("{argument}.begun")), "").unwrap();
                            while !dir.join(format!("{argument}.go")).exists() {
                                std::thread::sleep(Duration::from_millis(2));
                            }
                        }
                        _ => {}
                    }
                    let answer = Ok(TextAnswer::Tokens(vec![vec![texts[0].len() as u32]]));
                    say(&out, FromText::Done { id, answer });
                });
            }
            ToText::Abandon(_) => std::fs::write(dir.join("abandoned"), "").unwrap(),
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
        job: common::PATIENCE,
        load: common::PATIENCE,
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

    /// Returns once the job `hold:NAME` is at work.
    async fn begun(&self, name: &str) {
        let file = self.file(&format!("{name}.begun"));
        until(&format!("{name} has begun"), || file.exists()).await;
    }

    /// Lets the job `hold:NAME` end, in this process and in the next.
    fn let_go(&self, name: &str) {
        std::fs::write(self.file(&format!("{name}.go")), "").unwrap();
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
        // A clock that stands still does not stop this.
        std::thread::sleep(Duration::from_millis(1));
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_job_that_kills_its_process_twice_is_refused_alone() {
    let house = House::new(text_config()).await;
    let first = house.pid();
    let beside = [house.start("hold:a").unwrap(), house.start("hold:b").unwrap()];
    house.begun("a").await;
    house.begun("b").await;
    let killer = house.start("die").unwrap();
    until("another process", || house.pid() != first).await;
    // Now they are tried again, one by one.
    house.let_go("a");
    house.let_go("b");
    let [a, b] = beside;
    let (killer, a, b, c) = tokio::join!(killer, a, b, house.ask("short"));
    assert!(
        matches!(&killer, Err(TextFault::Killed(why)) if why.contains("2 times")),
        "{killer:?}"
    );
    let length = |answer: Result<TextAnswer, TextFault>| match answer.unwrap() {
        TextAnswer::Tokens(lists) => lists[0][0],
        other => panic!("{other:?}"),
    };
    assert_eq!((length(a), length(b), c), (6, 6, Ok(5)));
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

// On a clock that moves when the test says so.
#[tokio::test(start_paused = true)]
async fn a_job_that_takes_too_long_is_refused_and_those_beside_it_are_done() {
    let _time = common::hold_time();
    let house = House::new(TextConfig { job: Duration::from_millis(700), ..text_config() }).await;
    let late = house.start("hold:late").unwrap();
    house.begun("late").await;
    tokio::time::advance(Duration::from_millis(400)).await;
    let beside = house.start("hold:beside").unwrap();
    house.begun("beside").await;
    tokio::time::advance(Duration::from_millis(400)).await;
    let late = late.await;
    assert!(
        matches!(&late, Err(TextFault::Killed(why)) if why.contains("longer than 0.7 s")),
        "{late:?}"
    );
    house.let_go("beside");
    let beside = beside.await;
    assert!(matches!(&beside, Ok(TextAnswer::Tokens(lists)) if lists[0] == [11]), "{beside:?}");
}

#[tokio::test]
async fn a_job_keeps_its_place_until_its_work_has_stopped() {
    let house = House::new(TextConfig { jobs_max: 2, bytes_max: 20, ..text_config() }).await;
    let left = house.start("hold:one").unwrap();
    house.begun("one").await;
    drop(left);
    until("the process hears of it", || house.file("abandoned").exists()).await;
    // Of the bytes of both, one is over the limit.
    let busy = house.start("thirteen byte").map(drop);
    assert!(matches!(&busy, Err(TextFault::Busy(why)) if why.contains("bytes")), "{busy:?}");
    let held = house.start("x").unwrap();
    let busy = house.start("").map(drop);
    assert!(matches!(&busy, Err(TextFault::Busy(why)) if why.contains("limit is 2")), "{busy:?}");
    held.await.unwrap();
    house.let_go("one");
    until("the place is free", || house.start("thirteen byte").is_ok()).await;
    // One job alone may have more.
    until("all places are free", || house.start(&"x".repeat(21)).is_ok()).await;
}

#[tokio::test]
async fn a_job_that_waits_leaves_with_its_client() {
    let house = House::new(TextConfig { jobs_max: 5, ..text_config() }).await;
    let inside: Vec<_> = (0..4).map(|_| house.start("hold:x").unwrap()).collect();
    house.begun("x").await;
    drop(house.start("die").unwrap());
    until("the place is free", || house.start("").is_ok()).await;
    house.let_go("x");
    for answer in inside {
        answer.await.unwrap();
    }
}

#[tokio::test]
async fn a_process_that_does_not_load_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let (patient, soon) = (common::PATIENCE, Duration::from_millis(1500));
    for (how, words, load) in [
        ("fail", "tokenizer.json is broken", patient),
        ("die", "ended the process", patient),
        ("hang", "longer than 1.5 s", soon),
    ] {
        let config = TextConfig { load, ..text_config() };
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
        Inspector(Arc::new(move |dir, _| runtime.block_on(Text::start(&text, dir)).map(Some)));
    let daemon = Daemon::with(RegistryConfig { inspector, ..config() });
    let status = daemon.load("m").await.unwrap();
    assert_eq!(status.notes, ["it knows no tools"]);
    let pid = pid_in(Path::new(&status.source));
    assert!(kill(pid, None).is_ok());
    daemon.registry.unload("m", true).await.unwrap();
    until("the process is gone", || kill(pid, None).is_err()).await;
}
