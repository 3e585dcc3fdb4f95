//! Enums for configuration keys that take one of a few words.

use serde::Deserialize;

/// How a protocol is watched: the classic modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    Off,
    /// Opens the listed ports; a connection to one of them is a probe (classic `-tcp`, `-udp`).
    Connect,
    /// Captures packets to the listed ports, also those that open no connection (classic `-stcp`, `-sudp`).
    Stealth,
    /// A whole range less what is in use and what is excluded (classic `-atcp`, `-audp`).
    Advanced,
}

/// What happens to the source of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockPolicy {
    /// Blocked and logged.
    Yes,
    /// Logged.
    No,
    /// Left to the command of `block.run`, and logged.
    Run,
}

/// What ACK and FIN/ACK segments to closed ports lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AckPolicy {
    /// A scan is logged, and its source is not banned.
    Report,
    /// They count like SYNs.
    Ban,
}

/// What half-open connections to decoys lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HalfOpenPolicy {
    /// Nothing: their source may be forged.
    Ignore,
    /// They count like probes of closed ports, as in stealth mode.
    Ban,
}

/// What the ruleset does with packets of a blocked source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Drop,
    /// Answered with a reset or an ICMP error.
    Reject,
}

/// What syslog daemons sort lines by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Facility {
    User = 1,
    Daemon = 3,
    Auth = 4,
    Authpriv = 10,
    Local0 = 16,
    Local1,
    Local2,
    Local3,
    Local4,
    Local5,
    Local6,
    Local7,
}

impl Facility {
    /// Its number in syslog(3).
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// Where the lines of the log go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogTarget {
    /// To the journal where systemd has connected standard error to it, else to standard error.
    Auto,
    Stderr,
    Journal,
    /// To the syslog daemon at /dev/log.
    Syslog,
}
