//! A ban as the ledger stores it, and how it ended. Times are wall-clock times, because they must hold after a
//! reboot. When the clock is set, the remaining time of a stored ban changes, while the kernel's timers run on; a
//! ban that the kernel still holds is restored with the kernel's remaining time.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use crate::engine::{Ban, Class, Grade, Service};
use crate::types::{Backends, BanTarget, Expiry, Protocol};

/// What caused the ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// The engine, on evidence.
    Detector,
    /// A person, by hand.
    Operator,
    /// A list from elsewhere.
    Import,
}

/// A ban that has come into force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Banned {
    pub target: BanTarget,
    /// The address that sent the deciding probe; of an IPv6 subject, one of its 2^64. Without a probe the subject's own.
    pub source: IpAddr,
    /// Since when; kept to the microsecond.
    pub since: SystemTime,
    /// Until when; `None` for a permanent ban. Kept to the microsecond.
    pub until: Option<SystemTime>,
    /// Class of the deciding probe; `None` if there was no probe.
    pub class: Option<Class>,
    /// How far its evidence can be trusted; `None` without evidence.
    pub grade: Option<Grade>,
    /// The ports that were touched, the deciding one first.
    pub ports: Vec<(Protocol, u16)>,
    /// Probes until the ban, repetitions included.
    pub probes: u32,
    /// The interface that the deciding probe came in on, where it is known.
    pub interface: Option<String>,
    /// What blocks it.
    pub methods: Backends,
    pub author: Author,
    /// What its author said about it; `None` where that is nothing.
    pub note: Option<String>,
    /// More bans than the ceiling allowed: it is short, its evidence may be forged, and it is no strike.
    pub capped: bool,
}

impl Banned {
    /// The engine's `ban`, in force since `at`.
    #[must_use]
    pub fn from_ban(ban: &Ban, at: SystemTime, interface: Option<&str>, methods: impl Into<Backends>) -> Self {
        let observation = &ban.probe.observation;
        Self {
            target: ban.probe.target,
            source: observation.source,
            since: at,
            until: end(at, ban.expiry),
            class: Some(observation.class),
            grade: Some(ban.grade),
            ports: ports(ban),
            probes: ban.probe.probes,
            interface: interface.map(str::to_owned),
            methods: methods.into(),
            author: Author::Detector,
            note: None,
            capped: ban.capped,
        }
    }

    /// A ban without evidence, that `author` wants from `at` on.
    #[must_use]
    pub fn wanted_by(
        author: Author,
        target: BanTarget,
        at: SystemTime,
        expiry: Expiry,
        methods: impl Into<Backends>,
    ) -> Self {
        Self {
            target,
            source: target.element(),
            since: at,
            until: end(at, expiry),
            class: None,
            grade: None,
            ports: Vec::new(),
            probes: 0,
            interface: None,
            methods: methods.into(),
            author,
            note: None,
            capped: false,
        }
    }

    /// What is left of it at `now`, at least a second; `None` once it is over. A clock that stands before `since` leaves
    /// the whole of it and no more.
    #[must_use]
    pub fn left(&self, now: SystemTime) -> Option<Expiry> {
        left(self.since, self.until, now)
    }
}

/// The ports of a ban, the deciding one first.
fn ports(ban: &Ban) -> Vec<(Protocol, u16)> {
    let deciding = (ban.probe.observation.protocol, ban.probe.observation.port);
    let others = ban.ports.iter().map(|(protocol, port, _)| (protocol, port)).filter(|port| *port != deciding);
    std::iter::once(deciding).chain(others).collect()
}

/// A ban in force, as far as a start has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    pub target: BanTarget,
    /// The address that sent the deciding probe.
    pub source: IpAddr,
    /// When it came into force.
    pub since: SystemTime,
    /// When it ends; `None`: never.
    pub until: Option<SystemTime>,
    /// The class of the evidence, if there was any.
    pub class: Option<Class>,
    /// How far that can be trusted, if there was any.
    pub grade: Option<Grade>,
    /// The port that decided, if there was one.
    pub port: Option<(Protocol, u16)>,
    /// The backends that have enforced it.
    pub methods: Backends,
}

impl From<&Banned> for InForce {
    fn from(ban: &Banned) -> Self {
        let Banned { target, source, since, until, class, grade, methods, .. } = *ban;
        Self { target, source, since, until, class, grade, port: ban.ports.first().copied(), methods }
    }
}

