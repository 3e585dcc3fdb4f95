//! Settings to what they come to on this host: everything that is wrong with them, in one run; what would be watched, who
//! would be protected and how would be blocked; and what is allowed but not wise. Reads, and changes nothing.

mod backends;
mod render;
mod systemd_unit;
mod warnings;

use clap::Args;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::thread::CapabilitySet;
use serde_json::{Value, json};

use crate::capture::live::{CaptureError, Live, Ring};
use crate::config::DEFAULT_CONFIG;
use crate::config::{BlockPolicy, Config, ConfigError, ConfigErrors, Mode};
use crate::daemon::{allow_names, host_state, sandbox_policy};
use crate::engine::{Host, Listeners, Protection};
use crate::host::network::{self, HostError, HostFacts};
use crate::host::resolv_conf::ResolverFiles;
use crate::netlink::sock_diag::{Bound, Listener, Protocol, SockDiag, SockDiagError};
use crate::types::PortSet;
use backends::Way;
use warnings::Warning;

/// Options of `check`.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// The settings to check [/etc/portsentry/portsentry.toml]
    pub file: Option<PathBuf>,
    /// Write one JSON object
    #[arg(long)]
    pub json: bool,
}

impl CheckOptions {
    /// The file's settings, or the built-in ones where none is named and none is there.
    ///
    /// # Errors
    /// Whatever is wrong with the file.
    pub fn configure(&self) -> Result<Config, ConfigErrors> {
        Config::load_or_builtin(self.file.as_deref())
    }
}

/// How long the look-ups of all names together may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Why the settings could not be held against this host.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// They are wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// They are right in themselves, but the program could not run with them here.
    #[error("{}", lines(.0))]
    Unfit(Vec<ConfigError>),
    /// The host's addresses and routes cannot be read.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The listeners cannot be read.
    #[error(transparent)]
    Listeners(#[from] SockDiagError),
    /// The operating system refused something.
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
}

fn lines(errors: &[ConfigError]) -> String {
    errors.iter().map(ConfigError::to_string).collect::<Vec<_>>().join("\n")
}

/// What the settings come to.
struct Report {
    /// The file; `None` for the built-in settings.
    file: Option<String>,
    config: Config,
    tcp: Watched,
    udp: Watched,
    interfaces: Vec<Interface>,
    protected: Vec<(IpNet, Protection)>,
    names: BTreeMap<String, Result<Vec<IpAddr>, String>>,
    ways: Vec<Way>,
    warnings: Vec<Warning>,
    /// What keeps the program from running here.
    wrong: Vec<ConfigError>,
    /// What could not be seen.
    notes: Vec<String>,
}

/// What is watched of a protocol.
struct Watched {
    ports: PortSet,
    /// In use, and so no evidence.
    left_out: PortSet,
    /// In use at some addresses only, and watched at the others; 0.0.0.0 and :: stand for all of a family.
    partly: Vec<(u16, IpAddr)>,
}

struct Interface {
    name: String,
    up: bool,
    /// `None`: yes; else why not.
    unwatched: Option<&'static str>,
    addresses: Vec<IpNet>,
}

/// Checks the settings that `options` name and writes what they come to; what could not be seen comes back.
///
/// # Errors
/// [`CheckError::Config`] and [`CheckError::Unfit`] with all that is wrong with the settings; and where the host cannot be
/// read.
pub fn run(options: &CheckOptions, out: &mut impl Write) -> Result<Vec<String>, CheckError> {
    let report = match read(options) {
        Err(CheckError::Config(errors)) => {
            if options.json {
                put(out, &format!("{}\n", refused(errors.iter())));
            }
            return Err(errors.into());
        }
        other => other?,
    };
    put(out, &if options.json { format!("{}\n", render::json(&report)) } else { render::text(&report) });
    if report.wrong.is_empty() { Ok(report.notes) } else { Err(CheckError::Unfit(report.wrong)) }
}

