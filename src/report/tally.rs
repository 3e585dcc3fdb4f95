//! Bans, one by one, to [`Figures`]. The bans of a subject come together and the oldest first, as
//! [`crate::ledger::Reader::each`] shows them, so that of each subject no more is remembered than of its network.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::calendar::{Stretches, weekday_and_hour};
use super::figures::{Ends, Figures, Network, Offender, Top};
use crate::engine::Class;
use crate::ledger::{Ending, Entry, author_key};
use crate::types::{BanTarget, Protocol};

/// Items of each list that the page holds.
const PORTS: usize = 15;
const NETWORKS: usize = 15;
const OFFENDERS: usize = 20;

/// Ports of one ban that are looked at: several times as many as the engine gives, since each is compared with the others.
const EVIDENCE: usize = 64;

/// Networks that are told apart: more than a ledger of the usual size can hold.
const KNOWN_NETWORKS: usize = 1 << 19;

/// What has been added up so far.
pub(super) struct Tally {
    from: SystemTime,
    to: SystemTime,
    stretches: Stretches,
    figures: Figures,
    over_time: Vec<u64>,
    ports: HashMap<(Protocol, u16), u64>,
    networks: HashMap<IpNet, (u64, u64)>,
    /// The worst so far, and no more than twice as many as are wanted.
    offenders: Vec<Offender>,
    subject: Option<Group>,
}

/// The bans of one subject.
struct Group {
    offender: Offender,
    /// Within the period.
    bans: u64,
}

impl Tally {
    pub(super) fn new(since: Duration, now: SystemTime) -> Self {
        let from = now.checked_sub(since).unwrap_or(UNIX_EPOCH);
        let stretches = Stretches::of(from, now);
        let figures = Figures {
            from,
            to: now,
            kept: 0,
            bans: 0,
            sources: 0,
            in_force: 0,
            repeaters: 0,
            probes: 0,
            bucket: stretches.width(),
            over_time: Vec::new(),
            classes: Vec::new(),
            ports: Top { items: Vec::new(), more: 0 },
            networks: Top { items: Vec::new(), more: 0 },
            offenders: Top { items: Vec::new(), more: 0 },
            hours: [[0; 24]; 7],
            ends: Ends::default(),
            authors: Vec::new(),
            methods: Vec::new(),
            ahead: 0,
            unreadable: 0,
        };
        Self {
            from,
            to: now,
            stretches,
            figures,
            over_time: vec![0; stretches.count()],
            ports: HashMap::new(),
            networks: HashMap::new(),
            offenders: Vec::with_capacity(2 * OFFENDERS),
            subject: None,
        }
    }

    /// Adds one ban.
    pub(super) fn add(&mut self, entry: &Entry) {
        let ban = &entry.ban;
        self.figures.kept += 1;
        let open = entry.ended.is_none() && ban.until.is_none_or(|until| until > self.to);
        self.figures.in_force += u64::from(open);
        if ban.since > self.to {
            self.figures.ahead += 1;
            return;
        }
        let within = ban.since >= self.from;
        self.group(entry, within);
        if within {
            self.figures.bans += 1;
            self.figures.probes = self.figures.probes.saturating_add(u64::from(ban.probes));
            if let Some(count) = self.stretches.index(ban.since).and_then(|index| self.over_time.get_mut(index)) {
                *count += 1;
            }
            let (weekday, hour) = weekday_and_hour(ban.since);
            if let Some(count) = self.figures.hours.get_mut(weekday).and_then(|hours| hours.get_mut(hour)) {
                *count += 1;
            }
            count(&mut self.figures.classes, ban.class);
            count(&mut self.figures.authors, author_key(ban.author));
            ban.methods.iter().for_each(|method| count(&mut self.figures.methods, method.name()));
            let ports = ban.ports.get(..EVIDENCE).unwrap_or(&ban.ports);
            for (index, port) in ports.iter().enumerate() {
                if !ports.iter().take(index).any(|before| before == port) {
                    *self.ports.entry(*port).or_default() += 1;
                }
            }
            let ends = &mut self.figures.ends;
            *match &entry.ended {
                None if open => &mut ends.in_force,
                // Over, and nobody has marked it.
                None => &mut ends.expired,
                Some(ended) => match ended.how {
                    Ending::Expired => &mut ends.expired,
                    Ending::Lifted { .. } => &mut ends.lifted,
                    Ending::Replaced => &mut ends.replaced,
                },
            } += 1;
        }
    }

