//! Formats the answer to `status`, the state and counters of the daemon, as JSON and as text.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::fleet_info::FleetStatus;
use super::format::{format_seconds, line};
use crate::clock::WallTime;
use crate::config::{Mode, ProtocolConfig};
use crate::events::json::EventRecord;
use crate::sandbox::SandboxState;
use crate::types::{Backend, PortSet, Protocol, Response, counted, nullable};

#[serde_with::apply(Option => #[serde(deserialize_with = "nullable")])]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub running: bool,
    pub version: String,
    pub process: u32,
    pub since: WallTime,
    pub uptime_s: u64,
    pub state: DaemonState,
    pub trial_left_s: Option<u64>,
    /// Duration of a ban; `None` if it never ends.
    pub expire_s: Option<u64>,
    pub methods: Vec<Backend>,
    pub interfaces: Vec<String>,
    pub tcp: MonitoredPorts,
    pub udp: MonitoredPorts,
    pub packets: PacketCounts,
    pub probes: u64,
    pub sources_tracked: u64,
    pub bans: BanCounts,
    pub trap: TrapCounts,
    /// Entries of the allow-list.
    pub allowed: usize,
    /// Number of automatically protected addresses and networks.
    pub protected_networks: usize,
    /// Services whose ports are not evidence, running or not.
    pub services: Vec<RememberedService>,
    /// Families of which every address is allowed, so that nothing is blocked.
    pub allows_all: Vec<AddressFamily>,
    /// Settings of the configuration that have no effect on this host: `key: sentence`.
    pub warnings: Vec<String>,
    /// Directory of the ledger.
    pub ledger: String,
    /// Address of the metrics; `None` if they are not served.
    pub metrics: Option<SocketAddr>,
    pub sandbox: SandboxState,
    pub commands: Option<CommandHelperStatus>,
    /// `None` if this host is not in a fleet.
    pub fleet: Option<FleetStatus>,
    pub last_event: Option<EventRecord>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DaemonState {
    #[default]
    #[serde(rename = "blocking")]
    Blocking,
    #[serde(rename = "only logging")]
    OnlyLogging,
    #[serde(rename = "on trial")]
    OnTrial,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, strum::Display)]
pub enum AddressFamily {
    IPv4,
    IPv6,
}

