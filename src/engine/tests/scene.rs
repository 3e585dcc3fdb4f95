//! Provides helpers for the engine tests: a host with two IPv4 addresses and one IPv6 address, the built-in
//! configuration, a clock that moves only on request, and packets in one line.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::config::Config;
use crate::engine::{
    ActiveBan, Ban, Class, Engine, EngineNotice, HashKey, Host, IgnoreReason, Local, Observation, PortLookup, PortUse,
    Protection, ProtocolSettings, Repeated, Service, Settings, Verdict,
};
pub(super) use crate::types::DAY;
use crate::types::{BanTarget, Expiry, PortSet, Protocol, Response, Timestamp, at};
use crate::wire::fixtures::packet;
pub(super) use crate::wire::fixtures::tcp;
use crate::wire::{Delivery, Packet, TcpFlags, Transport};

/// This host.
pub(super) const HERE: &str = "192.0.2.1";
pub(super) const HERE_TOO: &str = "192.0.2.2";
pub(super) const HERE_V6: &str = "2001:db8::1";
/// Remote hosts.
pub(super) const SCANNER: &str = "198.51.100.7";
pub(super) const CLIENT: &str = "203.0.113.20";
pub(super) const SERVER: &str = "203.0.113.53";

/// The source port of packets, where it does not matter.
const FROM: u16 = 40_000;

/// A verdict reduced to its kind and the number or reason that most tests check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gist {
    Ignored(IgnoreReason),
    /// Distinct ports so far.
    Probe(u8),
    Exempt(Protection),
    /// Distinct ports at the ban.
    Block(u8),
    Scan(u8),
    Repeated,
}

impl From<Verdict> for Gist {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Ignored(why) => Self::Ignored(why),
            Verdict::Probe(probe) => Self::Probe(probe.distinct),
            Verdict::Exempt(exempt) => Self::Exempt(exempt.protection),
            Verdict::Block(ban) => Self::Block(ban.probe.distinct),
            Verdict::LogOnly(ban) => Self::Scan(ban.probe.distinct),
            Verdict::Repeated(_) => Self::Repeated,
        }
    }
}

/// The kernel's tables: ports that are in use, even if the snapshot does not contain them.
#[derive(Default)]
pub(super) struct Truth {
    /// Ports with listeners.
    pub(super) in_use: HashSet<(Protocol, u16)>,
    /// The result for a packet to one other port.
    pub(super) flow: Option<((Protocol, u16), PortUse)>,
    pub(super) lookups: u32,
}

impl PortLookup for Truth {
    fn port_use(&mut self, protocol: Protocol, _: SocketAddr, destination: SocketAddr, _: u32) -> PortUse {
        self.lookups += 1;
        let key = (protocol, destination.port());
        match self.flow {
            _ if self.in_use.contains(&key) => PortUse::Open,
            Some((port, found)) if port == key => found,
            _ => PortUse::Closed,
        }
    }
}

pub(super) struct Scene {
    pub(super) engine: Engine,
    pub(super) host: Host,
    pub(super) truth: Truth,
    pub(super) now: Timestamp,
    /// The last verdict in full.
    pub(super) verdict: Verdict,
}

/// The built-in settings, with fewer ports above 1024.
pub(crate) fn builtin() -> Settings {
    let watch = |ports: &str, response| ProtocolSettings { ports: ports.parse().unwrap(), response };
    Settings {
        tcp: watch("1-112,114-138,140-1024,3389,5900,8080,31337", Response::Block),
        udp: watch("1-66,69-136,139-519,521-545,547-1024,1900,5353,31337", Response::Log),
        max_judged: 131_072,
        ..Settings::from_config(&Config::default())
    }
}

pub(super) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Source number `n` of many.
pub(super) fn nth_source(n: u32) -> String {
    IpAddr::from((0x0b00_0000 + n).to_be_bytes()).to_string()
}

impl Scene {
    pub(super) fn new() -> Self {
        Self::with(|_| ())
    }

