//! Answers `bans`, which reads one page of the ledger, and the ledger's and kernel's part of `explain`. The sensor
//! thread, which owns the table of bans, is not asked for `bans`, so that no number of clients delays a packet.

use std::time::{Duration, SystemTime};

use tokio::sync::oneshot::Receiver;

use crate::control::address_info::{AddressInfo, HoldInfo};
use crate::control::ban_info::{BanPage, MAX_BANS};
use crate::control::protocol::{Answer, Failure, Reply};
use crate::control::scoped_network::ScopedNetwork;
use crate::enforce::nft::{Table, trap_sets};
use crate::engine::Explanation;
use crate::ledger::{LedgerEntry, PageCursor, Recorder};

/// Waits for the sensor's answer, which fails while the daemon is shutting down.
pub(super) async fn of_sensor<T>(answer: Receiver<T>) -> Result<T, Failure> {
    answer.await.map_err(|_| Failure::failed("the daemon is shutting down"))
}

/// The remedy: a command that lists the bans without the ledger.
const AS_ROOT: &str = "run `sudo portsentry list`, which reads the kernel's sets";

/// The page of bans that begins after `after`, which is `next` of an earlier page.
///
/// # Errors
/// The ledger could not be opened.
pub(super) fn bans(
    recorder: Recorder,
    after: Option<PageCursor>,
) -> Result<impl Future<Output = Reply> + use<>, Failure> {
    if !recorder.is_open() {
        return Err(Failure::failed(format!("the daemon has no ledger, see its log; {AS_ROOT}")));
    }
    Ok(async move {
        let now = SystemTime::now();
        let page = recorder.ask(move |ledger| ledger.page(after, MAX_BANS, now)).await;
        let page =
            page.map_err(|_| Failure::failed(format!("the ledger cannot be read now; try again, or {AS_ROOT}")))?;
        Ok(Answer::Bans(BanPage::new(page.map_err(Failure::failed)?, now)))
    })
}

/// Answers `explain` with what the sensor, the ledger and the kernel know; the caller adds services and the fleet.
/// `hold` is the length of a hold and the window in which holds count; `None` if no source is held.
pub(super) async fn explain(
    asked: ScopedNetwork,
    known: Explanation,
    recorder: Recorder,
    hold: Option<(Duration, Duration)>,
) -> AddressInfo {
    let past = past(&recorder, &known).await;
    let mut info = AddressInfo::new(asked, &known, past.as_deref(), SystemTime::now());
    if let Some((length, window)) = hold {
        let held = tokio::task::spawn_blocking(move || trap_sets::hold(&mut Table::open().ok()?, known.target).ok());
        let held = held.await;
        info.hold = Some(HoldInfo::new(held.ok().flatten().unwrap_or_default(), length, window));
    }
    info
}

/// The bans of an address, and of the network that blocks it, oldest first; `None` if they cannot be read.
async fn past(recorder: &Recorder, known: &Explanation) -> Option<Vec<LedgerEntry>> {
    let mut past = Vec::new();
    for target in [Some(known.target), known.network].into_iter().flatten() {
        past.extend(recorder.ask(move |ledger| ledger.bans_of(target)).await.ok()?.ok()?.items);
    }
    if known.network.is_some() {
        past.sort_by_key(|entry| entry.ban.since);
    }
    Some(past)
}
