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

/// The same for a model that is not there.
const NOT_FOUND: i32 = 4;

/// The configuration, in the machine.
pub const CONFIG: &str = "/etc/minisgld/minisgld.toml";

/// Name of the model for clients; python/test_openai.py asks for it.
pub const NAME: &str = "smollm2";

/// The socket is for root and for members of the group; members may look, and change nothing.
pub fn access(world: &World) -> Result<()> {
    world.machine.run_as(Some(MEMBER), &["minisglctl", "ps"])?;
    refused(world, STRANGER, &["minisglctl", "ps"], "group")?;
    refused(world, STRANGER, &["minisglctl", "load", &world.model], "group")?;
    refused(world, MEMBER, &["minisglctl", "load", &world.model], "admin_users")
}

/// It ends as what is refused does, and names the remedy.
fn refused(world: &World, user: &str, args: &[&str], remedy: &str) -> Result<()> {
    let refused = world.machine.outcome(Some(user), args)?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        refused.status.code() == Some(REFUSED) && said.contains(remedy),
        "{user}: {args:?} ended with {}: {said}",
        refused.status
    );
    Ok(())
}

/// Adds to the configuration, as an operator does.
fn configure(world: &World, text: &str) -> Result<()> {
    let path = world.machine.path(CONFIG);
    let mut file = OpenOptions::new().append(true).open(path).context("the configuration")?;
    file.write_all(text.as_bytes()).context("writing the configuration")
}

/// `systemctl reload`: the same daemon, another configuration; one that cannot be is refused, and the one before
/// stays in force.
pub fn reload(world: &World) -> Result<()> {
    let machine = &world.machine;
    let main = machine.show("MainPID")?;
    let shipped = machine.run(&["cat", CONFIG])?;
    configure(world, &format!("\n[admin]\nadmin_users = [\"{MEMBER}\"]\n"))?;
    machine.run(&["systemctl", "reload", "minisgld"])?;
    let good = machine.run(&["cat", CONFIG])?;
    ensure!(good != shipped, "nothing was configured");
    // Unknown models are not found, for those who may ask for them.
    let may = |user| machine.outcome(Some(user), &["minisglctl", "unload", "no-such-model"]);
    wait_until("the reload in force", Duration::from_secs(5), || {
        Ok(may(MEMBER)?.status.code() == Some(NOT_FOUND))
    })?;

    configure(world, "no_such_key = 1\n")?;
    let reloaded = machine.outcome(None, &["systemctl", "reload", "minisgld"])?;
    ensure!(!reloaded.status.success(), "a configuration that cannot be was reloaded");
    ensure!(machine.journal().contains("no_such_key"), "the journal does not say what is wrong");
    ensure!(may(MEMBER)?.status.code() == Some(NOT_FOUND), "the configuration before was dropped");
    std::fs::write(machine.path(CONFIG), good)?;
    machine.run(&["systemctl", "reload", "minisgld"])?;
    ensure!(machine.show("MainPID")? == main, "it was restarted");
    Ok(())
}

/// A member who is an admin user loads the model. Its worker is held on the way, until systemd has shown how far it is.
pub fn load(world: &World) -> Result<()> {
    let machine = &world.machine;
    let args = ["minisglctl", "load", &world.model, "--name", NAME, "--kv-tokens", "8192"];
    let mut load = machine.command(Some(MEMBER), &args);
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

/// What a request's entry has, besides what the journal adds.
const FIELDS: [&str; 5] = [
    "MINISGL_REQUEST_ID",
    "MINISGL_PROMPT_TOKENS",
    "MINISGL_GENERATED_TOKENS",
    "MINISGL_FIRST_TOKEN_S",
    "MINISGL_ELAPSED_S",
];

/// What the client asked is in the journal, found and told by fields; what was said is not.
pub fn journal(world: &World) -> Result<()> {
    let machine = &world.machine;
    let unit = ["journalctl", "--unit=minisgld.service", "--no-pager"];
    let model = format!("MINISGL_MODEL={NAME}");
    let of_request = ["--output=json", "MINISGL_ENDPOINT=/v1/chat/completions", &model];
    let mut found = String::new();
    wait_until("a request in the journal", Duration::from_secs(5), || {
        found = machine.run(&[&unit[..], &of_request].concat())?;
        Ok(!found.is_empty())
    })?;
    let first = found.lines().next().unwrap_or_default();
    let entry: serde_json::Value =
        serde_json::from_str(first).context("an entry of the journal")?;
    for field in FIELDS {
        let value = entry[field].as_str().unwrap_or_default();
        ensure!(!value.is_empty(), "no {field} in {first}");
    }
    for (field, value) in [
        ("MINISGL_OUTCOME", "ok"),
        ("_SYSTEMD_UNIT", "minisgld.service"),
        ("PRIORITY", "6"),
        ("MINISGL_PROMPT_TOKENS", "37"),
    ] {
        ensure!(entry[field] == value, "{field} is not {value} in {first}");
    }
    let all = machine.run(&[&unit[..], &["--output=cat"]].concat())?;
    ensure!(!all.contains("France"), "a prompt or an answer is in the journal:\n{all}");
    Ok(())
}

/// The operator writes the model into the configuration, and restarts.
pub fn configured(world: &World) -> Result<()> {
    let machine = &world.machine;
    let model = &world.model;
    let text = format!(
        "\n[workers]\nstall_s = 3.0\nstall_kill_s = 9.0\ndrain_s = 300.0\n\
         \n[[model]]\nmodel = \"{model}\"\nname = \"{NAME}\"\noptions = {{ kv_tokens = 8192 }}\n"
    );
    configure(world, &text)?;
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
    // The daemon's threads start its children, of which the text process is another.
    let script = format!(
        "for child in $(cat /proc/{main}/task/*/children); do \
         tr '\\0' ' ' < /proc/$child/cmdline | grep -q ' worker ' && echo $child; done; true"
    );
    let workers = world.machine.run(&["sh", "-c", &script])?;
    Ok(workers.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Sends a signal to a process of the machine.
pub fn signal(world: &World, name: &str, pid: &str) -> Result<()> {
    world.machine.run(&["sh", "-c", &format!("kill -{name} {pid}")])?;
    Ok(())
}
