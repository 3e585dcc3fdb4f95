//! Infers from the packets of a capture which ports are in use. A capture has no socket table.
//!
//! A port is in use if its address sends from it (for TCP: anything except a reset), or if a flow to it continues as
//! only a connection does. The second rule is for captures of one direction, and for captures that start during a
//! connection. In those, a client's port that receives data would look like the target of an ACK scan.

use std::collections::HashMap;
use std::net::IpAddr;

use serde::Serialize;

use crate::engine::Local;
use crate::types::{PortSet, Protocol};
use crate::wire::{Packet, TcpFlags, Transport};

/// Maximum number of remembered ports, about 40 bytes each. A capture with more answering ports contains forged
/// answers.
pub(super) const MAX_PORTS: usize = 1 << 20;

/// Maximum number of flows that are tracked at one time. A flood of SYNs starts millions. All are then forgotten, and
/// flows that continue are tracked again.
pub(super) const MAX_FLOWS: usize = 1 << 17;

/// Number of segments with data on one flow that proves a connection immediately. One segment is enough if the capture
/// ends without a reset in reply. Scanners sometimes put data into probes, but seldom into ACKs, and closed ports reset
/// those.
const MIN_DATA_SEGMENTS: u8 = 2;

/// Number of segments of any kind on one flow that proves a connection.
const MIN_SEGMENTS: u8 = 6;

/// SCTP's ABORT, which refuses an association (RFC 9260).
pub(super) const ABORT: u8 = 6;

/// One direction of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Flow {
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
}

impl Flow {
    fn port(&self) -> HostPort {
        (Protocol::Tcp, self.destination.0, self.destination.1)
    }
}

#[derive(Clone, Copy, Default)]
struct Seen {
    /// A SYN or a SYN/ACK.
    began: bool,
    data: u8,
    segments: u8,
    /// The other side sent a reset.
    refused: bool,
}

/// Collects evidence in the first pass over a capture.
pub(super) struct PortInference<'a> {
    local: &'a Local,
    tcp: &'a PortSet,
    udp: &'a PortSet,
    flows: HashMap<Flow, Seen>,
    /// The ports known to be in use so far.
    pub(super) used: Used,
}

/// A port of a host.
pub(super) type HostPort = (Protocol, IpAddr, u16);

/// Why a port is considered in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Sign {
    /// Its host sends from it.
    Sends,
    /// A flow to it continues as only a connection does.
    Connection,
}

/// The ports in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) ports: HashMap<HostPort, Sign>,
    /// True if there were more than can be remembered. The others may look closed.
    pub(super) overflowed: bool,
}

impl Used {
    fn insert(&mut self, port: HostPort, sign: Sign) {
        if self.ports.len() < MAX_PORTS {
            self.ports.entry(port).or_insert(sign);
        } else if !self.contains(port) {
            self.overflowed = true;
        }
    }

    pub(super) fn contains(&self, port: HostPort) -> bool {
        self.ports.contains_key(&port)
    }
}

impl<'a> PortInference<'a> {
    /// Observes the ports in `tcp` and `udp` of the addresses in `local`, and all SCTP ports, which are few.
    pub(super) fn new(local: &'a Local, tcp: &'a PortSet, udp: &'a PortSet) -> Self {
        Self { local, tcp, udp, flows: HashMap::new(), used: Used::default() }
    }

    pub(super) fn inspect(&mut self, packet: &Packet) {
        let Packet { source, destination, .. } = *packet;
        match packet.transport {
            Transport::Tcp { source_port, destination_port, flags, payload } => {
                if self.tcp.contains(source_port) && self.local.contains(source) {
                    if flags.has(TcpFlags::RST) {
                        let flow = Flow { source: (destination, destination_port), destination: (source, source_port) };
                        self.flows.entry(flow).and_modify(|seen| seen.refused = true);
                    } else if is_sent_by_a_stack(flags) {
                        self.used.insert((Protocol::Tcp, source, source_port), Sign::Sends);
                    }
                }
                if self.tcp.contains(destination_port) && self.local.contains(destination) {
                    let flow = Flow { source: (source, source_port), destination: (destination, destination_port) };
                    self.follow(flow, flags, payload);
                }
            }
            Transport::Udp { source_port, .. } if self.udp.contains(source_port) && self.local.contains(source) => {
                self.used.insert((Protocol::Udp, source, source_port), Sign::Sends);
            }
            Transport::Sctp { source_port, chunk, .. } if chunk != ABORT && self.local.contains(source) => {
                self.used.insert((Protocol::Sctp, source, source_port), Sign::Sends);
            }
            _ => {}
        }
    }

    pub(super) fn finish(mut self) -> Used {
        for (flow, _) in self.flows.iter().filter(|(_, seen)| seen.data > 0 && !seen.refused) {
            self.used.insert(flow.port(), Sign::Connection);
        }
        self.used
    }

