//! What the faults share: the program standing still, what its trap watches, and the operator's commands.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use portsentry::ledger::Reader;
use rustix::process::Pid;

use netns_lab::daemon::Daemon;
use netns_lab::raw::{SYN, Wire, tcp};
use netns_lab::{Lab, eventually};

/// How long somebody who gets no answer waits for it.
pub(crate) const SHORTLY: Duration = Duration::from_millis(400);

/// Ports that nobody serves; more than are forgiven.
pub(crate) const CLOSED: [u16; 4] = [901, 902, 903, 904];

/// Starts the program for bans of a day, and waits until the kernel's trap watches.
pub(crate) fn start(lab: &Lab, settings: &str) -> Daemon {
    let daemon = Daemon::start_configured(lab, settings, &["--expire", "24h"]);
    eventually("the trap is armed", || lab.ports("trapped").contains(&901));
    daemon
}

/// The process id, for signals and limits.
pub(crate) fn process(daemon: &Daemon) -> Pid {
    i32::try_from(daemon.id()).ok().and_then(Pid::from_raw).unwrap()
}

/// A host touches more closed ports than are forgiven, each once.
pub(crate) fn scan(lab: &Lab, host: &str) -> IpAddr {
    let source = lab.v4(host).into();
    lab.touch(host, source, lab.victim_v4(host).into(), &CLOSED);
    source
}

/// The sources that the ledger says are blocked now, sorted.
pub(crate) fn recorded(lab: &Lab) -> Vec<IpAddr> {
    // As `portsentry list` does: nothing is written, and no lock is waited for.
    let read = Reader::read(&lab.path("state"), |reader| reader.active(SystemTime::now()));
    let active = read.unwrap().items;
    let mut found: Vec<_> = active.iter().map(|entry| entry.ban.target.element()).collect();
    found.sort();
    found
}

/// SYNs in somebody's name to more closed ports than are forgiven.
pub(crate) fn forge(wire: &mut Wire, source: IpAddr, target: IpAddr) {
    CLOSED.iter().for_each(|port| wire.send(&tcp(source, target, *port, SYN)));
}
