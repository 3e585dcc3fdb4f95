//! Provides the building blocks of behaviours: arrivals at random times, and scripts of packets at given times.

use std::time::Duration;

use portsentry::types::Timestamp;
use portsentry::wire::Packet;

use crate::chance::Chance;
use crate::world::{Actor, Role, World};

struct Arrivals<F> {
    name: &'static str,
    every: Duration,
    chance: Chance,
    count: u64,
    make: F,
}

impl<F: FnMut(&mut World, Chance)> Actor for Arrivals<F> {
    fn act(&mut self, world: &mut World) -> Option<Timestamp> {
        self.count += 1;
        let chance = world.chance(self.name, self.count);
        (self.make)(world, chance);
        Some(world.now.after(self.chance.after(self.every)))
    }
}

/// Calls `make` for independent events with the average interval `every`, each with a separate generator. For regular
/// events, whose frequency does not depend on the pace.
pub(crate) fn steady(
    world: &mut World,
    name: &'static str,
    every: Duration,
    make: impl FnMut(&mut World, Chance) + 'static,
) {
    if !world.has(name) {
        return;
    }
    let mut chance = world.chance(name, 0);
    let first = world.now.after(chance.after(every));
    world.spawn(Role::Backstage, first, Arrivals { name, every, chance, count: 0, make });
}

/// As [`steady`], but for rare events, whose frequency is multiplied by the pace.
pub(crate) fn rare(
    world: &mut World,
    name: &'static str,
    every: Duration,
    make: impl FnMut(&mut World, Chance) + 'static,
) {
    let every = every / world.pace();
    steady(world, name, every, make);
}

/// The packets of a script, in reverse order.
struct Script(Vec<(Timestamp, Packet<'static>)>);

impl Actor for Script {
    fn act(&mut self, world: &mut World) -> Option<Timestamp> {
        let (_, packet) = self.0.pop()?;
        world.receive(packet);
        self.0.last().map(|(at, _)| *at)
    }
}

/// Sends packets after these delays, regardless of the replies.
pub(crate) fn script(world: &mut World, role: Role, packets: impl IntoIterator<Item = (Duration, Packet<'static>)>) {
    let mut packets: Vec<_> = packets.into_iter().map(|(after, packet)| (world.now.after(after), packet)).collect();
    packets.reverse();
    packets.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    if let Some((first, _)) = packets.last() {
        world.spawn(role, *first, Script(packets));
    }
}