    fn follow(&mut self, flow: Flow, flags: TcpFlags, payload: u16) {
        if flags.has(TcpFlags::RST) || !is_sent_by_a_stack(flags) || self.used.contains(flow.port()) {
            return;
        }
        if self.flows.len() >= MAX_FLOWS {
            self.flows.clear();
        }
        let seen = self.flows.entry(flow).or_default();
        if flags.has(TcpFlags::SYN) {
            // A SYN is repeated if the host does not answer, so repetitions prove no connection.
            seen.began = true;
            return;
        }
        seen.segments = seen.segments.saturating_add(1);
        seen.data = seen.data.saturating_add(u8::from(payload > 0));
        if !seen.refused && (seen.began || seen.data >= MIN_DATA_SEGMENTS || seen.segments >= MIN_SEGMENTS) {
            self.flows.remove(&flow);
            self.used.insert(flow.port(), Sign::Connection);
        }
    }
}

/// True for a SYN, and for a segment with ACK and an otherwise usual combination of flags.
fn is_sent_by_a_stack(flags: TcpFlags) -> bool {
    let bits = flags.0 & (TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST | TcpFlags::ACK);
    flags.0 & TcpFlags::RESERVED == 0
        && (bits == TcpFlags::SYN
            || flags.has(TcpFlags::ACK) && bits & (TcpFlags::SYN | TcpFlags::FIN) != TcpFlags::SYN | TcpFlags::FIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::fixtures::{ACK, RST, SYN, packet};

    const CLIENT: (u8, u16) = (1, 1080);
    const SERVER: (u8, u16) = (2, 143);

    fn tcp(from: (u8, u16), to: (u8, u16), flags: u16, payload: u16) -> Packet<'static> {
        let address = |last| IpAddr::from([192, 0, 2, last]);
        let flags = TcpFlags(flags);
        packet(
            address(from.0),
            address(to.0),
            Transport::Tcp { source_port: from.1, destination_port: to.1, flags, payload },
        )
    }

    /// The TCP ports in `1-2000` that these packets prove to be in use.
    fn used(packets: &[Packet]) -> Vec<u16> {
        let ports: PortSet = "1-2000".parse().unwrap();
        let mut inference = PortInference::new(&Local::Any, &ports, &ports);
        packets.iter().for_each(|packet| inference.inspect(packet));
        let mut used: Vec<_> = inference.finish().ports.into_keys().map(|(_, _, port)| port).collect();
        used.sort_unstable();
        used
    }

    const NONE: [u16; 0] = [];

    #[test]
    fn answering_port_is_open_refusing_is_closed() {
        assert_eq!(used(&[tcp(SERVER, CLIENT, SYN | ACK, 0)]), [143]);
        assert_eq!(used(&[tcp(SERVER, CLIENT, RST | ACK, 0)]), NONE);
        assert_eq!(used(&[tcp(CLIENT, SERVER, SYN, 0)]), [1080], "the SYN/ACK goes to the port that sent the SYN");
    }

    #[test]
    fn one_direction_reveals_connection() {
        let handshake = [tcp((1, 40_000), SERVER, SYN, 0), tcp((1, 40_000), SERVER, ACK, 0)];
        assert_eq!(used(&handshake), [143]);
        assert_eq!(used(&[tcp((2, 40_143), CLIENT, ACK, 512)]), [1080], "data that a client receives");
        assert_eq!(used(&[tcp((2, 40_143), CLIENT, ACK, 0); 6]), [1080], "repeated acknowledgements");
    }

    #[test]
    fn probes_are_not_connections() {
        let probe = tcp((1, 40_000), SERVER, ACK, 0);
        assert_eq!(used(&[probe, probe]), NONE);
        assert_eq!(used(&[tcp((1, 40_000), SERVER, SYN, 0); 20]), NONE, "a client of a dead server");
        let with_data = tcp((1, 40_000), SERVER, ACK, 12);
        let reset = tcp(SERVER, (1, 40_000), RST, 0);
        assert_eq!(used(&[with_data, reset, with_data, reset]), NONE, "nmap -sA --data-length 12");
        assert_eq!(used(&[tcp((1, 40_000), SERVER, SYN | TcpFlags::FIN, 0); 9]), NONE);
    }

    #[test]
    fn forged_flows_open_no_port() {
        let ports: PortSet = "1-2000".parse().unwrap();
        let mut inference = PortInference::new(&Local::Any, &ports, &ports);
        for source_port in 0..u16::MAX {
            for from in [3, 4, 5] {
                inference.inspect(&tcp((from, 2_001 + source_port % 60_000), (2, source_port % 2_000 + 1), SYN, 0));
            }
        }
        assert!(inference.flows.len() <= MAX_FLOWS && inference.finish().ports.is_empty());
    }
}
