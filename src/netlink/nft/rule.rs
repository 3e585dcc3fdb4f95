//! Builds one rule of a chain: its text in nft syntax, and its expressions for the kernel.
//!
//! rustables encodes the expressions that it supports. The others are encoded here: limits, log levels, look-ups of
//! routes and sockets, redirection to transparent sockets, extension headers, elements added by packets, inverted
//! look-ups and four-byte registers.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use rustables::MsgType;
use rustables::expr::{
    Bitwise, Cmp, CmpOp, Counter, Immediate, Lookup, Meta, MetaType, Payload, RawExpression, Register, VerdictKind,
};
use rustables::sys;

use super::element::timeout;
use super::family::{Family, V6};
use super::message::{field, put_message};
use super::set::Set;
use super::table::{TABLE, encode};
use crate::netlink::message::{Attributes, Messages};
use crate::types::Expiry;

/// A rule. Each method appends expressions, and most of them their text.
#[derive(Clone)]
pub(super) struct Rule {
    pub(super) chain: &'static str,
    /// Text in nft syntax.
    pub(super) text: String,
    expressions: Vec<u8>,
}

impl Rule {
    pub(super) fn new(chain: &'static str) -> Self {
        Self { chain, text: String::new(), expressions: Vec::new() }
    }

    /// Encodes the message that appends the rule to its chain.
    pub(super) fn message(&self) -> Vec<u8> {
        let mut message = Vec::new();
        put_message(&mut message, sys::NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |rule| {
            rule.put_text(sys::NFTA_RULE_TABLE, TABLE);
            rule.put_text(sys::NFTA_RULE_CHAIN, self.chain);
            rule.nest(sys::NFTA_RULE_EXPRESSIONS, |list| list.0.extend_from_slice(&self.expressions));
        });
        message
    }

    pub(super) fn text(mut self, text: impl Display) -> Self {
        let space = if self.text.is_empty() { "" } else { " " };
        self.text = format!("{}{space}{text}", self.text);
        self
    }

    /// Appends an expression that rustables supports.
    pub(super) fn expression(mut self, expression: impl Into<RawExpression>) -> Self {
        let rule = rustables::Rule::default().with_expr(expression);
        let message = encode(|messages| messages.add(&rule, MsgType::Add));
        let body = Messages(&message).next().and_then(|message| message.body.get(4..));
        let list = body.and_then(|body| field(body, sys::NFTA_RULE_EXPRESSIONS));
        self.expressions.extend_from_slice(list.unwrap_or_default());
        self
    }

    /// Appends an expression that rustables lacks.
    pub(super) fn raw(mut self, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) -> Self {
        Attributes(&mut self.expressions)
            .nest(sys::NFTA_LIST_ELEM, |expression| put_expression(expression, name, fill));
        self
    }

    /// Matches packets of this IP version.
    pub(super) fn family(self, family: &Family) -> Self {
        self.meta(MetaType::NfProto, family.number)
    }

    /// Matches IPv6 packets from link-local addresses.
    pub(super) fn link_local(self) -> Self {
        let rule = self.text("ip6 saddr fe80::/64").family(&V6);
        let rule = rule.payload(NETWORK, V6.source_offset, 8);
        rule.compare(CmpOp::Eq, LINK_LOCAL)
    }

    /// Loads the source address.
    pub(super) fn source(self, family: &Family) -> Self {
        self.payload(NETWORK, family.source_offset, family.source_length)
    }

    /// Loads the source that is counted and blocked: an IPv4 address, or the first address of an IPv6 /64.
    pub(super) fn target(self, family: &Family) -> Self {
        let rule = self.source(family);
        if family.is_masked { rule.mask((u128::MAX << 64).to_be_bytes()) } else { rule }
    }

    /// Matches if the source address is in `v4`, or for IPv6 in its counterpart.
    pub(super) fn source_in(self, family: &Family, v4: Set) -> Self {
        let set = family.set(v4);
        let text = format!("{} saddr @{}", family.name, set.name());
        self.text(text).family(family).source(family).lookup(set)
    }

    /// Loads packet metadata and matches if it equals `value`.
    pub(super) fn meta(self, key: MetaType, value: u8) -> Self {
        self.expression(Meta::new(key)).compare(CmpOp::Eq, [value])
    }

