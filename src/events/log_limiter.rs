//! Limits log lines: under any traffic, the log and `json_file` get a limited number of lines per minute, and probes
//! cannot use up the lines of bans and errors. Bans by hand have a limit of their own. A summary reports the suppressed
//! lines.

use std::collections::BTreeMap;

use super::classic_log;
use super::event::{EventKind, LineClass};
use super::json::EventName;
use crate::types::{LineLimiter, MINUTE, Timestamp};

/// Lines per minute, without those that only an operator or the host causes. As many again are for the bans that
/// operators add and lift.
pub const LINES_PER_MINUTE: u32 = 600;

/// Probes get no line once this many lines are used: half is reserved for bans and state changes.
const PROBES_BELOW: u32 = 300;

/// Bans get no line once this many lines are used. A flood can cause bans, which must not hide errors.
const BANS_BELOW: u32 = 510;

/// Lines about failed bans per minute. Every ban fails if the kernel's set is full, so a flood can cause many.
const FAILED_BANS: u32 = 30;
const FAILED_BANS_BELOW: u32 = BANS_BELOW + FAILED_BANS;

/// The lines left in this minute.
pub struct LogLimiter {
    lines: LineLimiter,
    failed_bans: LineLimiter,
    operators: LineLimiter,
    left_out: BTreeMap<&'static str, u64>,
}

impl Default for LogLimiter {
    fn default() -> Self {
        Self {
            lines: LineLimiter::new(LINES_PER_MINUTE, MINUTE),
            failed_bans: LineLimiter::new(FAILED_BANS, MINUTE),
            operators: LineLimiter::new(LINES_PER_MINUTE, MINUTE),
            left_out: BTreeMap::new(),
        }
    }
}

impl LogLimiter {
    /// True if a line is left for this event; otherwise it is counted for the summary.
    pub fn admit(&mut self, kind: &EventKind, now: Timestamp) -> bool {
        let class = kind.line_class();
        let room = match class {
            LineClass::Host => true,
            LineClass::Operator => self.operators.admit(now),
            LineClass::Probe => self.lines.admit_below(PROBES_BELOW, now),
            LineClass::Ban => self.lines.admit_below(BANS_BELOW, now),
            LineClass::FailedBan => self.failed_bans.admit(now) && self.lines.admit_below(FAILED_BANS_BELOW, now),
            LineClass::Diagnostic => self.lines.admit(now),
        };
        if !room {
            *self.left_out.entry(EventName::from(kind).key()).or_default() += 1;
        } else if !matches!(class, LineClass::Host | LineClass::Operator) && classic_log::addition(kind).is_some() {
            self.lines.charge();
        }
        room
    }

    /// The summary once a minute is over, if lines were suppressed. It does not count as a line.
    pub fn turn_minute(&mut self, now: Timestamp) -> Option<EventKind> {
        self.lines.take_suppressed(now)?;
        self.summary()
    }

