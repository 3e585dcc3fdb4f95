//! Reads the kernel's bans at the start, and finds those that come from a saved set.

use std::collections::HashSet;
use std::time::Duration;

use crate::enforce::nft::{BlockError, Table};
use crate::engine::ActiveBan;
use crate::ledger::{BanRecord, Ending, LedgerEntry, Recorder};
use crate::types::{BanTarget, Expiry};

/// An element of the kernel's sets with its remaining time.
pub(super) type Element = (BanTarget, Expiry);

/// Elements whose earlier bans are looked up in the ledger between two writes.
const LOOKUP_BATCH: usize = 256;

/// Maximum difference between the whole time of a ban in the ledger and in the kernel, which rounds to milliseconds.
const MAX_ROUNDING: Duration = Duration::from_secs(1);

/// Maximum number of attempts to read the kernel's sets, and the delay between two attempts.
const MAX_ATTEMPTS: u32 = 10;
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The kernel's elements with their remaining times. Sets that change faster than they can be read are read again.
pub(super) fn read(remembered: &[ActiveBan]) -> Result<Vec<Element>, BlockError> {
    let read_once = || {
        let mut table = Table::open()?;
        let mut elements = table.elements()?;
        // While the kernel resizes a set's hash table, a dump silently omits some elements.
        let seen: HashSet<BanTarget> = elements.iter().map(|(target, _)| *target).collect();
        let unseen = remembered.iter().filter(|ban| !seen.is_empty() && !seen.contains(&ban.target));
        for ActiveBan { target, .. } in unseen {
            elements.extend(table.time_left(*target)?.map(|remaining| (*target, remaining)));
        }
        Ok(elements)
    };
    for _ in 1..MAX_ATTEMPTS {
        match read_once() {
            Err(BlockError::System(_)) => std::thread::sleep(RETRY_DELAY),
            done => return done,
        }
    }
    read_once()
}

/// Returns those of `targets` whose elements were saved while an earlier ban was in force. Such an element has the
/// whole time of a ban that was lifted according to the ledger. With `any_end`, for a loaded ruleset, bans that expired
/// count as well. Otherwise they do not, because a wrong clock ends bans in the ledger that the kernel still holds.
pub(super) fn former_bans(
    targets: &[BanTarget],
    any_end: bool,
    table: &mut Table,
    recorder: &Recorder,
) -> HashSet<BanTarget> {
    let mut former = HashSet::new();
    for part in targets.chunks(LOOKUP_BATCH) {
        let length = |target: &BanTarget| Some((*target, table.element_of(*target).ok().flatten()?.length));
        let present: Vec<(BanTarget, Expiry)> = part.iter().filter_map(length).collect();
        let found = recorder.ask(move |ledger| {
            let was_lifted = |entry: &LedgerEntry| {
                entry.ended.as_ref().is_some_and(|ended| matches!(ended.how, Ending::Lifted { .. }))
            };
            let was_banned = |(target, length): &(BanTarget, Expiry)| {
                let bans = ledger.bans_of(*target).map(|found| found.items).unwrap_or_default();
                bans.iter().any(|entry| (any_end || was_lifted(entry)) && fits(&entry.ban, *length))
            };
            present.into_iter().filter(was_banned).map(|(target, _)| target).collect::<Vec<_>>()
        });
        // Without an answer they count as added by an operator: no ban is lost.
        former.extend(found.blocking_recv().into_iter().flatten());
    }
    former
}

/// True if an element with this whole time may be that of `ban`.
fn fits(ban: &BanRecord, length: Expiry) -> bool {
    let span = ban.until.map(|until| until.duration_since(ban.since).unwrap_or_default());
    length.is_about(span.into(), MAX_ROUNDING)
}