    /// Matches packets on the interfaces in the set `trap_interfaces`, if only these count.
    pub(super) fn on_monitored(self, named_interfaces: bool) -> Self {
        if !named_interfaces {
            return self;
        }
        self.text("iif @trap_interfaces").expression(Meta::new(MetaType::Iif)).lookup(Set::TrapInterfaces)
    }

    /// Matches frames for this host's hardware address: a broadcast frame may contain a unicast packet.
    pub(super) fn for_this_host(self) -> Self {
        // PACKET_HOST of linux/if_packet.h.
        self.text("meta pkttype host").packet_type().compare(CmpOp::Eq, [0])
    }

    /// Matches every source that is not an address of this host. "Unicast" would be too narrow: the kernel also answers
    /// the first IPv6 address of a network on the link, which nft calls anycast, and without a reverse-path filter the
    /// broadcast address of the link.
    pub(super) fn foreign_source(self) -> Self {
        self.address_type(SOURCE_ADDRESS, CmpOp::Neq, LOCAL)
    }

    /// Matches frames for any hardware address except another host's.
    pub(super) fn not_for_other_host(self) -> Self {
        // PACKET_OTHERHOST of linux/if_packet.h.
        self.text("meta pkttype != other").packet_type().compare(CmpOp::Neq, [3])
    }

    fn packet_type(self) -> Self {
        self.raw("meta", |meta| {
            meta.put_u32(sys::NFTA_META_DREG, sys::NFT_REG_1);
            meta.put_u32(sys::NFTA_META_KEY, sys::NFT_META_PKTTYPE);
        })
    }

    /// Matches TCP segments whose flags under `mask` equal `flags`, or differ, depending on `how`.
    pub(super) fn tcp_flags(self, mask: u8, how: CmpOp, flags: u8) -> Self {
        let names = |bits: u8| {
            let all = [(1, "fin"), (2, "syn"), (4, "rst"), (16, "ack")];
            all.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect::<Vec<_>>().join(" | ")
        };
        let sign = if how == CmpOp::Neq { "!=" } else { "==" };
        let value = match names(flags).as_str() {
            "" => "0".to_owned(),
            several if several.contains('|') => format!("({several})"),
            one => one.to_owned(),
        };
        let rule = self.text(format_args!("tcp flags & ({}) {sign} {value}", names(mask)));
        let rule = rule.meta(MetaType::L4Proto, TCP).payload(sys::NFT_PAYLOAD_TRANSPORT_HEADER, 13, 1);
        rule.mask([mask]).compare(how, [flags])
    }

    /// Matches if a listening or connected socket that is transparent (1) or not (0) receives the packet.
    pub(super) fn socket_transparent(self, value: u8) -> Self {
        let rule = self.text(format_args!("socket transparent {value}")).raw("socket", |socket| {
            socket.put_u32(sys::NFTA_SOCKET_KEY, sys::NFT_SOCKET_TRANSPARENT);
            socket.put_u32(sys::NFTA_SOCKET_DREG, sys::NFT_REG_1);
        });
        rule.compare(CmpOp::Eq, [value])
    }

    /// Hands the packet, which is of this IP version, to the transparent listener at `address`; matches only if there
    /// is one.
    pub(super) fn tproxy(self, family: &Family, address: IpAddr, port: u16) -> Self {
        let bytes = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let rule = self.text(format_args!("tproxy {} to {}", family.name, SocketAddr::new(address, port)));
        let rule = rule.expression(Immediate::new_data(bytes, Register::Reg1));
        rule.expression(Immediate::new_data(port.to_be_bytes().to_vec(), Register::Reg2)).raw("tproxy", |tproxy| {
            tproxy.put_u32(sys::NFTA_TPROXY_FAMILY, family.number.into());
            tproxy.put_u32(sys::NFTA_TPROXY_REG_ADDR, sys::NFT_REG_1);
            tproxy.put_u32(sys::NFTA_TPROXY_REG_PORT, sys::NFT_REG_2);
        })
    }

    /// Excludes the packet from connection tracking.
    pub(super) fn notrack(self) -> Self {
        self.text("notrack").raw("notrack", |_| {})
    }