    /// The summary of lines suppressed since the last one.
    pub fn summary(&mut self) -> Option<EventKind> {
        let left_out = std::mem::take(&mut self.left_out);
        let total: u64 = left_out.values().sum();
        let kinds: Vec<String> = left_out.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let text = format!("lines suppressed above {LINES_PER_MINUTE} per minute: {total} ({})", kinds.join(", "));
        (total > 0).then_some(EventKind::Note(text))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use proptest::prelude::*;
    use strum::EnumCount;

    use super::*;
    use crate::engine::{Ban, DistributedScan, Exempt, Protection};
    use crate::types::{Backend, Expiry, Response, at};

    /// An example of each kind, and the short form where there is one.
    fn every_kind() -> Vec<EventKind> {
        let ban = Ban::example();
        let short = Ban { capped: true, ..ban };
        let (probe, target, backend, reaction) = (ban.probe, ban.probe.target, Backend::Nft, Duration::ZERO);
        let exempt = Exempt { observation: probe.observation, protection: Protection::Listed, report: Some(1) };
        let text = String::new;
        let entered = |ban| EventKind::Entered { target, backend, ban, entry: text() };
        let ran = |ban| EventKind::Ran {
            target,
            ban,
            command: text().into(),
            outcome: text().into(),
            well: true,
            undone: None,
        };
        let kinds = vec![
            EventKind::Started,
            EventKind::Probe(probe),
            EventKind::Scan(ban),
            EventKind::Blocked { ban, backend, reaction },
            EventKind::Blocked { ban: short, backend, reaction },
            EventKind::Shortened { target, expiry: Expiry::Never, ports: Vec::new() },
            entered(None),
            entered(Some(ban)),
            entered(Some(short)),
            ran(None),
            ran(Some(ban)),
            ran(Some(short)),
            EventKind::Disconnected { target, connections: 1 },
            EventKind::BlockFailed { backend, target, reason: text() },
            EventKind::Exempt { exempt, probes: 1 },
            EventKind::Repeated { target, response: Response::Block, protocol: None, packets: 1 },
            EventKind::DistributedScan(DistributedScan { ports: 50, sources: 8, span: MINUTE }),
            EventKind::Capped { bans: 1, withheld: 1 },
            EventKind::BanVanished { target },
            EventKind::Unblocked { target, by: text() },
            EventKind::Expired { target },
            EventKind::ByHand { target, expiry: Expiry::Never, by: text(), note: None, backend: None },
            EventKind::Restored { bans: 1, backend },
            EventKind::Repaired { bans: 1, backend },
            EventKind::TableReinstalled { bans: 1 },
            EventKind::Dropped { packets: 1 },
            EventKind::Adopted { bans: 1 },
            EventKind::Note(text()),
            EventKind::Error(text()),
            EventKind::Stopped,
        ];
        let distinct: HashSet<_> = kinds.iter().map(std::mem::discriminant).collect();
        assert_eq!(distinct.len(), EventKind::COUNT, "a kind has no example");
        kinds
    }

    fn admitted(budget: &mut LogLimiter, kind: &EventKind, events: usize, second: u64) -> usize {
        (0..events).filter(|_| budget.admit(kind, at(second))).count()
    }

    fn of_class(class: LineClass) -> Vec<EventKind> {
        every_kind().into_iter().filter(|kind| kind.line_class() == class).collect()
    }

    #[test]
    fn probe_events_leave_room_for_bans() {
        let probe_like = every_kind().into_iter().filter(EventKind::is_attacker_driven);
        for flood in probe_like {
            let mut budget = LogLimiter::default();
            let lines = admitted(&mut budget, &flood, 100_000, 1);
            assert!((1..=300).contains(&lines), "{lines} lines of {flood:?}");
            for ban in of_class(LineClass::Ban) {
                assert_eq!(admitted(&mut budget, &ban, 5, 2), 5, "{ban:?} after {flood:?}");
            }
            assert_eq!(admitted(&mut budget, &EventKind::Error(String::new()), 5, 2), 5, "after {flood:?}");
        }
    }

    #[test]
    fn flood_of_bans_hides_no_error() {
        let mut budget = LogLimiter::default();
        for flood in [LineClass::Ban, LineClass::FailedBan, LineClass::Probe].into_iter().flat_map(of_class) {
            admitted(&mut budget, &flood, 10_000, 1);
        }
        assert_eq!(admitted(&mut budget, &EventKind::Error(String::new()), 100, 2), 60);
        for host in of_class(LineClass::Host) {
            assert_eq!(admitted(&mut budget, &host, 1_000, 3), 1_000, "{host:?}");
        }
    }

    #[test]
    fn bans_by_hand_have_own_lines() {
        let mut budget = LogLimiter::default();
        for by_hand in of_class(LineClass::Operator) {
            admitted(&mut budget, &by_hand, 50_000, 1);
        }
        let probe = EventKind::Probe(Ban::example().probe);
        assert_eq!(admitted(&mut budget, &probe, 1_000, 2), 300, "a script of the operator hides no probe");
        let Some(EventKind::Note(text)) = budget.turn_minute(at(62)) else { panic!("no summary") };
        assert_eq!(text, "lines suppressed above 600 per minute: 100100 (block 50000, probe 700, unblock 49400)");
        let unblocked = of_class(LineClass::Operator).pop().unwrap();
        assert_eq!(admitted(&mut budget, &unblocked, 1_000, 63), 600, "probes hide no line of an operator");
    }

    #[test]
    fn summary_counts_each_omitted_kind() {
        let mut budget = LogLimiter::default();
        let ban = Ban::example();
        assert_eq!(admitted(&mut budget, &EventKind::Probe(ban.probe), 310, 0), 300);
        assert_eq!(admitted(&mut budget, &EventKind::Scan(ban), 119_997, 1), 0);
        assert!(budget.turn_minute(at(59)).is_none());
        let Some(EventKind::Note(text)) = budget.turn_minute(at(60)) else { panic!("no summary") };
        assert_eq!(text, "lines suppressed above 600 per minute: 120007 (probe 10, scan 119997)");
        assert!(budget.turn_minute(at(120)).is_none() && budget.summary().is_none());
        assert_eq!(admitted(&mut budget, &EventKind::Scan(ban), 1, 121), 1);
    }

    proptest! {
        #[test]
        fn any_mix_stays_within_line_limit(
            mix in prop::collection::vec((0..100_usize, 1..2_000_usize, 0..59_u64), 1..12),
        ) {
            let limited = |kind: &EventKind| !matches!(kind.line_class(), LineClass::Host | LineClass::Operator);
            let kinds: Vec<_> = every_kind().into_iter().filter(limited).collect();
            let mut budget = LogLimiter::default();
            let (mut lines, mut events, mut mix) = (0, 0, mix);
            mix.sort_by_key(|(.., second)| *second);
            for (place, count, second) in mix {
                lines += admitted(&mut budget, &kinds[place % kinds.len()], count, second);
                events += count;
            }
            prop_assert!(lines <= 600, "{lines} lines");
            let left_out: u64 = budget.left_out.values().sum();
            prop_assert_eq!(usize::try_from(left_out).unwrap(), events - lines);
        }
    }
}
