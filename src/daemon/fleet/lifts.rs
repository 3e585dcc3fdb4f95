//! Stores the targets whose bans operators have lifted. Reports of them are ignored for four hours, and then for as
//! long as they are renewed. The ledger also stores the lifts, so that a restart does not revert them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::fleet::protocol::MAX_REMAINING;
use crate::ledger::{FleetLift, LiftedBy};
use crate::types::{BanTarget, MINUTE, Timestamp};

/// Maximum number of remembered lifts by operators of this host. Further ones last only until the target is reported
/// again.
const MAX_HOST_LIFTS: usize = 65_536;

/// Maximum number of remembered lifts by operators of the fleet. The separate limit prevents the fleet process from
/// displacing lifts by operators of this host.
const MAX_FLEET_LIFTS: usize = 16_384;

/// If a report outlasts a lift, the lift is extended to this long after the report, so that the ledger is seldom
/// written.
const LIFT_EXTENSION: Duration = Duration::from_secs(900);

/// Maximum delay before a change by the fleet process is written to the ledger.
const FLEET_WRITE_INTERVAL: Duration = MINUTE;

#[derive(Clone, Copy)]
struct Lift {
    until: Timestamp,
    by: LiftedBy,
}

#[derive(Default)]
pub(super) struct Lifts {
    lifts: BTreeMap<BanTarget, Lift>,
    /// Number of lifts by operators of this host.
    by_host: usize,
    /// The pending change that the ledger does not contain: a lift by an operator of this host, or another change.
    unwritten: Option<LiftedBy>,
    written: Timestamp,
}

impl Lifts {
    /// Lifts `target` for four hours.
    pub(super) fn insert(&mut self, now: Timestamp, target: BanTarget, by: LiftedBy) {
        let until = now.after(MAX_REMAINING);
        if let Some(known) = self.lifts.get_mut(&target) {
            known.until = known.until.max(until);
            if by == LiftedBy::Host && known.by == LiftedBy::Fleet {
                known.by = by;
                self.by_host += 1;
            }
        } else if !self.has_room(by) {
            return;
        } else {
            self.by_host += usize::from(by == LiftedBy::Host);
            self.lifts.insert(target, Lift { until, by });
        }
        if self.unwritten != Some(LiftedBy::Host) {
            self.unwritten = Some(by);
        }
    }

    fn has_room(&self, by: LiftedBy) -> bool {
        match by {
            LiftedBy::Host => self.by_host < MAX_HOST_LIFTS,
            LiftedBy::Fleet => self.lifts.len() - self.by_host < MAX_FLEET_LIFTS,
        }
    }

    /// True if `target` is lifted at `now`. The lift is extended if a report in force until `reported` would outlast
    /// it.
    pub(super) fn extend_if_lifted(&mut self, now: Timestamp, target: BanTarget, reported: Timestamp) -> bool {
        let Some(lift) = self.lifts.get_mut(&target).filter(|lift| lift.until > now) else { return false };
        if reported > lift.until {
            lift.until = reported.after(LIFT_EXTENSION);
            self.unwritten = self.unwritten.or(Some(LiftedBy::Fleet));
        }
        true
    }

    /// The end of the lift of `target`.
    pub(super) fn until(&self, target: BanTarget) -> Option<Timestamp> {
        self.lifts.get(&target).map(|lift| lift.until)
    }

    pub(super) fn expire(&mut self, now: Timestamp) {
        self.lifts.retain(|_, lift| lift.until > now);
        self.by_host = self.lifts.values().filter(|lift| lift.by == LiftedBy::Host).count();
    }

    /// Restores the lifts from the ledger at the start. `now` and `wall` are the same moment.
    pub(super) fn restore(&mut self, now: Timestamp, wall: SystemTime, lifts: &[FleetLift]) {
        for FleetLift { target, until, by } in lifts {
            let left = until.duration_since(wall).unwrap_or_default().min(MAX_REMAINING + LIFT_EXTENSION);
            if !left.is_zero() && self.has_room(*by) {
                self.by_host += usize::from(*by == LiftedBy::Host);
                self.lifts.insert(*target, Lift { until: now.after(left), by: *by });
            }
        }
    }