impl fmt::Display for DaemonState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitoredPorts {
    pub mode: Mode,
    pub block: Response,
    pub ports: String,
    pub count: u32,
    /// Configured ports that are not monitored, because a service uses them.
    pub left_out: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketCounts {
    pub seen: u64,
    pub dropped: u64,
    pub malformed: u64,
    pub from_judged: u64,
    pub connections: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanCounts {
    pub intended: usize,
    /// Number of elements in the kernel's sets; `None` if there are too many to count.
    #[serde(deserialize_with = "nullable")]
    pub enforced: Option<usize>,
    /// Bans on evidence since the start.
    pub made: u64,
    /// Bans that a backend refused, once per backend.
    pub failed: u64,
    pub capped: u64,
    pub withheld: u64,
    pub repaired: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrapCounts {
    pub ports: u64,
    pub udp_ports: u64,
    /// Ports lost by the trap, if more than a quarter of them; otherwise 0.
    pub lost_ports: u64,
    pub condemned: u64,
    pub let_go: u64,
    /// Duration of a hold in milliseconds; 0: none.
    pub hold_ms: u64,
    /// SYNs of held sources that the kernel dropped.
    pub held: u64,
    /// Packets whose source was not held because a set was full.
    pub hold_full: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedService {
    pub proto: Protocol,
    pub port: u16,
    /// 0.0.0.0 and :: stand for every address of their family.
    pub address: IpAddr,
    pub served: bool,
    pub last_served: WallTime,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandHelperStatus {
    pub process: u32,
    pub running: bool,
    pub sandbox: SandboxState,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match (self.trial_left_s, self.state) {
            (Some(left), DaemonState::OnlyLogging) => {
                format!(
                    "only logging: trial for {} more; `portsentry trial --end` resumes blocking",
                    format_seconds(left)
                )
            }
            (Some(left), _) => format!("trial: {} left to run `portsentry confirm`", format_seconds(left)),
            (None, state) => state.to_string(),
        };
        line!(f, "portsentry", "{}, process {}, {state}", self.version, self.process)?;
        line!(f, "since", "{}, for {}", self.since.without_fraction(), format_seconds(self.uptime_s))?;
        match self.state {
            DaemonState::OnlyLogging => {
                let what = match self.bans.intended {
                    0 => "nothing".to_owned(),
                    earlier => format!("no further source; {} in force", counted(earlier, "earlier ban")),
                };
                line!(
                    f,
                    "blocks",
                    "{what}; `portsentry list --would-block` shows the sources that it would have blocked"
                )?;
            }
            _ => {
                let expire =
                    self.expire_s.map_or_else(|| "with no end".to_owned(), |s| format!("for {}", format_seconds(s)));
                let methods: Vec<_> = self.methods.iter().map(|method| method.name()).collect();
                line!(f, "blocks", "{expire}, by {}", methods.join(", "))?;
            }
        }
        match self.interfaces.as_slice() {
            [] => line!(f, "interfaces", "all")?,
            interfaces => line!(f, "interfaces", "{}", interfaces.join(", "))?,
        }
        line!(f, "TCP", "{}", self.tcp)?;
        line!(f, "UDP", "{}", self.udp)?;
        let PacketCounts { seen, dropped, malformed, from_judged, .. } = self.packets;
        line!(
            f,
            "packets",
            "{seen} seen, {from_judged} of them from sources with a verdict, {malformed} malformed; {dropped} lost \
             by the capture"
        )?;
        let (probes, tracked) = (counted(self.probes, "probe"), counted(self.sources_tracked, "source"));
        line!(f, "evidence", "{probes} so far; {tracked} remembered")?;
        line!(f, "bans", "{}", self.bans)?;
        line!(f, "trap", "{}", self.trap)?;
        match self.allows_all.as_slice() {
            [] => line!(f, "allow-list", "{}", counted(self.allowed, "entry"))?,
            all => {
                let all = all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
                line!(f, "allow-list", "all of {all} is allowed and never blocked; `portsentry allowed` shows why")?;
            }
        }
        line!(f, "services", "{}", services(&self.services))?;
        for warning in &self.warnings {
            line!(f, "warning", "{warning}")?;
        }
        line!(f, "protected", "{} automatically, see `portsentry check`", counted(self.protected_networks, "network"))?;
        line!(f, "ledger", "{}", self.ledger)?;
        if let Some(address) = &self.metrics {
            line!(f, "metrics", "at {address}")?;
        }
        line!(f, "sandbox", "{}", self.sandbox)?;
        match &self.commands {
            Some(CommandHelperStatus { process, running: true, sandbox }) => {
                line!(f, "commands", "run by process {process}, {sandbox}")?;
            }
            Some(CommandHelperStatus { process, running: false, .. }) => {
                line!(f, "commands", "not run, because process {process} has ended; restart portsentry")?;
            }
            None => {}
        }
        if let Some(fleet) = &self.fleet {
            line!(f, "fleet", "{fleet}")?;
            for one in &fleet.ignored {
                line!(f, "ignored", "{}: {}", one.author, one.reason)?;
            }
        }
        let Some(last) = &self.last_event else { return Ok(()) };
        let target = last.target.map(|target| format!(" {target}"));
        let target = target.or_else(|| Some(format!(" {}", last.source?))).unwrap_or_default();
        let time = last.time.map_or("?".to_owned(), |time| time.without_fraction().to_string());
        line!(f, "last event", "{time} {}{target}", last.event.key())
    }
}

/// The remembered services, and those that are down now.
fn services(services: &[RememberedService]) -> String {
    let ports = |wanted: &dyn Fn(&RememberedService) -> bool| {
        let mut ports: Vec<String> =
            services.iter().filter(|one| wanted(one)).map(|one| format!("{}/{}", one.port, one.proto.key())).collect();
        ports.dedup();
        ports.join(" ")
    };
    let down = ports(&|one| !one.served);
    match (services.is_empty(), down.is_empty()) {
        (true, _) => "none remembered yet".to_owned(),
        (false, true) => format!("remembered: {}", ports(&|_| true)),
        (false, false) => format!("remembered: {}; stopped now: {down}", ports(&|_| true)),
    }
}

impl MonitoredPorts {
    /// The configured ports of `protocol` except those `in_use`. `block` is the policy in effect, which may differ from
    /// the configured one.
    pub fn new(protocol: &ProtocolConfig, in_use: &PortSet, block: Response) -> Self {
        let configured = protocol.monitored();
        let monitored = configured.without(in_use);
        Self {
            mode: protocol.mode,
            block,
            ports: monitored.to_string(),
            count: monitored.len(),
            left_out: configured.without(&monitored).to_string(),
        }
    }

    /// The mode; unless it is off, also the number of monitored ports and what happens to scans.
    pub fn summary(&self) -> String {
        let Self { mode, block, count, .. } = self;
        match mode {
            Mode::Off => mode.to_string(),
            mode => format!("{mode}, {}, scans are {}", counted(*count, "port"), block.effect()),
        }
    }
}

impl fmt::Display for MonitoredPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())?;
        match self.left_out.as_str() {
            "" => Ok(()),
            in_use => write!(f, "; left out, because in use: {in_use}"),
        }
    }
}

impl fmt::Display for BanCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { intended, enforced, made, failed, repaired, .. } = self;
        let enforced = enforced.map_or("not counted".to_owned(), |enforced| enforced.to_string());
        write!(f, "{intended} now, {enforced} of them in the kernel; since the start: {made} made, {failed} failed")?;
        match repaired {
            0 => Ok(()),
            repaired => write!(f, ", {repaired} restored after they had disappeared"),
        }
    }
}

impl fmt::Display for TrapCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = match (self.ports, self.udp_ports) {
            (0, 0) if self.lost_ports == 0 => return f.write_str("off"),
            (ports, 0) => counted(ports, "TCP port"),
            (0, udp) => counted(udp, "UDP port"),
            (ports, udp) => format!("{} and {}", counted(ports, "TCP port"), counted(udp, "UDP port")),
        };
        write!(f, "the kernel counts probes of {at}; its bans: {} confirmed, {} lifted", self.condemned, self.let_go)?;
        match (self.hold_ms, self.hold_full) {
            (0, _) => f.write_str("; holding is off")?,
            (ms, 0) => write!(f, "; sources are held for {ms} ms, SYNs dropped: {}", self.held)?,
            (ms, full) => write!(
                f,
                "; sources are held for {ms} ms, SYNs dropped: {}, packets passed because a set was full: {full}",
                self.held
            )?,
        }
        match self.lost_ports {
            0 => Ok(()),
            lost => {
                write!(f, "; ALARM: ports that now count as in use and are not monitored: {lost}; check `ss -lntu`")
            }
        }
    }
}
