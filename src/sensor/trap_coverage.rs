//! Tracks the number of ports that the trap monitors. If it loses a large part of them, scans of those ports go unseen,
//! and the operator is notified. A service that starts takes one port; only a mistake or an attack takes a quarter.

use std::time::Duration;

use crate::types::Timestamp;

/// Window within which a loss counts; at most twice as long.
const WINDOW: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(super) struct TrapCoverage {
    /// Start of the current window, and the highest port counts in it and in the previous one.
    window: Option<(Timestamp, u32, u32)>,
    /// Port count before the loss, while the loss lasts.
    reference: Option<u32>,
}

/// A reportable change of the number of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CoverageChange {
    /// More than a quarter of the ports has left the trap.
    Lost { ports: u32, before: u32 },
    /// At least three quarters of the ports are monitored again.
    Regained { ports: u32, before: u32 },
}

impl TrapCoverage {
    /// Records the current number of ports.
    pub(super) fn record(&mut self, now: Timestamp, ports: u32) -> Option<CoverageChange> {
        let (began, most, earlier) = match self.window {
            Some((began, most, _)) if now.since(began) >= WINDOW => (now, ports, most),
            Some((began, most, earlier)) => (began, most.max(ports), earlier),
            None => (now, ports, ports),
        };
        self.window = Some((began, most, earlier));
        // While a loss lasts, the port count before it stays the reference: a loss ends only when ports return.
        let before = self.reference.unwrap_or(most.max(earlier));
        let is_lost = u64::from(ports) * 4 < u64::from(before) * 3;
        match (is_lost, self.reference) {
            (true, None) => {
                self.reference = Some(before);
                Some(CoverageChange::Lost { ports, before })
            }
            (false, Some(_)) => {
                *self = Self { window: Some((now, ports, ports)), reference: None };
                Some(CoverageChange::Regained { ports, before })
            }
            _ => None,
        }
    }

    /// Number of missing ports while a loss lasts, given the current number of ports.
    pub(super) fn missing(&self, ports: u32) -> u32 {
        self.reference.map_or(0, |before| before.saturating_sub(ports))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::at;

    #[test]
    fn quarter_lost_in_steps_is_reported_once() {
        let mut coverage = TrapCoverage::default();
        let changes: Vec<_> = (0..=300).filter_map(|n| coverage.record(at(n.into()), 1_000 - n)).collect();
        assert_eq!(changes, [CoverageChange::Lost { ports: 749, before: 1_000 }]);
        assert_eq!(coverage.missing(700), 300);
        assert_eq!(coverage.record(at(5_000), 700), None, "the loss lasts, and time does not undo it");
        assert_eq!(coverage.record(at(5_001), 750), Some(CoverageChange::Regained { ports: 750, before: 1_000 }));
        assert_eq!(coverage.missing(750), 0);
    }

    #[test]
    fn started_services_are_not_a_loss() {
        let mut coverage = TrapCoverage::default();
        // Ten ports per window, over many windows.
        let slow = (0..50).filter_map(|n| coverage.record(at(u64::from(n) * 700), 1_000 - 10 * n)).count();
        assert_eq!(slow, 0);
        let mut small = TrapCoverage::default();
        assert_eq!(small.record(at(0), 4), None);
        assert_eq!(small.record(at(1), 3), None, "a quarter does not raise the alarm");
        assert!(small.record(at(2), 2).is_some());
    }
}
