//! What hangs is replaced, and what is stopped ends in order.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::serving::{NAME, signal, wait_for_model, wait_for_worker};
use super::{World, wait_until};

/// Tokens of the stream that a stop meets: seconds of work, more than systemd waits unasked.
const STREAM_TOKENS: &str = "150";

const DROP_INS: &str = "/etc/systemd/system/minisgld.service.d";

/// A worker that no longer answers is the daemon's own business.
pub fn hung_worker(world: &World) -> Result<()> {
    let machine = &world.machine;
    let main = machine.show("MainPID")?;
    let worker = wait_for_worker(world, None)?;
    signal(world, "STOP", &worker)?;
    let stalled = format!("{NAME} is stalled");
    machine.wait_for_status(Duration::from_secs(30), |status| status.contains(&stalled))?;
    let other = wait_for_worker(world, Some(&worker))?;
    ensure!(other != worker, "the worker is the same");
    wait_for_model(world)?;
    ensure!(machine.show("MainPID")? == main, "the daemon went with its worker");
    Ok(())
}

/// A daemon that no longer turns is systemd's.
pub fn hung_daemon(world: &World) -> Result<()> {
    let machine = &world.machine;
    // A minute is right for operators and long for a test.
    drop_in(world, "WatchdogSec=8")?;
    machine.run(&["systemctl", "restart", "minisgld"])?;
    wait_for_model(world)?;
    let main = machine.show("MainPID")?;
    // Busy or idle, it feeds the watchdog: it is the same for longer than that.
    std::thread::sleep(Duration::from_secs(10));
    ensure!(machine.show("MainPID")? == main, "the watchdog ended a daemon that was well");

    machine.run(&["systemctl", "kill", "--signal=STOP", "--kill-whom=main", "minisgld"])?;
    wait_until("a restart", Duration::from_secs(30), || Ok(machine.show("NRestarts")? == "1"))?;
    wait_for_model(world)?;
    ensure!(machine.show("MainPID")? != main, "the daemon is the same");
    let journal = machine.journal();
    ensure!(journal.contains("Watchdog timeout"), "another reason:\n{journal}");
    no_drop_in(world)
}

/// What an operator changes with `systemctl edit`.
fn drop_in(world: &World, line: &str) -> Result<()> {
    let write =
        format!("mkdir -p {DROP_INS}; printf '[Service]\\n{line}\\n' > {DROP_INS}/test.conf");
    world.machine.run(&["sh", "-c", &write])?;
    world.machine.run(&["systemctl", "daemon-reload"])?;
    Ok(())
}

fn no_drop_in(world: &World) -> Result<()> {
    world.machine.run(&["rm", "-r", DROP_INS])?;
    world.machine.run(&["systemctl", "daemon-reload"])?;
    Ok(())
}

/// `systemctl stop` while a client reads a stream: the stream comes to its proper end, although that is later than
/// systemd would wait if it were not asked for more time.
pub fn drain(world: &World) -> Result<()> {
    let machine = &world.machine;
    drop_in(world, "TimeoutStopSec=2")?;
    let script = ["python3", "/srv/tests/system_stream.py", NAME, STREAM_TOKENS];
    let mut client = machine.command(None, &script);
    let mut client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(client.stdout.take().context("the client's output")?);
    let mut first = String::new();
    lines.read_line(&mut first)?;
    ensure!(first.starts_with("first"), "the stream does not begin: {first:?}");

    let began = Instant::now();
    machine.run(&["systemctl", "stop", "--no-block", "minisgld"])?;
    let status = machine.wait_for_status(Duration::from_secs(10), |status| {
        status.starts_with("stopping: 1 request running")
    })?;
    println!("    {status}");
    let mut rest = String::new();
    lines.read_to_string(&mut rest)?;
    let output = client.wait_with_output()?;
    ensure!(
        output.status.success() && rest.trim() == format!("length {STREAM_TOKENS}"),
        "the stream was cut: {rest:?} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    println!("    the stream ended {:.1} s after the stop", began.elapsed().as_secs_f64());
    wait_until("the end", Duration::from_secs(15), || {
        Ok(machine.show("ActiveState")? == "inactive")
    })?;
    ensure!(machine.show("Result")? == "success", "it ended as {}", machine.show("Result")?);
    // The admin socket is systemd's, and outlives the daemon.
    machine.run(&["systemctl", "is-active", "minisgld.socket"])?;
    machine.run(&["ls", "/run/minisgld/admin.sock"])?;
    no_drop_in(world)?;
    machine.run(&["systemctl", "start", "minisgld"])?;
    wait_for_model(world)
}

/// `systemctl restart` while clients connect: all are served, some with 503, and none is turned away.
pub fn restart(world: &World) -> Result<()> {
    let machine = &world.machine;
    let main = machine.show("MainPID")?;
    let mut clients = machine.command(None, &["python3", "/srv/tests/system_restart.py"]);
    let clients = clients.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut clients = clients.spawn()?;
    let mut lines = BufReader::new(clients.stdout.take().context("the clients' output")?);
    let mut first = String::new();
    lines.read_line(&mut first)?;
    ensure!(first.trim() == "knocking", "the clients do not begin: {first:?}");
    machine.run(&["systemctl", "restart", "minisgld"])?;
    // The admin socket was there all the time.
    machine.run(&["minisglctl", "ps"])?;
    wait_for_model(world)?;
    ensure!(machine.show("MainPID")? != main, "it was not restarted");
    drop(clients.stdin.take());
    let mut said = String::new();
    lines.read_to_string(&mut said)?;
    let output = clients.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    println!("    {}", said.trim());
    let said: serde_json::Value = serde_json::from_str(&said)?;
    ensure!(said["lost_count"] == 0, "connections were lost: {said}");
    ensure!(said["statuses"]["200"].as_u64() > Some(0), "nothing was answered: {said}");
    Ok(())
}
