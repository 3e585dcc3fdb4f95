//! From packets and connections to verdicts that are carried out: the engine, the socket that blocks, and the events of
//! both in the order in which things happened. Waits for nobody but the kernel's acknowledgement.

mod heal;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::BATCH;
use crate::capture::decoy::DecoyPorts;
use crate::enforce::nft::{BlockError, Nft, RulesetSpec};
use crate::engine::subject::{Expiry, Subject};
use crate::engine::{Ban, Engine, Host, Moment, PortOracle, Probe, Protocol, Repeated, Sighting, Verdict};
use crate::netlink::sock_diag::{self, Owner, SockDiag};
use crate::report::event::{Event, What};
use crate::report::queue::Sender;
use crate::wire::{Delivery, Packet, TcpFlags, Transport};
use heal::Heals;

/// What came of one packet, until the bans of its batch are in the kernel.
enum Outcome {
    Said(Event),
    /// To be blocked; seen at this time.
    Condemned(Ban, SystemTime),
}

impl Outcome {
    /// True for the ban of `subject` and the probe that it is for.
    fn is_about(&self, subject: Subject) -> bool {
        match self {
            Self::Condemned(ban, _) => ban.probe.subject == subject,
            Self::Said(event) => matches!(&event.what, What::Probe(probe) if probe.subject == subject),
        }
    }
}

/// Whose ban is not to be: `packet` is this host's SYN/ACK from a port that the ban's evidence calls closed. A listener
/// that lives for milliseconds, and a port that is published by DNAT, are in no socket table when it is asked.
fn pardoned(outcomes: &[Outcome], packet: &Packet) -> Option<Subject> {
    let Transport::Tcp { source_port, flags, .. } = packet.transport else { return None };
    if outcomes.is_empty() || packet.delivery != Delivery::Outgoing || !flags.has(TcpFlags::SYN | TcpFlags::ACK) {
        return None;
    }
    let subject = Subject::of(packet.destination);
    let wrong = |ban: &Ban| {
        let mut evidence = ban.ports.iter();
        // What no stack sends is a probe whatever listens there.
        ban.probe.subject == subject
            && evidence.clone().all(|(_, _, class)| !class.is_conclusive())
            && evidence.any(|(protocol, port, _)| (protocol, port) == (Protocol::Tcp, source_port))
    };
    outcomes.iter().any(|outcome| matches!(outcome, Outcome::Condemned(ban, _) if wrong(ban))).then_some(subject)
}

/// The engine and what carries out its verdicts.
pub(super) struct Judge {
    pub(super) engine: Engine,
    host: Arc<Host>,
    truth: Truth,
    /// `None` where nothing is blocked.
    nft: Option<(Nft, RulesetSpec)>,
    events: Sender,
    outcomes: Vec<Outcome>,
    elements: Vec<(Subject, Expiry)>,
    heals: Heals,
}

impl Judge {
    pub(super) fn new(
        engine: Engine,
        host: Arc<Host>,
        sockets: SockDiag,
        decoys: DecoyPorts,
        nft: Option<(Nft, RulesetSpec)>,
        events: Sender,
    ) -> Self {
        let truth = Truth { sockets, decoys };
        // Some outcomes are two: a ban that has gone from the kernel, and the verdict that follows.
        let outcomes = Vec::with_capacity(2 * BATCH);
        Self {
            engine,
            host,
            truth,
            nft,
            events,
            outcomes,
            elements: Vec::with_capacity(BATCH),
            heals: Heals::default(),
        }
    }

    pub(super) fn say(&self, what: What) {
        self.events.send(Event::now(what));
    }

    /// The host is another from now on.
    pub(super) fn change_host(&mut self, now: Moment, host: Arc<Host>) {
        self.engine.host_changed(now, &self.host, &host);
        self.host = host;
        self.protect();
    }

    /// Judges a packet that was captured at `time`. What comes of it waits for [`Judge::settle`].
    pub(super) fn packet(&mut self, now: Moment, packet: &Packet, time: SystemTime) {
        if let Some(subject) = pardoned(&self.outcomes, packet) {
            self.outcomes.retain(|outcome| !outcome.is_about(subject));
            self.engine.lift(subject);
        }
        let mut verdict = self.engine.observe(now, packet, &self.host, &mut self.truth);
        if self.has_escaped(&verdict, time) {
            verdict = self.engine.observe(now, packet, &self.host, &mut self.truth);
        }
        self.note(verdict, time);
    }

