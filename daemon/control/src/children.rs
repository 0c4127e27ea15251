//! Which processes are children of this daemon that parse what strangers made: workers, and readers of tokenizers.
//! Each is the leader of a process group that nothing in it can leave (seccomp), so the group says of any process
//! whether it is one of them or comes from one. They run as the daemon's user and are no administrators all the same.
//!
//! Owns: the list of groups. Must never: take a process for a stranger because it is about to end.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::killpg;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Pid, getpgid};

static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn groups() -> MutexGuard<'static, BTreeSet<i32>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The process group of a child; listed while this lives and while the group has a process.
#[derive(Debug)]
pub struct Group(i32);

impl Group {
    /// Of a child that was started as the leader of a group (`process_group(0)`).
    pub fn of(pid: u32) -> Option<Group> {
        let group = i32::try_from(pid).ok()?;
        groups().insert(group);
        Some(Group(group))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let mut groups = groups();
        // The number of a group that is gone may be another's tomorrow.
        if is_gone(self.0) {
            groups.remove(&self.0);
        }
    }
}

fn is_gone(group: i32) -> bool {
    killpg(Pid::from_raw(group), None) == Err(Errno::ESRCH)
}

/// Whether the peer of a connection of this machine is a child of ours, comes from one, or is gone, so that nobody
/// knows. `pid` is the peer's, as the kernel says.
pub(crate) fn is_one(connection: &impl AsFd, pid: Option<i32>) -> bool {
    // None, or 0: outside of our namespace of processes, where no child of ours is.
    let Some(pid) = pid.filter(|&pid| pid > 0).map(Pid::from_raw) else { return false };
    // Held while the group is looked up, so that the number is this process's and not a later one's.
    let held = match getsockopt(connection, sockopt::PeerPidfd) {
        Ok(process) => Some(process),
        // Before Linux 6.5 the number has to do.
        Err(Errno::ENOPROTOOPT) => None,
        Err(_) => return true,
    };
    let Ok(group) = getpgid(Some(pid)) else { return true };
    held.as_ref().is_some_and(has_ended) || is_listed(group.as_raw())
}

fn is_listed(group: i32) -> bool {
    let mut groups = groups();
    if !groups.contains(&group) {
        return false;
    }
    if is_gone(group) {
        groups.remove(&group);
        return false;
    }
    true
}

/// A process that has ended makes its descriptor readable.
fn has_ended(process: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO) != Ok(0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that says nothing until its input ends, in this group; 0 is one of its own.
    fn process(group: i32) -> Child {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(group);
        command.spawn().unwrap()
    }

    fn end(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn a_group_is_listed_as_long_as_it_has_a_process() {
        let child = process(0);
        let pid = i32::try_from(child.id()).unwrap();
        assert!(!is_listed(pid));
        let group = Group::of(child.id()).unwrap();
        let grandchild = process(pid);
        assert!(is_listed(pid));
        end(child);
        drop(group);
        assert!(is_listed(pid), "the grandchild is there");
        end(grandchild);
        assert!(!is_listed(pid));
    }

    #[test]
    fn the_peer_of_a_connection_is_known_by_its_group() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        let (connection, _) = listener.accept().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(!is_one(&connection, Some(own)), "this process is not its own child");
        assert!(!is_one(&connection, None) && !is_one(&connection, Some(0)));
        // The number of a process that is not there any more.
        let child = process(0);
        let gone = i32::try_from(child.id()).unwrap();
        end(child);
        assert!(is_one(&connection, Some(gone)));
        let listed = Group(nix::unistd::getpgrp().as_raw());
        groups().insert(listed.0);
        assert!(is_one(&connection, Some(own)));
        groups().remove(&listed.0);
    }
}
