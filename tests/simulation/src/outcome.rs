//! Defines the record of a run, and the sum over several hosts.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// A ban of an honest source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HonestBan {
    /// `SEED:PACE:HOST:STEP`, with which `make simulate REPLAY=…` shows the cause of the ban.
    pub replay: String,
    pub profile: &'static str,
    /// The behaviour of the source, or of the forger that uses its address.
    pub behaviour: &'static str,
    /// True if the packets were forged.
    pub forged: bool,
    pub target: String,
    /// Seconds since the start of the host's simulation.
    pub at: u64,
    /// The length of the ban in seconds; `None` if it is permanent.
    pub lasts: Option<u64>,
    /// The evidence.
    pub ports: String,
}

/// The record of one honest behaviour.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Honest {
    pub sources: u64,
    pub packets: u64,
    /// Bans by the program.
    pub bans: u64,
    /// Bans by the kernel's trap, whether or not the program confirmed them.
    pub trapped: u64,
    /// Verdicts on protocols that are only logged.
    pub alarms: u64,
    /// Packets that were dropped because the source was banned.
    pub refused: u64,
    /// Seconds during which connections were held back.
    pub hold_seconds: f64,
    /// As `hold_seconds`, but because of forged packets with the addresses of these sources.
    pub forged_hold_seconds: f64,
}

/// The record of one kind of authorised scanners.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Authorised {
    pub sources: u64,
    pub packets: u64,
    pub bans: u64,
    /// Packets that were dropped because the source was banned.
    pub refused: u64,
}

/// The record of one dishonest behaviour.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Dishonest {
    /// Sources, or senders of forged packets, that have finished.
    pub sources: u64,
    /// Sources that were banned or reported as a distributed scan.
    pub found: u64,
    pub packets: u64,
    /// Verdicts on protocols that are only logged.
    pub alarms: u64,
    /// Bans that ended early because their ports belong to services.
    pub freed: u64,
    /// The last packets of some undetected sources, as `SEED:PACE:HOST:STEP` for `make simulate REPLAY=…`.
    pub missed: Vec<String>,
    /// Bans of any source that are longer than the ceiling permits.
    pub long_bans: u64,
    /// Number of distinct ports that each detected source probed before its ban, sorted.
    pub ports_before_ban: Vec<u32>,
    /// Number of open ports that each source learned, sorted.
    pub ports_learned: Vec<u32>,
}

/// The median of a sorted list.
#[must_use]
pub fn median(sorted: &[u32]) -> Option<u32> {
    sorted.get(sorted.len() / 2).copied()
}

impl Dishonest {
    #[must_use]
    pub fn mean_learned(&self) -> f64 {
        let sum: u32 = self.ports_learned.iter().sum();
        if self.ports_learned.is_empty() { 0.0 } else { f64::from(sum) / self.ports_learned.len() as f64 }
    }
}

/// The record of one or several hosts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Outcome {
    pub hosts: u64,
    pub host_years: f64,
    pub packets: u64,
    pub honest: BTreeMap<&'static str, Honest>,
    /// Scanners that the owner of the network operates, and that are not on the allow-list.
    pub authorised: BTreeMap<&'static str, Authorised>,
    pub dishonest: BTreeMap<&'static str, Dishonest>,
    pub honest_bans: Vec<HonestBan>,
    /// Bans by the kernel's trap that the program lifted because it had no evidence against the source.
    pub let_go: u64,
    /// Bans by the kernel's trap that the program shortened because it had no verdict.
    pub shortened: u64,
    /// Bans that ended because the probed ports belong to services.
    pub lifted: u64,
}

/// Maximum number of undetected scans of each kind that are listed.
pub(crate) const MAX_MISSED: usize = 5;

const YEAR: Duration = Duration::from_secs(365 * 86_400);

impl Outcome {
    #[must_use]
    pub fn of_host(lasted: Duration) -> Self {
        Self { hosts: 1, host_years: lasted.as_secs_f64() / YEAR.as_secs_f64(), ..Self::default() }
    }

    /// Adds the record of another host.
    pub fn add(&mut self, other: Self) {
        self.hosts += other.hosts;
        self.host_years += other.host_years;
        self.packets += other.packets;
        self.let_go += other.let_go;
        self.shortened += other.shortened;
        self.lifted += other.lifted;
        self.honest_bans.extend(other.honest_bans);
        for (behaviour, more) in other.honest {
            let sum = self.honest.entry(behaviour).or_default();
            sum.sources += more.sources;
            sum.packets += more.packets;
            sum.bans += more.bans;
            sum.trapped += more.trapped;
            sum.alarms += more.alarms;
            sum.refused += more.refused;
            sum.hold_seconds += more.hold_seconds;
            sum.forged_hold_seconds += more.forged_hold_seconds;
        }
        for (behaviour, more) in other.authorised {
            let sum = self.authorised.entry(behaviour).or_default();
            sum.sources += more.sources;
            sum.packets += more.packets;
            sum.bans += more.bans;
            sum.refused += more.refused;
        }
        for (behaviour, more) in other.dishonest {
            let sum = self.dishonest.entry(behaviour).or_default();
            sum.sources += more.sources;
            sum.found += more.found;
            sum.missed.extend(more.missed);
            sum.missed.truncate(MAX_MISSED);
            sum.alarms += more.alarms;
            sum.freed += more.freed;
            sum.long_bans += more.long_bans;
            sum.packets += more.packets;
            for (list, new) in
                [(&mut sum.ports_before_ban, more.ports_before_ban), (&mut sum.ports_learned, more.ports_learned)]
            {
                list.extend(new);
                list.sort_unstable();
            }
        }
    }

    /// Honest bans per host-year that the sources' own packets caused.
    #[must_use]
    pub fn honest_bans_per_year(&self) -> f64 {
        self.count_honest_bans(false) as f64 / self.host_years
    }

    /// Number of bans of honest sources, because of forged packets or of packets that they sent.
    #[must_use]
    pub fn count_honest_bans(&self, forged: bool) -> usize {
        self.honest_bans.iter().filter(|ban| ban.forged == forged).count()
    }

    #[must_use]
    pub fn count_authorised_bans(&self) -> u64 {
        self.authorised.values().map(|seen| seen.bans).sum()
    }

    /// Number of dishonest sources that were not detected.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.dishonest.values().map(|seen| seen.sources - seen.found).sum()
    }

    /// The behaviours whose sources were banned because of their own packets, with the number of bans.
    #[must_use]
    pub fn banned_behaviours(&self) -> BTreeMap<&'static str, u64> {
        let banned = self.honest.iter().filter(|(_, honest)| honest.bans > 0);
        banned.map(|(behaviour, honest)| (*behaviour, honest.bans)).collect()
    }
}
