//! From packets and connections to verdicts that are carried out: the engine, the socket that blocks, and the events of
//! both in the order in which things happened. Waits for nobody but the kernel's acknowledgement.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::blocker::{Blocker, Refused};
use super::retries::{Retries, Retry};
use super::table_repair::TableRepair;
use super::trap::Trap;
use super::{BATCH, SensorMetrics};
use crate::capture::decoy::DecoyPorts;
use crate::enforce::nft::BlockError;
use crate::engine::{Ban, Engine, Host, Observation, PortLookup, Probe, Repeated, Verdict};
use crate::events::channel::Sender;
use crate::events::event::{Event, EventKind};
use crate::netlink::sock_diag::{self, Owner, SockDiag};
use crate::types::{Backend, BanTarget, Expiry, Protocol, Timestamp};
use crate::wire::{Delivery, Packet, TcpFlags, Transport};

/// Bans that wait for a command at one time; above it they do not wait.
const MAX_PENDING: usize = 4_096;

/// What came of one packet, until the bans of its batch are in the kernel.
enum Outcome {
    Said(Event),
    /// To be blocked; seen at this time.
    Condemned(Ban, SystemTime),
}

impl Outcome {
    /// True for the ban of `subject` and the probe that it is for.
    fn is_about(&self, subject: BanTarget) -> bool {
        match self {
            Self::Condemned(ban, _) => ban.probe.subject == subject,
            Self::Said(event) => matches!(&event.what, EventKind::Probe(probe) if probe.subject == subject),
        }
    }
}

/// Whose ban is not to be: `packet` is this host's SYN/ACK from a port that the ban's evidence calls closed. A listener
/// that lives for milliseconds, and a port that is published by DNAT, are in no socket table when it is asked.
fn cleared_by_answer(outcomes: &[Outcome], packet: &Packet) -> Option<BanTarget> {
    let Transport::Tcp { source_port, flags, .. } = packet.transport else { return None };
    if outcomes.is_empty() || packet.delivery != Delivery::Outgoing || !flags.has(TcpFlags::SYN | TcpFlags::ACK) {
        return None;
    }
    let wrong = |ban: &Ban| {
        let mut evidence = ban.ports.iter();
        // What no stack sends is a probe whatever listens there.
        ban.probe.subject.covers(packet.destination)
            && evidence.clone().all(|(_, _, class)| !class.is_conclusive())
            && evidence.any(|(protocol, port, _)| (protocol, port) == (Protocol::Tcp, source_port))
    };
    outcomes.iter().find_map(|outcome| match outcome {
        Outcome::Condemned(ban, _) if wrong(ban) => Some(ban.probe.subject),
        _ => None,
    })
}

/// The engine and what carries out its verdicts.
pub(super) struct BanController {
    pub(super) engine: Engine,
    pub(super) host: Arc<Host>,
    lookup: SocketLookup,
    pub(super) blocker: Blocker,
    events: Sender,
    /// There are events that the shell was not woken for.
    pending: Cell<bool>,
    pub(super) metrics: Arc<SensorMetrics>,
    outcomes: Vec<Outcome>,
    elements: Vec<(BanTarget, Expiry)>,
    /// Bans that wait for the end of a command that comes first: the engine has them already, the kernel must not.
    pub(super) waiting: HashMap<BanTarget, (Ban, SystemTime)>,
    pub(super) retries: Retries,
    /// When to look for bans whose subjects are protected; `None` while there are none.
    pub(super) lift_protected_at: Option<Timestamp>,
    pub(super) table_repair: TableRepair,
    pub(super) trap: Trap,
}

impl BanController {
    pub(super) fn new(
        engine: Engine,
        host: Arc<Host>,
        sockets: SockDiag,
        decoys: DecoyPorts,
        blocker: Blocker,
        events: Sender,
        metrics: Arc<SensorMetrics>,
    ) -> Self {
        Self {
            engine,
            host,
            lookup: SocketLookup { sockets, decoys },
            blocker,
            events,
            pending: Cell::new(false),
            metrics,
            // Some outcomes are two: a ban that has gone from the kernel, and the verdict that follows.
            outcomes: Vec::with_capacity(2 * BATCH),
            elements: Vec::with_capacity(BATCH),
            waiting: HashMap::new(),
            retries: Retries::default(),
            lift_protected_at: None,
            table_repair: TableRepair::default(),
            trap: Trap::default(),
        }
    }