    pub(super) fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::keyed(HashKey(0x0123, 0x4567), change)
    }

    pub(super) fn keyed(key: HashKey, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = builtin();
        change(&mut settings);
        Self {
            engine: Engine::new(settings, key),
            host: Host::new(Local::own([HERE, HERE_TOO, HERE_V6].map(address))),
            truth: Truth::default(),
            now: at(1_000),
            verdict: Verdict::Ignored(IgnoreReason::Own),
        }
    }

    pub(super) fn after(&mut self, seconds: f64) -> &mut Self {
        self.now = self.now.after(Duration::from_secs_f64(seconds));
        self
    }

    /// Judges the next waiting source.
    pub(super) fn judge_waiting(&mut self) -> Option<Verdict> {
        self.engine.judge_waiting(self.now, &self.host, &mut self.truth)
    }

    pub(super) fn closed_ports(&self, protocol: Protocol) -> PortSet {
        self.engine.ports(self.now, &self.host).closed(protocol)
    }

    /// Replaces the snapshot of the host, as the daemon does.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Host)) {
        let mut new = self.host.clone();
        change(&mut new);
        new.find_related();
        self.engine.host_changed(self.now, &self.host, &new);
        self.host = new;
    }

    /// Starts a service on every address, as the next snapshot shows it.
    pub(super) fn listen(&mut self, port: u16) {
        self.change(|host| {
            host.tcp.insert([0; 4].into(), port);
            host.tcp.insert([0; 16].into(), port);
        });
    }

    /// Remembers a TCP service that is down, as its only service.
    pub(super) fn remember_service(&mut self, port: u16) {
        let service = Service { protocol: Protocol::Tcp, port, address: [0; 4].into() };
        self.change(|host| host.services = [service].into_iter().collect());
    }

    /// Stops every service.
    pub(super) fn stop_listening(&mut self) {
        self.change(|host| (host.tcp, host.udp) = Default::default());
    }

    pub(super) fn protect(&mut self, prefix: &str, why: Protection) {
        self.change(|host| host.allow.insert(prefix.parse().unwrap(), why));
    }

    /// A packet from `source` to this host's first address of that family.
    pub(super) fn packet(source: &str, transport: Transport) -> Packet<'static> {
        let source = address(source);
        let destination = address(if source.is_ipv4() { HERE } else { HERE_V6 });
        Packet { delivery: Delivery::Host, ..packet(source, destination, transport) }
    }

    pub(super) fn see(&mut self, packet: &Packet) -> Gist {
        self.verdict = self.engine.observe(self.now, packet, &self.host, &mut self.truth);
        self.verdict.into()
    }

    pub(super) fn sees(&mut self, source: &str, transport: Transport) -> Gist {
        self.see(&Self::packet(source, transport))
    }

    pub(super) fn tcp(&mut self, source: &str, port: u16, flags: u16) -> Gist {
        self.sees(source, tcp(FROM, port, flags))
    }

    /// Sends a segment with these flags to each port.
    pub(super) fn tcps<const N: usize>(&mut self, source: &str, ports: [u16; N], flags: u16) -> [Gist; N] {
        ports.map(|port| self.tcp(source, port, flags))
    }

    pub(super) fn syn(&mut self, source: &str, port: u16) -> Gist {
        self.tcp(source, port, TcpFlags::SYN)
    }

    /// Sends SYNs to several ports; returns the last verdict.
    pub(super) fn syns(&mut self, source: &str, ports: impl IntoIterator<Item = u16>) -> Gist {
        ports.into_iter().map(|port| self.syn(source, port)).last().unwrap()
    }

    pub(super) fn syn_to(&mut self, destination: &str, source: &str, port: u16) -> Gist {
        let destination = address(destination);
        self.see(&Packet { destination, ..Self::packet(source, tcp(FROM, port, TcpFlags::SYN)) })
    }

    pub(super) fn udp(&mut self, source: &str, port: u16) -> Gist {
        self.sees(source, udp(FROM, port))
    }

    pub(super) fn udps(&mut self, source: &str, ports: impl IntoIterator<Item = u16>) -> Gist {
        ports.into_iter().map(|port| self.udp(source, port)).last().unwrap()
    }

    /// A connection that a decoy accepted.
    pub(super) fn decoy(&mut self, source: &str, port: u16) -> Gist {
        let syn = Packet { destination: address(HERE), ..Self::packet(source, tcp(FROM, port, TcpFlags::SYN)) };
        let syn = Observation::from_packet(&syn).unwrap();
        let observation = Observation { class: Class::Connect, decoy: true, ..syn };
        self.verdict = self.engine.observe_decoy(self.now, observation, &self.host, &mut self.truth);
        self.verdict.into()
    }

    /// Sends a packet from this host's address to `peer`; the kernel reports `found` for its flow.
    pub(super) fn leaves(&mut self, peer: &str, transport: Transport, found: PortUse) {
        let port = match transport {
            Transport::Tcp { source_port, .. } => (Protocol::Tcp, source_port),
            Transport::Udp { source_port, .. } => (Protocol::Udp, source_port),
            other => panic!("no port in {other:?}"),
        };
        let packet = Self::packet(peer, transport);
        let (source, destination) = (packet.destination, packet.source);
        self.truth.flow = Some((port, found));
        let gist = self.see(&Packet { source, destination, delivery: Delivery::Outgoing, ..packet });
        self.truth.flow = None;
        assert_eq!(gist, Gist::Ignored(IgnoreReason::Own));
    }

    /// Sends a packet to `peer` from a socket of this host.
    pub(super) fn sends(&mut self, peer: &str, transport: Transport) {
        self.leaves(peer, transport, PortUse::Flow);
    }

    /// A service behind destination NAT answers a SYN of `peer`, so `port` is open.
    pub(super) fn accepts(&mut self, peer: &str, port: u16) {
        let answer = tcp(port, FROM, TcpFlags::SYN | TcpFlags::ACK);
        self.leaves(peer, answer, PortUse::Published { established: false });
    }

    /// The kernel has blocked `target` for an unknown time.
    pub(super) fn adopt(&mut self, target: BanTarget, left: Expiry) {
        self.engine.adopt(self.now, &ActiveBan { target, length: None, grade: None, left });
    }

    /// The ban in the last verdict.
    pub(super) fn ban(&self) -> Ban {
        match self.verdict {
            Verdict::Block(ban) | Verdict::LogOnly(ban) => ban,
            other => panic!("no ban but {other:?}"),
        }
    }

    /// The last verdict, on a source that has one already.
    pub(super) fn repeated(&self) -> Repeated {
        match self.verdict {
            Verdict::Repeated(repeated) => repeated,
            other => panic!("not repeated but {other:?}"),
        }
    }

    /// The number of packets that the last verdict summarises, if it is a repetition.
    pub(super) fn report(&self) -> Option<u32> {
        match self.verdict {
            Verdict::Repeated(repeated) => repeated.report,
            Verdict::Exempt(exempt) => exempt.report,
            other => panic!("nothing to report but {other:?}"),
        }
    }

    pub(super) fn notices(&mut self) -> Vec<EngineNotice> {
        std::iter::from_fn(|| self.engine.notice(self.now)).collect()
    }

    /// Bans `source` for a scan of three ports.
    pub(super) fn banish(&mut self, source: &str) {
        assert_eq!(self.syns(source, [21, 22, 23]), Gist::Block(3));
    }

    /// Bans `source` for connections to three decoys.
    pub(super) fn prove(&mut self, source: &str) {
        assert_eq!([21, 22, 23].map(|port| self.decoy(source, port))[2], Gist::Block(3));
    }
}

pub(super) fn target(source: &str) -> BanTarget {
    BanTarget::containing(address(source))
}

pub(super) fn udp(source_port: u16, destination_port: u16) -> Transport {
    Transport::Udp { source_port, destination_port }
}
