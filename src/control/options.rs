//! Defines the options of the commands that talk to a running daemon.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use ipnet::IpNet;

use super::scoped_network::{ScopedNetwork, with_number};
use super::service_port::ServicePort;
use crate::config::{parse_expiry, parse_network, parse_span};
use crate::types::BanTarget;

/// A command that talks to the running daemon.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub enum ControlCommand {
    /// Show the daemon's state: ports, packets, bans, problems
    Status(Connection),
    /// Block an address or prefix
    Block {
        /// Address or prefix to block
        #[arg(value_name = "ADDRESS|PREFIX", value_parser = parse_network)]
        target: IpNet,
        /// Duration: 90m, 24h, 7d or never [default: `expire` in the configuration]
        #[arg(long, value_name = "SPAN", value_parser = checked_expiry, allow_hyphen_values = true)]
        expire: Option<String>,
        /// Reason to store in the ledger and the log
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Block a protected address, too; this host's own addresses are always refused
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Lift the ban of an address or prefix
    #[command(
        override_usage = "portsentry unblock [OPTIONS] <ADDRESS|PREFIX>\n       portsentry unblock [OPTIONS] --all"
    )]
    Unblock {
        /// Address or prefix to unblock
        #[arg(value_name = "ADDRESS|PREFIX", value_parser = checked_target, required_unless_present = "all")]
        target: Option<String>,
        /// Lift all bans
        #[arg(long, conflicts_with = "target")]
        all: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Exempt an address or network from bans, for a time or until revoked
    Allow {
        /// Address or network to exempt
        #[arg(value_name = "ADDRESS|PREFIX", value_parser = parse_network)]
        target: IpNet,
        /// Duration: 1h, 7d [default: until `portsentry disallow`]
        #[arg(long = "for", value_name = "SPAN", value_parser = allowance_span, allow_hyphen_values = true)]
        span: Option<Duration>,
        /// Permit a network wider than an IPv4 /8 or an IPv6 /16
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Revoke an `allow`
    Disallow {
        /// Address or network as listed by `portsentry allowed`
        #[arg(value_name = "ADDRESS|PREFIX", value_parser = parse_network)]
        target: IpNet,
        #[command(flatten)]
        connection: Connection,
    },
    /// List addresses and networks that are exempt from bans
    Allowed(Connection),
    /// Show what is known about an address: evidence, bans, protection
    Explain {
        /// Address to explain; a link-local one may have its link, fe80::7%eth0
        #[arg(value_parser = typed_address)]
        address: ScopedNetwork,
        #[command(flatten)]
        connection: Connection,
    },
    /// Forget a remembered service, so that probes of its port count again
    ForgetService {
        /// Port of the service; without /tcp or /udp, both protocols
        #[arg(value_name = "PORT[/tcp|udp]")]
        port: ServicePort,
        #[command(flatten)]
        connection: Connection,
    },
    /// Only log scans for a time, then resume blocking
    #[command(override_usage = "portsentry trial [OPTIONS] <SPAN>\n       portsentry trial [OPTIONS] --end")]
    Trial {
        /// Duration: 5m, 1d, at most 30d
        #[arg(value_name = "SPAN", value_parser = parse_span, required_unless_present = "end", allow_hyphen_values = true)]
        span: Option<Duration>,
        /// End the trial and resume blocking
        #[arg(long, conflicts_with = "span")]
        end: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Confirm a start with --confirm, so that blocking continues
    Confirm(Connection),
    /// Reload the configuration
    Reload(Connection),
    /// Print events as they occur, one JSON object per line
    Events(Connection),
}

/// The socket of the daemon, and the output format.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Control socket of the daemon
    #[arg(long, value_name = "FILE", default_value = super::DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Parses one address.
pub(crate) fn parse_address(text: &str) -> Result<ScopedNetwork, String> {
    match text.parse::<ScopedNetwork>() {
        Ok(found) if found.network.prefix_len() == found.network.max_prefix_len() => Ok(found),
        Err(error) if text.contains('%') => Err(error),
        _ => Err(format!(
            "{text:?} is not an address; write for example \"192.0.2.7\". `portsentry list PREFIX` shows the bans in a \
             network"
        )),
    }
}

fn typed_address(text: &str) -> Result<ScopedNetwork, String> {
    parse_address(&with_number(text)?)
}

/// Checked here as well, so that it is reported as a usage error; the daemon parses the same text again.
fn checked_target(text: &str) -> Result<String, String> {
    let text = with_number(text)?;
    parse_target(&text).map(|_| text)
}

/// Parses an address or network, or the target of a ban on one link.
pub(crate) fn parse_target(text: &str) -> Result<BanTarget, String> {
    text.parse::<ScopedNetwork>()?.target()
}

/// Parses the duration of an allowance.
fn allowance_span(text: &str) -> Result<Duration, String> {
    match text.trim() {
        "never" => Err("write a duration, for example \"1h\"; permanent entries belong in allow.networks of \
         portsentry.toml"
            .to_owned()),
        text => parse_span(text),
    }
}

/// Checked here as well, so that it is reported as a usage error; the daemon parses the same text again.
fn checked_expiry(text: &str) -> Result<String, String> {
    parse_expiry(text).map(|_| text.to_owned())
}
