//! Schedules the complete scans of the fleet. The cost of a scan on the server grows with the number of reports, and
//! every host scans. For this reason, hosts of a larger fleet scan less often.

use std::time::Duration;

use crate::types::Timestamp;

/// Maximum number of scans per second that all hosts together begin after an outage of the server or a gap. One scan of
/// 100,000 reports takes the server a few tenths of a second.
const SCANS_PER_SECOND: u32 = 2;

/// Minimum time between two scans.
const MIN_GAP: Duration = Duration::from_secs(30);

/// Limits for the time between two scans without a cause. These scans find renewed reports.
const MIN_PERIOD: Duration = Duration::from_secs(15 * 60);
const MAX_PERIOD: Duration = Duration::from_secs(100 * 60);
/// Time between two such scans for each host of the fleet, within these limits.
const PERIOD_PER_HOST: Duration = Duration::from_millis(600);

/// A page that takes longer than this means that the server is busy.
const BUSY_LATENCY: Duration = Duration::from_millis(100);

/// Number of names requested in one page.
const PAGE_SIZE: usize = 256;

/// Maximum number of names that one scan reads.
const MAX_NAMES: usize = 4_000_000;

/// The keys that a scan reads. Lifts come first, so that no report of a lifted ban is passed on to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Lifts,
    Reports,
}

/// The state of a running scan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scan {
    pub(super) pass: Pass,
    pub(super) cursor: u64,
    names: usize,
}

/// The state of the scan after a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScanState {
    More,
    Done,
    /// The server has more names than a fleet can have.
    TooMany,
}

/// Decides when the next page of a scan is due.
pub(super) struct Schedule {
    pub(super) due: Timestamp,
    running: Option<Scan>,
    ended: Option<Timestamp>,
    /// Names per page; fewer after a page was too large.
    pub(super) page: usize,
    /// A scan that continues on the next connection.
    broken_off: Option<Scan>,
}

impl Schedule {
    /// Starts with a scan that is due immediately.
    pub(super) fn new() -> Self {
        Self { due: Timestamp::ZERO, running: None, ended: None, page: PAGE_SIZE, broken_off: None }
    }

    /// Schedules a scan on a new connection. `hosts` is the size of the fleet, `chance` is from 0 to 1.
    pub(super) fn connected(&mut self, (hosts, chance): (u32, f64), now: Timestamp) {
        // Meanwhile the other hosts write their reports again.
        let settle = if self.ended.is_some() { Duration::from_secs(2) } else { Duration::from_millis(100) };
        let spread = Duration::from_secs(1).max(Duration::from_secs(1) * hosts / SCANS_PER_SECOND);
        // The running scan is dropped: its cursor is not valid after an outage of the server.
        self.running = self.broken_off.take();
        self.due = if self.running.is_some() { now } else { now.after(settle + spread.mul_f64(chance)) };
    }

    /// Schedules a scan because notices were missed.
    pub(super) fn request(&mut self, (hosts, chance): (u32, f64), now: Timestamp) {
        let gap = MIN_GAP.max(Duration::from_secs(1) * hosts / SCANS_PER_SECOND);
        let earliest = self.ended.map_or(now, |ended| ended.after(gap)).max(now);
        if self.running.is_none() {
            self.due = self.due.min(earliest.after((Duration::from_millis(100) * hosts).mul_f64(chance)));
        }
    }

    /// Returns the scan whose next page is due, and whether this page is its first.
    pub(super) fn take_due(&mut self, now: Timestamp) -> Option<(Scan, bool)> {
        if now < self.due {
            return None;
        }
        let begins = self.running.is_none();
        Some((self.running.take().unwrap_or(Scan { pass: Pass::Lifts, cursor: 0, names: 0 }), begins))
    }

    /// Records that a page of `names` names was read in `took`, and the server's cursor of the next page.
    pub(super) fn advance(
        &mut self,
        mut scan: Scan,
        next: u64,
        names: usize,
        took: Duration,
        now: Timestamp,
    ) -> ScanState {
        scan.names = scan.names.saturating_add(names);
        if scan.names > MAX_NAMES {
            return ScanState::TooMany;
        }
        match (scan.pass, next) {
            (Pass::Reports, 0) => return ScanState::Done,
            (Pass::Lifts, 0) => (scan.pass, scan.cursor) = (Pass::Reports, 0),
            _ => scan.cursor = next,
        }
        self.running = Some(scan);
        self.due = now.after(pause(took));
        ScanState::More
    }

