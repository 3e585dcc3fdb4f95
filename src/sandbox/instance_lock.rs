//! Ensures that only one daemon runs in each network namespace, because two would revert each other's changes to the
//! table. A running daemon holds an abstract socket, which belongs to the namespace, leaves no file after a crash, and
//! disappears with the process.
//!
//! Any process can bind such a name, so a holder that runs as an unprivileged user does not prevent a daemon from
//! starting.
//!
//! References: unix(7) on abstract addresses and on SO_PEERCRED, which identifies the process that called listen(2).

use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};
use rustix::thread::CapabilitySet;

use super::user::{NAME, user_id};

const SOCKET: &[u8] = b"portsentry";

/// Timeout for a process that is starting or ending to identify itself or to release the name. Longer than a running
/// daemon takes to close a client's connection.
const HOLDER_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Delay between two attempts.
const RETRY_DELAY: Duration = Duration::from_millis(20);

/// Maximum number of waiting clients. Each connection is closed immediately, so the queue never stays full.
const BACKLOG: i32 = 16;

/// The lock on this network namespace, held until it is dropped.
pub struct InstanceLock {
    /// `None` if a process that is not a daemon holds the name.
    listener: Option<OwnedFd>,
    /// A warning if another daemon may be running.
    pub doubt: Option<String>,
}

/// Why this daemon must not run.
#[derive(Debug, thiserror::Error)]
pub enum InstanceLockError {
    #[error(
        "portsentry is already running in this network namespace{}; stop it first, or see `portsentry status`",
        process.map_or(String::new(), |process| format!(", as process {process}"))
    )]
    Other {
        /// Its process id; `None` if it is in a PID namespace that is not visible from here.
        process: Option<i32>,
    },
    #[error("cannot determine whether portsentry is already running: {0}")]
    System(#[from] io::Error),
}

impl InstanceLock {
    /// Locks the network namespace of the calling thread.
    ///
    /// # Errors
    /// Another daemon holds the lock.
    pub fn claim() -> Result<Self, InstanceLockError> {
        Self::claim_as(SOCKET)
    }

    /// True if a process, most likely a daemon, holds the lock of the calling thread's network namespace.
    pub fn is_held() -> bool {
        SocketAddrUnix::new_abstract_name(SOCKET).is_ok_and(|address| holder(&address).is_some())
    }

    fn claim_as(name: &[u8]) -> Result<Self, InstanceLockError> {
        let address = SocketAddrUnix::new_abstract_name(name).map_err(io::Error::from)?;
        let until = Instant::now() + HOLDER_TIMEOUT;
        loop {
            let listener = open().map_err(io::Error::from)?;
            match bind(&listener, &address) {
                Ok(()) => {
                    listen(&listener, BACKLOG).map_err(io::Error::from)?;
                    return Ok(Self { listener: Some(listener), doubt: None });
                }
                Err(Errno::ADDRINUSE) => {}
                Err(error) => return Err(InstanceLockError::System(error.into())),
            }
            match holder(&address) {
                Some((user, process)) if trusted(user) || blocks(process) => {
                    return Err(InstanceLockError::Other { process });
                }
                Some((user, process)) => return Ok(Self::in_doubt(&format!("user {user}"), process)),
                // The holder is starting or ending.
                None if Instant::now() < until => thread::sleep(RETRY_DELAY),
                None => return Ok(Self::in_doubt("an unknown process", None)),
            }
        }
    }

    fn in_doubt(holder: &str, process: Option<i32>) -> Self {
        let process = process.map_or(String::new(), |process| format!(" (process {process})"));
        let doubt = format!(
            "{holder}{process} occupies the abstract socket @portsentry, so a second daemon would not be detected; \
             make sure that only one runs"
        );
        Self { listener: None, doubt: Some(doubt) }
    }

    /// Closes the connections of waiting clients.
    pub fn hang_up(&self) {
        if let Some(listener) = &self.listener {
            while accept_with(listener, SocketFlags::CLOEXEC).is_ok() {}
        }
    }
}

fn open() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// User and process of the listener; `None` if there is none, or if it does not answer in time.
fn holder(address: &SocketAddrUnix) -> Option<(u32, Option<i32>)> {
    let socket = open().ok()?;
    connect(&socket, address).ok()?;
    let credentials = getsockopt(&socket, PeerCredentials).ok()?;
    // The pid of a process that is not visible from here is zero.
    Some((credentials.uid(), (credentials.pid() > 0).then_some(credentials.pid())))
}

/// True for users that a daemon runs as: root, the user of this process, and the package's user.
fn trusted(user: u32) -> bool {
    user == 0 || user == rustix::process::geteuid().as_raw() || user_id(NAME) == Some(user)
}

/// True for a process of another user, for example a service's, that has CAP_NET_ADMIN in our own user namespace. Any
/// user can create a user namespace. Only root can read this.
fn blocks(process: Option<i32>) -> bool {
    let Some(process) = process else { return false };
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/user")).ok();
    let ours = namespace(&process.to_string()).is_some_and(|theirs| namespace("self") == Some(theirs));
    // capget(2) on another process would depend on its security module.
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or_default();
    ours && CapabilitySet::from_bits_retain(effective).contains(CapabilitySet::NET_ADMIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(of: &str) -> Vec<u8> {
        format!("portsentry-test-{of}-{}", std::process::id()).into_bytes()
    }

    #[test]
    fn second_instance_notices_first_until_gone() {
        let name = name("two");
        let first = InstanceLock::claim_as(&name).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        for _ in 0..3 {
            let Err(InstanceLockError::Other { process }) = InstanceLock::claim_as(&name) else {
                panic!("the lock was acquired")
            };
            assert_eq!(process, Some(own));
            first.hang_up();
        }
        drop(first);
        assert!(InstanceLock::claim_as(&name).unwrap().doubt.as_deref().is_none());
    }

    #[test]
    fn silent_lock_holder_prevents_no_start() {
        let name = name("silent");
        let silent = open().unwrap();
        bind(&silent, &SocketAddrUnix::new_abstract_name(&name).unwrap()).unwrap();
        let begin = Instant::now();
        let alone = InstanceLock::claim_as(&name).unwrap();
        assert!(alone.doubt.as_deref().unwrap().contains("would not be detected") && begin.elapsed() >= HOLDER_TIMEOUT);
    }

    #[test]
    fn ending_instance_is_waited_for() {
        let name = name("ending");
        let silent = open().unwrap();
        bind(&silent, &SocketAddrUnix::new_abstract_name(&name).unwrap()).unwrap();
        let gone = thread::spawn(move || {
            thread::sleep(RETRY_DELAY * 2);
            drop(silent);
        });
        let alone = InstanceLock::claim_as(&name).unwrap();
        gone.join().unwrap();
        assert!(alone.doubt.as_deref().is_none(), "{:?}", alone.doubt.as_deref());
    }
}
