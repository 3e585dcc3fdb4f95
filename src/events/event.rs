//! What happened, for whoever wants to know. The sensor's events hold no text of their own, so that making one costs no
//! allocation.

use std::time::{Duration, SystemTime};

use crate::engine::{Ban, DistributedScan, Exempt, Notice, Probe, Repeated, Standing, Verdict};
use crate::types::{Backend, BanTarget, Expiry};

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    /// When, by the clock on the wall.
    pub time: SystemTime,
    /// What.
    pub what: EventKind,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum EventKind {
    /// Capture and ruleset are in place.
    Started,
    /// A probe that is not enough yet.
    Probe(Probe),
    /// Enough, but the protocol is only logged.
    Scan(Ban),
    /// A ban is in force in one way.
    Blocked {
        /// Who, why and how long.
        ban: Ban,
        /// In which way.
        way: Backend,
        /// From the capture of the packet to the kernel's acknowledgement.
        reaction: Duration,
    },
    /// A ban is in force by a line for TCP wrappers.
    Wrapped {
        /// Who is blocked.
        subject: BanTarget,
        /// Why; `None` for a ban by hand.
        ban: Option<Ban>,
        /// The line.
        line: String,
    },
    /// A command was run for a ban.
    Ran {
        /// Who is, or was, blocked.
        subject: BanTarget,
        /// Why, where it was run because a ban begins on evidence.
        ban: Option<Ban>,
        /// The command, on one line.
        command: String,
        /// How it ended and what it wrote, as a sentence.
        outcome: String,
        /// It did what it should.
        well: bool,
    },
    /// Connections of a blocked source were ended.
    Disconnected {
        /// Whose.
        subject: BanTarget,
        /// How many.
        connections: usize,
    },
    /// A way did not take a ban.
    BlockFailed {
        /// Which way.
        way: Backend,
        /// Who should have been blocked.
        subject: BanTarget,
        /// What the kernel said.
        reason: String,
    },
    /// A source that is never blocked probes this host.
    Exempt {
        /// Who, and why it is spared.
        spared: Exempt,
        /// Probes that this event stands for.
        probes: u32,
    },
    /// A judged source goes on sending.
    Repeated {
        /// Whom the judgement names.
        subject: BanTarget,
        /// What stands against it.
        standing: Standing,
        /// Packets that this event stands for.
        packets: u32,
    },
    /// Many sources share a scan.
    DistributedScan(DistributedScan),
    /// New bans above the ceiling, made short.
    Capped {
        /// How many.
        bans: u32,
    },
    /// A ban is gone from the kernel although its time is not up.
    Lifted {
        /// Who is free again.
        subject: BanTarget,
    },
    /// Somebody deleted a ban from the kernel's set.
    Unblocked {
        /// Who is free again.
        subject: BanTarget,
        /// Who did it.
        by: String,
    },
    /// The time of a ban is over.
    Expired {
        /// Who is free again.
        subject: BanTarget,
    },
    /// Somebody blocked a source.
    ByHand {
        /// Who is blocked.
        subject: BanTarget,
        /// For how long.
        expiry: Expiry,
        /// Who did it.
        by: String,
        /// What he says about it.
        note: Option<String>,
        /// In which way; `None`: in every one that the settings name.
        way: Option<Backend>,
    },
    /// Bans that the kernel had forgotten were put back from the ledger.
    Restored {
        /// How many.
        bans: usize,
        /// In which way.
        way: Backend,
    },
    /// Bans that should be in force in one way were not, and nobody had said why.
    Repaired {
        /// How many were put back.
        bans: usize,
        /// In which way.
        way: Backend,
    },
    /// The table was gone, and is there again.
    Healed {
        /// Bans that were put back, each for the time that it had left.
        bans: usize,
    },
    /// The capture could not keep up.
    Dropped {
        /// Packets lost since the last such event.
        packets: u64,
    },
    /// Bans that the kernel held at the start.
    Adopted {
        /// How many.
        bans: usize,
    },
    /// Something an operator should know.
    Note(String),
    /// Something failed.
    Error(String),
    /// The program ends; the kernel's set stays.
    Stopped,
}

impl EventKind {
    /// The event that reports `verdict`; `None` where none is due. A ban is reported by the ways that enforce it.
    #[must_use]
    pub fn from_verdict(verdict: Verdict) -> Option<Self> {
        match verdict {
            Verdict::Probe(probe) => probe.fresh.then_some(Self::Probe(probe)),
            Verdict::LogOnly(ban) => Some(Self::Scan(ban)),
            Verdict::Exempt(spared) => spared.report.map(|probes| Self::Exempt { spared, probes }),
            Verdict::Repeated(Repeated { subject, standing, report, .. }) => {
                report.map(|packets| Self::Repeated { subject, standing, packets })
            }
            Verdict::Block(_) | Verdict::Ignored(_) => None,
        }
    }

    /// True for what strangers cause as often as they send packets, in whose name they like.
    #[must_use]
    pub fn is_attacker_driven(&self) -> bool {
        match self {
            Self::Probe(_) | Self::Repeated { .. } | Self::Exempt { .. } | Self::BlockFailed { .. } => true,
            Self::Blocked { ban, .. } => ban.capped,
            _ => false,
        }
    }
}

impl From<Notice> for EventKind {
    fn from(notice: Notice) -> Self {
        match notice {
            Notice::DistributedScan(sweep) => Self::DistributedScan(sweep),
            Notice::Repeated { subject, standing, packets } => Self::Repeated { subject, standing, packets },
            Notice::Capped { bans } => Self::Capped { bans },
        }
    }
}

impl Event {
    /// `what`, now.
    #[must_use]
    pub fn now(what: EventKind) -> Self {
        Self { time: SystemTime::now(), what }
    }
}
