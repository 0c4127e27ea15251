//! What confined threads may ask the kernel for (seccomp): no process but their own, and no socket that reaches
//! one.
//!
//! Everything that no rule names is allowed: libraries may do what they like with files and memory, of which
//! Landlock decides.
//!
//! Owns: the list of refused calls. Must never: depend on Landlock being there.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

type Error = Box<dyn std::error::Error>;
/// Calls and when they are refused; without a condition always.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Which sockets may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sockets {
    /// None: what a model needs on the CPU.
    None,
    /// What CUDA's driver makes for itself: `SOCK_SEQPACKET` of this machine. `connect`: it may join an MPS server.
    Driver {
        /// Whether there is a server.
        connect: bool,
    },
    /// The driver's, the network, by which the ranks of NCCL find each other, and a datagram socket for each, which sends
    /// nothing while all ranks are threads of one process.
    Ranks,
}

/// Reaches another process, starts a program, or leaves the group by which the daemon knows its workers.
const REFUSED: [i64; 21] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_setsid,
    libc::SYS_setpgid,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    libc::SYS_ioprio_set,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_bpf,
    // Would make sockets behind the filter's back.
    libc::SYS_io_uring_setup,
];
/// Needed by nobody who makes no socket.
const REFUSED_WITHOUT_SOCKETS: [i64; 9] = [
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
];
/// x86-64's second table of calls (x32), which a kernel may have: the bit that marks them, and the numbers of its own.
#[cfg(target_arch = "x86_64")]
const X32: (i64, std::ops::Range<i64>) = (0x4000_0000, 512..548);
/// Bytes of an address of the network, IPv4's and IPv6's: one of this machine is rarely as long.
const NETWORK_ADDRESS_BYTES: [usize; 2] =
    [size_of::<libc::sockaddr_in>(), size_of::<libc::sockaddr_in6>()];
/// Bits of a socket's type that are the type.
const TYPE: u64 = 0xf;
/// A file whose readiness is a signal to somebody: `F_SETOWN`, `F_SETSIG` and `F_SETOWN_EX` of fcntl(2), which libc
/// has not all of.
const SET_SIGNAL: [u64; 3] = [8, 10, 15];
/// The same of ioctl(2): `FIOSETOWN`, `SIOCSPGRP`.
const SET_OWNER: [u64; 2] = [0x8901, 0x8902];

/// Refuses this thread, and those it starts, what is not for them.
pub(super) fn restrict(sockets: Sockets) -> Result<(), String> {
    let apply = || -> Result<(), Error> {
        apply(rules(sockets)?, libc::EACCES)?;
        if sockets == Sockets::None {
            // Its flags are in memory, where no filter looks; the C library then takes `clone`.
            apply([(libc::SYS_clone3, Vec::new())].into(), libc::ENOSYS)?;
        }
        Ok(())
    };
    apply().map_err(|error| error.to_string())
}

fn apply(rules: Rules, error: i32) -> Result<(), Error> {
    let refuse = SeccompAction::Errno(error as u32);
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(seccompiler::apply_filter(&program)?)
}

