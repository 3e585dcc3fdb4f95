//! Checks a configuration against this host. Reports every error in one run, the monitored ports, the protected
//! addresses and the backends, and warns about settings that are permitted but unwise. Changes nothing.

mod backends;
mod render;
mod systemd_unit;
mod unit;
mod warnings;

use clap::Args;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use rustix::thread::CapabilitySet;

use crate::capture::decoy::{DecoyError, DecoyPorts, make_room};
use crate::capture::filter::Wanted;
use crate::capture::live::{CaptureError, Live, Ring};
use crate::config::{Config, ConfigErrors, DEFAULT_CONFIG, Mode, ProtocolConfig, Warning, pitfalls};
use crate::control::client::Client;
use crate::control::status::{MonitoredPorts, Status};
use crate::control::{DEFAULT_SOCKET, print};
use crate::enforce::command::quoted;
use crate::engine::{Host, Listeners, Protection, Settings};
use crate::fleet::{self, FleetError, MIN_PROVEN_PORTS, SetupError};
use crate::host::listers::Listing;
use crate::host::lookup;
use crate::host::network::{self, HostError, HostFacts, HostReader, NetworkReading};
use crate::host::resolv_conf::ResolverFiles;
use crate::host::snapshot::{is_watched, missing_interfaces, snapshot};
use crate::ledger::{self, LedgerError};
use crate::netlink::nft::Firewall;
use crate::netlink::sock_diag::{Listener, SockDiagError};
use crate::netlink::socket::Socket;
use crate::sandbox;
use crate::types::{PortSet, Protocol, to_line};
use render::{
    AllowedName, BoundPort, CheckReport, CheckedPorts, ExemptNetwork, InterfaceSummary, InvalidConfig, NotifySummary,
};
use unit::Unit;
use warnings::Findings;

#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Configuration file to check [default: /etc/portsentry/portsentry.toml]
    pub file: Option<PathBuf>,
    /// Directory of the ledger
    #[arg(long, value_name = "DIR", default_value = ledger::DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
    /// Control socket
    #[arg(long, value_name = "FILE", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Timeout for all name look-ups in total.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the configuration could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Listeners(#[from] SockDiagError),
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
}

/// Checks the configuration of `options` and writes the result. Returns notes about skipped checks.
///
/// # Errors
/// [`CheckError::Config`] with all errors in the configuration, or an error if the state of the host cannot be read.
pub fn run(options: &CheckOptions, out: &mut impl Write) -> Result<Vec<String>, CheckError> {
    let unwritten = |error| CheckError::System("write to standard output", error);
    let report = match read(options) {
        Err(CheckError::Config(errors)) => {
            if options.json {
                print(out, &to_line(&InvalidConfig { ok: false, errors: &errors })).map_err(unwritten)?;
            }
            return Err(errors.into());
        }
        other => other?,
    };
    let text = if options.json { to_line(&report) } else { report.to_string() };
    print(out, &text).map_err(unwritten)?;
    let Findings { wrong, notes, .. } = report.findings;
    Ok(ConfigErrors::unless_empty(wrong, notes)?)
}

