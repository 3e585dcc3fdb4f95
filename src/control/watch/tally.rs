//! How often something was seen, for the most frequent of it. Bounded: whatever strangers send, it holds no more than so
//! many kinds, and lets the rare ones go.

use std::collections::HashMap;

/// Kinds that are counted at one time.
const KINDS: usize = 4_096;

/// Counts of texts.
#[derive(Debug, Default)]
pub(super) struct Tally(HashMap<String, u64>);

impl Tally {
    /// Counts one.
    pub(super) fn add(&mut self, kind: &str) {
        if let Some(count) = self.0.get_mut(kind) {
            *count += 1;
            return;
        }
        if self.0.len() >= KINDS {
            // All lose as much, so that a flood of kinds seen once drives nobody out who is seen again and again.
            let mut counts: Vec<u64> = self.0.values().copied().collect();
            counts.sort_unstable();
            let middle = counts.get(KINDS / 2).copied().unwrap_or(1);
            self.0.retain(|_, count| {
                *count = count.saturating_sub(middle);
                *count > 0
            });
        }
        self.0.insert(kind.to_owned(), 1);
    }

    /// The most frequent ones, at most `wanted`.
    pub(super) fn top(&self, wanted: usize) -> Vec<(&str, u64)> {
        let mut all: Vec<(&str, u64)> = self.0.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
        all.sort_unstable_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b)));
        all.truncate(wanted);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_come_first() {
        let mut tally = Tally::default();
        ["b", "a", "c", "b", "b", "a"].iter().for_each(|kind| tally.add(kind));
        assert_eq!(tally.top(2), [("b", 3), ("a", 2)]);
    }

    #[test]
    fn a_flood_of_kinds_stays_bounded_and_drives_nobody_frequent_out() {
        let mut tally = Tally::default();
        (0..100).for_each(|_| tally.add("23"));
        for kind in 0..100_000 {
            tally.add(&format!("forged {kind}"));
            assert!(tally.0.len() <= KINDS);
        }
        assert_eq!(tally.top(1).first().map(|(kind, _)| *kind), Some("23"));
    }
}
