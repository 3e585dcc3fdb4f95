//! Builds the rules for fragments. Without connection tracking the table sees each fragment of a segment, before the
//! kernel reassembles them: only the first fragment has flags, and a sender can cut it before them.
//! nft/portsentry-trap.nft documents each rule.
//!
//! References: RFC 1858, 3128 (IPv4), RFC 7112 (IPv6); the kernel's net/ipv4/ip_fragment.c, net/ipv6/reassembly.c,
//! net/netfilter/nft_payload.c.

use rustables::expr::{CmpOp, Meta, MetaType, VerdictKind};
use rustables::sys;

use super::family::{V4, V6};
use super::rule::{DESTINATION_ADDRESS, LOCAL, NETWORK, Rule, TCP};
use super::spec::Trap;
use super::table::{CHAIN, TRAP_FRAGMENT};

/// Matches later fragments. They have no ports, but the kernel's fast path for two-byte loads ignores that, and reads
/// payload bytes, or with IPv6 the flow label (seen on Linux 6.18). Long answers arrive in fragments.
pub(super) fn later_rules(chain: &'static str) -> [Rule; 2] {
    let v4 = Rule::new(chain).text("ip frag-off & 0x1fff != 0").family(&V4).payload(NETWORK, FRAG_OFF, 2);
    let v6 = Rule::new(chain).text("meta nfproto ipv6 frag frag-off != 0").family(&V6).fragment_header(2, 2);
    [v4.mask([0x1f, 0xff]), v6.mask([0xff, 0xf8])].map(|rule| rule.compare(CmpOp::Neq, [0, 0]))
}

/// The rules before connection tracking that select, in packets to this host, IPv4 fragments 8 bytes into a segment and
/// first fragments of both families. Linux cuts an IPv4 fragment to a multiple of 8 bytes before it reassembles it. So
/// a fragment of 15 bytes shows flags that another fragment then replaces; it discards an IPv6 fragment of such a
/// length.
pub(super) fn early_rules(trap: &Trap) -> [Rule; 3] {
    let rule = || Rule::new(CHAIN).on_monitored(trap.named_interfaces);
    let v4 = |mask: [u8; 2], field: [u8; 2]| {
        let text = format!("ip frag-off & {:#x} == {:#x}", u16::from_be_bytes(mask), u16::from_be_bytes(field));
        rule().text(text).family(&V4).payload(NETWORK, FRAG_OFF, 2).mask(mask).compare(CmpOp::Eq, field)
    };
    let to_host = |rule: Rule| rule.address_type(DESTINATION_ADDRESS, CmpOp::Eq, LOCAL);
    let second = v4([0x1f, 0xff], [0, 1]).text("ip protocol tcp").payload(NETWORK, PROTOCOL, 1);
    let v6 = rule().text("meta nfproto ipv6 frag frag-off 0 frag more-fragments 1").family(&V6);
    let v6 = v6.fragment_header(2, 2).mask([0xff, 0xf8]).compare(CmpOp::Eq, [0, 0]);
    let v6 = v6.fragment_header(3, 1).mask([1]).compare(CmpOp::Eq, [1]);
    [
        to_host(second.compare(CmpOp::Eq, [TCP])).counter().verdict(VerdictKind::Drop),
        to_host(v4([0x3f, 0xff], [0x20, 0])).jump(TRAP_FRAGMENT),
        to_host(v6).jump(TRAP_FRAGMENT),
    ]
}

/// The rules for first fragments. A rule does not match if it loads bytes that the packet does not have, or if it
/// matches the protocol and the packet ends within its IPv6 headers.
pub(super) fn hiding_rules() -> [Rule; 3] {
    let rule = || Rule::new(TRAP_FRAGMENT);
    let other = rule().text("meta l4proto != tcp @th,0,8 >= 0").expression(Meta::new(MetaType::L4Proto));
    let other = other.compare(CmpOp::Neq, [TCP]).payload(sys::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1);
    [
        rule().tcp_flags(ALL, CmpOp::Neq, 0).verdict(VerdictKind::Return),
        other.compare(CmpOp::Gte, [0]).verdict(VerdictKind::Return),
        rule().counter().verdict(VerdictKind::Drop),
    ]
}

/// Offset of the fragment field, which contains MF and the offset.
const FRAG_OFF: u32 = 6;
const PROTOCOL: u32 = 9;
/// FIN, SYN, RST and ACK, of which every segment has one.
const ALL: u8 = 0x17;
