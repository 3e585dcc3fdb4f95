//! A ban as the ledger keeps it, and how it ended. Times are the clock on the wall, since they must mean something after a
//! reboot: where somebody sets it, what is left of a ban changes with it, while the kernel's own timers run on. Whoever
//! restores a ban that the kernel still holds takes the kernel's remaining time.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use crate::engine::subject::{Expiry, Subject};
use crate::engine::{Ban, Class, Protocol};

/// What blocks the subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// An element in the nftables set.
    Nft,
}

/// Who wanted the ban.
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
    /// Who is blocked.
    pub subject: Subject,
    /// The address that sent the deciding probe; of an IPv6 subject, one of its 2^64. Without a probe the subject's own.
    pub source: IpAddr,
    /// Since when; kept to the microsecond.
    pub since: SystemTime,
    /// Until when; `None` for a ban that somebody has to lift. Kept to the microsecond.
    pub until: Option<SystemTime>,
    /// Class of the deciding probe; `None` where nobody probed.
    pub class: Option<Class>,
    /// The ports that were touched, the deciding one first.
    pub ports: Vec<(Protocol, u16)>,
    /// Probes until the ban, repetitions included.
    pub probes: u32,
    /// The interface that the deciding probe came in on, where it is known.
    pub interface: Option<String>,
    /// What blocks it.
    pub method: Method,
    /// Who wanted it.
    pub author: Author,
    /// More bans than the ceiling allowed: it is short, its evidence may be forged, and it is no strike.
    pub capped: bool,
}

impl Banned {
    /// The engine's `ban`, in force since `at`.
    #[must_use]
    pub fn from_ban(ban: &Ban, at: SystemTime, interface: Option<&str>) -> Self {
        let sighting = &ban.probe.sighting;
        let deciding = (sighting.protocol, sighting.port);
        let others = ban.ports.iter().map(|(protocol, port, _)| (protocol, port)).filter(|port| *port != deciding);
        Self {
            subject: ban.probe.subject,
            source: sighting.source,
            since: at,
            until: end(at, ban.expiry),
            class: Some(sighting.class),
            ports: std::iter::once(deciding).chain(others).collect(),
            probes: ban.probe.probes,
            interface: interface.map(str::to_owned),
            method: Method::Nft,
            author: Author::Detector,
            capped: ban.capped,
        }
    }

    /// A ban without evidence, that `author` wants from `at` on.
    #[must_use]
    pub fn wanted_by(author: Author, subject: Subject, at: SystemTime, expiry: Expiry) -> Self {
        Self {
            subject,
            source: subject.element(),
            since: at,
            until: end(at, expiry),
            class: None,
            ports: Vec::new(),
            probes: 0,
            interface: None,
            method: Method::Nft,
            author,
            capped: false,
        }
    }

    /// What is left of it at `now`, at least a second; `None` once it is over. A clock that stands before `since` leaves
    /// the whole of it and no more.
    #[must_use]
    pub fn left(&self, now: SystemTime) -> Option<Expiry> {
        let Some(until) = self.until else { return Some(Expiry::Never) };
        let left = until.duration_since(now.max(self.since)).ok().filter(|left| !left.is_zero())?;
        Some(Expiry::After(left.max(SHORTEST)))
    }
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
    /// Somebody took it back.
    Lifted {
        /// Who.
        by: String,
    },
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
    /// The ban.
    pub ban: Banned,
    /// How often its subject had been banned before, as far back as the ledger then reached.
    pub strikes: u32,
    /// Its end; `None` while nobody has marked one, which for a ban with `until` does not mean that it is in force.
    pub ended: Option<Ended>,
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A ban has come into force. One of the same subject that was, is replaced.
    Banned(Banned),
    /// A ban has ended.
    Ended {
        /// Whose.
        subject: Subject,
        /// How and when. What had expired by then is kept as expired, when its time was over.
        ended: Ended,
    },
}

impl From<Banned> for Change {
    fn from(ban: Banned) -> Self {
        Self::Banned(ban)
    }
}
