//! What the engine must say, case by case. Each test is a [`scene::Scene`]: a host, a clock, and packets one by one.

mod addresses;
mod classes;
mod floods;
mod flows;
mod innocents;
mod network;
mod protection;
mod related;
pub(crate) mod scene;
mod settling;
mod standing;
mod strikes;
mod threshold;
mod tracks;
mod wide;