fn read(options: &CheckOptions) -> Result<CheckReport, CheckError> {
    let config = Config::load_or_builtin(options.file.as_deref())?;
    let file = Config::source(options.file.as_deref()).map(|file| file.display().to_string());
    let ignored = config.allow.read()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CheckError::System("start the event loop", error))?;
    let NetworkReading { facts, late, .. } = runtime.block_on(HostReader::default().read(&ResolverFiles::default()))?;
    let Listing { listeners, late: late_sockets } = Listing::read()?;
    let names = look_up(&config.allow.names)?;

    let named = names.iter().flat_map(|name| &name.addresses).map(|address| (IpNet::from(*address), Protection::Named));
    let allowed: Vec<_> = ignored.into_iter().map(|network| (network, Protection::Listed)).chain(named).collect();
    let host = snapshot(&config.interfaces, &allowed, &facts, &listeners);
    let exempt = |network| Some(ExemptNetwork { network, reason: host.allow.covers(network)? });
    let mut exempt: Vec<_> = host.allow.networks().filter_map(exempt).collect();
    exempt.sort_by_key(|one| (one.reason, one.network));

    let origin = file.clone().unwrap_or_else(|| "built-in values".to_owned());
    let mut findings = Findings { origin, warnings: warnings::from_config(&config), ..Findings::default() };
    late.into_iter().for_each(|error| findings.add_note(error.to_string()));
    late_sockets.into_iter().for_each(|error| findings.add_note(format!("not all ports in use are known: {error}")));
    let running = Client::connect(&options.socket).and_then(|mut daemon| daemon.status()).ok();
    // The daemon would not start with these errors.
    if let Some(path) = &file
        && let Err(error) = config.check_ownership(Path::new(path))
    {
        findings.wrong(None::<&str>, error);
    }
    if !Unit::installed().is_some_and(|unit| unit.has_user()) {
        let config_file = file.as_deref().map(Path::new);
        let policy = config.directories(config_file, &options.state_dir, &options.socket, &ledger::OWN_FILES);
        if let Err(error) = sandbox::check_directories(&policy) {
            findings.wrong(None::<&str>, error);
        }
        let obstacles = sandbox::obstacles(&policy, running.as_ref().map(|status| status.sandbox.uid));
        obstacles.into_iter().for_each(|text| findings.warn("--state-dir", text));
    }
    // A later release has used this directory. The daemon starts, but bans would not survive a reboot.
    if let Err(error @ LedgerError::Newer { .. }) = ledger::Reader::read(&options.state_dir, |_| Ok(())) {
        findings.warn("--state-dir", error.to_string());
    }
    let missing: Vec<_> = missing_interfaces(&config.interfaces, &facts).collect();
    if missing.is_empty() {
        capture(&config, &host, &mut findings);
    }
    missing.into_iter().for_each(|error| findings.wrong("interfaces", error));
    inspect_ports(&config, &host, running.as_deref(), &mut findings);
    let backends = backends::inspect(&config, &mut findings);
    systemd_unit::inspect(&config, Path::new(file.as_deref().unwrap_or(DEFAULT_CONFIG)), &mut findings);
    let (tcp, udp) = (host.tcp.everywhere(), host.udp.everywhere());
    findings.warnings.extend(pitfalls(&config, &tcp, &udp, &host.ephemeral));
    for AllowedName { name, addresses, error } in &names {
        let why = match error {
            None if !addresses.is_empty() => continue,
            None => "it has no usable address",
            Some(why) => why,
        };
        findings.warn("allow.names", format!("{name} cannot be resolved: {why}; until then it exempts no address"));
    }
    findings.warnings.extend(own_session(&host));
    findings.warnings.extend(silent_decoys(&config));
    inspect_fleet(&config, &mut findings);
    if [&config.tcp, &config.udp].into_iter().any(|protocol| protocol.mode == Mode::Connect) {
        findings.add_note("if portsentry now runs in connect mode, its own decoys are listed as ports in use");
    }
    Ok(CheckReport {
        ok: findings.wrong.is_empty(),
        tcp: checked_ports(&config.tcp, &host.tcp, &listeners, Protocol::Tcp),
        udp: checked_ports(&config.udp, &host.udp, &listeners, Protocol::Udp),
        scan_trigger: config.detect.scan_trigger,
        window_s: config.detect.window.as_secs(),
        expire_s: config.expire.seconds(),
        methods: config.block.method.clone(),
        notify: NotifySummary {
            command: config.notifies().then(|| quoted(&config.notify.command)),
            interval_s: config.notify.interval.as_secs(),
        },
        interfaces: config.interfaces.clone(),
        host_interfaces: host_interfaces(&config, &facts),
        file,
        findings,
        backends,
        exempt,
        names,
        config,
    })
}

