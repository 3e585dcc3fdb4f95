//! The first pass over a capture: packets to the ports that are in use. There is no socket table to ask, so the packets
//! themselves have to say it.
//!
//! A port is in use where its address was seen sending from it (TCP: anything but a reset), or where one flow towards it
//! goes on as only a connection does. The second rule is for captures of one direction, and for those that begin in the
//! middle: there, a client's port that receives data would look like the target of an ACK scan.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::engine::Local;
use crate::types::{PortSet, Protocol};
use crate::wire::{Packet, TcpFlags, Transport};

/// Ports that are remembered, some 40 bytes each. A capture of more answering ports is a capture of forged answers.
const PORTS: usize = 1 << 20;

/// Flows that are followed at one time. A flood of SYNs begins millions; then all are forgotten, and those that go on are
/// followed again.
const FLOWS: usize = 1 << 17;

/// Segments with data on one flow that make it a connection at once. A single one does so when the capture ends and
/// nobody has reset it: scanners put data into probes now and then, but seldom into ACKs, and closed ports answer those.
const DATA: u8 = 2;

/// Segments of any kind on one flow that make it a connection.
const SEGMENTS: u8 = 6;

/// SCTP's ABORT, which says that nobody is there (RFC 9260).
const ABORT: u8 = 6;

/// Who sends to whom, with ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Flow {
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
}

#[derive(Clone, Copy, Default)]
struct Seen {
    /// A SYN or a SYN/ACK.
    began: bool,
    data: u8,
    segments: u8,
    /// The other side reset it.
    refused: bool,
}

/// What has been learned so far.
pub struct Learner<'a> {
    local: &'a Local,
    tcp: &'a PortSet,
    udp: &'a PortSet,
    flows: HashMap<Flow, Seen>,
    used: Used,
}

/// The ports in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// TCP.
    pub tcp: HashSet<(IpAddr, u16)>,
    /// UDP.
    pub udp: HashSet<(IpAddr, u16)>,
    /// SCTP.
    pub sctp: HashSet<(IpAddr, u16)>,
    /// There were more than can be remembered; those may look closed.
    pub overflowed: bool,
}

impl Used {
    fn insert(&mut self, protocol: Protocol, address: IpAddr, port: u16) {
        let full = self.tcp.len() + self.udp.len() + self.sctp.len() >= PORTS;
        let set = match protocol {
            Protocol::Tcp => &mut self.tcp,
            Protocol::Udp => &mut self.udp,
            Protocol::Sctp => &mut self.sctp,
            Protocol::Icmp => return,
        };
        if !full {
            set.insert((address, port));
        } else if !set.contains(&(address, port)) {
            self.overflowed = true;
        }
    }
}

impl<'a> Learner<'a> {
    /// Learns about these ports of these addresses; SCTP's are few, and all of interest.
    #[must_use]
    pub fn new(local: &'a Local, tcp: &'a PortSet, udp: &'a PortSet) -> Self {
        Self { local, tcp, udp, flows: HashMap::new(), used: Used::default() }
    }

    /// Looks at one packet.
    pub fn look(&mut self, packet: &Packet) {
        let Packet { source, destination, .. } = *packet;
        match packet.transport {
            Transport::Tcp { source_port, destination_port, flags, payload } => {
                if self.tcp.contains(source_port) && self.local.contains(source) {
                    if flags.has(TcpFlags::RST) {
                        let flow = Flow { source: (destination, destination_port), destination: (source, source_port) };
                        self.flows.entry(flow).and_modify(|seen| seen.refused = true);
                    } else if is_sent_by_a_stack(flags) {
                        self.used.insert(Protocol::Tcp, source, source_port);
                    }
                }
                if self.tcp.contains(destination_port) && self.local.contains(destination) {
                    let flow = Flow { source: (source, source_port), destination: (destination, destination_port) };
                    self.follow(flow, flags, payload);
                }
            }
            Transport::Udp { source_port, .. } if self.udp.contains(source_port) && self.local.contains(source) => {
                self.used.insert(Protocol::Udp, source, source_port);
            }
            Transport::Sctp { source_port, chunk, .. } if chunk != ABORT && self.local.contains(source) => {
                self.used.insert(Protocol::Sctp, source, source_port);
            }
            _ => {}
        }
    }

    /// What has been learned.
    #[must_use]
    pub fn finish(mut self) -> Used {
        for (flow, _) in self.flows.iter().filter(|(_, seen)| seen.data > 0 && !seen.refused) {
            self.used.insert(Protocol::Tcp, flow.destination.0, flow.destination.1);
        }
        self.used
    }

