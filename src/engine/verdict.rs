//! The engine's verdict on a packet. Every verdict carries its reason; logs, replay and tests read the same value.

use std::net::IpAddr;

use super::allow::Protection;
use super::ban_table::Standing;
use super::class::Class;
use super::distributed_scan::DistributedScan;
use super::grade::Grade;
use super::observation::Observation;
use super::sources::EVIDENCE;
use crate::types::{BanTarget, Expiry, Protocol, Timestamp};

/// Why a packet is no evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IgnoreReason {
    /// It is this host's own.
    Own,
    /// It answers something, or carries no port.
    NoRequest,
    /// Broadcast, multicast, or for another host on the link.
    NotUnicast,
    /// Its destination is no address of this host.
    NotOurs,
    /// Its source is no address that a host can have.
    NoSource,
    /// Its checksum does not hold, so that the kernel drops it.
    Damaged,
    /// It came in on an interface by which no route leads back to its source, which the kernel checks there.
    WrongInterface,
    /// The port is not monitored.
    NotMonitored,
    /// A program listens on the port.
    Open,
    /// A program listened on the port, or this host used it, a moment ago.
    RecentlyOpen,
    /// The port belongs to a service of this host that is not served at the moment.
    RememberedService,
    /// The interface is not watched, or is loopback.
    OtherInterface,
}

/// One probe that counts against its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub observation: Observation,
    /// The target that it counts against; in a ban, the blocked target, which may be a network around it.
    pub target: BanTarget,
    /// Distinct ports that the subject has touched within the window, this one included.
    pub distinct: u8,
    /// Probes since the subject's first, repetitions included.
    pub probes: u32,
    /// The port is new for the subject within the window.
    pub fresh: bool,
}

/// The ports of a ban's evidence, in the order in which they are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    items: [(Protocol, u16, Class); EVIDENCE],
    len: usize,
}

impl Ports {
    pub(super) fn collect(items: impl Iterator<Item = (Protocol, u16, Class)>) -> Self {
        let mut ports = Self { items: [(Protocol::Tcp, 0, Class::Syn); EVIDENCE], len: 0 };
        for (place, item) in ports.items.iter_mut().zip(items) {
            *place = item;
            ports.len += 1;
        }
        ports
    }

    /// Protocol, port and class of each.
    pub fn iter(&self) -> impl Iterator<Item = (Protocol, u16, Class)> + Clone + '_ {
        self.items.iter().take(self.len).copied()
    }
}

/// A source has done enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// The probe that made it enough.
    pub probe: Probe,
    /// What is held against it.
    pub ports: Ports,
    /// How far that can be trusted.
    pub grade: Grade,
    /// Hosts whose ports were touched. More than one only where the engine judges a network ([`super::Local::Prefixes`],
    /// [`super::Local::Any`]) and no single host of it was scanned; `ports` then holds the last port alone.
    pub hosts: u8,
    /// When its first probe came.
    pub first: Timestamp,
    /// Bans of the subject before this one that count.
    pub strikes: u32,
    /// How long the ban lasts: the plain time, grown with `strikes`, and where many fall at once up to 5 % longer.
    pub expiry: Expiry,
    /// More bans than the ceilings allow: the ban is short, and no strike.
    pub capped: bool,
}

/// A probe by a source that is never blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exempt {
    pub observation: Observation,
    /// Why it is never blocked.
    pub protection: Protection,
    /// Probes since the last line about this source, where a line is due now.
    pub report: Option<u32>,
}

/// A packet from a source that has been judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeated {
    /// The sender.
    pub source: IpAddr,
    /// The target of the verdict.
    pub target: BanTarget,
    /// What stands against it.
    pub standing: Standing,
    /// Packets since the last line about this subject, where a line is due now.
    pub report: Option<u32>,
    /// The caller should ask the kernel whether the ban is still in force, and [`super::Engine::lift`] it if it is not.
    pub verify: bool,
}

/// The engine's judgement of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// No evidence, and why.
    Ignored(IgnoreReason),
    /// Evidence, not yet enough.
    Probe(Probe),
    /// Evidence against an exempt source.
    Exempt(Exempt),
    /// Enough: block the subject. The caller says with [`super::Engine::lift`] if that failed.
    Block(Ban),
    /// Enough, but the protocol is only logged.
    LogOnly(Ban),
    /// The source has been judged before.
    Repeated(Repeated),
}

/// What the engine has to say without a packet's cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Many sources share a scan.
    DistributedScan(DistributedScan),
    /// This many packets came from a judged source since its last line.
    Repeated {
        /// The target of the verdict.
        target: BanTarget,
        /// What stands against it.
        standing: Standing,
        /// How many packets.
        packets: u32,
    },
    /// Sources that did enough for a ban, above the ceilings.
    Capped {
        /// Short bans of those that did far more.
        bans: u32,
        /// Those that were not banned.
        withheld: u32,
    },
}

#[cfg(test)]
impl Ban {
    /// A ban of 192.0.2.7 after one SYN.
    pub(crate) fn example() -> Self {
        let source = IpAddr::from([192, 0, 2, 7]);
        let observation = Observation {
            source,
            source_port: 40_000,
            destination: [192, 0, 2, 1].into(),
            interface: 1,
            unverified: false,
            protocol: Protocol::Tcp,
            port: 23,
            class: Class::Syn,
            fragmented: false,
            decoy: false,
        };
        let probe = Probe { observation, target: BanTarget::of(source), distinct: 1, probes: 1, fresh: true };
        let ports = Ports::collect([(Protocol::Tcp, 23, Class::Syn)].into_iter());
        let first = Timestamp::default();
        let grade = Grade::Forgeable;
        Self { probe, ports, grade, hosts: 1, first, strikes: 0, expiry: Expiry::Never, capped: false }
    }
}