    /// Judges what a decoy took at `time`, likewise.
    pub(super) fn decoy(&mut self, now: Moment, sighting: Sighting, time: SystemTime) {
        let mut verdict = self.engine.observe_decoy(now, sighting, &self.host, &mut self.truth);
        if self.has_escaped(&verdict, time) {
            verdict = self.engine.observe_decoy(now, sighting, &self.host, &mut self.truth);
        }
        self.note(verdict, time);
    }

    /// True where somebody took a ban out of the kernel's set: what the log says must be what the kernel does. The source
    /// is then to be judged anew.
    fn has_escaped(&mut self, verdict: &Verdict, time: SystemTime) -> bool {
        let Verdict::Repeated(Repeated { subject, verify: true, .. }) = *verdict else { return false };
        let Some((nft, _)) = &mut self.nft else { return false };
        match nft.holds(subject) {
            Ok(None) => {}
            Err(BlockError::Gone) => {
                self.heal_now();
                return false;
            }
            // Nothing is known, so what was said stands.
            Ok(Some(_)) | Err(_) => return false,
        }
        self.engine.lift(subject);
        self.outcomes.push(Outcome::Said(Event { time, what: What::Lifted { subject } }));
        true
    }

    fn note(&mut self, verdict: Verdict, time: SystemTime) {
        let what = match verdict {
            Verdict::Block(ban) => {
                // What it did comes before what is done about it, as people's filters have always read it. It is a line
                // also where the port is an old one, and only the class was enough.
                let probe = Probe { fresh: true, ..ban.probe };
                self.outcomes.push(Outcome::Said(Event { time, what: What::Probe(probe) }));
                return self.outcomes.push(Outcome::Condemned(ban, time));
            }
            Verdict::Scan(ban) => What::Scan(ban),
            Verdict::Probe(probe) if probe.fresh => What::Probe(probe),
            Verdict::Spared(spared) => match spared.report {
                Some(probes) => What::Spared { spared, probes },
                None => return,
            },
            Verdict::Repeated(Repeated { subject, standing, report: Some(packets), .. }) => {
                What::Repeated { subject, standing, packets }
            }
            Verdict::Probe(_) | Verdict::Repeated(_) | Verdict::Innocent(_) => return,
        };
        self.outcomes.push(Outcome::Said(Event { time, what }));
    }

    /// Sends the bans of the batch to the kernel, in one transaction where possible, and tells what happened in the order
    /// in which it did.
    pub(super) fn settle(&mut self) {
        if self.outcomes.is_empty() {
            return;
        }
        let failed = self.block();
        let done = SystemTime::now();
        for outcome in self.outcomes.drain(..) {
            let (ban, seen) = match outcome {
                Outcome::Said(event) => {
                    self.events.send(event);
                    continue;
                }
                Outcome::Condemned(ban, seen) => (ban, seen),
            };
            let subject = ban.probe.subject;
            let what = match failed.iter().find(|(who, _)| *who == subject) {
                None => What::Blocked { ban, reaction: done.duration_since(seen).unwrap_or_default() },
                Some((_, reason)) => {
                    // Not blocked, so not recognised as such: its next probes are evidence again, and it is tried again.
                    self.engine.lift(subject);
                    What::BlockFailed { subject, reason: reason.clone() }
                }
            };
            self.events.send(Event { time: seen, what });
        }
    }

