//! The first pass over a capture: packets to the ports that are in use. There is no socket table to ask, so the packets
//! themselves have to say it.
//!
//! A port is in use where its address was seen sending from it (TCP: anything but a reset), or where one flow towards it
//! goes on as only a connection does. The second rule is for captures of one direction, and for those that begin in the
//! middle: there, a client's port that receives data would look like the target of an ACK scan.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::engine::ports::PortSet;
use crate::engine::{Local, Protocol};
use crate::wire::{Packet, TcpFlags, Transport};

/// Ports that are remembered, some 40 bytes each. A capture of more answering ports is a capture of forged answers.
const PORTS: usize = 1 << 20;

/// Flows that are followed at one time. A flood of SYNs begins millions; then all are forgotten, and those that go on are
/// followed again.
const FLOWS: usize = 1 << 17;

/// Segments with data on one flow that make it a connection. Scanners put data into probes now and then, and repeat what
/// is not answered, but from another port.
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
    pub fn finish(self) -> Used {
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
