//! Simulates honest behaviour, based on reports from practice. None of these sources may be banned.

mod answers;
mod clients;
mod lan;
mod late;
mod media;
pub(crate) mod operations;
mod visitors;

use crate::world::World;

pub(crate) fn populate(world: &mut World) {
    operations::populate(world);
    clients::populate(world);
    late::populate(world);
    visitors::populate(world);
    answers::populate(world);
    media::populate(world);
    lan::populate(world);
}
