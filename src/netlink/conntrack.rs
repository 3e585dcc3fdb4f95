//! Reads the kernel's connection tracking table over ctnetlink: an exact look-up of the flow of one packet, and a dump
//! of the connections through destination NAT. [`crate::engine`] decides which flows are not evidence.
//!
//! Unlike a `ct` expression in an nftables rule, a look-up does not enable connection tracking. If no other program has
//! enabled it, every flow is [`TrackedFlow::Untracked`]. Only the default zone is searched.
//!
//! An entry proves that packets passed, not that this host sent them: forwarded packets, and bridged ones with
//! `bridge-nf-call-iptables`, create entries with any claimed source. Only a translation is trustworthy, because it
//! results from a NAT rule of the administrator.
//!
//! References: linux/netfilter/nfnetlink_conntrack.h, and ctnetlink_get_conntrack and ctnetlink_dump_table in the
//! kernel's net/netfilter/nf_conntrack_netlink.c.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::NLM_F_DUMP;

use super::message::{Attributes, Message, be_u32, field, ip, put_message};
use super::sock_diag::Connection;
use super::socket::{Socket, SocketError};
use crate::types::Protocol;

/// State of one packet's flow in the connection tracking table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum TrackedFlow {
    /// No entry exists: connection tracking is off, the packet was dropped, or the entry has expired.
    Untracked,
    /// The packet's source started the flow, without destination NAT.
    New,
    /// As [`TrackedFlow::New`], and packets have passed both ways; for TCP the handshake is complete (IPS_ASSURED).
    Assured,
    /// The packet's source started the flow, and a NAT rule forwards it to another address or port.
    Published {
        /// Packets have passed both ways, as for [`TrackedFlow::Assured`].
        assured: bool,
    },
    /// As [`TrackedFlow::Published`], but a helper such as that for FTP expected the flow: the peers chose the port,
    /// not the administrator.
    Expected,
    /// The packet answers a flow that started at its destination address and port: on this host, or with a forged
    /// packet that was forwarded.
    Answer,
    /// The packet answers another host's flow that is translated by source or destination NAT. The packet is not for
    /// this host.
    Translated,
}

/// The connection tracking table, accessed through one netlink socket.
pub struct Conntrack {
    socket: Socket,
    request: Vec<u8>,
}

impl Conntrack {
    /// Opens a socket in the network namespace of the calling thread, and checks that the kernel answers. The kernel
    /// may load the module nf_conntrack_netlink.
    ///
    /// # Errors
    /// The kernel has no ctnetlink, or the process lacks CAP_NET_ADMIN.
    pub fn open() -> Result<Self, SocketError> {
        let mut conntrack = Self { socket: Socket::open()?, request: Vec::with_capacity(256) };
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        conntrack.flow(Protocol::Tcp, nowhere, nowhere).map(|_| conntrack)
    }

    /// Returns the flow of a packet from `source` to `destination`. The addresses are those on the wire at arrival:
    /// before destination NAT, and before an answer is translated back. Does not allocate.
    ///
    /// # Errors
    /// The kernel does not answer, refuses, or sends an unreadable answer. None of these means
    /// [`TrackedFlow::Untracked`]. Also fails for ICMP, and if the addresses are of different families.
    pub fn flow(
        &mut self,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Result<TrackedFlow, SocketError> {
        let unsupported = || io::Error::new(io::ErrorKind::InvalidInput, "not a packet with ports");
        let requested = Tuple::new(protocol, source, destination).ok_or_else(unsupported)?;
        let family = if requested.source.0.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 };
        // The flow of this tuple, in either direction.
        put_request(&mut self.request, 0, family, |list| {
            list.nest(TUPLE_ORIG, |tuple| requested.append_to(tuple));
        });
        let mut flow = None;
        match self.socket.find(&mut self.request, |answer| flow = read(answer, &requested))? {
            true => flow.ok_or(SocketError::Malformed("unreadable connection tracking entry")),
            false => Ok(TrackedFlow::Untracked),
        }
    }

    /// Lists at most `most` TCP connections that destination NAT leads elsewhere, with completed handshakes
    /// (IPS_ASSURED), including those that ended within the last two minutes (nf_conntrack_tcp_timeout_time_wait). The
    /// kernel selects them; before Linux 5.15 it sends all entries.
    ///
    /// Do not take this for proof of the source's address: connection tracking accepts an acknowledgement up to 66,000
    /// below the right one (MAXACKWINCONST in nf_conntrack_proto_tcp.c), and any with nf_conntrack_tcp_be_liberal. So a
    /// forger completes a handshake with about 65,000 packets.
    ///
    /// # Errors
    /// As for [`Conntrack::flow`].
    pub fn published(&mut self, most: usize) -> Result<Vec<Connection>, SocketError> {
        put_request(&mut self.request, NLM_F_DUMP, FAMILY_ANY, |list| {
            list.put_u32(STATUS, ASSURED | DESTINATION_NAT);
            list.put_u32(STATUS_MASK, ASSURED | DESTINATION_NAT | EXPECTED);
        });
        self.socket.dump(&mut self.request, Vec::new, |connections, answer| {
            if connections.len() < most {
                connections.extend(read_published(answer));
            }
        })
    }
}

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    protocol: u8,
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
}

