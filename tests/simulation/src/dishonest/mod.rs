//! Simulates dishonest behaviour: scanners of every speed, alone and together, scanners that know the rules, and
//! forgers.

mod evaders;
mod forgers;
mod many;
pub(crate) mod scanners;
mod udp;

use crate::world::World;

pub(crate) fn populate(world: &mut World) {
    scanners::populate(world);
    udp::populate(world);
    forgers::populate(world);
    many::populate(world);
    evaders::populate(world);
}