    /// The lifts to write to the ledger, if a write is due; `None` if nothing has changed or it is too early.
    pub(super) fn take_unwritten(&mut self, now: Timestamp, wall: SystemTime, is_last: bool) -> Option<Vec<FleetLift>> {
        let by = self.unwritten?;
        if by == LiftedBy::Fleet && now.since(self.written) < FLEET_WRITE_INTERVAL && !is_last {
            return None;
        }
        (self.unwritten, self.written) = (None, now);
        let lift = |(target, lift): (&BanTarget, &Lift)| {
            let until = wall.checked_add(lift.until.since(now))?;
            Some(FleetLift { target: *target, until, by: lift.by })
        };
        Some(self.lifts.iter().filter_map(lift).collect())
    }

    /// Schedules another write after one failed.
    pub(super) fn keep_unwritten(&mut self) {
        self.unwritten = Some(LiftedBy::Host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::at(Duration::from_secs(100_000 + seconds))
    }

    fn wall(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn target(number: u32) -> BanTarget {
        BanTarget::V4(number.into())
    }

    #[test]
    fn fleet_lifts_keep_operator_lifts() {
        let mut lifts = Lifts::default();
        lifts.insert(at(0), target(7), LiftedBy::Host);
        (10..100_000).for_each(|number| lifts.insert(at(1), target(number), LiftedBy::Fleet));
        assert_eq!(lifts.lifts.len(), 1 + MAX_FLEET_LIFTS);
        assert!(lifts.extend_if_lifted(at(2), target(7), at(3)));
        lifts.insert(at(3), target(11), LiftedBy::Host);
        assert_eq!(lifts.by_host, 2, "an operator of this host takes the lift over");
        lifts.expire(at(1 + 14_400));
        assert_eq!((lifts.lifts.len(), lifts.by_host), (1, 1));
    }

    #[test]
    fn lift_outlasts_renewed_reports_and_restart() {
        let mut lifts = Lifts::default();
        lifts.insert(at(0), target(7), LiftedBy::Host);
        let written = lifts.take_unwritten(at(0), wall(0), false).unwrap();
        assert_eq!(written, [FleetLift { target: target(7), until: wall(14_400), by: LiftedBy::Host }]);
        assert!(lifts.extend_if_lifted(at(10_000), target(7), at(14_000)));
        assert_eq!(lifts.take_unwritten(at(10_000), wall(10_000), true), None, "nothing has changed");
        assert!(lifts.extend_if_lifted(at(10_000), target(7), at(20_000)));
        let written = lifts.take_unwritten(at(10_000), wall(10_000), false).unwrap();
        assert_eq!(written[0].until, wall(20_900));
        assert!(lifts.extend_if_lifted(at(10_100), target(7), at(20_500)));
        assert_eq!(lifts.take_unwritten(at(20_000), wall(20_000), true), None, "it is written in steps");

        let mut next = Lifts::default();
        next.restore(at(0), wall(20_000), &written);
        assert_eq!(next.until(target(7)), Some(at(900)));
        assert!(
            next.extend_if_lifted(at(899), target(7), at(899)) && !next.extend_if_lifted(at(900), target(7), at(5_000))
        );
        next.restore(at(0), wall(0), &written);
        assert_eq!(next.until(target(7)), Some(at(15_300)), "a wrong clock makes no lift longer");
    }

    #[test]
    fn fleet_process_writes_ledger_once_minute() {
        let mut lifts = Lifts::default();
        let writes = (0..600_u32)
            .filter(|second| {
                let now = u64::from(*second);
                lifts.insert(at(now), target(*second), LiftedBy::Fleet);
                lifts.take_unwritten(at(now), wall(now), false).is_some()
            })
            .count();
        assert_eq!(writes, 10);
        lifts.insert(at(600), target(1), LiftedBy::Fleet);
        assert!(lifts.take_unwritten(at(601), wall(601), true).is_some(), "the last moment is not lost");
        lifts.insert(at(602), target(1), LiftedBy::Fleet);
        lifts.insert(at(602), target(2), LiftedBy::Host);
        lifts.insert(at(602), target(3), LiftedBy::Fleet);
        assert!(lifts.take_unwritten(at(603), wall(603), false).is_some(), "an operator's lift does not wait");
        lifts.keep_unwritten();
        assert!(lifts.take_unwritten(at(604), wall(604), false).is_some(), "a failed write is repeated");
    }
}
