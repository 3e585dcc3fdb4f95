//! Defines the command line of `portsentry fleet`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::key::HostName;
use crate::config::{parse_fleet_name, parse_span};
use crate::control::fleet_protocol::MAX_REMAINING;
use crate::types::BanTarget;

/// Options of `fleet`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(subcommand_precedence_over_arg = true)]
pub struct FleetOptions {
    /// Configuration file [default: /etc/portsentry/portsentry.toml]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Option<FleetCommand>,
}

/// The subcommands of `fleet`.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub enum FleetCommand {
    /// Print a line for the server's ACL file: a user with a password
    Acl(AclOptions),
    /// Lift the fleet's bans of an address on all hosts
    Lift(LiftOptions),
}

/// Options of `fleet acl`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(override_usage = "portsentry fleet acl [OPTIONS] <HOST>\n       portsentry fleet acl [OPTIONS] --operator")]
pub struct AclOptions {
    /// Host, as named by fleet.host in its configuration
    #[arg(value_name = "HOST", value_parser = HostName::parse, required_unless_present = "operator")]
    pub host: Option<HostName>,
    /// Print the user that can lift bans, instead of a host's user
    #[arg(long, conflicts_with = "host")]
    pub operator: bool,
    /// Name of the user [default: HOST, or operator]
    #[arg(long, value_name = "NAME", value_parser = parse_fleet_name)]
    pub user: Option<String>,
    /// Read the password from this file [default: a new random password]
    #[arg(long, value_name = "FILE")]
    pub credentials: Option<PathBuf>,
}

/// Options of `fleet lift`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct LiftOptions {
    /// Address or IPv6 /64, as shown by `portsentry list`
    #[arg(value_name = "ADDRESS", value_parser = parse_target)]
    pub target: BanTarget,
    /// Duration for which reports of the address are ignored, at most 4h
    #[arg(long = "for", value_name = "SPAN", default_value = "4h", value_parser = parse_lift_span, allow_hyphen_values = true)]
    pub span: Duration,
    /// User on the server
    #[arg(long, value_name = "NAME", default_value = "operator", value_parser = parse_fleet_name)]
    pub user: String,
    /// File with the password of the user
    #[arg(long, value_name = "FILE", default_value = "/etc/portsentry/fleet-operator.password")]
    pub credentials: PathBuf,
}

fn parse_target(text: &str) -> Result<BanTarget, String> {
    let address = text.parse().map(BanTarget::containing).ok();
    let target = address.or_else(|| text.parse().ok()).filter(|target| !matches!(target, BanTarget::Prefix(_)));
    target.ok_or_else(|| "write an address or an IPv6 /64; hosts report no wider networks".to_owned())
}

fn parse_lift_span(text: &str) -> Result<Duration, String> {
    match parse_span(text)? {
        span if span <= MAX_REMAINING && !span.is_zero() => Ok(span),
        _ => Err("write 4h or less; a report also lasts at most 4h".to_owned()),
    }
}
