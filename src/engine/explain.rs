//! Collects the state of all tables for one address, for `portsentry explain`. Read-only.

use std::net::IpAddr;
use std::time::Duration;

use super::{Engine, Grade, Host, Ports, Protection};
use crate::types::{BanTarget, Expiry, Response, Tick, Timestamp};

/// State of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The target against which its probes count.
    pub target: BanTarget,
    /// Why it is never blocked, if it is exempt.
    pub protection: Option<Protection>,
    /// Remaining time of its ban.
    pub blocked: Option<Expiry>,
    /// Grade of the evidence of that ban; `None` without evidence or if unknown.
    pub grade: Option<Grade>,
    /// The blocked network that contains it, if the address itself has no ban.
    pub network: Option<BanTarget>,
    /// Remaining time of its log-only verdict.
    pub logged: Option<Expiry>,
    /// Bans that count against it, including the current one.
    pub strikes: u32,
    /// True if it is known to have a connection to a service of this host.
    pub connected: bool,
    /// Evidence against it, for protocols that block, that only log, and that only run the command.
    pub suspicions: [Option<Suspicion>; 3],
}

/// Evidence that is not yet enough for a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspicion {
    /// True if enough evidence leads to a ban; false if the scan is only logged or passed to the command.
    pub blocks: bool,
    /// Distinct ports within the window.
    pub distinct: u8,
    /// Number of forgiven distinct ports.
    pub forgiven: u8,
    /// Probes since the first, including repetitions.
    pub probes: u32,
    /// Time since the last probe.
    pub silent: Duration,
    pub ports: Ports,
}

/// Returns the state of `address` at `now`, for a link-local address on `link` if that is given.
pub fn explain(engine: &Engine, now: Timestamp, address: IpAddr, link: Option<u32>, host: &Host) -> Explanation {
    let Engine { bans, sources, threshold, .. } = engine;
    let tick = engine.latest.max(now).tick();
    let target = explained(engine, tick, address, link, host);
    let left = |response| Some(bans.table.left(bans.table.get(engine.key_of(target, response), tick)?, tick));
    let suspicion = |response| {
        let summary = sources.summary_of(engine.key_of(target, response), tick)?;
        Some(Suspicion {
            blocks: response == Response::Block,
            distinct: summary.distinct,
            forgiven: threshold.forgiven,
            probes: summary.probes,
            silent: tick.since(summary.last).duration(),
            ports: sources.ports(summary.slot),
        })
    };
    let blocked = left(Response::Block);
    let around = blocked.is_none().then(|| bans.around(address, tick)).flatten();
    Explanation {
        target,
        protection: host.protection(address, target),
        blocked: blocked.or_else(|| around.map(|(_, slot)| bans.table.left(slot, tick))),
        grade: bans.get(around.map_or(target, |(network, _)| network), tick).and_then(|ban| ban.grade),
        network: around.map(|(network, _)| network),
        logged: left(Response::Log).or_else(|| left(Response::RunCommand)),
        strikes: bans.strikes_of(target, tick),
        connected: threshold.connected_since(target).is_some(),
        suspicions: [Response::Block, Response::Log, Response::RunCommand].map(suspicion),
    }
}

/// Selects the target that explains `address`. For a link-local address this is `link`, or the first link on which it
/// is blocked or has evidence of a protocol that blocks.
fn explained(engine: &Engine, now: Tick, address: IpAddr, link: Option<u32>, host: &Host) -> BanTarget {
    let every_link = BanTarget::containing(address);
    let is_judged = |target: &BanTarget| engine.bans.table.get(engine.key_of(*target, Response::Block), now).is_some();
    if let Some(link) = link {
        // As for a packet: a ban by an operator has no link.
        let on_link = host.target(address, link);
        return [on_link, every_link].into_iter().find(is_judged).unwrap_or(on_link);
    }
    let is_known = |target: &BanTarget| {
        is_judged(target) || engine.sources.summary_of(engine.key_of(*target, Response::Block), now).is_some()
    };
    let on_links = host.guarded.iter().map(|(interface, _)| host.target(address, *interface));
    std::iter::once(every_link).chain(on_links).find(is_known).unwrap_or(every_link)
}