    fn follow(&mut self, flow: Flow, flags: TcpFlags, payload: u16) {
        if flags.has(TcpFlags::RST) || !is_sent_by_a_stack(flags) || self.used.tcp.contains(&flow.destination) {
            return;
        }
        if self.flows.len() >= FLOWS {
            self.flows.clear();
        }
        let seen = self.flows.entry(flow).or_default();
        if flags.has(TcpFlags::SYN) {
            // Sent again and again to somebody who is not there: that is no connection.
            seen.began = true;
            return;
        }
        seen.segments = seen.segments.saturating_add(1);
        seen.data = seen.data.saturating_add(u8::from(payload > 0));
        if !seen.refused && (seen.began || seen.data >= DATA || seen.segments >= SEGMENTS) {
            self.flows.remove(&flow);
            self.used.insert(Protocol::Tcp, flow.destination.0, flow.destination.1);
        }
    }
}

/// A SYN, or a segment with ACK and nothing strange.
fn is_sent_by_a_stack(flags: TcpFlags) -> bool {
    let bits = flags.0 & (TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST | TcpFlags::ACK);
    flags.0 & TcpFlags::RESERVED == 0
        && (bits == TcpFlags::SYN
            || flags.has(TcpFlags::ACK) && bits & (TcpFlags::SYN | TcpFlags::FIN) != TcpFlags::SYN | TcpFlags::FIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Delivery;

    const CLIENT: (u8, u16) = (1, 1080);
    const SERVER: (u8, u16) = (2, 143);

    fn tcp(from: (u8, u16), to: (u8, u16), flags: u16, payload: u16) -> Packet {
        let address = |last| IpAddr::from([192, 0, 2, last]);
        Packet {
            source: address(from.0),
            destination: address(to.0),
            delivery: Delivery::Unknown,
            interface: 0,
            fragmented: false,
            transport: Transport::Tcp { source_port: from.1, destination_port: to.1, flags: TcpFlags(flags), payload },
        }
    }

    /// The TCP ports, of those in `1-2000`, that these packets show to be in use.
    fn used(packets: &[Packet]) -> Vec<u16> {
        let ports: PortSet = "1-2000".parse().unwrap();
        let mut learner = Learner::new(&Local::Any, &ports, &ports);
        packets.iter().for_each(|packet| learner.look(packet));
        let mut used: Vec<_> = learner.finish().tcp.into_iter().map(|(_, port)| port).collect();
        used.sort_unstable();
        used
    }

    const NONE: [u16; 0] = [];
    const SYN: u16 = TcpFlags::SYN;
    const ACK: u16 = TcpFlags::ACK;
    const RST: u16 = TcpFlags::RST;

    #[test]
    fn who_answers_has_an_open_port_and_who_resets_has_none() {
        assert_eq!(used(&[tcp(SERVER, CLIENT, SYN | ACK, 0)]), [143]);
        assert_eq!(used(&[tcp(SERVER, CLIENT, RST | ACK, 0)]), NONE);
        assert_eq!(used(&[tcp(CLIENT, SERVER, SYN, 0)]), [1080], "answers come back to where a SYN came from");
    }

    #[test]
    fn one_direction_is_enough_to_see_a_connection() {
        let handshake = [tcp((1, 40_000), SERVER, SYN, 0), tcp((1, 40_000), SERVER, ACK, 0)];
        assert_eq!(used(&handshake), [143]);
        assert_eq!(used(&[tcp((2, 40_143), CLIENT, ACK, 512)]), [1080], "data that comes to a client");
        assert_eq!(used(&[tcp((2, 40_143), CLIENT, ACK, 0); 6]), [1080], "acknowledgements, again and again");
    }

    #[test]
    fn probes_are_no_connections() {
        let probe = tcp((1, 40_000), SERVER, ACK, 0);
        assert_eq!(used(&[probe, probe]), NONE);
        assert_eq!(used(&[tcp((1, 40_000), SERVER, SYN, 0); 20]), NONE, "a client of a dead server");
        let with_data = tcp((1, 40_000), SERVER, ACK, 12);
        let reset = tcp(SERVER, (1, 40_000), RST, 0);
        assert_eq!(used(&[with_data, reset, with_data, reset]), NONE, "nmap -sA --data-length 12");
        assert_eq!(used(&[tcp((1, 40_000), SERVER, SYN | TcpFlags::FIN, 0); 9]), NONE);
    }

    #[test]
    fn a_flood_of_forged_flows_is_forgotten_and_not_kept() {
        let ports: PortSet = "1-2000".parse().unwrap();
        let mut learner = Learner::new(&Local::Any, &ports, &ports);
        for source_port in 0..u16::MAX {
            for from in [3, 4, 5] {
                learner.look(&tcp((from, 2_001 + source_port % 60_000), (2, source_port % 2_000 + 1), SYN, 0));
            }
        }
        assert!(learner.flows.len() <= FLOWS && learner.finish().tcp.is_empty());
    }
}