fn put(out: &mut impl Write, text: &str) {
    // Who closes the pipe (`| head`) has read enough.
    let _: io::Result<()> = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn refused<'a>(errors: impl Iterator<Item = &'a ConfigError>) -> Value {
    json!({"ok": false, "errors": render::errors(errors)})
}

fn read(options: &CheckOptions) -> Result<Report, CheckError> {
    let config = options.configure()?;
    let file = match &options.file {
        Some(file) => Some(file.display().to_string()),
        None => std::fs::exists(DEFAULT_CONFIG).is_ok_and(|is_there| is_there).then(|| DEFAULT_CONFIG.to_owned()),
    };
    let ignored = config.allow.read()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CheckError::System("start the event loop", error))?;
    let facts = runtime.block_on(network::read(&ResolverFiles::default()))?;
    let listeners = SockDiag::open()?.listeners()?;
    let names = look_up(&config.allow.names);

    let named = names.values().flatten().flatten().map(|address| (IpNet::from(*address), Protection::Named));
    let allowed: Vec<_> = ignored.into_iter().map(|network| (network, Protection::Listed)).chain(named).collect();
    let host = host_state::snapshot(&config, &allowed, &facts, &listeners);
    let mut protected: Vec<_> =
        host.allow.prefixes().filter_map(|prefix| Some((prefix, host.allow.covers(prefix)?))).collect();
    protected.sort_by_key(|(prefix, why)| (*why, *prefix));

    let origin = file.clone().unwrap_or_else(|| "built-in settings".to_owned());
    let unfit = |key: &str, message: String| ConfigError {
        file: origin.clone(),
        position: None,
        key: Some(key.to_owned()),
        message,
    };
    let (mut wrong, mut notes) = (Vec::new(), Vec::new());
    // The program would not start with them.
    if let Some(path) = &file
        && let Err(error) = sandbox_policy::trusted(&config, Path::new(path))
    {
        wrong.push(ConfigError { key: None, ..unfit("", error.to_string()) });
    }
    for name in config.interfaces.iter().filter(|name| facts.interfaces.iter().all(|one| one.name != **name)) {
        let present: Vec<_> = facts.interfaces.iter().map(|one| one.name.escape_debug().to_string()).collect();
        let message = format!("there is no interface {name}; this host has {}", present.join(", "));
        wrong.push(unfit("interfaces", message));
    }
    capture(&config, &host, &mut wrong, &mut notes, &unfit);
    let ways = backends::look(&config, &mut wrong, &mut notes, &unfit);
    let mut warnings = warnings::of(&config);
    warnings.extend(systemd_unit::look(&config));
    warnings.extend(names.iter().filter_map(|(name, found)| {
        let why = match found {
            Ok(found) if !found.is_empty() => return None,
            Ok(_) => "has no address that another host can have",
            Err(why) => why.as_str(),
        };
        Some(Warning::new("allow.names", format!("{name}: {why}; nobody is protected by it until it can be looked up")))
    }));
    warnings.extend(own_session(&host));
    if [&config.tcp, &config.udp].into_iter().any(|protocol| protocol.mode == Mode::Connect) {
        notes.push("where portsentry runs in connect mode now, its own ports are among those in use".to_owned());
    }
    Ok(Report {
        tcp: watched(&config.tcp, &host.tcp, &listeners, Protocol::Tcp),
        udp: watched(&config.udp, &host.udp, &listeners, Protocol::Udp),
        interfaces: interfaces(&config, &facts),
        file,
        config,
        protected,
        names,
        ways,
        warnings,
        wrong,
        notes,
    })
}

fn watched(protocol: &crate::config::Protocol, open: &Listeners, listeners: &[Listener], which: Protocol) -> Watched {
    let wanted = protocol.watched();
    // Connect mode can open a port only where nobody has it, at whatever address.
    let in_use = if protocol.mode == Mode::Connect { open.anywhere() } else { open.everywhere() };
    let ports = wanted.without(&in_use);
    let mut partly: Vec<(u16, IpAddr)> = listeners
        .iter()
        .filter(|listener| listener.protocol == which && ports.contains(listener.port))
        .map(|listener| match listener.bound {
            Bound::One(address) => (listener.port, address),
            Bound::AnyV4 => (listener.port, Ipv4Addr::UNSPECIFIED.into()),
            Bound::AnyV6 | Bound::Any => (listener.port, Ipv6Addr::UNSPECIFIED.into()),
        })
        .collect();
    partly.sort_unstable();
    partly.dedup();
    Watched { left_out: wanted.without(&ports), ports, partly }
}

