//! Reads from the running daemon: the bans, if the user may read neither the kernel's sets nor the ledger, and the
//! reports of other hosts in the fleet, which only the daemon stores.

use std::collections::HashMap;
use std::path::Path;

use super::bans::{BanList, KernelState, ListError, ListedBan};
use crate::control::ban_info::{BanInfo, BanPage};
use crate::control::client::{Client, ClientError};
use crate::control::fleet_info::{FleetBan, FleetBans};
use crate::control::protocol::{Answer, Request};
use crate::control::scoped_network::ScopedNetwork;
use crate::ledger::unreadable_note;
use crate::types::BanTarget;

const NOTE: &str = "listed from the ledger by the running daemon: this user cannot query the kernel; `sudo portsentry list` \
                    also shows whether the kernel has each ban";

/// Maximum number of answers read: a million targets.
const MAX_ANSWERS: usize = 16_384;

/// The bans in force according to the daemon at `socket`, or those that overlap `asked`.
pub(super) fn read(socket: &Path, asked: Option<ScopedNetwork>) -> Result<BanList, ListError> {
    let mut client = Client::connect(socket).map_err(|error| match error {
        ClientError::NotPermitted(path) => ListError::NoAccess(path),
        ClientError::NotRunning(_) => ListError::Forbidden,
        other => ListError::Daemon(other),
    })?;
    // A ban that is renewed meanwhile is on two pages.
    let mut bans: HashMap<BanTarget, ListedBan> = HashMap::new();
    let (mut unreadable, mut after) = (0, None);
    for _ in 0..MAX_ANSWERS {
        let Answer::Bans(BanPage { bans: page, unreadable: rows, next }) =
            client.ask(&Request::Bans { after }).map_err(ListError::Daemon)?
        else {
            break;
        };
        unreadable += rows;
        for ban in page {
            match ban.and_then(BanInfo::into_entry) {
                Some(entry) if asked.is_none_or(|asked| asked.overlaps(entry.ban.target)) => {
                    let target = entry.ban.target;
                    bans.insert(target, ListedBan { target, remembered: Some(entry), kernel: KernelState::NotQueried });
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
    notes.extend(unreadable_note(unreadable));
    Ok(BanList { bans: bans.into_values().collect(), kernel: false, notes })
}

/// The reported targets, all or those that overlap `target`; `None` if no daemon answers, or this host is not in a
/// fleet.
pub(super) fn reports(socket: &Path, target: Option<ScopedNetwork>) -> Option<Vec<FleetBan>> {
    let mut client = Client::connect(socket).ok()?;
    let (mut all, mut after) = (Vec::new(), None);
    for _ in 0..MAX_ANSWERS {
        let Ok(Answer::FleetBans(FleetBans { joined: true, bans, more })) = client.ask(&Request::Fleet { after })
        else {
            return None;
        };
        after = bans.last().map(|ban| ban.target);
        let wanted = |ban: &FleetBan| target.is_none_or(|target| target.overlaps(ban.target));
        all.extend(bans.into_iter().filter(wanted));
        if !more || after.is_none() {
            break;
        }
    }
    Some(all)
}
