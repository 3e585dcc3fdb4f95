//! Honest behaviour, from what the field reports: none of these sources may be banned.

mod clients;
mod late;
mod operations;

use crate::world::World;

pub(crate) fn populate(world: &mut World) {
    operations::populate(world);
    clients::populate(world);
    late::populate(world);
}
