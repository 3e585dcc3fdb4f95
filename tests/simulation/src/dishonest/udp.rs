//! Simulates UDP scans of nmap (`-sU`): popular ports first, as fast as the network permits or slowly.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portsentry::types::Timestamp;

use crate::actors::rare;
use crate::chance::{Chance, days, seconds};
use crate::host::Reply;
use crate::world::{Actor, Role, World};

/// The UDP ports that nmap probes first.
const POPULAR: [u16; 60] = [
    631, 161, 137, 123, 138, 1_434, 445, 135, 67, 53, 139, 500, 68, 520, 1_900, 4_500, 514, 49_152, 162, 69, 5_353,
    111, 49_154, 1_701, 998, 996, 997, 999, 3_283, 49_153, 1_812, 136, 2_222, 2_049, 32_768, 5_060, 1_025, 1_433,
    3_456, 80, 20_031, 1_026, 7, 1_646, 1_645, 593, 518, 2_048, 626, 1_027, 177, 1_719, 427, 497, 4_444, 1_023, 65_024,
    19, 9, 49_193,
];

/// The kinds of scans: their name, and the time between two probes. nmap waits for replies, of which Linux sends one a
/// second at most (net.ipv4.icmp_ratelimit), unless it gives up early.
const KINDS: [(&str, Duration); 3] =
    [("nmap -sU --max-retries 0", Duration::from_millis(2)), ("nmap -sU", seconds(1)), ("nmap -sU -T1", seconds(15))];

pub(super) fn populate(world: &mut World) {
    for (name, gap) in KINDS {
        rare(world, name, days(20), move |world, mut chance| {
            let role = Role::Dishonest(name);
            let (v4, v6) = world.new_addresses(role);
            let source = if chance.is(0.2) { IpAddr::from(v6) } else { v4.into() };
            let mut ports = POPULAR.to_vec();
            chance.shuffle(&mut ports[..20]);
            ports.reverse();
            world.spawn(role, world.now, Scan { source, gap, ports, chance, repeats: false });
        });
    }
}

struct Scan {
    source: IpAddr,
    gap: Duration,
    /// The remaining ports, in reverse order.
    ports: Vec<u16>,
    chance: Chance,
    /// True if the next datagram repeats one without a reply.
    repeats: bool,
}

impl Actor for Scan {
    fn act(&mut self, world: &mut World) -> Option<Timestamp> {
        let port = *self.ports.last()?;
        let source = SocketAddr::new(self.source, self.chance.client_port());
        let is_silent = world.udp(source, port) == Reply::Silence;
        // A port without a reply is probed once more.
        self.repeats = is_silent && !self.repeats;
        if !self.repeats {
            self.ports.pop();
        }
        (!self.ports.is_empty()).then(|| world.now.after(self.gap))
    }
}