impl Tuple {
    fn new(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Option<Self> {
        let protocol = match protocol {
            Protocol::Tcp => TCP,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
            Protocol::Icmp => return None,
        };
        let [source, destination] = [source, destination].map(|end| (end.ip().to_canonical(), end.port()));
        (source.0.is_ipv4() == destination.0.is_ipv4()).then_some(Self { protocol, source, destination })
    }

    /// Appends the tuple as the attributes of CTA_TUPLE_ORIG.
    fn append_to(&self, tuple: &mut Attributes<'_>) {
        tuple.nest(TUPLE_IP, |ip| match (self.source.0, self.destination.0) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                ip.put(IP_V6_SRC, &source.octets());
                ip.put(IP_V6_DST, &destination.octets());
            }
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                ip.put(IP_V4_SRC, &source.octets());
                ip.put(IP_V4_DST, &destination.octets());
            }
            _ => {}
        });
        tuple.nest(TUPLE_PROTO, |proto| {
            proto.put(PROTO_NUM, &[self.protocol]);
            proto.put(PROTO_SRC_PORT, &self.source.1.to_be_bytes());
            proto.put(PROTO_DST_PORT, &self.destination.1.to_be_bytes());
        });
    }

    /// Reads the attributes of CTA_TUPLE_ORIG or CTA_TUPLE_REPLY.
    fn read(bytes: &[u8]) -> Option<Self> {
        let (addresses, proto) = (field(bytes, TUPLE_IP)?, field(bytes, TUPLE_PROTO)?);
        let address = |v4, v6| ip(field(addresses, v4).or_else(|| field(addresses, v6))?);
        let port = |kind| field(proto, kind)?.try_into().ok().map(u16::from_be_bytes);
        Some(Self {
            protocol: *field(proto, PROTO_NUM)?.first()?,
            source: (address(IP_V4_SRC, IP_V6_SRC)?, port(PROTO_SRC_PORT)?),
            destination: (address(IP_V4_DST, IP_V6_DST)?, port(PROTO_DST_PORT)?),
        })
    }
}

/// Replaces `bytes` with a request for entries.
fn put_request(bytes: &mut Vec<u8>, flags: u16, family: u8, fill: impl FnOnce(&mut Attributes<'_>)) {
    bytes.clear();
    put_message(bytes, GET, flags, [family, 0, 0, 0], fill);
}

/// The attributes of an entry; `None` for other messages. ctnetlink answers a request with the message type that
/// announces new entries.
fn entry_attributes<'a>(answer: &Message<'a>) -> Option<&'a [u8]> {
    answer.body.get(GENERIC..).filter(|_| answer.kind == NEW)
}

/// Reads one entry of the list of published connections; `None` for entries that an older kernel sends as well.
fn read_published(answer: &Message<'_>) -> Option<Connection> {
    let list = entry_attributes(answer)?;
    let status = be_u32(field(list, STATUS)?)?;
    let original = Tuple::read(field(list, TUPLE_ORIG)?)?;
    let wanted =
        status & (ASSURED | DESTINATION_NAT | EXPECTED) == ASSURED | DESTINATION_NAT && original.protocol == TCP;
    let Tuple { source: (peer, _), destination: (address, port), .. } = original;
    wanted.then_some(Connection { address, port, peer, interface: 0, is_published: true })
}

/// Reads the state of the requested flow from an entry; `None` if the entry is about another flow or unreadable.
fn read(answer: &Message<'_>, requested: &Tuple) -> Option<TrackedFlow> {
    let list = entry_attributes(answer)?;
    let (original, reply) = (Tuple::read(field(list, TUPLE_ORIG)?)?, Tuple::read(field(list, TUPLE_REPLY)?)?);
    let status = be_u32(field(list, STATUS)?)?;
    if original == *requested {
        return Some(match status {
            _ if reply.source == requested.destination && status & ASSURED != 0 => TrackedFlow::Assured,
            _ if reply.source == requested.destination => TrackedFlow::New,
            _ if status & EXPECTED != 0 => TrackedFlow::Expected,
            _ => TrackedFlow::Published { assured: status & ASSURED != 0 },
        });
    }
    let is_reversed = original.source == reply.destination && original.destination == reply.source;
    let answer = if is_reversed { TrackedFlow::Answer } else { TrackedFlow::Translated };
    (reply == *requested).then_some(answer)
}

/// Passes a datagram to the parser of flows. For the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(datagram: &[u8]) {
    let [source, destination] = [1, 2].map(|end| SocketAddr::from(([192, 0, 2, end], 7)));
    let Some(asked) = Tuple::new(Protocol::Tcp, source, destination) else { return };
    for message in super::message::Messages(datagram) {
        let flow = read(&message, &asked);
        // An entry has at least two tuples of two addresses, ports and a protocol each, and the status.
        assert!(flow.is_none() || message.body.len() > 100);
    }
}