fn interfaces(config: &Config, facts: &HostFacts) -> Vec<Interface> {
    let of = |one: &network::Interface| {
        let addresses: Vec<IpNet> =
            facts.addresses.iter().filter(|(index, _)| *index == one.index).map(|(_, address)| *address).collect();
        let unwatched = match () {
            () if one.loopback => Some("loopback"),
            () if !config.interfaces.is_empty() && !config.interfaces.contains(&one.name) => Some("not in interfaces"),
            () if addresses.is_empty() => Some("no address"),
            () => None,
        };
        Interface { name: one.name.clone(), up: one.up, unwatched, addresses }
    };
    facts.interfaces.iter().map(of).collect()
}

/// Opens the capture as the daemon would, and closes it.
fn capture(
    config: &Config,
    host: &Host,
    wrong: &mut Vec<ConfigError>,
    notes: &mut Vec<String>,
    unfit: &dyn Fn(&str, String) -> ConfigError,
) {
    if !may(CapabilitySet::NET_RAW) {
        notes.push("without CAP_NET_RAW: whether packets can be captured was not tried; try it with sudo".to_owned());
        return;
    }
    match Live::open(&host_state::wanted(config, host).to_filter(), Ring::Usual) {
        Ok(_) => {}
        Err(error @ CaptureError::Filter { .. }) => wrong.push(unfit("tcp.ports", error.to_string())),
        Err(error) => wrong.push(unfit("interfaces", error.to_string())),
    }
}

/// Whether this process has the right now.
fn may(capability: CapabilitySet) -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

/// Looks all names up at once; who has no answer in time has none.
fn look_up(names: &[String]) -> BTreeMap<String, Result<Vec<IpAddr>, String>> {
    let until = Instant::now() + LIMIT;
    let (answers, answered) = mpsc::channel();
    let late = || Err(format!("no answer within {} s", LIMIT.as_secs()));
    let mut found: BTreeMap<String, _> = names.iter().map(|name| (name.clone(), late())).collect();
    for name in found.keys() {
        let (name, answers) = (name.clone(), answers.clone());
        // Not waited for: a look-up cannot be broken off, and the program is about to end.
        let _ = thread::Builder::new().name("names".to_owned()).spawn(move || {
            let answer = allow_names::look_up(&name).map_err(|error| error.to_string());
            let _ = answers.send((name, answer));
        });
    }
    drop(answers);
    while let Ok((name, answer)) = answered.recv_timeout(until.saturating_duration_since(Instant::now())) {
        found.insert(name, answer);
    }
    found
}

/// Whoever runs this over the network and would not be protected: the first whom a mistake would lock out.
fn own_session(host: &Host) -> Option<Warning> {
    let session = std::env::var("SSH_CONNECTION").or_else(|_| std::env::var("SSH_CLIENT")).ok()?;
    let address: IpAddr = session.split_whitespace().next()?.split('%').next()?.parse().ok()?;
    if host.allow.protects(address.to_canonical()).is_some() {
        return None;
    }
    let message = format!("you come from {address}, which nothing protects; list it before you start over the network");
    Some(Warning::new("allow.networks", message))
}

/// The mode as the settings have it.
fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Off => "off",
        Mode::Connect => "connect",
        Mode::Stealth => "stealth",
        Mode::Advanced => "advanced",
    }
}

/// The policy as the settings have it.
fn policy(policy: BlockPolicy) -> Value {
    match policy {
        BlockPolicy::Yes => true.into(),
        BlockPolicy::No => false.into(),
        BlockPolicy::Run => "run".into(),
    }
}
