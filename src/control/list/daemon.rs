//! Reads the bans from the running daemon, where the user may read neither the kernel's sets nor the ledger.

use std::collections::HashMap;
use std::path::Path;

use super::bans::{Bans, KernelState, ListError, Listed};
use super::fleet::MAX_ANSWERS;
use crate::control::ban_info::BanPage;
use crate::control::client::{Client, ClientError};
use crate::control::protocol::{Answer, Request};
use crate::control::scoped_network::ScopedNetwork;
use crate::types::BanTarget;

const NOTE: &str = "listed from the ledger by the running daemon: this user cannot query the kernel; `sudo portsentry list` \
                    also shows whether the kernel has each ban";

/// The bans in force according to the daemon at `socket`, or those that overlap `asked`.
pub(super) fn read(socket: &Path, asked: Option<ScopedNetwork>) -> Result<Bans, ListError> {
    let mut client = Client::connect(socket).map_err(|error| match error {
        ClientError::NotPermitted(path) => ListError::NoAccess(path),
        ClientError::NotRunning(_) => ListError::Forbidden,
        other => ListError::Daemon(other),
    })?;
    // A ban that is renewed meanwhile is on two pages.
    let mut bans: HashMap<BanTarget, Listed> = HashMap::new();
    let (mut unreadable, mut after) = (0, None);
    for _ in 0..MAX_ANSWERS {
        let Answer::Bans(BanPage { bans: page, unreadable: rows, next }) =
            client.ask(&Request::Bans { after }).map_err(ListError::Daemon)?
        else {
            break;
        };
        unreadable += rows;
        for ban in page {
            match ban.to_entry() {
                Some(entry) if asked.is_none_or(|asked| asked.overlaps(entry.ban.target)) => {
                    let target = entry.ban.target;
                    bans.insert(target, Listed { target, remembered: Some(entry), kernel: KernelState::NotQueried });
                }
                Some(_) => {}
                None => unreadable += 1,
            }
        }
        after = next;
        if after.is_none() {
            break;
        }
    }
    let mut notes = vec![NOTE.to_owned()];
    if unreadable > 0 {
        notes.push(super::bans::unreadable_rows(unreadable));
    }
    Ok(Bans { bans: bans.into_values().collect(), kernel: false, notes })
}
