//! Defines the enums for configuration keys that accept a small set of values.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a protocol is monitored: the classic modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    #[default]
    Off,
    /// Opens the listed ports; a connection to one of them is a probe (classic `-tcp`, `-udp`).
    Connect,
    /// Captures packets to the listed ports, including those that open no connection (classic `-stcp`, `-sudp`).
    Stealth,
    /// Monitors a whole range, less the ports in use and the excluded ports (classic `-atcp`, `-audp`).
    Advanced,
}

/// The name in the configuration file.
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// How ACK and FIN/ACK segments to closed ports are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AckPolicy {
    /// Log the scan, but do not ban its source.
    Report,
    /// Count them like SYNs.
    Ban,
}

/// How half-open connections to decoys are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HalfOpenPolicy {
    /// Ignore them, because their source may be forged.
    Ignore,
    /// Count them like probes of closed ports, as in stealth mode.
    Ban,
}

/// The syslog facility, by which syslog daemons sort messages, with its number in syslog(3).
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

/// The destination of log messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogTarget {
    /// The journal if systemd has connected standard error to it, otherwise standard error.
    Auto,
    Stderr,
    Journal,
    /// The syslog daemon at /dev/log.
    Syslog,
}