    /// Matches packets to a trapped TCP port, or with `inverted` to any other port.
    pub(super) fn trapped_port(self, inverted: bool) -> Self {
        let rule = self.text(if inverted { "tcp dport != @trapped" } else { "tcp dport @trapped" });
        let rule = rule.port(DESTINATION);
        if inverted { rule.lookup_inverted(Set::Trapped) } else { rule.lookup(Set::Trapped) }
    }

    /// Loads source and destination port of a packet of this version and protocol; the port follows the source in the
    /// registers.
    pub(super) fn source_and_port(self, family: &Family, protocol: u8) -> Self {
        self.meta(MetaType::L4Proto, protocol).target(family).port_behind(family, DESTINATION)
    }

    /// Loads the interface index, followed by the source of an IPv6 packet.
    pub(super) fn interface_and_source(self) -> Self {
        let rule = self.expression(Meta::new(MetaType::Iif));
        // NFT_REG32_01.
        rule.load(9, NETWORK, V6.source_offset, V6.source_length)
    }

    /// Loads a port into the register after the loaded address.
    pub(super) fn port_behind(self, family: &Family, offset: u32) -> Self {
        self.load(family.next_register, sys::NFT_PAYLOAD_TRANSPORT_HEADER, offset, 2)
    }

    /// Loads bytes of the packet into a register that rustables lacks.
    fn load(self, register: u32, base: u32, offset: u32, length: u32) -> Self {
        self.raw("payload", |payload| {
            payload.put_u32(sys::NFTA_PAYLOAD_DREG, register);
            payload.put_u32(sys::NFTA_PAYLOAD_BASE, base);
            payload.put_u32(sys::NFTA_PAYLOAD_OFFSET, offset);
            payload.put_u32(sys::NFTA_PAYLOAD_LEN, length);
        })
    }

    /// Loads the constant `port` into the register that follows the loaded address.
    pub(super) fn constant_behind(self, family: &Family, port: u16) -> Self {
        self.raw("immediate", |immediate| {
            immediate.put_u32(sys::NFTA_IMMEDIATE_DREG, family.next_register);
            immediate.nest(sys::NFTA_IMMEDIATE_DATA, |data| data.put(sys::NFTA_DATA_VALUE, &port.to_be_bytes()));
        })
    }

    /// Loads bytes of the packet.
    pub(super) fn payload(self, base: u32, offset: u32, length: u32) -> Self {
        let payload = Payload::default().with_base(base).with_offset(offset).with_len(length);
        self.expression(payload.with_dreg(Register::Reg1))
    }

    /// Loads bytes of the IPv6 fragment header; matches only if there is one.
    pub(super) fn fragment_header(self, offset: u32, length: u32) -> Self {
        self.raw("exthdr", |header| {
            header.put_u32(sys::NFTA_EXTHDR_DREG, sys::NFT_REG_1);
            // IPPROTO_FRAGMENT.
            header.put(sys::NFTA_EXTHDR_TYPE, &[44]);
            header.put_u32(sys::NFTA_EXTHDR_OFFSET, offset);
            header.put_u32(sys::NFTA_EXTHDR_LEN, length);
        })
    }

    /// Loads the source port or, with an offset of 2, the destination port of a TCP or UDP packet.
    pub(super) fn port(self, offset: u32) -> Self {
        self.payload(sys::NFT_PAYLOAD_TRANSPORT_HEADER, offset, 2)
    }

    /// Masks the loaded value.
    pub(super) fn mask<const N: usize>(self, mask: [u8; N]) -> Self {
        // Fails only if the lengths differ.
        self.expression(Bitwise::new(mask, [0; N]).unwrap_or_default())
    }

    /// Matches if the comparison of the loaded value with `value` holds.
    pub(super) fn compare(self, how: CmpOp, value: impl Into<Vec<u8>>) -> Self {
        self.expression(Cmp::new(how, value))
    }

    /// Matches if the loaded value is in `set`.
    pub(super) fn lookup(self, set: Set) -> Self {
        self.expression(Lookup::default().with_set(set.name()).with_sreg(Register::Reg1))
    }

