//! Defines the failures of a request.

use std::io;
use std::time::Duration;

use rustix::io::Errno;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The kernel does not have this netlink family.
    #[error(
        "nf_tables is not available in this kernel or container ({0}); load it with `modprobe nf_tables`, or use a \
         kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET"
    )]
    NoNfTables(#[source] Errno),
    #[error(
        "changing nf_tables needs CAP_NET_ADMIN ({0}): run portsentry as root, or under systemd with \
         AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW; in a container, add the capability NET_ADMIN"
    )]
    NotPermitted(#[source] Errno),
    /// The kernel refused one message, and with it the whole request or transaction.
    #[error("the kernel refused message {message}: {errno}{}", explained(text))]
    Refused {
        /// Number of the message, counted from 1; 0 if the transaction as a whole was refused.
        message: u32,
        errno: Errno,
        /// The kernel's explanation; empty if it gives none.
        text: String,
    },
    /// No answer arrived. The request may have taken effect.
    #[error("the kernel did not answer in time; if this repeats, restart portsentry")]
    NoAnswer,
    #[error("invalid netlink message: {0}")]
    Malformed(&'static str),
    /// Answers were lost because the receive buffer was full. The request may have taken effect.
    #[error(
        "answers of the kernel were lost, because the receive buffer of {0} bytes was full; raise net.core.rmem_max"
    )]
    Overrun(usize),
    #[error("the ruleset changed during each of {MAX_ATTEMPTS} attempts to read it; try again")]
    Unsteady,
    #[error(
        "a transaction of {bytes} bytes exceeds the kernel's limit; configure fewer entries, or raise net.core.wmem_max"
    )]
    TooBig { bytes: usize },
    #[error("the netlink socket failed: {0}")]
    Io(#[from] io::Error),
}

impl SocketError {
    /// The failure to open a socket to nf_tables.
    pub(in crate::netlink) fn on_opening(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(errno @ (Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT)) => Self::NoNfTables(errno),
            Some(errno @ Errno::PERM) => Self::NotPermitted(errno),
            _ => Self::Io(error),
        }
    }

    /// The kernel's error number, if the kernel refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::NoNfTables(errno) | Self::NotPermitted(errno) | Self::Refused { errno, .. } => Some(*errno),
            Self::Io(error) => Errno::from_io_error(error),
            Self::NoAnswer | Self::Malformed(_) | Self::Overrun(_) | Self::Unsteady | Self::TooBig { .. } => None,
        }
    }

    /// True if the kernel refused with this error number.
    pub fn is(&self, reason: Errno) -> bool {
        matches!(self, Self::Refused { errno, .. } if *errno == reason)
    }
}

fn explained(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

/// Timeout for an answer. An answer normally takes microseconds, for a large commit milliseconds.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Attempts to read a list that keeps changing.
pub(super) const MAX_ATTEMPTS: u32 = 8;
