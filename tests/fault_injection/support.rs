//! Provides helpers for the fault tests: stopping the program, the ports of its trap, and the operator's commands.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use portsentry::ledger::Reader;
use rustix::process::Pid;

use netns_lab::daemon::Daemon;
use netns_lab::raw::{SYN, Wire, tcp};
use netns_lab::{Lab, eventually};

/// Timeout of a client without an answer.
pub(crate) const SHORTLY: Duration = Duration::from_millis(400);

/// Closed ports; more than are forgiven.
pub(crate) const CLOSED: [u16; 4] = [901, 902, 903, 904];

/// Starts the program with bans of a day, and waits until the kernel's trap is armed.
pub(crate) fn start(lab: &Lab, settings: &str) -> Daemon {
    let daemon = Daemon::start_configured(lab, settings, &["--expire", "24h"]);
    eventually("the trap is armed", || lab.ports("trapped").contains(&901));
    daemon
}

/// The process id, for signals and limits.
pub(crate) fn process(daemon: &Daemon) -> Pid {
    i32::try_from(daemon.id()).ok().and_then(Pid::from_raw).unwrap()
}

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
