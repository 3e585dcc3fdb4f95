//! Provides helpers for the fault tests: scans, and the bans in the ledger.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use portsentry::ledger::Reader;

use netns_lab::Lab;
use netns_lab::raw::{SYN, Wire, tcp};

/// Timeout of a client without an answer.
pub(crate) const SHORTLY: Duration = Duration::from_millis(400);

/// Closed ports; more than are forgiven.
pub(crate) const CLOSED: [u16; 4] = [901, 902, 903, 904];

/// A host probes more closed ports than are forgiven, each once.
pub(crate) fn scan(lab: &Lab, host: &str) -> IpAddr {
    let source = lab.v4(host).into();
    lab.probe(host, source, lab.victim_v4(host).into(), &CLOSED);
    source
}

/// The sources that the ledger lists as banned now, sorted.
pub(crate) fn recorded(lab: &Lab) -> Vec<IpAddr> {
    // Read-only and without waiting for locks, as `portsentry list` does.
    let read = Reader::read(&lab.path("state"), |reader| reader.active(SystemTime::now()));
    let active = read.unwrap().items;
    let mut found: Vec<_> = active.iter().map(|entry| entry.ban.target.element()).collect();
    found.sort();
    found
}

/// Sends SYNs with a forged source to more closed ports than are forgiven.
pub(crate) fn forge(wire: &mut Wire, source: IpAddr, target: IpAddr) {
    CLOSED.iter().for_each(|port| wire.send(&tcp(source, target, *port, SYN)));
}