/// IPCTNL_MSG_CT_NEW and IPCTNL_MSG_CT_GET of NFNL_SUBSYS_CTNETLINK.
const NEW: u16 = 1 << 8;
const GET: u16 = 1 << 8 | 1;
/// Length of struct nfgenmsg.
const GENERIC: usize = 4;
/// AF_UNSPEC, AF_INET and AF_INET6.
const FAMILY_ANY: u8 = 0;
const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;
/// IPPROTO_TCP.
const TCP: u8 = 6;
/// CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS, CTA_STATUS_MASK.
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const STATUS_MASK: u16 = 26;
/// CTA_TUPLE_IP, CTA_TUPLE_PROTO and their contents.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
/// IPS_EXPECTED, IPS_ASSURED, IPS_DST_NAT.
const EXPECTED: u32 = 1;
const ASSURED: u32 = 4;
const DESTINATION_NAT: u32 = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn tuple(source: &str, destination: &str) -> Tuple {
        Tuple::new(Protocol::Tcp, at(source), at(destination)).unwrap()
    }

    /// The body of an entry.
    fn entry(original: &Tuple, reply: &Tuple, status: u32) -> Vec<u8> {
        let mut bytes = vec![FAMILY_V4, 0, 0, 0];
        let mut list = Attributes(&mut bytes);
        list.nest(TUPLE_ORIG, |tuple| original.append_to(tuple));
        list.nest(TUPLE_REPLY, |tuple| reply.append_to(tuple));
        list.put_u32(STATUS, status);
        bytes
    }

    fn read_entry(body: &[u8], asked: &Tuple) -> Option<TrackedFlow> {
        read(&Message { kind: NEW, flags: 0, sequence: 1, body }, asked)
    }

    const CLIENT: &str = "198.51.100.7:40000";
    const HERE: &str = "192.0.2.1:5432";
    const BACKEND: &str = "172.17.0.2:5432";

    #[test]
    fn entry_shows_originator_and_nat() {
        let (key, back) = (tuple(CLIENT, HERE), tuple(HERE, CLIENT));
        let translated = tuple(BACKEND, CLIENT);
        let flow = |original: &Tuple, reply: &Tuple, status| read_entry(&entry(original, reply, status), &key);
        assert_eq!(flow(&key, &back, 8), Some(TrackedFlow::New));
        assert_eq!(flow(&key, &back, 8 | 2), Some(TrackedFlow::New), "the answer may have been a reset");
        assert_eq!(flow(&key, &back, 8 | 2 | ASSURED), Some(TrackedFlow::Assured));
        let published = |assured| Some(TrackedFlow::Published { assured });
        assert_eq!(flow(&key, &translated, 0x28), published(false));
        assert_eq!(flow(&key, &translated, 0x28 | ASSURED), published(true));
        assert_eq!(flow(&key, &tuple("192.0.2.1:80", CLIENT), 0x28), published(false), "the port is another one");
        assert_eq!(flow(&key, &translated, 0x28 | EXPECTED), Some(TrackedFlow::Expected));
        assert_eq!(flow(&back, &key, 8), Some(TrackedFlow::Answer));
        assert_eq!(flow(&tuple("192.168.1.9:5432", CLIENT), &key, 0x18), Some(TrackedFlow::Translated));
        assert_eq!(flow(&back, &translated, 8), None, "about another flow");
    }

    #[test]
    fn entry_of_ipv6_is_read() {
        let (client, here, backend) = ("[2001:db8:9::1]:40000", "[2001:db8::1]:443", "[fd00::2]:8443");
        let key = tuple(client, here);
        let body = entry(&key, &tuple(backend, client), 0x28);
        assert_eq!(read_entry(&body, &key), Some(TrackedFlow::Published { assured: false }));
    }

    #[test]
    fn truncated_entry_is_unreadable() {
        let key = tuple(CLIENT, HERE);
        let body = entry(&key, &tuple(BACKEND, CLIENT), 0x28);
        for end in 0..body.len() {
            assert_eq!(read_entry(&body[..end], &key), None, "{end}");
        }
    }

    #[test]
    fn packet_without_ports_has_no_tuple() {
        assert_eq!(Tuple::new(Protocol::Icmp, at(CLIENT), at(HERE)), None);
        assert_eq!(Tuple::new(Protocol::Tcp, at(CLIENT), at("[2001:db8::1]:1")), None);
        assert!(Tuple::new(Protocol::Tcp, at("[::ffff:192.0.2.9]:1"), at(HERE)).is_some());
    }

    proptest! {
        #[test]
        fn any_entry_is_read_without_panic(body in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = read_entry(&body, &tuple(CLIENT, HERE));
        }
    }
}
