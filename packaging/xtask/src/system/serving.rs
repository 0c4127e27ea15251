//! A model is loaded, asked, and found in the journal.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::install::{MEMBER, STRANGER};
use super::{World, wait_until};

/// What minisglctl ends with when somebody may not.
const REFUSED: i32 = 5;

/// Name of the model for clients; python/test_openai.py asks for it.
pub const NAME: &str = "smollm2";

/// The admin socket is for root and for members of the group.
pub fn access(world: &World) -> Result<()> {
    let machine = &world.machine;
    machine.run_as(Some(MEMBER), &["minisglctl", "ps"])?;
    for args in [&["minisglctl", "ps"][..], &["minisglctl", "load", &world.model]] {
        let refused = machine.outcome(Some(STRANGER), args)?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(
            refused.status.code() == Some(REFUSED) && said.contains("group"),
            "{args:?} of a stranger ended with {}: {said}",
            refused.status
        );
    }
    Ok(())
}

/// Loads the model. Its worker is held on the way, until systemd has shown how far it is.
pub fn load(world: &World) -> Result<()> {
    let machine = &world.machine;
    let args = ["minisglctl", "load", &world.model, "--name", NAME, "--kv-tokens", "8192"];
    let mut load = machine.command(None, &args);
    let load = load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let worker = wait_for_worker(world, None)?;
    signal(world, "STOP", &worker)?;
    let seen = machine.wait_for_status(Duration::from_secs(10), |status| {
        status.starts_with(&format!("loading {NAME}"))
    });
    signal(world, "CONT", &worker)?;
    let output = load.wait_with_output()?;
    ensure!(output.status.success(), "load: {}", String::from_utf8_lossy(&output.stderr));
    println!("    {}", seen?);
    machine.wait_for_status(Duration::from_secs(5), |status| status == "1 model ready")?;
    machine.run_as(Some(MEMBER), &["minisglctl", "health"])?;
    Ok(())
}

/// The official client, unmodified, as a user without any rights: the API is for everybody on the machine.
pub fn client(world: &World) -> Result<()> {
    let tests = ["test_openai.Sync.test_chat", "test_openai.Sync.test_chat_stream"];
    let python =
        ["env", "MINISGL_BASE_URL=http://127.0.0.1:8000/v1", "PYTHONPATH=/srv/python:/srv/tests"];
    let args = [&python[..], &["python3", "-m", "unittest"], &tests].concat();
    world.machine.run_as(Some(STRANGER), &args)?;
    Ok(())
}

/// What the client asked is in the journal, and what it said is not.
pub fn journal(world: &World) -> Result<()> {
    let args = ["journalctl", "--unit=minisgld.service", "--no-pager", "--output=cat"];
    let mut last = String::new();
    let waited = wait_until("a request in the journal", Duration::from_secs(5), || {
        last = world.machine.run(&args)?;
        Ok(last.lines().any(|line| {
            ["/v1/chat/completions", NAME, "generated_tokens"]
                .iter()
                .all(|word| line.contains(word))
        }))
    });
    waited?;
    ensure!(!last.contains("France"), "a prompt or an answer is in the journal:\n{last}");
    let by_field = ["--output=json", "MINISGL_ENDPOINT=/v1/chat/completions"];
    let entries = world.machine.run(&[&args[..3], &by_field].concat())?;
    for field in ["REQUEST_ID", "MODEL", "GENERATED_TOKENS", "FIRST_TOKEN_S", "ELAPSED_S"] {
        let field = format!("\"MINISGL_{field}\"");
        ensure!(entries.contains(&field), "no {field} in the journal:\n{entries}\n{last}");
    }
    Ok(())
}

/// The operator writes the model into the configuration, and restarts.
pub fn configured(world: &World) -> Result<()> {
    let machine = &world.machine;
    let path = machine.path("/etc/minisgld/minisgld.toml");
    let mut file = OpenOptions::new().append(true).open(path).context("the configuration")?;
    write!(
        file,
        "\n[workers]\nstall_s = 3.0\nstall_kill_s = 9.0\ndrain_s = 300.0\n\
         \n[[model]]\nmodel = \"{}\"\nname = \"{NAME}\"\noptions = {{ kv_tokens = 8192 }}\n",
        world.model
    )?;
    machine.run(&["minisgld", "check-config"])?;
    machine.run(&["systemctl", "restart", "minisgld"])?;
    wait_for_model(world)
}

/// Until the configured model serves.
pub fn wait_for_model(world: &World) -> Result<()> {
    let limit = Duration::from_secs(120);
    world.machine.wait_for_status(limit, |status| status == "1 model ready")?;
    world.machine.run(&["minisglctl", "health"])?;
    Ok(())
}

/// The worker's process id, in the machine: another than the one before.
pub fn wait_for_worker(world: &World, before: Option<&str>) -> Result<String> {
    let mut found = String::new();
    wait_until("a worker", Duration::from_secs(20), || {
        found = worker(world)?;
        Ok(!found.is_empty() && Some(found.as_str()) != before)
    })?;
    Ok(found)
}

/// Its process id, or nothing.
fn worker(world: &World) -> Result<String> {
    let main = world.machine.show("MainPID")?;
    if main == "0" {
        bail!("the service does not run");
    }
    // The daemon's threads start its children.
    let script = format!("cat /proc/{main}/task/*/children");
    let children = world.machine.run(&["sh", "-c", &script])?;
    Ok(children.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Sends a signal to a process of the machine.
pub fn signal(world: &World, name: &str, pid: &str) -> Result<()> {
    world.machine.run(&["sh", "-c", &format!("kill -{name} {pid}")])?;
    Ok(())
}
