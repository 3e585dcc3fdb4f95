//! Which ways carry a ban out, in their order: those that take microseconds are held here and used between two packets;
//! the others are handed over to a thread that may wait. Says nothing and judges nobody.

use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;

use crate::enforce::BanContext;
use crate::enforce::nft::{Nft, RulesetSpec};
use crate::enforce::route::{self, Routes};
use crate::enforce::slow_backends::{Orders, Task};
use crate::engine::{Ban, Host};
use crate::types::{Backend, BanTarget, Expiry, Protocol, Timestamp};

/// The ways to block.
#[derive(Default)]
pub struct Blocker {
    /// The ways in their order.
    pub ways: Vec<Backend>,
    /// The sets of nftables, for [`Backend::Nft`].
    pub nft: Option<(Nft, RulesetSpec)>,
    /// Routes, for [`Backend::Route`].
    pub routes: Option<Routes>,
    /// The thread for all that may wait.
    pub hands: Option<Orders>,
    /// The command is run before the other ways, which wait for its end.
    pub first: bool,
    /// The connections of who is blocked are ended.
    pub end_connections: bool,
    /// Who scans TCP is left to the command.
    pub tcp_tells: bool,
    /// Who scans UDP is.
    pub udp_tells: bool,
    /// How TCP is watched, in the classic words.
    pub tcp_mode: &'static str,
    /// How UDP is watched.
    pub udp_mode: &'static str,
}

/// A way that did not take a ban.
pub(super) struct Refused {
    pub(super) way: Backend,
    pub(super) subject: BanTarget,
    pub(super) reason: String,
}

impl Blocker {
    /// True where anybody is blocked in any way.
    pub(super) fn blocks(&self) -> bool {
        !self.ways.is_empty()
    }

    /// The way in this place, where the sensor uses it itself.
    pub(super) fn inline(&self, place: usize) -> Option<Option<Backend>> {
        self.ways.get(place).map(|way| Some(*way).filter(|way| matches!(way, Backend::Nft | Backend::Route)))
    }

    /// The ways that the sensor uses itself.
    pub(super) fn inline_ways(&self) -> impl Iterator<Item = Backend> + Clone + '_ {
        self.ways.iter().copied().filter(|way| matches!(way, Backend::Nft | Backend::Route))
    }

    /// True where a ban is also, or only, somebody else's work.
    pub(super) fn has_slow_ways(&self) -> bool {
        self.ways.iter().any(|way| matches!(way, Backend::HostsDeny | Backend::Command))
    }

    /// Lays routes for them.
    pub(super) fn block_by_route(&mut self, bans: &[(BanTarget, Expiry)], now: Timestamp, refused: &mut Vec<Refused>) {
        let Some(routes) = &mut self.routes else { return };
        let refuse = |subject, reason| Refused { way: Backend::Route, subject, reason };
        match routes.block(bans, now) {
            Ok(()) => {}
            Err(route::BlockError::Failed { failed, .. }) => {
                refused.extend(failed.into_iter().map(|failed| refuse(failed.subject, failed.reason.to_string())));
            }
            Err(error) => {
                let reason = error.to_string();
                refused.extend(bans.iter().map(|(subject, _)| refuse(*subject, reason.clone())));
            }
        }
    }

    /// Whom no route may cut off: all that is never blocked, and this host's own networks. Those of IPv4 are left out, since
    /// a neighbour in one is an address like any other there.
    pub(super) fn keep_reachable(&mut self, host: &Host) -> Vec<BanTarget> {
        let Some(routes) = &mut self.routes else { return Vec::new() };
        let own = host.networks.iter().copied().filter(|network| matches!(network, IpNet::V6(_)));
        let prefixes: Vec<IpNet> = host.allow.prefixes().chain(own).collect();
        routes.protect(&prefixes).subjects
    }

    /// Has the command run that comes before the block; false where nobody is there to run it, or there is no room.
    pub(super) fn run_first(&self, ban: &Ban, seen: SystemTime) -> bool {
        let Some(hands) = self.hands.as_ref().filter(|_| self.first) else { return false };
        hands.put(Task::Before { case: self.case(ban, seen) }).is_ok()
    }

    /// Hands a ban over to the ways that may wait; false where there was no room.
    pub(super) fn hand_over(&self, ban: &Ban, seen: SystemTime) -> bool {
        let Some(hands) = &self.hands else { return true };
        let methods = self.slow(!self.first);
        // The end of a connection is for good; a ban above the ceiling is not.
        if methods.is_empty() && (ban.capped || !self.end_connections) {
            return true;
        }
        hands.put(Task::Block { case: self.case(ban, seen), methods }).is_ok()
    }

    /// Hands a ban by hand over, likewise.
    pub(super) fn hand_over_by_hand(&self, subject: BanTarget, expiry: Expiry) -> bool {
        let Some(hands) = &self.hands else { return true };
        let case = BanContext::by_hand(subject, expiry, SystemTime::now());
        hands.put(Task::Block { case, methods: self.slow(true) }).is_ok()
    }

    /// True where who scans this protocol is left to the command.
    pub(super) fn tells(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Tcp | Protocol::Sctp => self.tcp_tells,
            Protocol::Udp | Protocol::Icmp => self.udp_tells,
        }
    }

    /// Only has the command run.
    pub(super) fn only_run(&self, ban: &Ban, seen: SystemTime) -> bool {
        let Some(hands) = &self.hands else { return false };
        hands.put(Task::Block { case: self.case(ban, seen), methods: Arc::new([Backend::Command]) }).is_ok()
    }

    /// What the others hold of these is to go.
    pub(super) fn release(&self, subjects: &[BanTarget]) {
        let Some(hands) = self.hands.as_ref().filter(|_| self.has_slow_ways()) else { return };
        for subject in subjects {
            // Where there is no room, a line stays until its ban would have ended.
            let _ = hands.put(Task::Release { subject: *subject });
        }
    }

    fn slow(&self, run: bool) -> Arc<[Backend]> {
        let way = |way: &Backend| match way {
            Backend::HostsDeny => Some(Backend::HostsDeny),
            Backend::Command => run.then_some(Backend::Command),
            Backend::Nft | Backend::Route => None,
        };
        self.ways.iter().filter_map(way).collect()
    }

    fn case(&self, ban: &Ban, seen: SystemTime) -> BanContext {
        let sighting = &ban.probe.sighting;
        BanContext {
            subject: ban.probe.subject,
            source: sighting.source,
            protocol: sighting.protocol,
            port: sighting.port,
            mode: match sighting.protocol {
                Protocol::Tcp | Protocol::Sctp => self.tcp_mode,
                Protocol::Udp | Protocol::Icmp => self.udp_mode,
            },
            class: Some(sighting.class),
            expiry: ban.expiry,
            since: seen,
            ban: Some(*ban),
        }
    }
}
