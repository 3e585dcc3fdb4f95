//! Aggregates the bans of the ledger into [`ReportStats`]. [`Reader::each`] visits the bans of one target together,
//! oldest first, so that memory use depends on the number of networks, not of targets.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;

use super::calendar::{Buckets, weekday_and_hour};
use super::stats::{Ends, Network, Offender, OverTime, RecentBan, ReportStats, SourceStats, Top, WouldBlock};
use crate::engine::{Class, Grade};
use crate::ledger::{BanAuthor, Ending, LedgerEntry, LedgerError, Logged, Reader, logged};
use crate::types::{BanTarget, Protocol};

/// Maximum numbers of items in the lists of the report.
const MAX_LISTED_PORTS: usize = 15;
const MAX_LISTED_NETWORKS: usize = 15;
const MAX_LISTED_OFFENDERS: usize = 20;
const MAX_WOULD_BLOCK: usize = 50;
const MAX_LISTED_SOURCES: usize = 15;
const MAX_LISTED_RECENT: usize = 20;

/// Number of bans after which the lists of single bans and targets are shortened.
const SHORTEN_INTERVAL: u64 = 32;

/// Maximum number of ports of one ban that are counted: several times as many as the engine records.
const MAX_PORTS_PER_BAN: usize = 64;

/// Maximum number of networks that are counted separately: more than a ledger of the default size can hold.
const MAX_NETWORKS: usize = 1 << 19;

impl ReportStats {
    /// Adds up the bans of the ledger in `directory` that began within `since` before `now`.
    ///
    /// # Errors
    /// The ledger cannot be read; the message contains the remedy.
    pub fn read(directory: &Path, since: Duration, now: SystemTime) -> Result<Self, LedgerError> {
        Reader::read(directory, |reader| {
            let mut aggregate = Aggregate::new(since, now);
            let unreadable = reader.each(|entry| aggregate.add(&entry))?;
            let logged = logged::all(reader)?;
            Ok(aggregate.finish(logged.items, unreadable + logged.unreadable))
        })
    }
}

/// The sums so far.
struct Aggregate {
    buckets: Buckets,
    stats: ReportStats,
    ports: HashMap<(Protocol, u16), u64>,
    networks: HashMap<IpNet, (u64, u64)>,
    /// The target that is being visited: all of its bans, and those within the period.
    current: Option<(Offender, SourceStats)>,
}

impl Aggregate {
    fn new(since: Duration, now: SystemTime) -> Self {
        let from = now.checked_sub(since).unwrap_or(UNIX_EPOCH);
        let buckets = Buckets::new(from, now);
        let stats = ReportStats {
            from,
            to: now,
            kept: 0,
            bans: 0,
            sources: 0,
            in_force: 0,
            repeaters: 0,
            probes: 0,
            over_time: OverTime { bucket: buckets.width(), bans: buckets.starts().map(|start| (start, 0)).collect() },
            classes: Vec::new(),
            evidence: Vec::new(),
            ports: Top { items: Vec::new(), more: 0 },
            networks: Top { items: Vec::new(), more: 0 },
            top_sources: Top { items: Vec::new(), more: 0 },
            offenders: Top { items: Vec::new(), more: 0 },
            recent: Vec::new(),
            by_hand: Vec::new(),
            hours: [[0; 24]; 7],
            would_block: Top { items: Vec::new(), more: 0 },
            ends: Ends::default(),
            authors: Vec::new(),
            methods: Vec::new(),
            ahead: 0,
            unreadable: 0,
        };
        Self { buckets, stats, ports: HashMap::new(), networks: HashMap::new(), current: None }
    }

    fn add(&mut self, entry: &LedgerEntry) {
        let ban = &entry.ban;
        self.stats.kept += 1;
        if self.stats.kept.is_multiple_of(SHORTEN_INTERVAL) {
            self.shorten_lists();
        }
        let open = entry.ended.is_none() && ban.until.is_none_or(|until| until > self.stats.to);
        self.stats.in_force += u64::from(open);
        if ban.since > self.stats.to {
            self.stats.ahead += 1;
            return;
        }
        let within = ban.since >= self.stats.from;
        self.group(entry, within);
        if within {
            let (since, target, class) = (ban.since, ban.target, ban.class);
            let (author, note) = (ban.author, ban.note.clone());
            let recent = RecentBan { since, target, class, author, note, in_force: open };
            match author {
                BanAuthor::Detector => self.stats.recent.push(recent),
                BanAuthor::Operator | BanAuthor::Import => self.stats.by_hand.push(recent),
            }
            self.stats.bans += 1;
            self.stats.probes = self.stats.probes.saturating_add(u64::from(ban.probes));
            let index = self.buckets.index(ban.since);
            if let Some((_, count)) = index.and_then(|index| self.stats.over_time.bans.get_mut(index)) {
                *count += 1;
            }
            let (weekday, hour) = weekday_and_hour(ban.since);
            if let Some(count) = self.stats.hours.get_mut(weekday).and_then(|hours| hours.get_mut(hour)) {
                *count += 1;
            }
            count(&mut self.stats.classes, ban.class);
            count(&mut self.stats.evidence, ban.grade);
            count(&mut self.stats.authors, author);
            ban.backends.iter().for_each(|backend| count(&mut self.stats.methods, backend));
            let ports: BTreeSet<_> = ban.ports.iter().take(MAX_PORTS_PER_BAN).collect();
            ports.into_iter().for_each(|port| *self.ports.entry(*port).or_default() += 1);
            let ends = &mut self.stats.ends;
            *match &entry.ended {
                None if open => &mut ends.in_force,
                // The ban has expired, but the ledger does not record that yet.
                None => &mut ends.expired,
                Some(ended) => match ended.how {
                    Ending::Expired => &mut ends.expired,
                    Ending::Lifted { .. } => &mut ends.lifted,
                    Ending::Replaced => &mut ends.replaced,
                },
            } += 1;
        }
    }

