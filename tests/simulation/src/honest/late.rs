//! Simulates honest connections over bad networks: late segments, lost SYN/ACKs, and duplicated or reordered segments.

use std::net::SocketAddr;
use std::time::Duration;

use portsentry::types::{Protocol, Timestamp};
use portsentry::wire::TcpFlags;

use crate::actors::steady;
use crate::chance::{Chance, hours, minutes, seconds};
use crate::host::Reply;
use crate::world::{Actor, Role, World};

const LATE: Role = Role::Honest("late and repeated segments");

/// The time between two such connections on one host.
const EVERY: Duration = hours(2);

pub(super) fn populate(world: &mut World) {
    steady(world, "client with a bad path", EVERY, |world, mut chance| {
        let running = world.host.running().filter(|service| service.protocol == Protocol::Tcp);
        let ports: Vec<u16> = running.map(|service| service.port).collect();
        if ports.is_empty() {
            return;
        }
        let (v4, _) = world.new_addresses(LATE);
        let source = SocketAddr::new(v4.into(), chance.client_port());
        let port = chance.pick(&ports);
        world.spawn(LATE, world.now, BadPath { source, port, chance, segments: Vec::new(), began: false });
    });
}

struct BadPath {
    source: SocketAddr,
    port: u16,
    chance: Chance,
    /// Time and flags of the segments in flight, in reverse order.
    segments: Vec<(Timestamp, u16)>,
    began: bool,
}

impl Actor for BadPath {
    fn act(&mut self, world: &mut World) -> Option<Timestamp> {
        if !self.began {
            self.began = true;
            // The SYN/ACK is lost once or twice, so the SYN is retransmitted.
            let syns = 1 + self.chance.below(3);
            for again in 0..syns {
                self.segments.push((world.now.after(seconds((1 << again) - 1)), TcpFlags::SYN));
            }
            let established = world.now.after(seconds(1 << syns));
            for flags in [TcpFlags::ACK, TcpFlags::ACK | TcpFlags::PSH, TcpFlags::ACK | TcpFlags::FIN] {
                // Each segment may arrive twice, late, and after the connection is forgotten.
                for _ in 0..1 + self.chance.below(2) {
                    let late = if self.chance.is(0.2) { minutes(10) } else { seconds(2) };
                    self.segments.push((established.after(self.chance.between(Duration::ZERO, late)), flags));
                }
            }
            self.segments.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        }
        let (_, flags) = self.segments.pop()?;
        if world.tcp(self.source, self.port, flags) == Reply::Reset && flags == TcpFlags::SYN {
            return None;
        }
        self.segments.last().map(|(at, _)| *at)
    }
}