fn checked_ports(protocol: &ProtocolConfig, open: &Listeners, listeners: &[Listener], which: Protocol) -> CheckedPorts {
    // Connect mode can open a port only if it is unused on every address.
    let in_use = if protocol.mode == Mode::Connect { open.anywhere() } else { open.everywhere() };
    let ports = protocol.monitored().without(&in_use);
    let mut partly_in_use: Vec<BoundPort> = listeners
        .iter()
        .filter(|listener| listener.protocol == which && ports.contains(listener.port))
        .map(|listener| BoundPort { port: listener.port, address: listener.bound.address() })
        .collect();
    partly_in_use.sort_unstable();
    partly_in_use.dedup();
    CheckedPorts { monitored: MonitoredPorts::new(protocol, &in_use, protocol.block), partly_in_use }
}

fn host_interfaces(config: &Config, facts: &HostFacts) -> Vec<InterfaceSummary> {
    let of = |one: &network::Interface| {
        let addresses: Vec<IpNet> =
            facts.addresses.iter().filter(|(index, _)| *index == one.index).map(|(_, address)| *address).collect();
        let unwatched = match () {
            () if one.loopback => Some("loopback"),
            () if !is_watched(&config.interfaces, &one.name) => Some("excluded by the key interfaces"),
            () if addresses.is_empty() => Some("no address"),
            () => None,
        };
        InterfaceSummary { name: one.name.clone(), up: one.up, unwatched, addresses }
    };
    facts.interfaces.iter().map(of).collect()
}

/// Opens the capture as the daemon would, and closes it again.
fn capture(config: &Config, host: &Host, findings: &mut Findings) {
    if !backends::may(CapabilitySet::NET_RAW) {
        return findings.add_note("the capture was not checked, because CAP_NET_RAW is missing; run this with sudo");
    }
    match Live::open(&Wanted::new(&Settings::from_config(config), host).to_filter(), Ring::Usual) {
        Ok(_) => {}
        Err(error @ CaptureError::Filter { .. }) => findings.wrong("tcp.ports", error),
        Err(error) => findings.wrong("interfaces", error),
    }
}

/// Checks whether the program can open its own ports: those of connect mode, and the port of the metrics. Ports that a
/// running portsentry has open count as available. `running` is the state of a daemon that answers. Adds errors that
/// prevent the start, and notes about skipped checks.
fn inspect_ports(config: &Config, host: &Host, running: Option<&Status>, findings: &mut Findings) {
    let runs = sandbox::InstanceLock::is_held();
    let mut decoys = DecoyPorts::from_config(config);
    if config.shares_decoys() {
        // A shared listener needs neither a descriptor nor a capability for each port, only one free port.
        let ports = std::mem::take(&mut decoys.tcp);
        if !ports.is_empty() && ports.without(&host.tcp.anywhere()).is_empty() {
            findings.wrong("tcp.ports", DecoyError::AllBusy { protocol: Protocol::Tcp, ports });
        }
    }
    let count = u64::from(decoys.tcp.len()) + u64::from(decoys.udp.len());
    if let Err(error) = make_room(count) {
        findings.wrong("tcp.ports", error);
    }
    for (key, protocol, ports, open) in
        [("tcp.ports", Protocol::Tcp, decoys.tcp, &host.tcp), ("udp.ports", Protocol::Udp, decoys.udp, &host.udp)]
    {
        match decoy_error(protocol, ports, open) {
            Some(DecoyError::AllBusy { .. }) if runs => findings.add_note(format!(
                "{key}: all of these ports are in use, by the running portsentry or by another program; stop \
                 portsentry to find out which"
            )),
            Some(error) => findings.wrong(key, error),
            None => {}
        }
    }
    let Some(address) = config.metrics.listen else { return };
    let is_own = running.is_some_and(|running| running.metrics == Some(address));
    match TcpListener::bind(address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && runs && is_own => {}
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && runs => {
            findings.add_note(format!(
                "metrics.listen: {address} is in use, by the running portsentry or by another program"
            ));
        }
        Err(error) => findings.wrong("metrics.listen", format!("cannot listen on {address}: {error}")),
        Ok(_) => {}
    }
}