    /// Adds the ban to its subject's.
    fn group(&mut self, entry: &Entry, within: bool) {
        let ban = &entry.ban;
        if self.subject.as_ref().is_none_or(|group| group.offender.subject != ban.subject) {
            self.close_group();
        }
        let fresh =
            Offender { subject: ban.subject, strikes: 0, first: ban.since, last: ban.since, blocked: Duration::ZERO };
        let group = self.subject.get_or_insert(Group { offender: fresh, bans: 0 });
        group.bans += u64::from(within);
        let offender = &mut group.offender;
        offender.strikes = u64::from(entry.strikes) + 1;
        offender.first = offender.first.min(ban.since);
        offender.last = offender.last.max(ban.since);
        let end = entry.ended.as_ref().map(|ended| ended.at).or(ban.until).unwrap_or(self.to).min(self.to);
        offender.blocked = offender.blocked.saturating_add(end.duration_since(ban.since).unwrap_or_default());
    }

    fn close_group(&mut self) {
        let Some(Group { offender, bans }) = self.subject.take() else { return };
        if bans == 0 {
            return;
        }
        self.figures.sources += 1;
        let prefix = network(offender.subject);
        if self.networks.len() < KNOWN_NETWORKS || self.networks.contains_key(&prefix) {
            let known = self.networks.entry(prefix).or_default();
            *known = (known.0 + bans, known.1 + 1);
        } else {
            self.figures.networks.more += 1;
        }
        if offender.strikes > 1 {
            self.figures.repeaters += 1;
            self.offenders.push(offender);
            if self.offenders.len() >= 2 * OFFENDERS {
                self.keep_worst();
            }
        }
    }

    fn keep_worst(&mut self) {
        self.offenders.sort_by_key(|offender| (std::cmp::Reverse((offender.strikes, offender.last)), offender.subject));
        self.offenders.truncate(OFFENDERS);
    }

    /// The figures, with as many rows of the ledger left out as made no sense.
    pub(super) fn finish(mut self, unreadable: u64) -> Figures {
        self.close_group();
        self.keep_worst();
        let mut figures = self.figures;
        figures.unreadable = unreadable;
        figures.over_time = self.stretches.starts().zip(self.over_time).collect();
        most_first(&mut figures.classes);
        most_first(&mut figures.authors);
        most_first(&mut figures.methods);
        let networks = self.networks.into_iter().map(|(prefix, (bans, sources))| Network { prefix, bans, sources });
        let networks =
            top(networks.collect(), NETWORKS, |network| (network.bans, network.sources), |network| network.prefix);
        figures.networks = Top { more: networks.more + figures.networks.more, ..networks };
        figures.ports = top(self.ports.into_iter().collect(), PORTS, |(_, bans)| *bans, |(port, _)| *port);
        figures.offenders = Top { more: figures.repeaters - length(&self.offenders), items: self.offenders };
        figures
    }
}

/// The network that `subject` is added up under: what a provider gives to many customers, or to one larger one.
fn network(subject: BanTarget) -> IpNet {
    let (whole, len) = match subject.element() {
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

/// The most first; what comes equally often by name, so that the page is the same each time.
fn most_first<K: Name>(counts: &mut [(K, u64)]) {
    counts.sort_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.name().cmp(b.name())));
}

/// What can be put in an order that is the same each time.
trait Name {
    fn name(&self) -> &'static str;
}

impl Name for &'static str {
    fn name(&self) -> &'static str {
        self
    }
}

impl Name for Option<Class> {
    fn name(&self) -> &'static str {
        self.map_or("", Class::key)
    }
}

/// The `wanted` first of `items` by `weight`, then by `order`.
fn top<T, W: Ord, O: Ord>(
    mut items: Vec<T>,
    wanted: usize,
    weight: impl Fn(&T) -> W,
    order: impl Fn(&T) -> O,
) -> Top<T> {
    items.sort_by(|a, b| weight(b).cmp(&weight(a)).then_with(|| order(a).cmp(&order(b))));
    let all = length(&items);
    items.truncate(wanted);
    Top { more: all - length(&items), items }
}

fn length<T>(items: &[T]) -> u64 {
    u64::try_from(items.len()).unwrap_or(u64::MAX)
}
