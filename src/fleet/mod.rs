//! Shares bans with other hosts through Valkey or Redis: runs the process `portsentry fleet` and its commands. The
//! packet path does not depend on it, and the daemon judges every report.

mod authors;
mod connect;
mod daemon;
mod error;
pub mod key;
mod member;
mod own;
pub mod protocol;
mod random;
mod relay;
pub mod report;
mod scan;
mod server;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::config::{Config, Fleet, parse_fleet_name, parse_span};
use crate::events::log;
use crate::types::BanTarget;

use connect::Endpoint;
pub use connect::SetupError;
use daemon::Daemon;
pub use error::FleetError;
use key::{FleetAuthor, HostName, Keyspace, ValkeyKey};
use member::Member;
use own::OwnReports;
use protocol::MAX_REMAINING;
use random::random;
use server::ServerConnection;
pub use server::ServerError;

/// Minimum number of distinct closed ports with completed handshakes that other hosts accept as proven evidence.
pub const MIN_PROVEN_PORTS: u8 = 5;

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
    let target =
        address.or_else(|| text.parse().ok()).filter(|target| matches!(target, BanTarget::V4(_) | BanTarget::V6(_)));
    target.ok_or_else(|| "write an address or an IPv6 /64; hosts report no wider networks".to_owned())
}

fn parse_lift_span(text: &str) -> Result<Duration, String> {
    match parse_span(text)? {
        span if span <= MAX_REMAINING && !span.is_zero() => Ok(span),
        _ => Err("write 4h or less; a report also lasts at most 4h".to_owned()),
    }
}

/// Runs the subcommand of `options`, or the fleet process if there is none. Writes the output of a command to `out`.
///
/// # Errors
/// The settings are wrong, or the server refuses a command. The fleet process ends only for wrong settings.
pub fn run(options: &FleetOptions, out: &mut impl Write) -> Result<(), FleetError> {
    let config = Config::load_or_builtin(options.config.as_deref())?;
    match &options.command {
        None => {
            log::init(config.report.log, config.report.facility).map_err(|_| FleetError::Log)?;
            join(&config.fleet)
        }
        Some(FleetCommand::Acl(acl)) => print_acl(&config.fleet, acl, out),
        Some(FleetCommand::Lift(lift)) => lift_bans(&config.fleet, lift, out),
    }
}

/// Checks whether the server accepts this host.
///
/// # Errors
/// The settings are wrong, or the connection fails.
pub fn probe(fleet: &Fleet) -> Result<(), FleetError> {
    let endpoint = Endpoint::open(fleet)?;
    on_runtime(async {
        let connected = async { ServerConnection::join(&endpoint, Keyspace::new(&fleet.name)).await?.ping().await };
        connected.await.map_err(|error| FleetError::Server { url: endpoint.url.to_string(), error })
    })?
}

fn join(fleet: &Fleet) -> Result<(), FleetError> {
    let endpoint = Endpoint::open(fleet)?;
    let host = HostName::parse(&fleet.host).map_err(|_| SetupError::NotJoined)?;
    let keys = Keyspace::new(&fleet.name);
    // Other hosts treat the jump after a restart as a gap, which is correct: notices may be missing.
    let own = OwnReports::new(host, fleet.accept.max_per_author_per_hour, random()?.into());
    on_runtime(async {
        let updates = daemon::watch(&fleet.socket);
        // The error is harmless: it means that systemd did not start this process.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        Member::new(endpoint, keys, own, Daemon::new(&fleet.socket)).run(updates).await
    })?
}

fn on_runtime<T>(work: impl Future<Output = T>) -> Result<T, FleetError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(FleetError::system("start the runtime"))?.block_on(work))
}

fn print_acl(fleet: &Fleet, options: &AclOptions, out: &mut impl Write) -> Result<(), FleetError> {
    let password = match &options.credentials {
        Some(path) => connect::read_password(path)?,
        // 256 random bits.
        None => (0..8).map(|_| random().map(|word| format!("{word:08x}"))).collect::<Result<_, _>>()?,
    };
    let host = options.host.as_ref();
    let user = options.user.as_deref().or(host.map(HostName::as_str)).unwrap_or("operator");
    let author = host.cloned().map_or(FleetAuthor::Operator, FleetAuthor::Host);
    let line = Keyspace::new(&fleet.name).acl_line(&author, user, &password);
    writeln!(out, "{line}").map_err(FleetError::system("write to standard output"))
}

fn lift_bans(fleet: &Fleet, options: &LiftOptions, out: &mut impl Write) -> Result<(), FleetError> {
    let fleet = Fleet { user: options.user.clone(), credentials: options.credentials.clone(), ..fleet.clone() };
    let endpoint = Endpoint::open(&fleet)?;
    let key = ValkeyKey { author: FleetAuthor::Operator, target: options.target };
    let sequence = random()?.into();
    let lifted = on_runtime(async {
        let mut server = ServerConnection::connect(&endpoint, Keyspace::new(&fleet.name)).await?;
        server.lift(&key, sequence, options.span).await
    })?;
    lifted.map_err(|error| FleetError::Server { url: endpoint.url.to_string(), error })?;
    let span = humantime::format_duration(options.span);
    writeln!(
        out,
        "the fleet's bans of {} are lifted on all hosts, for {span} also on hosts that connect later; reports of it \
         are ignored until they expire",
        options.target
    )
    .map_err(FleetError::system("write to standard output"))
}

/// Parses `bytes` as a key, a channel and a value, and asserts that each accepted one is written in the same form. For
/// the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let keys = Keyspace::new("lab");
    if let Ok(key) = keys.parse(bytes) {
        assert_eq!(keys.key(&key).as_bytes(), bytes);
    }
    if let Some(author) = keys.parse_channel(bytes) {
        assert_eq!(keys.channel(&author).as_bytes(), bytes);
    }
    if let Ok(report) = report::BanReport::parse(bytes) {
        assert_eq!(report::BanReport::parse(report.to_json().as_bytes()), Ok(report));
    }
    if let Ok(notice) = report::FleetNotice::parse(bytes) {
        assert_eq!(report::FleetNotice::parse(notice.to_json().as_bytes()), Ok(notice));
    }
    let _ = report::parse_lift(bytes);
}
