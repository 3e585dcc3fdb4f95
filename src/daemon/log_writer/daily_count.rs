//! Counts the single probes of a day, for one line instead of one each.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use crate::events::event::EventKind;
use crate::types::{BanTarget, DAY, Span, Timestamp, counted};

/// Maximum number of targets whose single probes are counted separately.
const MAX_TARGETS: usize = 16_384;

/// Number of single probes of a day: those of sources without enough evidence for a ban.
pub(super) struct DailyCount {
    by_target: HashMap<BanTarget, u64>,
    /// Probes of further targets, beyond [`MAX_TARGETS`].
    others: u64,
    since: Timestamp,
}

impl DailyCount {
    pub(super) fn from(since: Timestamp) -> Self {
        Self { by_target: HashMap::new(), others: 0, since }
    }

    pub(super) fn count(&mut self, kind: &EventKind) {
        match kind {
            EventKind::Probe(probe) => {
                let is_full = self.by_target.len() >= MAX_TARGETS;
                match self.by_target.entry(probe.target) {
                    Entry::Occupied(mut probes) => *probes.get_mut() += 1,
                    Entry::Vacant(_) if is_full => self.others += 1,
                    Entry::Vacant(place) => drop(place.insert(1)),
                }
            }
            // The probes of this source were more than single ones.
            EventKind::Scan(ban) | EventKind::Blocked { ban, .. } => self.forget(ban.probe.target),
            EventKind::Entered { target, .. }
            | EventKind::Ran { target, ban: Some(_), .. }
            | EventKind::BlockFailed { target, .. }
            | EventKind::Shortened { target, .. } => self.forget(*target),
            _ => {}
        }
    }

    fn forget(&mut self, banned: BanTarget) {
        match banned {
            BanTarget::Prefix(_) => self.by_target.retain(|target, _| !banned.covers(target.element())),
            _ => drop(self.by_target.remove(&banned)),
        }
    }

    /// The line for the last day, once it is over, if there were any probes.
    pub(super) fn take_summary(&mut self, now: Timestamp) -> Option<String> {
        if now.since(self.since) < DAY {
            return None;
        }
        std::mem::replace(self, Self::from(now)).sentence(now)
    }

    pub(super) fn sentence(&self, now: Timestamp) -> Option<String> {
        let probes = self.others + self.by_target.values().sum::<u64>();
        let span = Span(now.since(self.since).max(Duration::from_secs(1)));
        let probes = (probes > 0).then(|| counted(probes, "single probe"))?;
        Some(format!("{probes} within {span} without log lines of their own (report.single_probes = false)"))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::engine::{Ban, Probe};
    use crate::types::{Backend, Expiry, at};

    #[test]
    fn single_probes_become_a_daily_line() {
        let line = |text: &str| format!("{text} without log lines of their own (report.single_probes = false)");
        let probe_of = |address: [u8; 4]| {
            let target = BanTarget::containing(IpAddr::from(address));
            EventKind::Probe(Probe { target, ..Ban::example().probe })
        };
        let mut daily = DailyCount::from(at(100));
        assert_eq!(daily.take_summary(at(100 + 86_400)), None, "a quiet day has no line");
        for last in 0..20_000_u16 {
            let [high, low] = last.to_be_bytes();
            daily.count(&probe_of([10, 0, high, low]));
        }
        assert!(daily.by_target.len() <= MAX_TARGETS);
        let stopped = daily.sentence(at(100 + 86_400 + 90));
        assert_eq!(stopped, Some(line("20000 single probes within 1m 30s")), "the true span");
        assert_eq!(daily.take_summary(at(100 + 2 * 86_400 - 1)), None);
        assert_eq!(daily.take_summary(at(100 + 2 * 86_400)), Some(line("20000 single probes within 1d")));
        assert_eq!(daily.sentence(at(100 + 2 * 86_400)), None, "the count restarts");
    }

    #[test]
    fn probes_of_scan_are_not_single() {
        let ban = Ban::example();
        let (target, probe) = (ban.probe.target, EventKind::Probe(ban.probe));
        let text = String::new;
        for end in [
            EventKind::Scan(ban),
            EventKind::Blocked { ban, backend: Backend::Nft, reaction: Duration::ZERO },
            EventKind::Entered { target, backend: Backend::HostsDeny, ban: Some(ban), entry: text() },
            EventKind::Ran {
                target,
                ban: Some(ban),
                command: text().into(),
                outcome: text().into(),
                well: true,
                undone: None,
            },
            EventKind::BlockFailed { target, reason: text(), backend: Backend::Route },
            EventKind::Shortened { target, expiry: Expiry::Never, ports: Vec::new() },
            EventKind::Blocked {
                ban: Ban { probe: Probe { target: "192.0.2.0/24".parse().unwrap(), ..ban.probe }, ..ban },
                backend: Backend::Nft,
                reaction: Duration::ZERO,
            },
        ] {
            let mut daily = DailyCount::from(at(0));
            let other = EventKind::Probe(Probe { target: "198.51.100.7".parse().unwrap(), ..ban.probe });
            [&probe, &other, &probe, &probe, &end].into_iter().for_each(|kind| daily.count(kind));
            let line = daily.sentence(at(60)).unwrap_or_default();
            assert!(line.starts_with("1 single probe within 1m "), "only the other source's: {line} {end:?}");
        }
    }
}
