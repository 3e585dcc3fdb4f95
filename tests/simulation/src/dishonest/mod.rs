//! Dishonest behaviour: scanners of every speed, and forgers.

mod forgers;
mod scanners;

use crate::world::World;

pub(crate) fn populate(world: &mut World) {
    scanners::populate(world);
    forgers::populate(world);
}