fn rules(sockets: Sockets) -> Result<Rules, Error> {
    let own = u64::from(std::process::id());
    let mut rules: Rules = REFUSED.into_iter().map(|call| (call, Vec::new())).collect();
    // A process may end itself.
    rules.insert(libc::SYS_kill, vec![all([is_not(0, own)?])?]);
    rules.insert(libc::SYS_tgkill, vec![all([is_not(0, own)?])?]);
    rules.insert(libc::SYS_prlimit64, vec![all([is_not(0, 0)?, is_not(0, own)?])?]);
    rules.insert(libc::SYS_move_pages, vec![all([is_not(0, 0)?, is_not(0, own)?])?]);
    rules.insert(libc::SYS_migrate_pages, vec![all([is_not(0, 0)?, is_not(0, own)?])?]);
    // Which 0 is a process, and who 0 the caller.
    rules.insert(libc::SYS_setpriority, vec![all([is_not(0, 0)?])?, all([is_not(1, 0)?])?]);
    rules.insert(libc::SYS_fcntl, any(1, SET_SIGNAL)?);
    rules.insert(libc::SYS_ioctl, any(1, SET_OWNER)?);
    match sockets {
        Sockets::None => {
            rules.extend(REFUSED_WITHOUT_SOCKETS.map(|call| (call, Vec::new())));
            // Threads and no processes.
            let thread = libc::CLONE_THREAD as u64;
            let process = [when(0, SeccompCmpOp::MaskedEq(thread), 0)?];
            rules.insert(libc::SYS_clone, vec![all(process)?]);
            #[cfg(target_arch = "x86_64")]
            rules.extend([(libc::SYS_fork, Vec::new()), (libc::SYS_vfork, Vec::new())]);
        }
        Sockets::Driver { connect } => {
            let types = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW];
            let mut socket = vec![all([is_not(0, UNIX)?])?];
            socket.extend(unix(&types)?);
            rules.insert(libc::SYS_socket, socket);
            if !connect {
                rules.insert(libc::SYS_connect, Vec::new());
            }
        }
        Sockets::Ranks => {
            let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
            let other = families.map(|family| is_not(0, family as u64));
            let mut socket = vec![all(other.into_iter().collect::<Result<Vec<_>, _>>()?)?];
            // Datagrams stay: NCCL binds one a rank. No stream is connected, and the admin socket is one.
            socket.extend(unix(&[libc::SOCK_STREAM, libc::SOCK_RAW])?);
            rules.insert(libc::SYS_socket, socket);
            // Where an address is in memory no filter looks, so what may carry one of this machine is refused.
            rules.extend([(libc::SYS_sendmsg, Vec::new()), (libc::SYS_sendmmsg, Vec::new())]);
            let (whole, ne) = (SeccompCmpArgLen::Qword, SeccompCmpOp::Ne);
            let addressed = SeccompCondition::new(4, whole, ne, 0)?;
            rules.insert(libc::SYS_sendto, vec![all([addressed])?]);
            let [v4, v6] = NETWORK_ADDRESS_BYTES.map(|bytes| is_not(2, bytes as u64));
            rules.insert(libc::SYS_connect, vec![all([v4?, v6?])?]);
        }
    }
    if sockets != Sockets::None {
        // A pair of datagram sockets sends to whom it likes; of the other types to each other.
        rules.insert(libc::SYS_socketpair, unix(&[libc::SOCK_DGRAM, libc::SOCK_RAW])?);
    }
    #[cfg(target_arch = "x86_64")]
    {
        let (bit, own) = X32;
        let second: Vec<i64> = rules.keys().copied().chain(own).map(|call| call | bit).collect();
        rules.extend(second.into_iter().map(|call| (call, Vec::new())));
    }
    Ok(rules)
}

const UNIX: u64 = libc::AF_UNIX as u64;

/// Sockets of this machine of these types.
fn unix(types: &[i32]) -> Result<Vec<SeccompRule>, Error> {
    let rule = |of: &i32| {
        all([when(0, SeccompCmpOp::Eq, UNIX)?, when(1, SeccompCmpOp::MaskedEq(TYPE), *of as u64)?])
    };
    types.iter().map(rule).collect()
}

/// Argument number `at` is one of `values`.
fn any(at: u8, values: impl IntoIterator<Item = u64>) -> Result<Vec<SeccompRule>, Error> {
    values.into_iter().map(|value| all([when(at, SeccompCmpOp::Eq, value)?])).collect()
}

fn is_not(at: u8, value: u64) -> Result<SeccompCondition, Error> {
    when(at, SeccompCmpOp::Ne, value)
}

/// The kernel looks at 32 bits of these arguments.
fn when(at: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, Error> {
    Ok(SeccompCondition::new(at, SeccompCmpArgLen::Dword, operator, value)?)
}

fn all(conditions: impl Into<Vec<SeccompCondition>>) -> Result<SeccompRule, Error> {
    Ok(SeccompRule::new(conditions.into())?)
}