    /// True if the scan continues on the next connection.
    pub(super) fn is_broken_off(&self) -> bool {
        self.broken_off.is_some()
    }

    /// Records that a page was too large and ended the connection. The rest of the scan is read in smaller pages; if
    /// they cannot be smaller, the scan is dropped.
    pub(super) fn shrink(&mut self, scan: Scan) {
        let can = self.page > 1;
        self.page = (self.page / 16).max(1);
        self.broken_off = can.then_some(scan);
    }

    /// Ends the scan and schedules the next one.
    pub(super) fn end(&mut self, (hosts, chance): (u32, f64), now: Timestamp) {
        self.running = None;
        self.page = PAGE_SIZE;
        self.ended = Some(now);
        let period = (PERIOD_PER_HOST * hosts).clamp(MIN_PERIOD, MAX_PERIOD);
        self.due = now.after(period.mul_f64(0.75 + chance / 2.0));
    }
}

/// Delay after a page. Leaves half of the time to other hosts, and far more if the server is busy, so that simultaneous
/// scans do not delay each other.
fn pause(took: Duration) -> Duration {
    took.saturating_add(took.saturating_sub(BUSY_LATENCY).saturating_mul(20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::at;

    #[test]
    fn scans_are_rarer_in_larger_fleets() {
        for (hosts, reconnect, gap, period) in [(2, 1, 30, 900), (1_000, 500, 500, 900), (10_000, 5_000, 5_000, 6_000)]
        {
            let mut schedule = Schedule::new();
            schedule.connected((hosts, 0.0), at(1_000));
            assert_eq!(schedule.due, at(1_000).after(Duration::from_millis(100)), "a late joiner does not wait");
            schedule.end((hosts, 0.5), at(1_000));
            assert_eq!(schedule.due, at(1_000 + period));
            schedule.request((hosts, 0.0), at(1_001));
            assert_eq!(schedule.due, at(1_000 + gap.min(period)), "{hosts} hosts");
            schedule.connected((hosts, 1.0), at(1_001));
            assert_eq!(schedule.due, at(1_003 + reconnect), "{hosts} hosts");
        }
    }

    #[test]
    fn busy_server_is_given_time() {
        let millis = Duration::from_millis;
        assert_eq!([2, 100, 200, 2_000].map(|took| pause(millis(took))), [2, 100, 2_200, 40_000].map(millis));
    }

    #[test]
    fn scan_reads_lifts_before_reports() {
        let mut schedule = Schedule::new();
        let mut passes = Vec::new();
        for next in [5, 0, 9, 0] {
            let (scan, begins) = schedule.take_due(at(1)).unwrap();
            assert_eq!(begins, passes.is_empty());
            passes.push((scan.pass, scan.cursor));
            let progress = schedule.advance(scan, next, 10, Duration::ZERO, at(1));
            assert_eq!(progress == ScanState::Done, passes.len() == 4);
        }
        assert_eq!(passes, [(Pass::Lifts, 0), (Pass::Lifts, 5), (Pass::Reports, 0), (Pass::Reports, 9)]);
    }

    #[test]
    fn scan_continues_in_smaller_pages() {
        let mut schedule = Schedule::new();
        let (mut scan, _) = schedule.take_due(at(1)).unwrap();
        scan.cursor = 77;
        for page in [16, 1] {
            schedule.shrink(scan);
            assert!(schedule.is_broken_off());
            schedule.connected((3, 1.0), at(2));
            let (resumed, begins) = schedule.take_due(at(2)).unwrap();
            assert_eq!((resumed.cursor, begins, schedule.page), (77, false, page));
        }
        schedule.shrink(scan);
        assert!(!schedule.is_broken_off(), "a single name is too large");
        schedule.end((3, 0.0), at(3));
        assert_eq!(schedule.page, PAGE_SIZE);
    }

    #[test]
    fn endless_scan_is_ended() {
        let mut schedule = Schedule::new();
        let pages = (0..100_000).take_while(|_| {
            let (scan, _) = schedule.take_due(at(1)).unwrap();
            schedule.advance(scan, 7, 256, Duration::ZERO, at(1)) != ScanState::TooMany
        });
        assert_eq!(pages.count(), MAX_NAMES / 256);
    }
}
