//! Reads from the running daemon: the bans, if the user may read neither the kernel's sets nor the ledger, and the
//! reports of other hosts in the fleet, which only the daemon stores.

use std::collections::HashMap;
use std::path::Path;

use super::bans::{BanList, ListError};
use crate::control::ban_info::BanInfo;
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
    let mut bans: HashMap<BanTarget, BanInfo> = HashMap::new();
    let mut unreadable = 0;
    let read_page = |answer| {
        let Answer::Bans(page) = answer else { return Err(answer) };
        unreadable += page.unreadable;
        for ban in page.bans {
            match ban {
                Some(ban) if asked.is_none_or(|asked| asked.overlaps(ban.target)) => drop(bans.insert(ban.target, ban)),
                Some(_) => {}
                None => unreadable += 1,
            }
        }
        Ok(page.next)
    };
    read_pages(&mut client, |after| Request::Bans { after }, read_page).map_err(ListError::Daemon)?;
    let mut notes = vec![NOTE.to_owned()];
    notes.extend(unreadable_note(unreadable));
    Ok(BanList { bans: bans.into_values().collect(), kernel: false, notes })
}

/// The reported targets, all or those that overlap `target`; `None` if no daemon answers, or this host is not in a
/// fleet.
pub(super) fn reports(socket: &Path, target: Option<ScopedNetwork>) -> Option<Vec<FleetBan>> {
    let mut client = Client::connect(socket).ok()?;
    let mut all = Vec::new();
    let read_page = |answer| {
        let Answer::FleetBans(FleetBans { joined: true, bans, more }) = answer else { return Err(answer) };
        let last = bans.last().map(|ban| ban.target);
        all.extend(bans.into_iter().filter(|ban| target.is_none_or(|target| target.overlaps(ban.target))));
        Ok(last.filter(|_| more))
    };
    read_pages(&mut client, |after| Request::Fleet { after }, read_page).ok()?;
    Some(all)
}

/// Asks for one page after the other. `read_page` returns where the next page begins; `None` after the last one.
fn read_pages<C>(
    client: &mut Client,
    request: impl Fn(Option<C>) -> Request,
    mut read_page: impl FnMut(Answer) -> Result<Option<C>, Answer>,
) -> Result<(), ClientError> {
    let mut after = None;
    for _ in 0..MAX_ANSWERS {
        after = read_page(client.ask(&request(after))?).map_err(|other| ClientError::unexpected(&other))?;
        if after.is_none() {
            break;
        }
    }
    Ok(())
}