    pub(super) fn emit(&self, what: EventKind) {
        self.emit_event(Event::now(what));
    }

    /// Puts `event` into the queue. The shell is woken for it by [`BanController::wake_shell`].
    pub(super) fn emit_event(&self, event: Event) {
        self.events.put(event);
        self.pending.set(true);
    }

    /// True where the shell should be woken.
    pub(super) fn has_pending(&self) -> bool {
        self.pending.get()
    }

    /// Wakes the shell, if there is a reason to.
    pub(super) fn wake_shell(&self) {
        if self.pending.take() {
            self.events.wake();
        }
    }

    /// Judges a packet that was captured at `time`. What comes of it waits for [`BanController::commit`].
    pub(super) fn packet(&mut self, now: Timestamp, packet: &Packet, time: SystemTime) {
        if let Some(subject) = cleared_by_answer(&self.outcomes, packet) {
            self.outcomes.retain(|outcome| !outcome.is_about(subject));
            self.engine.lift(subject);
        }
        let mut verdict = self.engine.observe(now, packet, &self.host, &mut self.lookup);
        if self.ban_vanished(&verdict, time) {
            verdict = self.engine.observe(now, packet, &self.host, &mut self.lookup);
        }
        self.record_verdict(verdict, time);
    }

    /// Judges what a decoy took at `time`, likewise.
    pub(super) fn decoy(&mut self, now: Timestamp, sighting: Observation, time: SystemTime) {
        let mut verdict = self.engine.observe_decoy(now, sighting, &self.host, &mut self.lookup);
        if self.ban_vanished(&verdict, time) {
            verdict = self.engine.observe_decoy(now, sighting, &self.host, &mut self.lookup);
        }
        self.record_verdict(verdict, time);
    }

    /// True where somebody took a ban out of the kernel's set: what the log says must be what the kernel does. The source
    /// is then to be judged anew.
    fn ban_vanished(&mut self, verdict: &Verdict, time: SystemTime) -> bool {
        let Verdict::Repeated(Repeated { subject, verify: true, .. }) = *verdict else { return false };
        let Some((nft, _)) = &mut self.blocker.nft else { return false };
        match nft.holds(subject) {
            Ok(None) => {}
            Err(BlockError::Gone) => {
                self.reinstall_now();
                return false;
            }
            // Nothing is known, so what was said stands.
            Ok(Some(_)) | Err(_) => return false,
        }
        self.engine.lift(subject);
        self.forget_touches(&[subject]);
        self.outcomes.push(Outcome::Said(Event { time, what: EventKind::Lifted { subject } }));
        true
    }

    fn record_verdict(&mut self, verdict: Verdict, time: SystemTime) {
        if let Verdict::Probe(probe) | Verdict::Block(Ban { probe, .. }) | Verdict::LogOnly(Ban { probe, .. }) =
            &verdict
        {
            self.metrics.probed(probe.sighting.class);
        }
        match verdict {
            Verdict::Block(ban) => {
                // What it did comes before what is done about it, as people's filters have always read it. It is a line
                // also where the port is an old one, and only the class was enough.
                let probe = Probe { fresh: true, ..ban.probe };
                self.outcomes.push(Outcome::Said(Event { time, what: EventKind::Probe(probe) }));
                if self.waiting.len() < MAX_PENDING && self.blocker.run_first(&ban, time) {
                    self.waiting.insert(ban.probe.subject, (ban, time));
                    return;
                }
                return self.outcomes.push(Outcome::Condemned(ban, time));
            }
            Verdict::LogOnly(ban)
                if self.blocker.tells(ban.probe.sighting.protocol) && !self.blocker.only_run(&ban, time) =>
            {
                let (subject, way) = (ban.probe.subject, Backend::Command);
                let reason = "more commands than can be run wait already".to_owned();
                self.outcomes
                    .push(Outcome::Said(Event { time, what: EventKind::BlockFailed { subject, reason, way } }));
            }
            _ => {}
        }
        self.outcomes.extend(EventKind::from_verdict(verdict).map(|what| Outcome::Said(Event { time, what })));
    }

