//! Compares the kernel's bans at the start with those of the ledger. Pure.

use std::collections::HashSet;
use std::time::SystemTime;

use super::elements::Element;
use crate::daemon::ban_recorder::lifted;
use crate::engine::ActiveBan;
use crate::ledger::{BanAuthor, BanRecord, LedgerChange};
use crate::types::{Backend, BanTarget, Expiry};

/// Differences between kernel and ledger at the start, if the table survived.
pub(super) struct Reconciled {
    /// Bans to restore in the kernel.
    pub(super) restore: Vec<ActiveBan>,
    pub(super) changes: Vec<LedgerChange>,
    /// Elements of the kernel that are missing in the ledger.
    pub(super) unknown: Vec<(BanTarget, Expiry)>,
}

/// From this number of missing bans on, they were not lifted one by one: a process that restored or removed them was
/// killed.
const MASS_REMOVAL: usize = 256;

/// Compares kernel and ledger. If the kernel still holds some of the remembered bans, its sets were not flushed. Then
/// an operator lifted the missing ones while the program was down, unless they are too many for that. All bans are
/// restored if the kernel holds none, or if its sets are known to be `incomplete`: a start was interrupted while it
/// restored bans, or all bans began after the start.
pub(super) fn reconcile(kernel: &[Element], remembered: &[ActiveBan], incomplete: bool, now: SystemTime) -> Reconciled {
    let in_kernel: HashSet<BanTarget> = kernel.iter().map(|(target, _)| *target).collect();
    // After a reboot the kernel holds no ban, so none is compared.
    let sought = if kernel.is_empty() { &[] } else { remembered };
    let known: HashSet<BanTarget> = sought.iter().map(|ban| ban.target).collect();
    let missing: Vec<ActiveBan> = remembered.iter().filter(|ban| !in_kernel.contains(&ban.target)).copied().collect();
    let all_missing = missing.len() == remembered.len();
    let unknown: Vec<Element> = kernel.iter().filter(|(target, _)| !known.contains(target)).copied().collect();
    let added = |(target, expiry): &(BanTarget, Expiry)| {
        BanRecord::wanted_by(BanAuthor::Import, *target, now, *expiry, Backend::Nft).into()
    };
    let mut changes: Vec<LedgerChange> = unknown.iter().map(added).collect();
    if all_missing || incomplete || missing.len() >= MASS_REMOVAL {
        return Reconciled { restore: missing, changes, unknown };
    }
    let gone = |ban: &ActiveBan| lifted(ban.target, "another program, while portsentry was not running", now);
    changes.extend(missing.iter().map(gone));
    Reconciled { restore: Vec::new(), changes, unknown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::HOUR;

    fn target(last: u8) -> BanTarget {
        BanTarget::V4([192, 0, 2, last].into())
    }

    fn remembered() -> [ActiveBan; 2] {
        [ActiveBan::new(target(1), Expiry::After(HOUR)), ActiveBan::new(target(2), Expiry::Never)]
    }

    #[test]
    fn flushed_table_gets_all_bans() {
        let remembered = remembered();
        let result = reconcile(&[(target(9), Expiry::After(HOUR))], &remembered, false, SystemTime::UNIX_EPOCH);
        assert_eq!(result.restore, remembered);
        assert!(matches!(&result.changes[..], [LedgerChange::Banned(ban)] if ban.target == target(9)));
    }

    #[test]
    fn single_missing_ban_was_lifted() {
        let remembered = remembered();
        let result = reconcile(&[(target(1), Expiry::After(HOUR))], &remembered, false, SystemTime::UNIX_EPOCH);
        assert!(result.restore.is_empty());
        assert!(matches!(&result.changes[..], [LedgerChange::Ended { target: two, .. }] if *two == target(2)));
    }

    #[test]
    fn interrupted_restore_is_completed() {
        let result = reconcile(&[(target(1), Expiry::After(HOUR))], &remembered(), true, SystemTime::UNIX_EPOCH);
        assert_eq!(result.restore, remembered()[1..]);
        assert!(result.changes.is_empty());
    }

    #[test]
    fn hundreds_of_missing_bans_are_restored() {
        let ban = |n: u32| ActiveBan::new(BanTarget::V4(n.into()), Expiry::After(HOUR));
        let all: Vec<ActiveBan> = (1..=1_000).map(ban).collect();
        let kernel: Vec<_> = all[..700].iter().map(|ban| (ban.target, Expiry::After(HOUR))).collect();
        assert_eq!(reconcile(&kernel, &all, false, SystemTime::UNIX_EPOCH).restore, all[700..]);
    }
}
