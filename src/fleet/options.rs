//! Defines the command line of `portsentry fleet`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::key::HostName;
use super::report::MAX_REMAINING;
use crate::config::{parse_fleet_name, parse_span};
use crate::types::BanTarget;

/// Options of `fleet`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(subcommand_precedence_over_arg = true)]
pub struct FleetOptions {
    /// The settings [/etc/portsentry/portsentry.toml]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Option<FleetCommand>,
}

/// What `fleet` does instead of running.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub enum FleetCommand {
    /// Print a user for the ACL file of the server
    Acl(AclOptions),
    /// Lift the bans of all hosts on an address, at most 4h
    Lift(LiftOptions),
}

/// Options of `fleet acl`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(override_usage = "portsentry fleet acl [OPTIONS] <HOST>\n       portsentry fleet acl [OPTIONS] --operator")]
pub struct AclOptions {
    /// The host, as in fleet.host of its settings
    #[arg(value_name = "HOST", value_parser = HostName::parse, required_unless_present = "operator")]
    pub host: Option<HostName>,
    /// The user that may lift bans
    #[arg(long, conflicts_with = "host")]
    pub operator: bool,
    /// The user's name [the host's, or operator]
    #[arg(long, value_name = "NAME", value_parser = parse_fleet_name)]
    pub user: Option<String>,
    /// Take the password from FILE [a new one]
    #[arg(long, value_name = "FILE")]
    pub credentials: Option<PathBuf>,
}

/// Options of `fleet lift`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct LiftOptions {
    /// Address or IPv6 /64, as `portsentry list` has it
    #[arg(value_name = "ADDRESS", value_parser = parse_target)]
    pub target: BanTarget,
    /// How long hosts that join later learn of it
    #[arg(long = "for", value_name = "SPAN", default_value = "4h", value_parser = parse_lift_span)]
    pub span: Duration,
    /// The user on the server
    #[arg(long, value_name = "NAME", default_value = "operator", value_parser = parse_fleet_name)]
    pub user: String,
    /// The file with the user's password
    #[arg(long, value_name = "FILE", default_value = "/etc/portsentry/fleet-operator.password")]
    pub credentials: PathBuf,
}

fn parse_target(text: &str) -> Result<BanTarget, String> {
    let address = text.parse().map(BanTarget::of).ok();
    let target = address.or_else(|| text.parse().ok()).filter(|target| !matches!(target, BanTarget::Prefix(_)));
    target.ok_or_else(|| "write an address, or an IPv6 /64: nothing wider is ever reported".to_owned())
}

fn parse_lift_span(text: &str) -> Result<Duration, String> {
    match parse_span(text)? {
        span if span <= MAX_REMAINING && !span.is_zero() => Ok(span),
        _ => Err("write at most 4h: no report lasts longer by itself".to_owned()),
    }
}
