//! Counts the most frequent ports and sources. Bounded: above [`MAX_KINDS`] the rare ones are dropped (Misra and Gries,
//! 1982).

use std::collections::HashMap;

/// Maximum number of counted kinds.
const MAX_KINDS: usize = 4_096;

#[derive(Debug, Default)]
pub(super) struct TopCounts(HashMap<String, u64>);

impl TopCounts {
    pub(super) fn add(&mut self, kind: &str) {
        if let Some(count) = self.0.get_mut(kind) {
            *count += 1;
            return;
        }
        if self.0.len() >= MAX_KINDS {
            // All counts are reduced equally, so that a flood of kinds seen once does not displace frequent ones.
            let mut counts: Vec<u64> = self.0.values().copied().collect();
            counts.sort_unstable();
            let middle = counts.get(MAX_KINDS / 2).copied().unwrap_or(1);
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
    fn most_frequent_come_first() {
        let mut counts = TopCounts::default();
        ["b", "a", "c", "b", "b", "a"].iter().for_each(|kind| counts.add(kind));
        assert_eq!(counts.top(2), [("b", 3), ("a", 2)]);
    }

    #[test]
    fn flood_of_kinds_keeps_frequent_kinds() {
        let mut counts = TopCounts::default();
        (0..100).for_each(|_| counts.add("23"));
        for kind in 0..100_000 {
            counts.add(&format!("forged {kind}"));
            assert!(counts.0.len() <= MAX_KINDS);
        }
        assert_eq!(counts.top(1).first().map(|(kind, _)| *kind), Some("23"));
    }
}
