//! What should be in force against what the kernel holds, a few bans a second, for ever: notifications tell what others do,
//! and this finds what nobody told. Asks for single bans, never for a whole set.

use std::collections::HashSet;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::enforce::nft::{BlockError, Nft};
use crate::engine::subject::Subject;
use crate::sensor::{Inbox, Order, Wish};

/// Bans that are looked at in one go: some 2 ms of this thread, and a set of 131,072 in 9 minutes.
const SAMPLE: usize = 256;

/// How long between two of them.
const PAUSE: Duration = Duration::from_secs(1);

/// Compares, on a task of its own, until the sensor has gone. `nft` is a socket of its own.
pub(super) async fn compare(inbox: Inbox, mut nft: Nft) {
    let mut missing: HashSet<Subject> = HashSet::new();
    loop {
        tokio::time::sleep(PAUSE).await;
        let (sent, sample) = oneshot::channel();
        let again: Vec<Subject> = missing.drain().collect();
        // A sensor that is too busy to listen has no time for this either.
        if inbox.put(Order::Wish(Wish::Sample { most: SAMPLE, again, answer: sent })).is_err() {
            continue;
        }
        let Ok(sample) = sample.await else { return };
        if sample.fresh.is_empty() && sample.again.is_empty() {
            continue;
        }
        let looked = tokio::task::spawn_blocking(move || {
            let fresh = nft.missing(&sample.fresh);
            let again = nft.missing(&sample.again);
            (nft, fresh, again)
        });
        let Ok((socket, fresh, again)) = looked.await else { return };
        nft = socket;
        // Missed once, it may be about to be told of: lifted, expired, swept away. Missed twice, nobody will tell.
        if let Ok(fresh) = fresh {
            missing.extend(fresh);
        }
        match again {
            Ok(again) if !again.is_empty() => drop(inbox.put(Order::Repair(again))),
            // A table that is gone is the guard's business.
            Ok(_) | Err(BlockError::Gone) | Err(_) => {}
        }
    }
}