    /// Adds a ban to the group of its target.
    fn group(&mut self, entry: &LedgerEntry, within: bool) {
        let ban = &entry.ban;
        let (target, since) = (ban.target, ban.since);
        if self.current.as_ref().is_none_or(|(offender, _)| offender.target != target) {
            self.close_group();
        }
        let (offender, source) = self.current.get_or_insert((
            Offender { target, strikes: 0, first: since, last: since, blocked: Duration::ZERO },
            SourceStats { target, bans: 0, probes: 0 },
        ));
        if within {
            source.bans += 1;
            source.probes = source.probes.saturating_add(ban.probes.into());
        }
        offender.strikes = u64::from(entry.strikes) + 1;
        offender.first = offender.first.min(ban.since);
        offender.last = offender.last.max(ban.since);
        let end = entry.ended.as_ref().map(|ended| ended.at).or(ban.until).unwrap_or(self.stats.to).min(self.stats.to);
        offender.blocked = offender.blocked.saturating_add(end.duration_since(ban.since).unwrap_or_default());
    }

    fn close_group(&mut self) {
        let Some((offender, source)) = self.current.take().filter(|(_, source)| source.bans > 0) else { return };
        self.stats.sources += 1;
        if source.probes > 0 {
            self.stats.top_sources.items.push(source);
        }
        let prefix = network(offender.target);
        if self.networks.len() < MAX_NETWORKS || self.networks.contains_key(&prefix) {
            let known = self.networks.entry(prefix).or_default();
            *known = (known.0 + source.bans, known.1 + 1);
        } else {
            self.stats.networks.more += 1;
        }
        if offender.strikes > 1 {
            self.stats.repeaters += 1;
            self.stats.offenders.items.push(offender);
        }
    }

    /// Limits the lists of single bans and targets to the length that is reported.
    fn shorten_lists(&mut self) {
        let ReportStats { recent, by_hand, top_sources, offenders, .. } = &mut self.stats;
        for list in [recent, by_hand] {
            keep_first(list, MAX_LISTED_RECENT, |ban| (Reverse(ban.since), ban.target));
        }
        top_sources.keep_first(MAX_LISTED_SOURCES, |source| (Reverse((source.probes, source.bans)), source.target));
        offenders
            .keep_first(MAX_LISTED_OFFENDERS, |offender| (Reverse((offender.strikes, offender.last)), offender.target));
    }

    fn finish(mut self, logged: Vec<Logged>, unreadable: u64) -> ReportStats {
        self.close_group();
        self.shorten_lists();
        let mut stats = self.stats;
        let within = logged.into_iter().filter(|one| (stats.from..=stats.to).contains(&one.last));
        let within =
            within.map(|Logged { target, reason, times, last, .. }| WouldBlock { target, reason, times, last });
        stats.would_block.items.extend(within);
        stats.would_block.keep_first(MAX_WOULD_BLOCK, |one| (Reverse(one.last), one.target));
        stats.unreadable = unreadable;
        // Equal counts are sorted by name, so that the report is reproducible.
        stats.classes.sort_by_key(|(class, bans)| (Reverse(*bans), class.map_or("", Class::key)));
        stats.evidence.sort_by_key(|(grade, bans)| (Reverse(*bans), grade.map_or("none", Grade::key)));
        stats.authors.sort_by_key(|(author, bans)| (Reverse(*bans), author.key()));
        stats.methods.sort_by_key(|(method, bans)| (Reverse(*bans), method.name()));
        let networks = self.networks.into_iter().map(|(prefix, (bans, sources))| Network { prefix, bans, sources });
        stats.networks.items.extend(networks);
        stats
            .networks
            .keep_first(MAX_LISTED_NETWORKS, |network| (Reverse((network.bans, network.sources)), network.prefix));
        stats.ports.items.extend(self.ports);
        stats.ports.keep_first(MAX_LISTED_PORTS, |(port, bans)| (Reverse(*bans), *port));
        stats
    }
}

impl<T> Top<T> {
    /// Keeps the first `wanted` items in the order of `key`, and counts the others.
    fn keep_first<K: Ord>(&mut self, wanted: usize, key: impl FnMut(&T) -> K) {
        self.more += keep_first(&mut self.items, wanted, key);
    }
}

/// Keeps the first `wanted` items in the order of `key`; returns the number of the others.
fn keep_first<T, K: Ord>(items: &mut Vec<T>, wanted: usize, key: impl FnMut(&T) -> K) -> u64 {
    items.sort_by_key(key);
    let others = items.len().saturating_sub(wanted);
    items.truncate(wanted);
    u64::try_from(others).unwrap_or(u64::MAX)
}

/// The network in which a target is counted: the size that a provider assigns to many customers, or to one larger one.
fn network(target: BanTarget) -> IpNet {
    let address = target.element();
    IpNet::new(address, if address.is_ipv4() { 24 } else { 48 }).unwrap_or(address.into()).trunc()
}

fn count<K: PartialEq>(counts: &mut Vec<(K, u64)>, key: K) {
    match counts.iter_mut().find(|(known, _)| *known == key) {
        Some((_, count)) => *count += 1,
        None => counts.push((key, 1)),
    }
}
