//! Finds the bridge ports of guests whose bans rest on connections to decoys. Unlike a captured packet, a connection
//! does not show its bridge port, so the kernel's neighbour and forwarding tables are asked. A separate thread asks,
//! because a request waits for the kernel's routing lock.

use std::net::IpAddr;
use std::time::SystemTime;

use tokio::sync::oneshot::{self, Receiver};

use super::optional::take_answer;
use crate::engine::Host;
use crate::events::event::Event;
use crate::ledger::{LedgerChange, Recorder};
use crate::netlink::routes::RouteSocket;
use crate::sensor::GuestBan;
use crate::types::BanTarget;

/// Maximum number of bans that wait for their ports. Further ones last until their expiry.
const MAX_PENDING: usize = 1_024;

/// How often a port is looked for. The list of links, which is read after each change, lacks a new port for a moment.
const MAX_ATTEMPTS: u8 = 5;

/// A ban whose port is looked for.
struct Sought {
    target: BanTarget,
    since: SystemTime,
    source: IpAddr,
    /// The bridges to whose networks the source belongs.
    bridges: Vec<u32>,
    attempts: u8,
}

#[derive(Default)]
pub(super) struct GuestPorts {
    waiting: Vec<Sought>,
    /// The bans of the search under way, each with the index of its port.
    answer: Option<Receiver<Vec<(Sought, u32)>>>,
}

impl GuestPorts {
    /// Looks for the bridge port of the ban that `event` reports, if a guest is banned for connections to decoys.
    pub(super) fn follow(&mut self, event: &Event, host: &Host) {
        let Some((ban, _)) = event.kind.reported_ban() else { return };
        let (target, observation) = (ban.probe.target, &ban.probe.observation);
        // Several backends report the same ban.
        let is_known = self.waiting.iter().any(|sought| (sought.target, sought.since) == (target, event.time));
        if !observation.decoy || target.is_prefix() || is_known {
            return;
        }
        let bridges: Vec<u32> = host.bridges_around(observation.source).collect();
        if !bridges.is_empty() && self.waiting.len() < MAX_PENDING {
            self.waiting.push(Sought { target, since: event.time, source: observation.source, bridges, attempts: 1 });
            self.search();
        }
    }

    /// Starts a search unless one is under way.
    fn search(&mut self) {
        if self.answer.is_some() || self.waiting.is_empty() {
            return;
        }
        let (sent, answer) = oneshot::channel();
        let waiting = std::mem::take(&mut self.waiting);
        self.answer = Some(answer);
        tokio::task::spawn_blocking(move || {
            // Without an answer of the kernel, the bans last until their expiry.
            let Ok(mut socket) = RouteSocket::open() else { return };
            let port_of = |sought: Sought| {
                let port = sought.bridges.iter().find_map(|bridge| socket.bridge_port(*bridge, sought.source).ok()?);
                Some((sought, port?))
            };
            let _ = sent.send(waiting.into_iter().filter_map(port_of).collect());
        });
    }

    /// The bans whose ports have been found since the last call; also records the ports. A port that `host` does not
    /// contain yet is looked for again.
    pub(super) fn take_found(&mut self, host: &Host, recorder: &Recorder) -> Vec<GuestBan> {
        let mut found = Vec::new();
        for (mut sought, index) in take_answer(&mut self.answer).unwrap_or_default() {
            let Some(link) = host.links.iter().find(|link| link.id.index == index) else {
                sought.attempts += 1;
                if sought.attempts <= MAX_ATTEMPTS {
                    self.waiting.push(sought);
                }
                continue;
            };
            let Sought { target, since, .. } = sought;
            recorder.send(LedgerChange::GuestPort { target, since, port: link.id });
            found.push(GuestBan { target, port: link.id });
        }
        self.search();
        found
    }
}
