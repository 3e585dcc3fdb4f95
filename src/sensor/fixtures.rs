//! Provides fixtures for the sensor's unit tests: a host, a scanner, an observer and a ban.

use super::observer::Observer;
use super::port_lookup::KernelPorts;
use crate::capture::decoy::DecoyPorts;
use crate::engine::tests::scene::builtin;
use crate::engine::{Ban, Engine, HashKey, Host, Local, NoLookup, Settings, Verdict};
use crate::types::Timestamp;
use crate::wire::fixtures::tcp;
use crate::wire::{Delivery, Packet};

pub(super) const HERE: [u8; 4] = [192, 0, 2, 1];
pub(super) const SCANNER: [u8; 4] = [198, 51, 100, 7];

/// A TCP packet between the scanner and `port` of this host.
pub(super) fn packet(outgoing: bool, flags: u16, port: u16) -> Packet<'static> {
    let (source, destination) = if outgoing { (HERE, SCANNER) } else { (SCANNER, HERE) };
    let (source_port, destination_port) = if outgoing { (port, 40_000) } else { (40_000, port) };
    let delivery = if outgoing { Delivery::Outgoing } else { Delivery::Host };
    let segment = tcp(source_port, destination_port, flags);
    Packet { delivery, interface: 2, ..crate::wire::fixtures::packet(source, destination, segment) }
}

pub(super) fn host() -> Host {
    Host::new(Local::own([HERE.into()]))
}

/// An engine that bans on the first probe.
pub(super) fn engine() -> Engine {
    Engine::new(Settings { scan_trigger: 0, ..builtin() }, HashKey(1, 2))
}

/// An observer with [`engine`], without decoys.
pub(super) fn observer(host: Host) -> Observer {
    Observer::new(engine(), host.into(), KernelPorts::open().unwrap().0, DecoyPorts::default())
}

/// The ban of the scanner after one packet with these flags to port 21.
pub(super) fn ban(flags: u16) -> Ban {
    let verdict = engine().observe(Timestamp::default(), &packet(false, flags, 21), &host(), &mut NoLookup);
    let Verdict::Block(ban) = verdict else { panic!("{verdict:?}") };
    ban
}
