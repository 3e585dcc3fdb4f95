//! Tests of the engine. Each test is a [`scene::Scene`]: a host, a clock, and one packet after another.

mod addresses;
mod classes;
mod floods;
mod flows;
mod innocents;
mod log_only;
mod network;
mod protection;
mod related;
pub(crate) mod scene;
mod settling;
mod standing;
mod strikes;
mod threshold;
mod wide;
