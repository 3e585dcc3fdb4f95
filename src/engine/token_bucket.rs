//! A token bucket that limits a rate, driven by the engine's own time.

use std::time::Duration;

use crate::types::Timestamp;

/// Refills a number of tokens per span, up to the tokens of one span.
pub(super) struct TokenBucket {
    per_span: u32,
    span: Duration,
    /// Available tokens, as a time: one token is `span / per_span`.
    saved: Duration,
    at: Timestamp,
}

impl TokenBucket {
    /// A full bucket of `per_span` tokens every `span`.
    pub(super) fn new(per_span: u32, span: Duration) -> Self {
        Self { per_span: per_span.max(1), span, saved: span, at: Timestamp::default() }
    }

    /// Takes one token; false where none is available.
    pub(super) fn take(&mut self, now: Timestamp) -> bool {
        self.saved = self.saved.saturating_add(now.since(self.at)).min(self.span);
        self.at = self.at.max(now);
        match self.saved.checked_sub(self.span / self.per_span) {
            Some(rest) => {
                self.saved = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_worth_may_come_at_once_and_then_one_by_one() {
        let mut budget = TokenBucket::new(60, Duration::from_secs(60));
        let at = |seconds| Timestamp::at(Duration::from_secs(seconds));
        assert_eq!((0..100).filter(|_| budget.take(at(1))).count(), 60);
        assert_eq!((0..10).filter(|_| budget.take(at(2))).count(), 1);
        assert_eq!((0..100).filter(|_| budget.take(at(1_000))).count(), 60);
    }
}