    /// Blocks whom the batch condemned; who could not be blocked, and why.
    fn block(&mut self) -> Vec<(Subject, String)> {
        self.elements.clear();
        self.elements.extend(self.outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::Condemned(ban, _) => Some((ban.probe.subject, ban.expiry)),
            Outcome::Said(_) => None,
        }));
        if self.elements.is_empty() {
            return Vec::new();
        }
        let mut result = self.send_elements();
        if matches!(result, Err(BlockError::Gone)) {
            self.heal_now();
            result = self.send_elements();
        }
        match result {
            Ok(()) => Vec::new(),
            Err(BlockError::Failed { failed, .. }) => {
                failed.into_iter().map(|item| (item.subject, item.reason.to_string())).collect()
            }
            Err(error) => {
                let reason = error.to_string();
                self.elements.iter().map(|(subject, _)| (*subject, reason.clone())).collect()
            }
        }
    }

    fn send_elements(&mut self) -> Result<(), BlockError> {
        match &mut self.nft {
            Some((nft, _)) => nft.block(&self.elements),
            None => Ok(()),
        }
    }

    /// Brings the kernel's allow-list up to date.
    pub(super) fn protect(&mut self) {
        let Some((nft, _)) = &mut self.nft else { return };
        let prefixes: Vec<_> = self.host.allow.prefixes().collect();
        match nft.protect(&prefixes) {
            Ok(()) => {}
            Err(BlockError::Gone) => self.heal_now(),
            Err(error) => self.say(What::Error(format!("the kernel's allow-list could not be set: {error}"))),
        }
    }

    /// Blocks those whom the kernel has forgotten, for the time that they have left.
    pub(super) fn restore(&mut self, now: Moment, bans: &[(Subject, Expiry)]) {
        let Some((nft, _)) = &mut self.nft else { return };
        match nft.block(bans) {
            Ok(()) => {
                bans.iter().for_each(|(subject, expiry)| self.engine.adopt(now, *subject, *expiry));
                self.say(What::Restored { bans: bans.len() });
            }
            Err(error) => self.say(What::Error(format!("bans could not be put back from the ledger: {error}"))),
        }
    }
}

/// The kernel's socket table as the engine's oracle.
struct Truth {
    sockets: SockDiag,
    /// Sockets of our own, which are no service.
    decoys: DecoyPorts,
}

impl PortOracle for Truth {
    fn in_use(&mut self, protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> bool {
        if self.decoys.contains(protocol, destination.port()) {
            return false;
        }
        let protocol = match protocol {
            Protocol::Tcp => sock_diag::Protocol::Tcp,
            Protocol::Udp => sock_diag::Protocol::Udp,
            Protocol::Sctp | Protocol::Icmp => return false,
        };
        // No answer proves nothing, and the evidence stands: the snapshot of the listeners has been asked before.
        self.sockets.owner(protocol, source, destination, 0).is_ok_and(|owner| owner != Owner::Nobody)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::{HashKey, Local, NoOracle, Settings, Watch};

    const HERE: [u8; 4] = [192, 0, 2, 1];
    const THERE: [u8; 4] = [198, 51, 100, 7];

    fn packet(outgoing: bool, flags: u16, port: u16) -> Packet {
        let (source, destination) = if outgoing { (HERE, THERE) } else { (THERE, HERE) };
        let (source_port, destination_port) = if outgoing { (port, 40_000) } else { (40_000, port) };
        Packet {
            source: source.into(),
            destination: destination.into(),
            delivery: if outgoing { Delivery::Outgoing } else { Delivery::Host },
            interface: 2,
            fragmented: false,
            transport: Transport::Tcp { source_port, destination_port, flags: TcpFlags(flags), payload: 0 },
        }
    }

    /// What comes of one packet where the first touch blocks.
    fn condemned(flags: u16) -> Vec<Outcome> {
        let settings = Settings {
            tcp: Watch { ports: "1-1024".parse().unwrap(), block: true },
            udp: Watch::default(),
            sctp: false,
            icmp: false,
            scan_trigger: 0,
            window: Duration::from_secs(60),
            expiry: Expiry::Never,
            max_sources: 1024,
            max_judged: 1024,
            max_new_bans_per_minute: 600,
        };
        let mut engine = Engine::new(settings, HashKey(1, 2));
        let host = Host::new(Local::Addresses([HERE.into()].into()));
        let verdict = engine.observe(Moment::default(), &packet(false, flags, 21), &host, &mut NoOracle);
        let Verdict::Block(ban) = verdict else { panic!("{verdict:?}") };
        vec![Outcome::Condemned(ban, SystemTime::UNIX_EPOCH)]
    }

    #[test]
    fn a_port_that_answers_in_the_same_batch_was_not_closed() {
        let answer = TcpFlags::SYN | TcpFlags::ACK;
        let outcomes = condemned(TcpFlags::SYN);
        assert_eq!(pardoned(&outcomes, &packet(true, answer, 21)), Some(Subject::V4(THERE.into())));
        assert_eq!(pardoned(&outcomes, &packet(true, answer, 22)), None, "another port");
        assert_eq!(pardoned(&outcomes, &packet(true, TcpFlags::RST, 21)), None, "a closed port answers so");
        assert_eq!(pardoned(&outcomes, &packet(false, answer, 21)), None, "anybody can send that");
        assert_eq!(pardoned(&condemned(0), &packet(true, answer, 21)), None, "a NULL probe stays one");
    }
}
