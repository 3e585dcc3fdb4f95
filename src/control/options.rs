//! The options of the commands that ask a running daemon.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use ipnet::IpNet;

use super::service_port::ServicePort;
use crate::config::{parse_expiry, parse_network, parse_span};

/// A command that asks the running daemon.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub enum ControlCommand {
    /// How the running daemon is
    Status(Connection),
    /// Block an address or prefix
    Block(BlockOptions),
    /// Lift the ban of an address or prefix
    Unblock(UnblockOptions),
    /// Do not block an address or network, until that is revoked
    Allow(AllowOptions),
    /// Revoke an allowance
    Disallow(DisallowOptions),
    /// What is allowed, by hand and by the settings
    Allowed(Connection),
    /// Everything that is known about an address
    Explain(ExplainOptions),
    /// Forget a service: its port, closed, is evidence again
    ForgetService(ForgetServiceOptions),
    /// Only log scans for a while, and block again by itself
    Trial(TrialOptions),
    /// Keep what --confirm has on trial
    Confirm(Connection),
    /// Read the settings again
    Reload(Connection),
    /// Events as they come, as JSON lines
    Events(Connection),
}

/// How to reach the daemon, and how to say what it answers.
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
    /// For how long: 24h, 7d, 90m, or never [what the daemon's settings say]
    #[arg(long, value_name = "SPAN", value_parser = checked_expiry)]
    pub expire: Option<String>,
    /// Why, for the ledger and the log
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Block it although it is protected; own addresses never are
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub connection: Connection,
}

/// Options of `unblock`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(override_usage = "portsentry unblock [OPTIONS] <ADDRESS|PREFIX>\n       portsentry unblock [OPTIONS] --all")]
pub struct UnblockOptions {
    /// Address or prefix to free
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
    /// Port of the service, of both protocols unless one is named
    #[arg(value_name = "PORT[/tcp|udp]")]
    pub port: ServicePort,
    #[command(flatten)]
    pub connection: Connection,
}

/// Options of `allow`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct AllowOptions {
    /// Address or network that is not to be blocked
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
    /// Address or network whose allowance is revoked, as `portsentry allowed` has it
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
    /// End the trial: block again
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

/// Reads one address.
fn parse_address(text: &str) -> Result<IpAddr, String> {
    let wrong =
        "it is not one address; write for example \"192.0.2.7\". `portsentry list PREFIX` shows a network's bans";
    text.parse().map_err(|_| wrong.to_owned())
}

/// Reads for how long something is allowed.
fn allowance_span(text: &str) -> Result<Duration, String> {
    match text.trim() {
        "never" => Err("write a duration, for example \"1h\"; what is always allowed belongs into allow.networks of \
                        portsentry.toml"
            .to_owned()),
        text => parse_span(text),
    }
}

/// Checks it here, where a usage error can be one; the daemon reads the same words again.
fn checked_expiry(text: &str) -> Result<String, String> {
    parse_expiry(text).map(|_| text.to_owned())
}