    /// Has the bans of the batch carried out, each way in one go where possible, and tells what happened in the order in
    /// which it did.
    pub(super) fn commit(&mut self, now: Timestamp) {
        if self.outcomes.is_empty() {
            return;
        }
        let refused = self.block(now);
        let done = SystemTime::now();
        let mut outcomes = std::mem::take(&mut self.outcomes);
        for outcome in outcomes.drain(..) {
            match outcome {
                Outcome::Said(event) => self.emit_event(event),
                Outcome::Condemned(ban, seen) => self.conclude(now, &ban, (seen, done), &refused),
            }
        }
        // The room is used again.
        self.outcomes = outcomes;
    }

    /// Tells how `ban` fared in every way, hands it over to those that take their time, and has tried again what failed.
    fn conclude(&mut self, now: Timestamp, ban: &Ban, (seen, done): (SystemTime, SystemTime), refused: &[Refused]) {
        let subject = ban.probe.subject;
        let mut held = false;
        for place in 0.. {
            let way = match self.blocker.inline(place) {
                None => break,
                Some(None) => continue,
                Some(Some(way)) => way,
            };
            let what = match refused.iter().find(|refused| (refused.way, refused.subject) == (way, subject)) {
                None => {
                    held = true;
                    let reaction = done.duration_since(seen).unwrap_or_default();
                    self.metrics.reacted(reaction);
                    self.metrics.blocked(way, ban.probe.sighting.class);
                    EventKind::Blocked { ban: *ban, reaction, way }
                }
                Some(Refused { reason, .. }) => {
                    self.metrics.failed(way);
                    self.retries.put(Retry::new(*ban, seen, way, now));
                    EventKind::BlockFailed { subject, reason: reason.clone(), way }
                }
            };
            self.emit_event(Event { time: seen, what });
        }
        if held {
            self.replace(subject);
        }
        let handed = self.blocker.hand_over(ban, seen);
        if !handed && self.blocker.has_slow_ways() {
            let reason = "more bans than can be written or run wait already".to_owned();
            self.emit_event(Event {
                time: seen,
                what: EventKind::BlockFailed { subject, reason, way: Backend::Command },
            });
        }
        if !(held || handed && self.blocker.has_slow_ways()) {
            // Not blocked, so not recognised as such: its next probes are evidence again.
            self.engine.lift(subject);
        }
    }

