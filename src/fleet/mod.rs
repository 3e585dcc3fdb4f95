//! Shares bans with other hosts through Valkey or Redis: runs the process `portsentry fleet` and its commands. The
//! packet path does not depend on it, and the daemon judges every report.

mod authors;
mod byte_limit;
mod connect;
mod daemon;
pub mod key;
mod member;
pub mod options;
mod own;
mod relay;
pub mod report;
mod scan;
mod server;

use std::io::{self, Write};

use crate::config::{Config, ConfigErrors, Fleet};
use crate::events::log;

use connect::Endpoint;
pub use connect::SetupError;
use daemon::Daemon;
use key::{Author, HostName, Key, Keyspace};
use member::Member;
use options::{AclOptions, FleetCommand, FleetOptions, LiftOptions};
use own::OwnReports;
use server::Server;
pub use server::ServerError;

/// Why `portsentry fleet` fails.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error("{url}: {error}")]
    Server { url: String, error: ServerError },
    #[error("cannot set up the log")]
    Log,
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
}

impl FleetError {
    fn system(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self::System(doing, error)
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
        let connected = async { Server::join(&endpoint, Keyspace::new(&fleet.name)).await?.ping().await };
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
    let author = host.cloned().map_or(Author::Operator, Author::Host);
    let line = Keyspace::new(&fleet.name).acl_line(&author, user, &password);
    writeln!(out, "{line}").map_err(FleetError::system("write to standard output"))
}

fn random() -> Result<u32, FleetError> {
    getrandom::u32().map_err(|error| FleetError::System("get random bytes", error.into()))
}

/// A random number from 0 to 1, which spreads the actions of many hosts over time.
fn chance() -> Result<f64, FleetError> {
    Ok(f64::from(random()?) / f64::from(u32::MAX))
}

fn lift_bans(fleet: &Fleet, options: &LiftOptions, out: &mut impl Write) -> Result<(), FleetError> {
    let fleet = Fleet { user: options.user.clone(), credentials: options.credentials.clone(), ..fleet.clone() };
    let endpoint = Endpoint::open(&fleet)?;
    let key = Key { author: Author::Operator, target: options.target };
    let sequence = random()?.into();
    let lifted = on_runtime(async {
        let mut server = Server::connect(&endpoint, Keyspace::new(&fleet.name)).await?;
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
    if let Ok(report) = report::Report::parse(bytes) {
        assert_eq!(report::Report::parse(report.to_json().as_bytes()), Ok(report));
    }
    if let Ok(notice) = report::Notice::parse(bytes) {
        assert_eq!(report::Notice::parse(notice.to_json().as_bytes()), Ok(notice));
    }
    let _ = report::parse_lift(bytes);
}
