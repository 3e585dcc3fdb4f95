//! Aggregates the bans of the ledger into [`ReportStats`]. [`Reader::each`] visits the bans of one target together,
//! oldest first, so that memory use depends on the number of networks, not of targets.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::calendar::{Buckets, weekday_and_hour};
use super::stats::{Ends, Network, Offender, OverTime, RecentBan, ReportStats, Source, Top, WouldBlock};
use crate::engine::{Class, Grade};
use crate::ledger::{Author, Ending, Entry, LedgerError, Logged, Reader, author_key};
use crate::types::{BanTarget, Protocol};

/// Maximum numbers of items in the lists of the report.
const PORTS: usize = 15;
const NETWORKS: usize = 15;
const OFFENDERS: usize = 20;
const WOULD_BLOCK: usize = 50;
const SOURCES: usize = 15;
const RECENT: usize = 20;

/// Maximum number of ports of one ban that are counted, because each is compared with all others. Several times as many
/// as the engine records.
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
            let unreadable = reader.each(|entry| aggregate.add(entry))?;
            let logged = reader.logged()?;
            aggregate.add_logged(logged.items);
            Ok(aggregate.finish(unreadable + logged.unreadable))
        })
    }
}

/// The sums so far.
struct Aggregate {
    buckets: Buckets,
    stats: ReportStats,
    ports: HashMap<(Protocol, u16), u64>,
    networks: HashMap<IpNet, (u64, u64)>,
    /// The targets with the most bans so far, at most twice as many as are reported.
    offenders: Vec<Offender>,
    /// The targets with the most probes so far, at most twice as many as are reported.
    sources: Vec<Source>,
    current: Option<Group>,
}

