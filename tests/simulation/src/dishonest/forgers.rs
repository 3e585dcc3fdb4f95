//! Simulates forgers, which send SYNs with the address of an honest source to get it banned.

use std::net::{IpAddr, SocketAddr};

use portsentry::types::Timestamp;
use portsentry::wire::TcpFlags;

use crate::actors::{rare, script};
use crate::chance::{Chance, days, seconds};
use crate::world::{Actor, Role, World};

const FORGER: Role = Role::Dishonest("forger with a victim of choice");

/// Probes two ports, which are forgiven, and makes the kernel put the victim on hold as often as the rules permit.
const HOLDER: Role = Role::Dishonest("forger that holds a victim, two ports");

pub(super) fn populate(world: &mut World) {
    rare(world, "forger", days(10), |world, mut chance| {
        if let Some(victim) = world.some_honest_address(&mut chance) {
            world.spawn(FORGER, world.now, Forger { victim, chance, left: 8 });
        }
    });
    rare(world, "holder", days(10), |world, mut chance| {
        if let Some(victim) = world.some_honest_address(&mut chance) {
            let packets: Vec<_> = (0..360_u32)
                .flat_map(|n| {
                    let probe = |port| world.tcp_packet(SocketAddr::new(victim, 40_000), port, TcpFlags::SYN);
                    [(seconds(10) * n, probe(23)), (seconds(10) * n + seconds(5), probe(3_389))]
                })
                .collect();
            script(world, HOLDER, packets);
        }
    });
}

struct Forger {
    victim: IpAddr,
    chance: Chance,
    left: u32,
}

impl Actor for Forger {
    fn act(&mut self, world: &mut World) -> Option<Timestamp> {
        let source = SocketAddr::new(self.victim, self.chance.client_port());
        // The reply goes to the victim.
        let port = 1 + u16::try_from(self.chance.below(1_023)).unwrap_or(0);
        world.syn(source, port);
        self.left -= 1;
        (self.left > 0).then(|| world.now.after(seconds(1)))
    }
}
