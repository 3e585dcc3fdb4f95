//! Reads and edits arbitrary bytes as a hosts.deny file, for a fuzz target.

use std::collections::HashSet;

use super::text::{Reading, Rule, hosts_pattern};
use crate::types::BanTarget;

/// Reads `text`, adds an entry and removes it. All other bytes must not change.
pub(crate) fn edit(text: &[u8]) {
    let before = Reading::parse(text);
    let held: HashSet<BanTarget> = before.entries.iter().map(|entry| entry.target).collect();
    let cleared = before.edit(&[], &held).map_or_else(|| text.to_vec(), |edit| edit.text);
    assert_eq!(cleared, before.others(), "foreign bytes are unchanged");
    for target in ["192.0.2.7", "2001:db8:1:2::/64", "203.0.113.0/24"].into_iter().filter_map(|text| text.parse().ok())
    {
        deny(&before, text, target);
    }
}

fn deny(before: &Reading<'_>, text: &[u8], target: BanTarget) {
    let rule =
        Rule { target, rule: format!("ALL: {}", hosts_pattern(target)), until: "2026-11-22T06:32:13Z".to_owned() };
    let Some(edit) = before.edit(&[rule], &HashSet::new()) else { return };
    if before.entries.iter().any(|entry| entry.target == target) {
        // Its line was rewritten, and duplicates were removed.
        return;
    }
    let after = Reading::parse(&edit.text);
    assert_eq!(after.others(), before.others());
    assert_eq!(after.entries.iter().filter(|entry| entry.target == target).count(), 1);
    let back = after.edit(&[], &HashSet::from([target])).map(|edit| edit.text);
    assert_eq!(back.as_deref(), Some(text));
}