/// The bans of the target that is being visited.
struct Group {
    offender: Offender,
    /// Bans within the period, and their probes.
    bans: u64,
    probes: u64,
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
        Self {
            buckets,
            stats,
            ports: HashMap::new(),
            networks: HashMap::new(),
            offenders: Vec::with_capacity(2 * OFFENDERS),
            sources: Vec::with_capacity(2 * SOURCES),
            current: None,
        }
    }

    fn add(&mut self, entry: &Entry) {
        let ban = &entry.ban;
        self.stats.kept += 1;
        let open = entry.ended.is_none() && ban.until.is_none_or(|until| until > self.stats.to);
        self.stats.in_force += u64::from(open);
        if ban.since > self.stats.to {
            self.stats.ahead += 1;
            return;
        }
        let within = ban.since >= self.stats.from;
        self.group(entry, within);
        if within {
            self.list_recent(entry, open);
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
            count(&mut self.stats.evidence, ban.grade.map_or("none", Grade::key));
            count(&mut self.stats.authors, author_key(ban.author));
            ban.methods.iter().for_each(|method| count(&mut self.stats.methods, method.name()));
            let ports = ban.ports.get(..MAX_PORTS_PER_BAN).unwrap_or(&ban.ports);
            for (index, port) in ports.iter().enumerate() {
                if !ports.iter().take(index).any(|before| before == port) {
                    *self.ports.entry(*port).or_default() += 1;
                }
            }
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

    fn list_recent(&mut self, entry: &Entry, in_force: bool) {
        let ban = &entry.ban;
        let list = match ban.author {
            Author::Detector => &mut self.stats.recent,
            Author::Operator | Author::Import => &mut self.stats.by_hand,
        };
        if list.len() >= 2 * RECENT {
            keep_newest(list);
        }
        let (since, target, class) = (ban.since, ban.target, ban.class);
        list.push(RecentBan { since, target, class, author: author_key(ban.author), note: ban.note.clone(), in_force });
    }

    /// Adds a ban to the group of its target.
    fn group(&mut self, entry: &Entry, within: bool) {
        let ban = &entry.ban;
        if self.current.as_ref().is_none_or(|group| group.offender.target != ban.target) {
            self.close_group();
        }
        let fresh =
            Offender { target: ban.target, strikes: 0, first: ban.since, last: ban.since, blocked: Duration::ZERO };
        let group = self.current.get_or_insert(Group { offender: fresh, bans: 0, probes: 0 });
        group.bans += u64::from(within);
        group.probes = group.probes.saturating_add(if within { u64::from(ban.probes) } else { 0 });
        let offender = &mut group.offender;
        offender.strikes = u64::from(entry.strikes) + 1;
        offender.first = offender.first.min(ban.since);
        offender.last = offender.last.max(ban.since);
        let end = entry.ended.as_ref().map(|ended| ended.at).or(ban.until).unwrap_or(self.stats.to).min(self.stats.to);
        offender.blocked = offender.blocked.saturating_add(end.duration_since(ban.since).unwrap_or_default());
    }

    fn add_logged(&mut self, logged: Vec<Logged>) {
        let within = logged.into_iter().filter(|one| (self.stats.from..=self.stats.to).contains(&one.last));
        let items = within.map(|Logged { target, reason, times, last, .. }| WouldBlock { target, reason, times, last });
        self.stats.would_block = top(items.collect(), WOULD_BLOCK, |one| (Reverse(one.last), one.target));
    }

    fn close_group(&mut self) {
        let Some(Group { offender, bans, probes }) = self.current.take() else { return };
        if bans == 0 {
            return;
        }
        self.stats.sources += 1;
        if probes > 0 {
            self.stats.top_sources.more += 1;
            self.sources.push(Source { target: offender.target, bans, probes });
            if self.sources.len() >= 2 * SOURCES {
                self.keep_busiest();
            }
        }
        let prefix = network(offender.target);
        if self.networks.len() < MAX_NETWORKS || self.networks.contains_key(&prefix) {
            let known = self.networks.entry(prefix).or_default();
            *known = (known.0 + bans, known.1 + 1);
        } else {
            self.stats.networks.more += 1;
        }
        if offender.strikes > 1 {
            self.stats.repeaters += 1;
            self.offenders.push(offender);
            if self.offenders.len() >= 2 * OFFENDERS {
                self.keep_worst();
            }
        }
    }

    fn keep_busiest(&mut self) {
        self.sources.sort_by_key(|source| (Reverse((source.probes, source.bans)), source.target));
        self.sources.truncate(SOURCES);
    }

    fn keep_worst(&mut self) {
        self.offenders.sort_by_key(|offender| (Reverse((offender.strikes, offender.last)), offender.target));
        self.offenders.truncate(OFFENDERS);
    }

    fn finish(mut self, unreadable: u64) -> ReportStats {
        self.close_group();
        self.keep_worst();
        self.keep_busiest();
        let mut stats = self.stats;
        [&mut stats.recent, &mut stats.by_hand].into_iter().for_each(keep_newest);
        let more = stats.top_sources.more - length(&self.sources);
        stats.top_sources = Top { items: self.sources, more };
        stats.unreadable = unreadable;
        // Equal counts are sorted by name, so that the report is reproducible.
        stats.classes.sort_by_key(|(class, bans)| (Reverse(*bans), class.map_or("", Class::key)));
        stats.evidence.sort_by_key(|(grade, bans)| (Reverse(*bans), *grade));
        stats.authors.sort_by_key(|(author, bans)| (Reverse(*bans), *author));
        stats.methods.sort_by_key(|(method, bans)| (Reverse(*bans), *method));
        let networks = self.networks.into_iter().map(|(prefix, (bans, sources))| Network { prefix, bans, sources });
        let more = stats.networks.more;
        stats.networks =
            top(networks.collect(), NETWORKS, |network| (Reverse((network.bans, network.sources)), network.prefix));
        stats.networks.more += more;
        stats.ports = top(self.ports.into_iter().collect(), PORTS, |(port, bans)| (Reverse(*bans), *port));
        stats.offenders = Top { more: stats.repeaters - length(&self.offenders), items: self.offenders };
        stats
    }
}

fn keep_newest(list: &mut Vec<RecentBan>) {
    list.sort_by_key(|ban| (Reverse(ban.since), ban.target));
    list.truncate(RECENT);
}

/// The network in which a target is counted: the size that a provider assigns to many customers, or to one larger one.
fn network(target: BanTarget) -> IpNet {
    let (whole, len) = match target.element() {
        IpAddr::V4(v4) => (IpNet::V4(Ipv4Net::from(v4)), 24),
        IpAddr::V6(v6) => (IpNet::V6(Ipv6Net::from(v6)), 48),
    };
    IpNet::new(whole.addr(), len).unwrap_or(whole).trunc()
}

fn count<K: PartialEq>(counts: &mut Vec<(K, u64)>, key: K) {
    match counts.iter_mut().find(|(known, _)| *known == key) {
        Some((_, count)) => *count += 1,
        None => counts.push((key, 1)),
    }
}

/// The first `wanted` items in the order of `key`.
fn top<T, K: Ord>(mut items: Vec<T>, wanted: usize, key: impl FnMut(&T) -> K) -> Top<T> {
    items.sort_by_key(key);
    let all = length(&items);
    items.truncate(wanted);
    Top { more: all - length(&items), items }
}

fn length<T>(items: &[T]) -> u64 {
    u64::try_from(items.len()).unwrap_or(u64::MAX)
}