    /// Matches if the loaded value is not in `set`.
    pub(super) fn lookup_inverted(self, set: Set) -> Self {
        self.raw("lookup", |lookup| {
            lookup.put_text(sys::NFTA_LOOKUP_SET, set.name());
            lookup.put_u32(sys::NFTA_LOOKUP_SREG, sys::NFT_REG_1);
            lookup.put_u32(sys::NFTA_LOOKUP_FLAGS, sys::NFT_LOOKUP_F_INV);
        })
    }

    /// Matches if the comparison of an address type of the packet holds.
    pub(super) fn address_type(self, address: (&str, u32), how: CmpOp, kind: (&str, u32)) -> Self {
        let sign = if how == CmpOp::Neq { "!= " } else { "" };
        let rule = self.text(format_args!("fib {} type {sign}{}", address.0, kind.0)).raw("fib", |fib| {
            fib.put_u32(sys::NFTA_FIB_DREG, sys::NFT_REG_1);
            fib.put_u32(sys::NFTA_FIB_RESULT, sys::NFT_FIB_RESULT_ADDRTYPE);
            fib.put_u32(sys::NFTA_FIB_FLAGS, address.1);
        });
        rule.compare(how, kind.1.to_ne_bytes())
    }

    /// Matches if no route leads back to the source through the incoming interface.
    pub(super) fn no_route_back(self) -> Self {
        let rule = self.text("fib saddr . iif oif 0").raw("fib", |fib| {
            fib.put_u32(sys::NFTA_FIB_DREG, sys::NFT_REG_1);
            fib.put_u32(sys::NFTA_FIB_RESULT, sys::NFT_FIB_RESULT_OIF);
            fib.put_u32(sys::NFTA_FIB_FLAGS, sys::NFTA_FIB_F_SADDR | sys::NFTA_FIB_F_IIF);
        });
        rule.compare(CmpOp::Eq, 0_u32.to_ne_bytes())
    }

    /// Matches below the rate; above it with `over`.
    pub(super) fn limit(self, limit: Limit) -> Self {
        self.text(&limit.text).raw("limit", |fields| limit.append_to(fields))
    }

    /// Adds the loaded value to `set`; `key` is the text of the element without its timeout. If the element exists, its
    /// limit continues to count, but only an update extends its timeout. Packets that count together therefore always
    /// arrived within one window.
    pub(super) fn add(
        self,
        set: Set,
        key: &str,
        time: Option<ElementTimeout>,
        limit: Option<Limit>,
        operation: u32,
    ) -> Self {
        let verb = if operation == sys::NFT_DYNSET_OP_ADD { "add" } else { "update" };
        let timeout = time.as_ref().map_or_else(String::new, |time| format!(" timeout {}", time.text));
        let rate = limit.as_ref().map_or_else(String::new, |limit| format!(" {}", limit.text));
        self.text(format_args!("{verb} @{} {{ {key}{timeout}{rate} }}", set.name())).raw("dynset", |add| {
            add.put_text(sys::NFTA_DYNSET_SET_NAME, set.name());
            add.put_u32(sys::NFTA_DYNSET_OP, operation);
            add.put_u32(sys::NFTA_DYNSET_SREG_KEY, sys::NFT_REG_1);
            if let Some(time) = time {
                add.put_u64(sys::NFTA_DYNSET_TIMEOUT, time.millis);
            }
            if let Some(limit) = limit {
                add.nest(sys::NFTA_DYNSET_EXPR, |expression| {
                    put_expression(expression, "limit", |fields| limit.append_to(fields))
                });
            }
        })
    }

    /// Counts packets and bytes.
    pub(super) fn counter(self) -> Self {
        self.text("counter").expression(Counter::default())
    }

    /// Ends the rule with a verdict.
    pub(super) fn verdict(self, kind: VerdictKind) -> Self {
        let text = match &kind {
            VerdictKind::Accept => "accept",
            VerdictKind::Drop => "drop",
            VerdictKind::Jump { chain } => &format!("jump {chain}"),
            VerdictKind::Goto { chain } => &format!("goto {chain}"),
            _ => "return",
        };
        self.text(text).expression(Immediate::new_verdict(kind))
    }

    pub(super) fn goto(self, chain: &str) -> Self {
        self.verdict(VerdictKind::Goto { chain: chain.to_owned() })
    }

