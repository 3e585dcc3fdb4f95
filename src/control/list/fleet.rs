//! Reads the reports of other hosts in the fleet from the running daemon, which alone stores them.

use std::fmt::Write as _;
use std::path::Path;

use crate::control::client::Client;
use crate::control::fleet_info::{FleetBan, FleetBans};
use crate::control::protocol::{Answer, Request};
use crate::control::scoped_network::ScopedNetwork;
use crate::types::BanTarget;

/// Maximum number of answers read: a million targets.
pub(super) const MAX_ANSWERS: usize = 16_384;

/// The reported targets, all or those that overlap `target`; `None` if no daemon answers, or this host is not in a
/// fleet.
pub(super) fn read(socket: &Path, target: Option<ScopedNetwork>) -> Option<Vec<FleetBan>> {
    let mut client = Client::connect(socket).ok()?;
    let (mut all, mut after) = (Vec::new(), None);
    for _ in 0..MAX_ANSWERS {
        let Ok(Answer::FleetBans(FleetBans { joined: true, bans, more })) = client.ask(&Request::Fleet { after })
        else {
            return None;
        };
        after = bans.last().map(|ban| ban.target.clone());
        let wanted = |ban: &FleetBan| {
            let found = ban.target.parse::<BanTarget>();
            target.is_none_or(|target| found.is_ok_and(|found| target.overlaps(found)))
        };
        all.extend(bans.into_iter().filter(wanted));
        if !more || after.is_none() {
            break;
        }
    }
    Some(all)
}

/// The reports as text, one line each.
pub(super) fn text(bans: &[FleetBan]) -> String {
    let mut out = String::new();
    if !bans.is_empty() {
        let _ = writeln!(out, "\nreported by other hosts of the fleet:");
    }
    for ban in bans {
        let _ = writeln!(out, "{}  {ban}", ban.target);
    }
    out
}
