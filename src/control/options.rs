//! The options of the commands that talk to a running daemon.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use ipnet::IpNet;

use super::service_port::ServicePort;
use crate::config::{parse_expiry, parse_network, parse_span};

/// A command that talks to the running daemon.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub enum ControlCommand {
    /// Show the state of the running daemon
    Status(Connection),
    /// Block an address or prefix
    Block(BlockOptions),
    /// Lift the ban of an address or prefix
    Unblock(UnblockOptions),
    /// Do not block an address or network, for a time or until revoked
    Allow(AllowOptions),
    /// Revoke an allowance
    Disallow(DisallowOptions),
    /// List what operators and the configuration allow
    Allowed(Connection),
    /// Show everything that is known about an address
    Explain(ExplainOptions),
    /// Forget a service, so that its closed port is evidence again
    ForgetService(ForgetServiceOptions),
    /// Only log scans for a time, then block again
    Trial(TrialOptions),
    /// Confirm the trial of --confirm
    Confirm(Connection),
    /// Read the configuration again
    Reload(Connection),
    /// Print events as JSON lines
    Events(Connection),
}

/// The socket of the daemon, and the output format.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The daemon's socket
    #[arg(long, value_name = "FILE", default_value = super::DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Write one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Options of `block`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct BlockOptions {
    /// Address or prefix to block
    #[arg(value_name = "ADDRESS|PREFIX", value_parser = parse_network)]
    pub target: IpNet,
    /// For how long: 24h, 7d, 90m, or never [the configured time]
    #[arg(long, value_name = "SPAN", value_parser = checked_expiry)]
    pub expire: Option<String>,
    /// Reason, for the ledger and the log
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Block it even if it is protected; own addresses are always refused
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub connection: Connection,
}

/// Options of `unblock`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(override_usage = "portsentry unblock [OPTIONS] <ADDRESS|PREFIX>\n       portsentry unblock [OPTIONS] --all")]
pub struct UnblockOptions {
    /// Address or prefix to unblock
    #[arg(value_name = "ADDRESS|PREFIX", value_parser = parse_network, required_unless_present = "all")]
    pub target: Option<IpNet>,
    /// Lift every ban
    #[arg(long, conflicts_with = "target")]
    pub all: bool,
    #[command(flatten)]
    pub connection: Connection,
}

/// Options of `forget-service`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ForgetServiceOptions {
    /// Port of the service, with both protocols unless one is given
    #[arg(value_name = "PORT[/tcp|udp]")]
    pub port: ServicePort,
    #[command(flatten)]
    pub connection: Connection,
}

/// Options of `allow`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct AllowOptions {
    /// Address or network not to block
    #[arg(value_name = "ADDRESS|PREFIX", value_parser = parse_network)]
    pub target: IpNet,
    /// For how long: 1h, 7d [until `portsentry disallow`]
    #[arg(long = "for", value_name = "SPAN", value_parser = allowance_span)]
    pub span: Option<Duration>,
    /// Also a network as wide as 0.0.0.0/0
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub connection: Connection,
}

/// Options of `disallow`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct DisallowOptions {
    /// Address or network whose allowance is revoked, as listed by `portsentry allowed`
    #[arg(value_name = "ADDRESS|PREFIX", value_parser = parse_network)]
    pub target: IpNet,
    #[command(flatten)]
    pub connection: Connection,
}

/// Options of `trial`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(override_usage = "portsentry trial [OPTIONS] <SPAN>\n       portsentry trial [OPTIONS] --end")]
pub struct TrialOptions {
    /// For how long scans are only logged: 5m, 1d, at most 30d
    #[arg(value_name = "SPAN", value_parser = parse_span, required_unless_present = "end")]
    pub span: Option<Duration>,
    /// End the trial and block again
    #[arg(long, conflicts_with = "span")]
    pub end: bool,
    #[command(flatten)]
    pub connection: Connection,
}

/// Options of `explain`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ExplainOptions {
    /// The address
    #[arg(value_parser = parse_address)]
    pub address: IpAddr,
    #[command(flatten)]
    pub connection: Connection,
}

/// Parses one address.
fn parse_address(text: &str) -> Result<IpAddr, String> {
    let wrong =
        "it is not one address; write for example \"192.0.2.7\". `portsentry list PREFIX` shows a network's bans";
    text.parse().map_err(|_| wrong.to_owned())
}

/// Parses the duration of an allowance.
fn allowance_span(text: &str) -> Result<Duration, String> {
    match text.trim() {
        "never" => Err("write a duration, for example \"1h\"; what is always allowed belongs into allow.networks of \
                        portsentry.toml"
            .to_owned()),
        text => parse_span(text),
    }
}

/// Checked here as well, so that it is reported as a usage error; the daemon parses the same text again.
fn checked_expiry(text: &str) -> Result<String, String> {
    parse_expiry(text).map(|_| text.to_owned())
}
