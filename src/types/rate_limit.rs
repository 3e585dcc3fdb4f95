//! Limits rates: a token bucket for work, a limiter for log lines that counts suppressed lines, and a limiter for
//! reports of losses. All take the time as an argument.

use std::time::Duration;

use super::{MINUTE, Timestamp};

/// A token bucket: refills a number of tokens per span, up to the tokens of one span.
pub struct TokenBucket {
    /// Time in which one token is refilled.
    token: Duration,
    span: Duration,
    /// When the bucket will be full again if nothing more is taken.
    full: Timestamp,
}

impl TokenBucket {
    /// A full bucket that refills `per_span` tokens every `span`.
    pub fn new(per_span: u32, span: Duration) -> Self {
        Self { token: span / per_span.max(1), span, full: Timestamp::ZERO }
    }

    pub fn available(&self, now: Timestamp) -> u32 {
        let saved = self.span.saturating_sub(self.full.since(now));
        u32::try_from(saved.as_nanos() / self.token.as_nanos().max(1)).unwrap_or(u32::MAX)
    }

    /// Takes one token. Returns false if none is available.
    pub fn try_take(&mut self, now: Timestamp) -> bool {
        let full = self.full.max(now).after(self.token);
        let has_token = full.since(now) <= self.span;
        if has_token {
            self.full = full;
        }
        has_token
    }
}

/// Limits the lines in each window of time. A window begins with the first call after the end of the previous window.
#[derive(Debug)]
pub struct LineLimiter {
    limit: u32,
    window: Duration,
    began: Option<Timestamp>,
    used: u32,
    suppressed: u64,
    /// Number of lines suppressed in ended windows and not reported yet.
    ended: Option<u64>,
}

impl LineLimiter {
    /// A limiter for at most `limit` lines in each `window`.
    pub const fn new(limit: u32, window: Duration) -> Self {
        Self { limit, window, began: None, used: 0, suppressed: 0, ended: None }
    }

    /// True if a line fits into the window. Otherwise the line is counted as suppressed.
    pub fn admit(&mut self, now: Timestamp) -> bool {
        self.admit_below(self.limit, now)
    }

    /// The same, for lines that may only use the first `ceiling` lines of a window. The rest is reserved for other
    /// lines.
    pub fn admit_below(&mut self, ceiling: u32, now: Timestamp) -> bool {
        self.roll(now);
        let room = self.used < ceiling.min(self.limit);
        self.used += u32::from(room);
        self.suppressed += u64::from(!room);
        room
    }

    /// True if no further line fits into the current window.
    pub fn is_exhausted(&self) -> bool {
        self.used >= self.limit
    }

    /// Counts an additional line for an admitted one.
    pub fn charge(&mut self) {
        self.used = self.used.saturating_add(1);
    }

    /// Returns the number of suppressed lines once after each window's end.
    pub fn take_suppressed(&mut self, now: Timestamp) -> Option<u64> {
        self.roll(now);
        self.ended.take()
    }

    fn roll(&mut self, now: Timestamp) {
        if self.began.is_some_and(|began| now.since(began) < self.window) {
            return;
        }
        if self.began.replace(now).is_some() {
            self.ended = Some(self.ended.unwrap_or(0) + std::mem::take(&mut self.suppressed));
        }
        self.used = 0;
    }
}

/// Decides when `N` kinds of losses are reported: together, at most once a minute.
pub struct LossReport<const N: usize> {
    reported: [u64; N],
    due: Timestamp,
}

impl<const N: usize> Default for LossReport<N> {
    fn default() -> Self {
        Self { reported: [0; N], due: Timestamp::ZERO }
    }
}

impl<const N: usize> LossReport<N> {
    /// True if `totals`, counted since the start, contain unreported losses.
    pub fn is_pending(&self, totals: [u64; N]) -> bool {
        totals != self.reported
    }

    /// The losses to report now, given their totals since the start.
    pub fn take(&mut self, totals: [u64; N], now: Timestamp) -> Option<[u64; N]> {
        if !self.is_pending(totals) || now < self.due {
            return None;
        }
        self.due = now.after(MINUTE);
        let mut lost = totals;
        lost.iter_mut().zip(self.reported).for_each(|(total, reported)| *total -= reported);
        self.reported = totals;
        Some(lost)
    }

    /// Lets the next [`LossReport::take`] report at once, for example because the program ends.
    pub fn expedite(&mut self) {
        self.due = Timestamp::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::at;

    #[test]
    fn whole_burst_is_permitted_at_once() {
        let mut budget = TokenBucket::new(60, Duration::from_secs(60));
        assert_eq!(budget.available(at(1)), 60);
        assert_eq!((0..100).filter(|_| budget.try_take(at(1))).count(), 60);
        assert_eq!(budget.available(at(1)), 0);
        assert_eq!((0..10).filter(|_| budget.try_take(at(2))).count(), 1);
        assert_eq!((0..100).filter(|_| budget.try_take(at(1_000))).count(), 60);
    }

    #[test]
    fn suppressed_lines_are_reported_once_per_window() {
        let mut limiter = LineLimiter::new(10, Duration::from_secs(60));
        assert_eq!((0..15).filter(|second| limiter.admit(at(100 + second))).count(), 10);
        assert_eq!(limiter.take_suppressed(at(159)), None);
        assert_eq!((limiter.take_suppressed(at(160)), limiter.take_suppressed(at(161))), (Some(5), None));
        assert!(limiter.admit(at(300)));
        assert_eq!(limiter.take_suppressed(at(301)), Some(0), "a line that starts a window loses no report");
    }

    #[test]
    fn lines_below_ceiling_leave_the_rest() {
        let mut limiter = LineLimiter::new(10, Duration::from_secs(60));
        assert_eq!((0..100).filter(|_| limiter.admit_below(4, at(1))).count(), 4);
        assert_eq!((0..100).filter(|_| limiter.admit(at(1))).count(), 6);
        assert!(!limiter.admit_below(4, at(2)));
    }

    #[test]
    fn losses_are_reported_once_a_minute() {
        let mut report = LossReport::default();
        assert_eq!(report.take([0, 0], at(100)), None);
        assert_eq!(report.take([3, 0], at(100)), Some([3, 0]));
        assert_eq!(report.take([4, 2], at(159)), None);
        assert_eq!(report.take([5, 2], at(160)), Some([2, 2]));
        assert_eq!(report.take([6, 2], at(161)), None);
        report.expedite();
        assert_eq!(report.take([6, 2], at(161)), Some([1, 0]));
        assert_eq!(report.take([6, 2], at(900)), None);
    }
}