    /// Blocks whom the batch condemned, in the ways that take no time; who could not be blocked, and why.
    fn block(&mut self, now: Timestamp) -> Vec<Refused> {
        self.elements.clear();
        self.elements.extend(self.outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::Condemned(ban, _) => Some((ban.probe.subject, ban.expiry)),
            Outcome::Said(_) => None,
        }));
        if self.elements.is_empty() {
            return Vec::new();
        }
        let bans = std::mem::take(&mut self.elements);
        let refused = self.apply(now, &bans);
        self.elements = bans;
        refused
    }

    /// Blocks them in every way that takes no time, in their order; who could not be blocked, and why.
    pub(super) fn apply(&mut self, now: Timestamp, bans: &[(BanTarget, Expiry)]) -> Vec<Refused> {
        let mut refused = Vec::new();
        for place in 0.. {
            match self.blocker.inline(place) {
                None => break,
                Some(Some(way)) => self.block_by(way, now, bans, &mut refused),
                Some(None) => {}
            }
        }
        refused
    }

    /// Blocks them in one way.
    pub(super) fn block_by(
        &mut self,
        way: Backend,
        now: Timestamp,
        bans: &[(BanTarget, Expiry)],
        refused: &mut Vec<Refused>,
    ) {
        if way == Backend::Route {
            return self.blocker.block_by_route(bans, now, refused);
        }
        self.ensure_prefix_sets(bans.iter().map(|(subject, _)| *subject));
        let send = |judge: &mut Self| judge.blocker.nft.as_mut().map_or(Ok(()), |(nft, _)| nft.block(bans));
        let mut result = send(self);
        if matches!(result, Err(BlockError::Gone)) {
            self.reinstall_now();
            result = send(self);
        }
        match result {
            Ok(()) => {}
            Err(BlockError::Failed { failed, .. }) => refused.extend(failed.into_iter().map(|failed| Refused {
                way,
                subject: failed.subject,
                reason: failed.reason.to_string(),
            })),
            Err(error) => {
                let reason = error.to_string();
                let all = bans.iter().map(|(subject, _)| Refused { way, subject: *subject, reason: reason.clone() });
                refused.extend(all);
            }
        }
    }

    /// The command that was to be run before the block of `subject` has ended: block it now.
    pub(super) fn ready(&mut self, now: Timestamp, subject: BanTarget) {
        if let Some((ban, seen)) = self.waiting.remove(&subject) {
            self.outcomes.push(Outcome::Condemned(ban, seen));
            self.commit(now);
        }
    }
}

/// The kernel's socket table as the engine's oracle.
struct SocketLookup {
    sockets: SockDiag,
    /// Sockets of our own, which are no service.
    decoys: DecoyPorts,
}

impl PortLookup for SocketLookup {
    fn in_use(&mut self, protocol: Protocol, source: SocketAddr, destination: SocketAddr, interface: u32) -> bool {
        if self.decoys.contains(protocol, destination.port()) {
            return false;
        }
        let protocol = match protocol {
            Protocol::Tcp => sock_diag::Protocol::Tcp,
            Protocol::Udp => sock_diag::Protocol::Udp,
            Protocol::Sctp | Protocol::Icmp => return false,
        };
        // No answer proves nothing, and the evidence stands: the snapshot of the listeners has been asked before.
        self.sockets.owner(protocol, source, destination, interface).is_ok_and(|owner| owner != Owner::Nobody)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::{Escalation, HashKey, Local, MaxPrefix, NoLookup, Response, Settings, Watch};

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
            tcp: Watch { ports: "1-1024".parse().unwrap(), response: Response::Block },
            udp: Watch::default(),
            sctp: false,
            icmp: false,
            scan_trigger: 0,
            window: Duration::from_secs(60),
            expiry: Expiry::Never,
            escalate: Escalation::default(),
            widest: MaxPrefix::default(),
            max_sources: 1024,
            max_judged: 1024,
            max_new_bans_per_minute: 600,
        };
        let mut engine = Engine::new(settings, HashKey(1, 2));
        let host = Host::new(Local::Addresses([HERE.into()].into()));
        let verdict = engine.observe(Timestamp::default(), &packet(false, flags, 21), &host, &mut NoLookup);
        let Verdict::Block(ban) = verdict else { panic!("{verdict:?}") };
        vec![Outcome::Condemned(ban, SystemTime::UNIX_EPOCH)]
    }

    #[test]
    fn a_port_that_answers_in_the_same_batch_was_not_closed() {
        let answer = TcpFlags::SYN | TcpFlags::ACK;
        let outcomes = condemned(TcpFlags::SYN);
        assert_eq!(cleared_by_answer(&outcomes, &packet(true, answer, 21)), Some(BanTarget::V4(THERE.into())));
        assert_eq!(cleared_by_answer(&outcomes, &packet(true, answer, 22)), None, "another port");
        assert_eq!(cleared_by_answer(&outcomes, &packet(true, TcpFlags::RST, 21)), None, "a closed port answers so");
        assert_eq!(cleared_by_answer(&outcomes, &packet(false, answer, 21)), None, "anybody can send that");
        assert_eq!(cleared_by_answer(&condemned(0), &packet(true, answer, 21)), None, "a NULL probe stays one");
    }
}