    pub(super) fn jump(self, chain: &str) -> Self {
        self.verdict(VerdictKind::Jump { chain: chain.to_owned() })
    }
}

fn put_expression(expression: &mut Attributes<'_>, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
    expression.put_text(sys::NFTA_EXPR_NAME, name);
    expression.nest(sys::NFTA_EXPR_DATA, fill);
}

/// IPPROTO_TCP.
pub(super) const TCP: u8 = 6;
/// IPPROTO_UDP.
pub(super) const UDP: u8 = 17;
/// Flags in the header of TCP.
pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;
/// The flags of a handshake, and those that end a connection.
pub(super) const FLAGS: u8 = FIN | SYN | RST | ACK;
pub(super) const NETWORK: u32 = sys::NFT_PAYLOAD_NETWORK_HEADER;
/// Offset of the source port in the header of TCP and of UDP.
pub(super) const SOURCE: u32 = 0;
/// Offset of the destination port.
pub(super) const DESTINATION: u32 = 2;

/// Addresses and address types with their names in nft and their kernel values: flags of the expression, RTN_LOCAL,
/// RTN_BROADCAST and RTN_ANYCAST.
pub(super) const SOURCE_ADDRESS: (&str, u32) = ("saddr", sys::NFTA_FIB_F_SADDR);
pub(super) const DESTINATION_ADDRESS: (&str, u32) = ("daddr", sys::NFTA_FIB_F_DADDR);
pub(super) const LOCAL: (&str, u32) = ("local", 2);
pub(super) const BROADCAST: (&str, u32) = ("broadcast", 3);
pub(super) const ANYCAST: (&str, u32) = ("anycast", 4);

/// The longest unit of a rate in nft, in seconds.
const WEEK: u64 = 604_800;

/// A packet rate, as an expression of a rule or an element.
pub(super) struct Limit {
    packets: u64,
    seconds: u64,
    burst: u32,
    flags: u32,
    text: String,
}

impl Limit {
    /// Matches while at most `packets` arrive in `seconds`; `rate` is the text in nft syntax.
    pub(super) fn below(packets: u64, seconds: u64, burst: u32, rate: impl Display) -> Self {
        Self { packets, seconds, burst, flags: 0, text: format!("limit rate {rate} burst {burst} packets") }
    }

    /// Matches above that rate.
    pub(super) fn above(packets: u64, seconds: u64, burst: u32, rate: impl Display) -> Self {
        let text = format!("limit rate over {rate} burst {burst} packets");
        Self { packets, seconds, burst, flags: sys::NFT_LIMIT_F_INV, text }
    }

    /// Matches only the first packet, for an element with a short lifetime.
    pub(super) fn first() -> Self {
        Self::below(1, WEEK, 1, "1/week")
    }

    /// Matches above `packets` in total, for an element with a short lifetime. The tokens that the limit returns within
    /// a lifetime only make it more lenient.
    pub(super) fn above_total(packets: u32) -> Self {
        Self::above(1, WEEK, packets, "1/week")
    }

    fn append_to(&self, fields: &mut Attributes<'_>) {
        fields.put_u64(sys::NFTA_LIMIT_RATE, self.packets);
        fields.put_u64(sys::NFTA_LIMIT_UNIT, self.seconds);
        fields.put_u32(sys::NFTA_LIMIT_BURST, self.burst);
        // Packets, not bytes.
        fields.put_u32(sys::NFTA_LIMIT_TYPE, 0);
        fields.put_u32(sys::NFTA_LIMIT_FLAGS, self.flags);
    }
}

/// Timeout of an element that a packet adds.
pub(super) struct ElementTimeout {
    millis: u64,
    text: String,
}

impl ElementTimeout {
    /// `None` if permanent.
    pub(super) fn new(expiry: Expiry) -> Option<Self> {
        let Expiry::After(span) = expiry else { return None };
        timeout(expiry).map(|millis| Self { millis, text: humantime::format_duration(span).to_string() })
    }

    /// For spans with fractions of a second.
    pub(super) fn brief(span: Duration) -> Self {
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Self { millis, text: humantime::format_duration(span).to_string() }
    }
}

/// The upper half of fe80::/64, link-local addresses.
pub(super) const LINK_LOCAL: [u8; 8] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0];
