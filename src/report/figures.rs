//! What the page says, as numbers.

use std::path::Path;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::tally::Tally;
use crate::engine::Class;
use crate::ledger::{LedgerError, Reader};
use crate::types::{BanTarget, Protocol};

/// The bans that began within a period, added up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Where the period begins.
    pub from: SystemTime,
    /// Where it ends: when the figures were made.
    pub to: SystemTime,
    /// Bans that the ledger keeps, of any time.
    pub kept: u64,
    /// Bans that began within the period. All that follows is about these, unless it says otherwise.
    pub bans: u64,
    /// Subjects that they were of: addresses, and of IPv6 networks of 64 bits.
    pub sources: u64,
    /// Bans in force at the end of the period, whenever they began.
    pub in_force: u64,
    /// Subjects that had been banned before, within the period or earlier.
    pub repeaters: u64,
    /// Probes until they were banned.
    pub probes: u64,
    /// How much time one item of `over_time` stands for.
    pub bucket: Duration,
    /// Bans by time, the oldest first and none left out. The first and the last item are cut by the period.
    pub over_time: Vec<(SystemTime, u64)>,
    /// Bans by class of the deciding probe, the most first; `None`: there was no probe.
    pub classes: Vec<(Option<Class>, u64)>,
    /// Bans by port that was touched before them.
    pub ports: Top<((Protocol, u16), u64)>,
    /// Bans by network, /24 of IPv4 and /48 of IPv6.
    pub networks: Top<Network>,
    /// Who came back, the most often first.
    pub offenders: Top<Offender>,
    /// Bans by weekday, Monday first, and by hour of the day.
    pub hours: [[u64; 24]; 7],
    /// Bans by what became of them.
    pub ends: Ends,
    /// Bans by who wanted them, the most first.
    pub authors: Vec<(&'static str, u64)>,
    /// Bans by what blocks, the most first.
    pub methods: Vec<(&'static str, u64)>,
    /// Bans that begin after the period because somebody has set the clock back; they are left out.
    pub ahead: u64,
    /// Rows of the ledger that make no sense; they are left out.
    pub unreadable: u64,
}

/// The first few, and how many there are besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Top<T> {
    /// The first few.
    pub items: Vec<T>,
    /// How many more there are.
    pub more: u64,
}

/// A network that bans were of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Which.
    pub prefix: IpNet,
    /// Bans.
    pub bans: u64,
    /// Subjects.
    pub sources: u64,
}

/// A subject that was banned before, with all that the ledger keeps of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offender {
    /// Who.
    pub subject: BanTarget,
    /// How often it has been banned, the last one included.
    pub strikes: u64,
    /// Since when the oldest ban was that is kept.
    pub first: SystemTime,
    /// Since when the newest is.
    pub last: SystemTime,
    /// How long it has been blocked altogether.
    pub blocked: Duration,
}

/// What became of bans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// In force.
    pub in_force: u64,
    /// Their time was over.
    pub expired: u64,
    /// Somebody took them back.
    pub lifted: u64,
    /// A newer ban took their place.
    pub replaced: u64,
}

impl Figures {
    /// Adds up what the ledger in `directory` keeps of the time from `since` ago until `now`.
    ///
    /// # Errors
    /// Whatever keeps the ledger from being read; each sentence says what to do.
    pub fn read(directory: &Path, since: Duration, now: SystemTime) -> Result<Self, LedgerError> {
        Reader::read(directory, |reader| {
            let mut tally = Tally::new(since, now);
            let unreadable = reader.each(|entry| tally.add(entry))?;
            Ok(tally.finish(unreadable))
        })
    }
}
