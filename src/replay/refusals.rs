//! Infers from the packets of a capture which probes found a closed port. In a capture of unknown hosts, a missing
//! answer is weak evidence: the capture may lack it, the path may be down, or a firewall may drop the probe.
//!
//! A port is closed if it was refused. Probes of many ports of one host are a scan even if nothing answers.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::port_inference::{ABORT, HostPort, MAX_FLOWS, MAX_PORTS, Used};
use crate::engine::{Class, Observation};
use crate::types::Protocol;
use crate::wire::{Packet, Quote, TcpFlags, Transport};

/// Maximum number of remembered ports per pair of hosts.
const MAX_TRIED_PORTS: usize = 64;

/// The refusals of a capture.
pub(super) struct Refusals {
    closed: HashSet<HostPort>,
    /// The ports that a source has probed at a destination.
    tried: HashMap<(IpAddr, IpAddr), HashSet<(Protocol, u16)>>,
    /// Pairs of source and destination with enough unanswered ports.
    scanned: HashSet<(IpAddr, IpAddr)>,
    /// Number of unanswered ports that counts as a scan.
    enough: usize,
}

impl Refusals {
    /// Requires twice as many unanswered ports as closed ones; `scan_trigger` closed ports are forgiven.
    pub(super) fn new(scan_trigger: u8) -> Self {
        let enough = 2 * (usize::from(scan_trigger) + 1);
        Self { closed: HashSet::new(), tried: HashMap::new(), scanned: HashSet::new(), enough }
    }

    /// Inspects a packet. `probe` is set if its port is monitored, `quote` if it is an ICMP error, and `used` contains
    /// the ports known to be in use so far.
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
            && self.closed.len() < MAX_PORTS
        {
            self.closed.insert(port);
        }
        if let Some(Observation { source, destination, protocol, port, class, .. }) = probe
            && is_first_packet(class)
        {
            if self.tried.len() >= MAX_FLOWS {
                self.keep_scans(used);
            }
            let tried = self.tried.entry((source, destination)).or_default();
            if tried.len() < MAX_TRIED_PORTS {
                tried.insert((protocol, port));
            }
        }
    }

    /// Keeps the pairs with enough unanswered ports, and forgets the ports.
    pub(super) fn keep_scans(&mut self, used: &Used) {
        for ((source, destination), ports) in self.tried.drain() {
            let silent = ports.iter().filter(|(protocol, port)| !used.contains((*protocol, destination, *port)));
            if silent.count() >= self.enough && self.scanned.len() < MAX_FLOWS {
                self.scanned.insert((source, destination));
            }
        }
    }

    /// True if the capture shows that `observation` found a closed port, or that it is one of many unanswered probes.
    pub(super) fn confirm(&self, observation: &Observation) -> bool {
        let Observation { source, destination, protocol, class, .. } = *observation;
        let port = if protocol == Protocol::Icmp { 0 } else { observation.port };
        class.is_conclusive()
            || self.closed.contains(&(protocol, destination, port))
            || is_first_packet(class) && self.scanned.contains(&(source, destination))
    }
}

/// True for a packet that starts a connection. Other segments may belong to connections that started before the
/// capture.
fn is_first_packet(class: Class) -> bool {
    matches!(class, Class::Syn | Class::Udp | Class::Sctp)
}

/// True for an ICMP error that refuses: port or protocol unreachable, or prohibited. A missing route or host says
/// nothing about a port: a router without an uplink reports it for every destination.
fn says_refused(source: IpAddr, kind: u8, code: u8) -> bool {
    match source {
        IpAddr::V4(_) => kind == 3 && matches!(code, 2 | 3 | 9 | 10 | 13),
        IpAddr::V6(_) => kind == 1 && matches!(code, 1 | 4 | 5 | 6),
    }
}

fn quoted_port(quote: Quote) -> Option<HostPort> {
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
        let mut inspect = |packet: &Packet| refusals.inspect(packet, Observation::from_packet(packet), None, &used);
        (1..=6).for_each(|port| inspect(&probe(1, port)));
        (1..=5).for_each(|port| inspect(&probe(2, port)));
        (3..200_000).for_each(|source| inspect(&probe(source, 23)));
        assert!(refusals.tried.len() <= MAX_FLOWS);
        refusals.keep_scans(&used);
        let confirmed = |source| refusals.confirm(&Observation::from_packet(&probe(source, 9)).unwrap());
        assert_eq!([1, 2, 3].map(confirmed), [true, false, false]);
    }
}
