//! Finds bans of clients of a service that was not known yet: some ports of the evidence belong to services of this
//! host, and the remaining evidence no longer suffices.

use std::time::{Duration, SystemTime};

use tokio::sync::oneshot::Receiver;

use super::optional::take_answer;
use crate::engine::{Class, ServiceMemory};
use crate::ledger::{BanAuthor, BanRecord, Recorder};
use crate::types::{BanTarget, HOUR, Protocol, Timestamp};

/// Maximum age of a ban that a newly served port can refute if its service is not remembered: a boot or an upgrade
/// takes minutes.
const MAX_AGE: Duration = HOUR;

/// Minimum interval between two queries, so that programs that start and stop continuously do not keep the disk busy.
const MIN_INTERVAL: Duration = Duration::from_secs(3);

/// The ports of this host's services.
#[derive(Default)]
pub struct Served {
    pub remembered: ServiceMemory,
    /// Ports on which system programs listen now.
    pub listening: ServiceMemory,
}

/// A query of the ledger, sent when a service is newly remembered, starts to listen, or is served again.
#[derive(Default)]
pub(super) struct UnfoundedBans {
    answer: Option<Receiver<Vec<BanTarget>>>,
    next: Timestamp,
}

impl UnfoundedBans {
    /// True if the last query was answered and is old enough.
    pub(super) fn may_ask(&self, now: Timestamp) -> bool {
        self.answer.is_none() && now >= self.next
    }

    /// Queries the bans that would not have been made if the services of this host had been known, with `forgiven`
    /// ports forgiven.
    pub(super) fn ask(&mut self, recorder: &Recorder, now: Timestamp, served: Served, forgiven: u8) {
        self.next = now.after(MIN_INTERVAL);
        self.answer = Some(recorder.ask(move |ledger| {
            let now = SystemTime::now();
            // If the ledger cannot be read now, the next service change repeats the query.
            let active = ledger.active(now).map(|found| found.items).unwrap_or_default();
            unfounded(active.iter().map(|entry| &entry.ban), &served, forgiven, now)
        }));
    }

    /// The bans to lift, once the ledger has answered.
    pub(super) fn take_answer(&mut self) -> Vec<BanTarget> {
        take_answer(&mut self.answer).unwrap_or_default()
    }
}

/// The bans that would not have been made if these services had been known, with `forgiven` ports forgiven.
pub fn unfounded<'a>(
    bans: impl Iterator<Item = &'a BanRecord>,
    served: &Served,
    forgiven: u8,
    now: SystemTime,
) -> Vec<BanTarget> {
    bans.filter(|ban| is_unfounded(ban, served, forgiven, now)).map(|ban| ban.target).collect()
}

/// True if the remaining evidence is insufficient. Flags that no stack sends and handshakes with decoys need no number
/// of ports, and the evidence of a prefix ban consists of several bans.
fn is_unfounded(ban: &BanRecord, served: &Served, forgiven: u8, now: SystemTime) -> bool {
    let counts = ban.class.is_some_and(|class| !class.is_conclusive() && class != Class::Connect);
    let single = !ban.target.is_prefix();
    let is_young = now.duration_since(ban.since).map_or(true, |age| age <= MAX_AGE);
    let is_service = |(protocol, port): &(Protocol, u16)| {
        let has_port = |services: &ServiceMemory| services.is_remembered_anywhere(*protocol, *port);
        has_port(&served.remembered) || is_young && has_port(&served.listening)
    };
    let left = ban.ports.iter().filter(|port| !is_service(port)).count();
    ban.author == BanAuthor::Detector && counts && single && left < ban.ports.len() && left <= usize::from(forgiven)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Ban, Service};
    use crate::types::Backend;

    fn memory(ports: &[u16]) -> ServiceMemory {
        let service = |port: &u16| Service { protocol: Protocol::Tcp, port: *port, address: [0; 4].into() };
        ports.iter().map(service).collect()
    }

    fn ban(class: Class, ports: &[u16]) -> BanRecord {
        BanRecord {
            class: Some(class),
            ports: ports.iter().map(|port| (Protocol::Tcp, *port)).collect(),
            ..BanRecord::from_ban(&Ban::example(), SystemTime::UNIX_EPOCH, None, Backend::Nft)
        }
    }

    #[test]
    fn ban_needs_more_ports_than_services() {
        let served = Served { remembered: memory(&[80, 443]), ..Served::default() };
        let is_unfounded = |ban: &BanRecord| is_unfounded(ban, &served, 2, SystemTime::now());
        assert!(is_unfounded(&ban(Class::Syn, &[80, 443, 23])));
        assert!(is_unfounded(&ban(Class::Syn, &[80, 23, 25])));
        assert!(!is_unfounded(&ban(Class::Syn, &[80, 23, 25, 26])), "three are left");
        assert!(!is_unfounded(&ban(Class::Syn, &[21, 23, 25])), "no service is among the ports");
        assert!(!is_unfounded(&ban(Class::Syn, &[23])), "banned with another threshold");
        assert!(!is_unfounded(&ban(Class::Xmas, &[80])));
        assert!(!is_unfounded(&ban(Class::Connect, &[80, 443, 23])));
        let operator = BanRecord { author: BanAuthor::Operator, ..ban(Class::Syn, &[80, 443, 23]) };
        assert!(!is_unfounded(&operator), "an operator's ban stays");
    }

    #[test]
    fn new_listener_excuses_for_an_hour() {
        let served = Served { listening: memory(&[80]), ..Served::default() };
        let ban = ban(Class::Syn, &[80, 23, 25]);
        assert!(is_unfounded(&ban, &served, 2, ban.since + MAX_AGE));
        let late = ban.since + MAX_AGE + Duration::from_secs(1);
        assert!(!is_unfounded(&ban, &served, 2, late), "a new service lifts no ban of yesterday");
    }
}