/// The error if connect mode cannot open any of `ports`, or lacks the capability for one of them. Opens nothing.
fn decoy_error(protocol: Protocol, ports: PortSet, open: &Listeners) -> Option<DecoyError> {
    let free = ports.without(&open.anywhere());
    if !ports.is_empty() && free.is_empty() {
        return Some(DecoyError::AllBusy { protocol, ports });
    }
    let low: PortSet = free.iter().filter(|port| *port < 1024).collect();
    let denied =
        !low.is_empty() && rustix::process::geteuid().is_root() && !backends::may(CapabilitySet::NET_BIND_SERVICE);
    denied.then_some(DecoyError::Permission { protocol, ports: low })
}

/// Looks up all names at once. A name whose answer is late has no address.
fn look_up(names: &[String]) -> Result<Vec<AllowedName>, CheckError> {
    let late = format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs());
    let mut found: BTreeMap<String, _> =
        names.iter().map(|name| (name.clone(), (Vec::new(), Some(late.clone())))).collect();
    let answers = lookup::look_up_all(names.to_vec(), (names.len(), LOOKUP_TIMEOUT), |name| lookup::resolve(name));
    for (name, answer) in answers.map_err(|error| CheckError::System("look up names", error))? {
        let answer = match answer {
            Ok(answer) => (lookup::usable_addresses(&answer).0, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        found.insert(name, answer);
    }
    Ok(found.into_iter().map(|(name, (addresses, error))| AllowedName { name, addresses, error }).collect())
}

/// Warns about filters of other programs that prevent decoys from answering, if the filters can be read.
fn silent_decoys(config: &Config) -> Option<Warning> {
    if !config.shares_decoys() || !backends::may(CapabilitySet::NET_ADMIN) {
        return None;
    }
    let firewall = Firewall::read(&mut Socket::open().ok()?).ok()?;
    firewall.silences_decoys().map(|text| Warning::new("tcp.mode", text))
}

/// Warns an operator whose session comes over the network from an unprotected address and could be locked out by a
/// mistake.
fn own_session(host: &Host) -> Option<Warning> {
    let session = std::env::var("SSH_CONNECTION").or_else(|_| std::env::var("SSH_CLIENT")).ok()?;
    let address: IpAddr = session.split_whitespace().next()?.split('%').next()?.parse().ok()?;
    if host.allow.protects(address.to_canonical()).is_some() {
        return None;
    }
    let message = format!(
        "your own session comes from {address}, which is not exempt; add it to allow.networks before you start \
         portsentry"
    );
    Some(Warning::new("allow.networks", message))
}

/// Checks whether the password of the fleet is protected from other users, and whether the server accepts this host.
/// None of the findings prevents the start.
fn inspect_fleet(config: &Config, findings: &mut Findings) {
    if !config.fleet.is_joined() {
        return;
    }
    if config.tcp.mode == Mode::Connect && config.detect.scan_trigger < MIN_PROVEN_PORTS - 1 {
        let message = format!(
            "this host bans after {} completed handshakes, but other hosts of the fleet accept only {MIN_PROVEN_PORTS} as \
             proven evidence; write {}",
            config.detect.scan_trigger + 1,
            MIN_PROVEN_PORTS - 1
        );
        findings.warn("detect.scan_trigger", message);
    }
    let (key, error) = match fleet::probe(&config.fleet) {
        Ok(()) => return findings.add_note(format!("the fleet's server accepts the user {}", config.fleet.user())),
        Err(FleetError::Setup(SetupError::Password { error, .. }))
            if error.kind() == io::ErrorKind::PermissionDenied =>
        {
            let note = "this user cannot read fleet.credentials, so the connection to the fleet's server was not checked; \
                 run this with sudo";
            return findings.add_note(note);
        }
        Err(error @ FleetError::Setup(SetupError::Certificates { .. })) => ("fleet.ca_file", error),
        Err(error @ FleetError::Setup(SetupError::ServerName(_) | SetupError::NotJoined)) => ("fleet.url", error),
        Err(error @ FleetError::Setup(_)) => ("fleet.credentials", error),
        Err(error) => ("fleet.url", error),
    };
    findings.warn(key, error.to_string());
}
