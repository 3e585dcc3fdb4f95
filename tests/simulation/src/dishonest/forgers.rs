//! Forgers: SYNs in the name of an honest source, so that the program bans it.

use std::net::{IpAddr, SocketAddr};

use portsentry::types::Timestamp;

use crate::actors::rare;
use crate::chance::{Chance, days, seconds};
use crate::world::{Actor, Role, World};

const FORGER: Role = Role::Dishonest("forger with a victim of choice");

pub(super) fn populate(world: &mut World) {
    rare(world, "forger", days(10), |world, mut chance| {
        if let Some(victim) = world.some_honest_address(&mut chance) {
            world.spawn(FORGER, world.now, Forger { victim, chance, left: 8 });
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
        // The answer goes to the victim.
        let port = 1 + u16::try_from(self.chance.below(1_023)).unwrap_or(0);
        world.syn(source, port);
        self.left -= 1;
        (self.left > 0).then(|| world.now.after(seconds(1)))
    }
}
