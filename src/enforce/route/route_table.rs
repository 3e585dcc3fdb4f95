//! Stores the routes of bans with their expiry, because the kernel ignores `expires` on blackhole routes.

use std::collections::{BTreeSet, HashMap};

use crate::types::{BanTarget, Timestamp};

/// At most `size` routes, including those whose removal failed.
#[derive(Debug)]
pub(super) struct RouteTable {
    entries: HashMap<BanTarget, RouteEntry>,
    ends: BTreeSet<(Timestamp, BanTarget)>,
    pub(super) size: usize,
}

#[derive(Clone, Copy, Debug)]
struct RouteEntry {
    /// `None`: never.
    end: Option<Timestamp>,
    /// False if the route is no longer wanted, but may still exist in the kernel.
    wanted: bool,
}

impl RouteTable {
    pub(super) fn new(size: usize) -> Self {
        Self { entries: HashMap::new(), ends: BTreeSet::new(), size }
    }

    pub(super) fn has_room_for(&self, target: BanTarget) -> bool {
        self.entries.len() < self.size || self.entries.contains_key(&target)
    }

    /// True if `target` is blocked, as far as known.
    pub(super) fn is_wanted(&self, target: BanTarget) -> bool {
        self.entries.get(&target).is_some_and(|entry| entry.wanted)
    }

    /// All blocked targets.
    pub(super) fn wanted(&self) -> impl Iterator<Item = BanTarget> + '_ {
        self.entries.iter().filter(|(_, entry)| entry.wanted).map(|(target, _)| *target)
    }

    /// Records that `target` is blocked until `end`.
    pub(super) fn keep(&mut self, target: BanTarget, end: Option<Timestamp>) {
        self.set(target, RouteEntry { end, wanted: true });
    }

    /// Records that the route is not wanted, but may exist: it is removed at `at`, without a report.
    pub(super) fn give_up(&mut self, target: BanTarget, at: Timestamp) {
        self.set(target, RouteEntry { end: Some(at), wanted: false });
    }

    /// Moves the end to `at`.
    pub(super) fn postpone(&mut self, target: BanTarget, at: Timestamp) {
        let wanted = self.is_wanted(target);
        self.set(target, RouteEntry { end: Some(at), wanted });
    }

    /// Records that the route no longer exists.
    pub(super) fn forget(&mut self, target: BanTarget) {
        if let Some(RouteEntry { end: Some(end), .. }) = self.entries.remove(&target) {
            self.ends.remove(&(end, target));
        }
    }

    pub(super) fn next_end(&self) -> Option<Timestamp> {
        self.ends.first().map(|(end, _)| *end)
    }

    /// The targets whose end has come, the earliest first, at most `most`.
    pub(super) fn expired(&self, now: Timestamp, most: usize) -> Vec<BanTarget> {
        self.ends.iter().take_while(|(end, _)| *end <= now).take(most).map(|(_, target)| *target).collect()
    }

    fn set(&mut self, target: BanTarget, entry: RouteEntry) {
        self.forget(target);
        self.ends.extend(entry.end.map(|end| (end, target)));
        self.entries.insert(target, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::at;
    fn target(end: u8) -> BanTarget {
        BanTarget::containing(std::net::IpAddr::from([192, 0, 2, end]))
    }

    #[test]
    fn new_end_replaces_old_end() {
        let mut routes = RouteTable::new(2);
        routes.keep(target(1), Some(at(10)));
        routes.keep(target(2), None);
        routes.keep(target(1), Some(at(20)));
        assert_eq!(
            (routes.next_end(), routes.expired(at(19), 9), routes.expired(at(20), 9)),
            (Some(at(20)), vec![], vec![target(1)])
        );
        routes.keep(target(1), None);
        assert_eq!(
            (routes.next_end(), routes.entries.len(), routes.ends.len()),
            (None, 2, 0),
            "no expiry is left over"
        );
    }

    #[test]
    fn full_table_accepts_present_keys_only() {
        let mut routes = RouteTable::new(1);
        routes.keep(target(1), None);
        assert!(routes.has_room_for(target(1)) && !routes.has_room_for(target(2)));
        routes.forget(target(1));
        assert!(routes.has_room_for(target(2)));
    }

    #[test]
    fn postponed_removal_stays_due() {
        let mut routes = RouteTable::new(2);
        routes.keep(target(1), Some(at(5)));
        routes.keep(target(2), None);
        routes.postpone(target(1), at(9));
        routes.give_up(target(2), at(0));
        assert_eq!(routes.wanted().collect::<Vec<_>>(), [target(1)]);
        assert_eq!(routes.expired(at(9), 9), [target(2), target(1)], "the earliest first");
        assert_eq!(routes.expired(at(9), 1), [target(2)]);
    }
}
