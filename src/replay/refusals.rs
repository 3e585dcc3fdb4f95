//! Infers from the packets of a capture which probes found a closed port. In a capture of unknown hosts a probe without an
//! answer proves little: the capture may lack the answers, the way to the host may be down, a firewall may drop it.
//!
//! A port is closed where it was refused. Where nothing answers, many ports of one host are a scan all the same.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::port_inference::{ABORT, FLOWS, PORTS, Port, Used};
use crate::engine::{Class, Observation};
use crate::types::Protocol;
use crate::wire::{Packet, Quote, TcpFlags, Transport};

/// Ports of one pair of hosts that are remembered.
const TRIED: usize = 64;

/// The refusals of a capture.
pub(super) struct Refusals {
    closed: HashSet<Port>,
    /// The ports that a source has tried at a destination.
    tried: HashMap<(IpAddr, IpAddr), HashSet<(Protocol, u16)>>,
    /// Sources and destinations with enough ports that did not answer.
    scanned: HashSet<(IpAddr, IpAddr)>,
    /// So many ports without an answer are a scan.
    enough: usize,
}

impl Refusals {
    /// Twice as many ports have to be silent as have to be closed: `scan_trigger` is forgiven.
    pub(super) fn new(scan_trigger: u8) -> Self {
        let enough = 2 * (usize::from(scan_trigger) + 1);
        Self { closed: HashSet::new(), tried: HashMap::new(), scanned: HashSet::new(), enough }
    }

    /// Inspects a packet, with the probe that it is if its port is watched, and what it quotes if it is an ICMP error. `used`
    /// is what is known of ports in use so far.
    pub(super) fn inspect(&mut self, packet: &Packet, probe: Option<Observation>, quote: Option<Quote>, used: &Used) {
        let refused = match packet.transport {
            Transport::Tcp { source_port, flags, .. } if flags.has(TcpFlags::RST) => {
                Some((Protocol::Tcp, packet.source, source_port))
            }
            Transport::Sctp { source_port, chunk: ABORT, .. } => Some((Protocol::Sctp, packet.source, source_port)),
            Transport::Icmp { kind, code } if says_refused(packet.source, kind, code) => quote.and_then(quoted_port),
            _ => None,
        };
        if let Some(port) = refused
            && self.closed.len() < PORTS
        {
            self.closed.insert(port);
        }
        if let Some(Observation { source, destination, protocol, port, class, .. }) = probe
            && is_first_packet(class)
        {
            if self.tried.len() >= FLOWS {
                self.settle(used);
            }
            let tried = self.tried.entry((source, destination)).or_default();
            if tried.len() < TRIED {
                tried.insert((protocol, port));
            }
        }
    }

    /// Forgets which ports were tried, but not where they are enough.
    pub(super) fn settle(&mut self, used: &Used) {
        for ((source, destination), ports) in self.tried.drain() {
            let silent = ports.iter().filter(|(protocol, port)| !used.contains((*protocol, destination, *port)));
            if silent.count() >= self.enough && self.scanned.len() < FLOWS {
                self.scanned.insert((source, destination));
            }
        }
    }

    /// True where the capture shows that `observation` found a closed port, or that it is one of many without an answer.
    pub(super) fn confirm(&self, observation: &Observation) -> bool {
        let Observation { source, destination, protocol, class, .. } = *observation;
        let port = if protocol == Protocol::Icmp { 0 } else { observation.port };
        class.is_conclusive()
            || self.closed.contains(&(protocol, destination, port))
            || is_first_packet(class) && self.scanned.contains(&(source, destination))
    }
}

/// True for what begins a connection. Other segments also come from connections that began before the capture did.
fn is_first_packet(class: Class) -> bool {
    matches!(class, Class::Syn | Class::Udp | Class::Sctp)
}

/// True for an ICMP error by which a host or a firewall refuses: port or protocol unreachable, or prohibited. That there is
/// no route or no such host says nothing of a port; a router whose uplink is down says it of all the world.
fn says_refused(source: IpAddr, kind: u8, code: u8) -> bool {
    match source {
        IpAddr::V4(_) => kind == 3 && matches!(code, 2 | 3 | 9 | 10 | 13),
        IpAddr::V6(_) => kind == 1 && matches!(code, 1 | 4 | 5 | 6),
    }
}

fn quoted_port(quote: Quote) -> Option<Port> {
    let (protocol, port) = match quote.protocol {
        6 => (Protocol::Tcp, quote.ports.1),
        17 => (Protocol::Udp, quote.ports.1),
        132 => (Protocol::Sctp, quote.ports.1),
        1 | 58 => (Protocol::Icmp, 0),
        _ => return None,
    };
    Some((protocol, quote.destination, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::TcpFlags;
    use crate::wire::fixtures::{packet, tcp};

    #[test]
    fn flood_of_pairs_forgets_no_scan() {
        let probe = |source: u32, port| packet(source.to_be_bytes(), [192, 0, 2, 2], tcp(4_000, port, TcpFlags::SYN));
        let (mut refusals, used) = (Refusals::new(2), Used::default());
        let mut inspect = |packet: &Packet| refusals.inspect(packet, Observation::of(packet), None, &used);
        (1..=6).for_each(|port| inspect(&probe(1, port)));
        (1..=5).for_each(|port| inspect(&probe(2, port)));
        (3..200_000).for_each(|source| inspect(&probe(source, 23)));
        assert!(refusals.tried.len() <= FLOWS);
        refusals.settle(&used);
        let confirmed = |source| refusals.confirm(&Observation::of(&probe(source, 9)).unwrap());
        assert_eq!([1, 2, 3].map(confirmed), [true, false, false]);
    }
}