impl InForce {
    /// As [`Banned::left`].
    #[must_use]
    pub fn left(&self, now: SystemTime) -> Option<Expiry> {
        left(self.since, self.until, now)
    }
}

fn left(since: SystemTime, until: Option<SystemTime>, now: SystemTime) -> Option<Expiry> {
    let Some(until) = until else { return Some(Expiry::Never) };
    let left = until.duration_since(now.max(since)).ok().filter(|left| !left.is_zero())?;
    Some(Expiry::After(left.max(SHORTEST)))
}

/// What [`Expiry::After`] promises.
const SHORTEST: Duration = Duration::from_secs(1);

/// When a ban from `at` on ends. A span beyond what a clock can tell is no different from "never".
fn end(at: SystemTime, expiry: Expiry) -> Option<SystemTime> {
    match expiry {
        Expiry::Never => None,
        Expiry::After(span) => at.checked_add(span),
    }
}

/// How a ban ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its time was over.
    Expired,
    /// It was lifted.
    Lifted { by: String },
    /// A newer ban of the same subject took its place.
    Replaced,
}

/// How a ban ended, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How.
    pub how: Ending,
    /// When, to the microsecond.
    pub at: SystemTime,
}

/// A ban as it stands in the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub ban: Banned,
    /// How often its subject had been banned before, as far back as the ledger then reached.
    pub strikes: u32,
    /// Its end; `None` while none is marked, which for a ban with `until` does not mean that it is in force.
    pub ended: Option<Ended>,
}

/// A source that would have been banned, and the evidence of the last time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The target that a ban would have had.
    pub target: BanTarget,
    /// The address that sent the deciding probe.
    pub source: IpAddr,
    /// When it would have been banned for the first time.
    pub first: SystemTime,
    /// When it would have been banned the last time.
    pub last: SystemTime,
    /// How often it would have been banned.
    pub times: u32,
    pub class: Class,
    /// The ports that were probed, the deciding one first.
    pub ports: Vec<(Protocol, u16)>,
    pub probes: u32,
    /// Why, as a sentence.
    pub reason: String,
}

impl Logged {
    /// The engine's `ban`, which nothing enforced, because of `reason`.
    #[must_use]
    pub fn from_ban(ban: &Ban, at: SystemTime, reason: String) -> Self {
        let observation = &ban.probe.observation;
        Self {
            target: ban.probe.target,
            source: observation.source,
            first: at,
            last: at,
            times: 1,
            class: observation.class,
            ports: ports(ban),
            probes: ban.probe.probes,
            reason,
        }
    }
}

/// A network that an operator has allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
    pub network: IpNet,
    pub since: SystemTime,
    /// `None`: until it is revoked.
    pub until: Option<SystemTime>,
    /// The operator.
    pub by: String,
}

/// Whose operator has lifted a ban of the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiftedBy {
    Host,
    Fleet,
}

/// A target that is not blocked for reports of other hosts, because an operator has lifted its ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetLift {
    pub target: BanTarget,
    pub until: SystemTime,
    pub by: LiftedBy,
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// All lifts of the fleet's bans; earlier ones no longer hold.
    FleetLifts(Vec<FleetLift>),
    /// A ban has come into force. One of the same subject that was, is replaced.
    Banned(Banned),
    /// A ban is in force by these methods, too. It is the one of the same subject that began at the same time; without
    /// one it is a ban like any other.
    Also(Banned),
    /// A source would have been banned, but its protocol is only logged.
    Logged(Logged),
    /// Scans are only logged until then; `None`: the trial is over.
    Trial { until: Option<SystemTime> },
    /// A network is never blocked; an earlier allowance of it no longer holds.
    Allowed(Allowance),
    /// The allowance of this network is revoked, or over.
    Disallowed { network: IpNet },
    /// A ban has ended.
    Ended {
        target: BanTarget,
        /// How and when. What had expired by then is kept as expired, when its time was over.
        ended: Ended,
    },
    /// A service is remembered, and was served at this time.
    Served(Service, SystemTime),
    /// These ports were open lately, each with the time at which it was closed; `None`: it is open. No others were.
    Listeners(Vec<(Service, Option<SystemTime>)>),
    /// The kernel's table is this one: a boot and a number.
    Table(String),
    /// A service is no longer remembered.
    ServiceForgotten(Service),
}

impl From<Banned> for Change {
    fn from(ban: Banned) -> Self {
        Self::Banned(ban)
    }
}
