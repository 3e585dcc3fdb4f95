//! What the faults share: the program standing still, what its trap watches, and the operator's commands.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Output;
use std::time::{Duration, SystemTime};

use portsentry::ledger::Reader;
use rustix::process::{Pid, Signal};

use crate::lab::daemon::{Daemon, binary};
use crate::lab::raw::{SYN, Wire, tcp};
use crate::lab::{Lab, PATIENCE, within};

/// How long somebody who gets no answer waits for it.
pub(crate) const SHORTLY: Duration = Duration::from_millis(400);

/// Ports that nobody serves; more than are forgiven.
pub(crate) const CLOSED: [u16; 4] = [901, 902, 903, 904];

/// Starts the program for bans of a day, and waits until the kernel's trap watches.
pub(crate) fn start(lab: &Lab, settings: &str) -> Daemon {
    let daemon = Daemon::start_configured(lab, settings, &["--expire", "24h"]);
    eventually("the trap is armed", || trapped(lab).contains(&901));
    daemon
}

/// Waits until it is so.
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    assert!(within(PATIENCE, || so().then_some(())).is_some(), "never: {what}");
}

/// The process id, for signals and limits.
pub(crate) fn process(daemon: &Daemon) -> Pid {
    i32::try_from(daemon.id()).ok().and_then(Pid::from_raw).unwrap()
}

/// Does `work` while the program stands still, as it does under a debugger or in a frozen container.
pub(crate) fn frozen<T>(daemon: &Daemon, work: impl FnOnce() -> T) -> T {
    daemon.signal(Signal::STOP);
    let tasks = format!("/proc/{}/task", daemon.id());
    eventually("each of its threads stands still", || {
        let tasks = std::fs::read_dir(&tasks).unwrap().flatten();
        let states = tasks.map(|task| std::fs::read_to_string(task.path().join("stat")).unwrap_or_default());
        // After the name, which stands in brackets.
        states.into_iter().all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
    });
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    daemon.signal(Signal::CONT);
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The ports that the kernel watches.
pub(crate) fn trapped(lab: &Lab) -> BTreeSet<u16> {
    let text = lab.set_text("trapped");
    let elements = text.split_once("elements = {").map_or("", |(_, elements)| elements.split('}').next().unwrap());
    let ranges = elements.split(',').map(str::trim).filter(|range| !range.is_empty());
    ranges
        .flat_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let port = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text:?} in {elements}"));
            port(first)..=port(last)
        })
        .collect()
}

/// A host touches more closed ports than are forgiven, each once.
pub(crate) fn scan(lab: &Lab, host: &str) -> IpAddr {
    let source = lab.v4(host).into();
    lab.touch(host, source, lab.victim_v4(host).into(), &CLOSED);
    source
}

/// Runs a command of the program in the victim, with the lab's socket: its output, and with which code it ended.
pub(crate) fn operate(lab: &Lab, words: &[&str]) -> Output {
    let mut command = lab.command("victim", binary().to_str().unwrap());
    command.args(words).arg("--socket").arg(lab.path("socket")).output().unwrap()
}

/// The same with `--json`, which must work; the object that it writes.
pub(crate) fn asked(lab: &Lab, words: &[&str]) -> serde_json::Value {
    let said = operate(lab, &[words, &["--json"]].concat());
    assert!(said.status.success(), "{words:?}: {said:?}");
    serde_json::from_slice(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

/// The sources that the ledger says are blocked now, sorted.
pub(crate) fn recorded(lab: &Lab) -> Vec<IpAddr> {
    // As `portsentry list` does: nothing is written, and no lock is waited for.
    let read = Reader::read(&lab.path("state"), |reader| reader.active(SystemTime::now()));
    let active = read.unwrap().items;
    let mut found: Vec<_> = active.iter().map(|entry| entry.ban.subject.element()).collect();
    found.sort();
    found
}

/// SYNs in somebody's name to more closed ports than are forgiven.
pub(crate) fn forge(wire: &mut Wire, source: IpAddr, target: IpAddr) {
    CLOSED.iter().for_each(|port| wire.send(&tcp(source, target, *port, SYN)));
}
