//! What was chosen about the trap to the rules of its chains.

use std::time::Duration;

use super::META_INTERFACE;
use super::expressions::{
    put_add, put_jump, put_lookup, put_lookup_without, put_mask, put_meta, put_payload, put_return, put_update,
};
use crate::engine::RECENT;
use crate::netlink::nft::element::timeout;
use crate::netlink::nft::message::Attributes;
use crate::netlink::nft::rules::{
    EQUAL, Encoded, FIB_DESTINATION, FIB_SOURCE, IPV4, IPV6, LIMIT_OVER, LOCAL, NOT_EQUAL, REGISTER, TCP, UDP, UNICAST,
    fill_limit, put_address_type, put_compare, put_drop, put_expression, put_limit, raw,
};
use crate::netlink::nft::spec::Trap;
use crate::netlink::nft::{Set, TRAP, TRAP_ASKED, TRAP_BAN, TRAP_TOUCH};
use crate::types::Expiry;

/// The rules of its chains.
pub(in super::super) fn rules(trap: &Trap) -> Vec<Encoded> {
    let (tcp, udp) = (trap.tcp.then(|| entering(trap)), trap.udp.then(|| entering_udp(trap)));
    let asking = trap.udp.then(asking);
    [banning(trap), touching(trap)].into_iter().flatten().chain(tcp).chain(udp).chain(asking).collect()
}

/// Which segments are touches at all.
fn entering(trap: &Trap) -> Encoded {
    let interfaces = if trap.named_interfaces { "iif @trap_interfaces " } else { "" };
    let text = format!(
        "{interfaces}tcp flags & (fin | syn | rst | ack) == syn tcp dport @trapped meta pkttype host fib daddr type \
         local fib saddr type unicast jump {TRAP_TOUCH}"
    );
    raw(TRAP, text, |list| {
        if trap.named_interfaces {
            put_meta(list, META_INTERFACE);
            put_lookup(list, Set::TrapInterfaces);
        }
        put_meta(list, META_PROTOCOL);
        put_compare(list, EQUAL, &[TCP]);
        put_payload(list, REGISTER, TRANSPORT, 13, 1);
        put_mask(list, &[0x17]);
        put_compare(list, EQUAL, &[0x02]);
        put_payload(list, REGISTER, TRANSPORT, 2, 2);
        put_lookup(list, Set::Trapped);
        put_touching(list);
    })
}

/// Which datagrams are: those that are no answers.
fn entering_udp(trap: &Trap) -> Encoded {
    let interfaces = if trap.named_interfaces { "iif @trap_interfaces " } else { "" };
    let text = format!(
        "{interfaces}udp dport @trapped_udp udp dport != @asked meta pkttype host fib daddr type local fib saddr type \
         unicast jump {TRAP_TOUCH}"
    );
    raw(TRAP, text, |list| {
        if trap.named_interfaces {
            put_meta(list, META_INTERFACE);
            put_lookup(list, Set::TrapInterfaces);
        }
        put_meta(list, META_PROTOCOL);
        put_compare(list, EQUAL, &[UDP]);
        put_payload(list, REGISTER, TRANSPORT, 2, 2);
        put_lookup(list, Set::TrappedUdp);
        put_payload(list, REGISTER, TRANSPORT, 2, 2);
        put_lookup_without(list, Set::Outbound);
        put_touching(list);
    })
}

/// Goes on with what is for this host alone, to an address of its own, from one that could be answered and is not its own.
fn put_touching(list: &mut Attributes<'_>) {
    // A frame for everybody may hold a packet for one.
    put_meta(list, META_PACKET_TYPE);
    put_compare(list, EQUAL, &[PACKET_HOST]);
    put_address_type(list, FIB_DESTINATION);
    put_compare(list, EQUAL, &LOCAL.to_ne_bytes());
    put_address_type(list, FIB_SOURCE);
    put_compare(list, EQUAL, &UNICAST.to_ne_bytes());
    put_jump(list, TRAP_TOUCH);
}

/// What this host asks itself. The sensor sees the same, but a moment later, and then takes the port out of the trap; until
/// that an answer to a socket that has closed already must not count. A service's port is in no trap, and costs a look-up.
fn asking() -> Encoded {
    let time = humantime::format_duration(RECENT);
    let text = format!("udp sport @trapped_udp fib saddr type local update @asked {{ udp sport timeout {time} }}");
    raw(TRAP_ASKED, text, |list| {
        put_meta(list, META_PROTOCOL);
        put_compare(list, EQUAL, &[UDP]);
        put_payload(list, REGISTER, TRANSPORT, 0, 2);
        put_lookup(list, Set::TrappedUdp);
        put_address_type(list, FIB_SOURCE);
        put_compare(list, EQUAL, &LOCAL.to_ne_bytes());
        put_payload(list, REGISTER, TRANSPORT, 0, 2);
        put_update(list, Set::Outbound, millis(RECENT));
    })
}

/// What a touch counts.
fn touching(trap: &Trap) -> Vec<Encoded> {
    let mut rules = Vec::new();
    for (family, set) in [(Family::V4, Set::Allowed), (Family::V6, Set::Allowed6)] {
        rules.push(raw(TRAP_TOUCH, format!("{} saddr @{} return", family.word(), set.name()), |list| {
            family.put(list);
            family.put_source(list);
            put_lookup(list, set);
            put_return(list);
        }));
    }
    rules.push(raw(TRAP_TOUCH, "ip6 saddr fe80::/64 return".to_owned(), |list| {
        Family::V6.put(list);
        put_payload(list, REGISTER, NETWORK, 8, 8);
        put_compare(list, EQUAL, &[0xfe, 0x80, 0, 0, 0, 0, 0, 0]);
        put_return(list);
    }));
    // Whatever the socket says of itself: that there is one is what counts.
    for transparent in [0, 1] {
        rules.push(raw(TRAP_TOUCH, format!("socket transparent {transparent} return"), |list| {
            put_expression(list, "socket", |socket| {
                socket.put(1, &SOCKET_TRANSPARENT.to_be_bytes());
                socket.put(2, &REGISTER.to_be_bytes());
            });
            put_compare(list, EQUAL, &[transparent]);
            put_return(list);
        }));
    }
    rules.extend(fragments());
    if trap.forgiven == 0 {
        rules.push(raw(TRAP_TOUCH, format!("jump {TRAP_BAN}"), |list| put_jump(list, TRAP_BAN)));
        return rules;
    }
    let protocols = [trap.tcp.then_some(Protocol::Tcp), trap.udp.then_some(Protocol::Udp)];
    protocols.into_iter().flatten().for_each(|protocol| rules.extend(counting(trap, protocol)));
    rules
}

/// Later fragments have no ports, but the kernel's short way to load two bytes of a packet does not know: it takes bytes of the
/// payload for them, with IPv6 of the flow label (seen on Linux 6.18). Long answers come in pieces.
fn fragments() -> [Encoded; 2] {
    let (v4, v6) = ("ip frag-off & 0x1fff != 0 return", "meta nfproto ipv6 frag frag-off != 0 return");
    [
        raw(TRAP_TOUCH, v4.to_owned(), |list| {
            Family::V4.put(list);
            put_payload(list, REGISTER, NETWORK, 6, 2);
            put_mask(list, &[0x1f, 0xff]);
            put_compare(list, NOT_EQUAL, &[0, 0]);
            put_return(list);
        }),
        raw(TRAP_TOUCH, v6.to_owned(), |list| {
            Family::V6.put(list);
            put_expression(list, "exthdr", |header| {
                header.put(1, &REGISTER.to_be_bytes());
                header.put(2, &[FRAGMENT]);
                header.put(3, &2_u32.to_be_bytes());
                header.put(4, &2_u32.to_be_bytes());
            });
            put_mask(list, &[0xff, 0xf8]);
            put_compare(list, NOT_EQUAL, &[0, 0]);
            put_return(list);
        }),
    ]
}

/// How the ports of one protocol are counted: each once, and together with those of the other one.
fn counting(trap: &Trap, protocol: Protocol) -> Vec<Encoded> {
    let mut rules = Vec::new();
    let word = protocol.word();
    for family in [Family::V4, Family::V6] {
        let touched = family.touched(protocol);
        let text = format!("{} . {word} dport @{} return", family.text(), touched.name());
        rules.push(raw(TRAP_TOUCH, text, |list| {
            family.put_touch(list, protocol);
            put_lookup(list, touched);
            put_return(list);
        }));
    }
    for family in [Family::V4, Family::V6] {
        let (source, touched, suspects) = (family.text(), family.touched(protocol), family.suspects().name());
        let window = humantime::format_duration(trap.window);
        let text = format!(
            "add @{} {{ {source} . {word} dport timeout {window} }} add @{suspects} {{ {source} timeout {window} limit \
             rate over 1/week burst {} packets }} jump {TRAP_BAN}",
            touched.name(),
            trap.forgiven
        );
        let window = millis(trap.window);
        rules.push(raw(TRAP_TOUCH, text, |list| {
            family.put_touch(list, protocol);
            put_add(list, touched, Some(window), |_| {});
            family.put_masked_source(list);
            put_add(list, family.suspects(), Some(window), |add| {
                add.nest(DYNSET_EXPRESSION, |expression| {
                    expression.put_text(1, "limit");
                    expression.nest(2, |limit| fill_limit(limit, 1, WEEK, trap.forgiven.into(), LIMIT_OVER));
                });
            });
            put_jump(list, TRAP_BAN);
        }));
    }
    rules
}

/// How who touched too many is blocked.
fn banning(trap: &Trap) -> Vec<Encoded> {
    let most = trap.most_a_minute.max(1);
    let text = format!("limit rate over {most}/minute burst {most} packets return");
    let mut rules = vec![raw(TRAP_BAN, text, |list| {
        put_limit(list, most.into(), 60, most, LIMIT_OVER);
        put_return(list);
    })];
    let time = match trap.expiry {
        Expiry::Never => String::new(),
        Expiry::After(span) => format!(" timeout {}", humantime::format_duration(span)),
    };
    for family in [Family::V4, Family::V6] {
        let (source, caught, blocked) = (family.text(), family.caught(), family.blocked());
        let text = format!(
            "add @{} {{ {source} timeout 1m }} add @{} {{ {source}{time} }} counter drop",
            caught.name(),
            blocked.name()
        );
        rules.push(raw(TRAP_BAN, text, |list| {
            family.put(list);
            family.put_masked_source(list);
            put_add(list, caught, Some(CAUGHT_FOR), |_| {});
            family.put_masked_source(list);
            put_add(list, blocked, timeout(trap.expiry), |_| {});
            put_expression(list, "counter", |_| {});
            put_drop(list);
        }));
    }
    rules
}

/// Whose ports are touched.
#[derive(Clone, Copy)]
enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    fn word(self) -> &'static str {
        if matches!(self, Self::Tcp) { "tcp" } else { "udp" }
    }

    fn number(self) -> u8 {
        if matches!(self, Self::Tcp) { TCP } else { UDP }
    }
}

/// How the rules for the two versions of IP differ.
#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn word(self) -> &'static str {
        if matches!(self, Self::V4) { "ip" } else { "ip6" }
    }

    /// The subject of a packet, as nft writes it.
    fn text(self) -> &'static str {
        if matches!(self, Self::V4) { "ip saddr" } else { "ip6 saddr & ffff:ffff:ffff:ffff::" }
    }

    fn pick(self, v4: Set, v6: Set) -> Set {
        if matches!(self, Self::V4) { v4 } else { v6 }
    }

    fn touched(self, protocol: Protocol) -> Set {
        match protocol {
            Protocol::Tcp => self.pick(Set::Probed, Set::Probed6),
            Protocol::Udp => self.pick(Set::TouchedUdp, Set::TouchedUdp6),
        }
    }

    fn suspects(self) -> Set {
        self.pick(Set::Suspects, Set::Suspects6)
    }

    fn caught(self) -> Set {
        self.pick(Set::TrapBanned, Set::TrapBanned6)
    }

    fn blocked(self) -> Set {
        self.pick(Set::Blocked, Set::Blocked6)
    }

    /// Goes on with packets of this version.
    fn put(self, list: &mut Attributes<'_>) {
        put_meta(list, META_FAMILY);
        put_compare(list, EQUAL, &[if matches!(self, Self::V4) { IPV4 } else { IPV6 }]);
    }

    fn put_source(self, list: &mut Attributes<'_>) {
        let (offset, length) = if matches!(self, Self::V4) { (12, 4) } else { (8, 16) };
        put_payload(list, REGISTER, NETWORK, offset, length);
    }

    /// Loads the subject of a packet.
    fn put_masked_source(self, list: &mut Attributes<'_>) {
        self.put_source(list);
        if matches!(self, Self::V6) {
            put_mask(list, &(u128::MAX << 64).to_be_bytes());
        }
    }

    /// Loads subject and port of a packet of this version.
    fn put_touch(self, list: &mut Attributes<'_>, protocol: Protocol) {
        self.put(list);
        put_meta(list, META_PROTOCOL);
        put_compare(list, EQUAL, &[protocol.number()]);
        self.put_masked_source(list);
        // Right behind the address.
        let register = if matches!(self, Self::V4) { REGISTER_AFTER_4 } else { REGISTER_AFTER_16 };
        put_payload(list, register, TRANSPORT, 2, 2);
    }
}

/// Whole seconds, as the settings have it; a second at least, because zero is no timeout.
fn millis(span: Duration) -> u64 {
    timeout(Expiry::After(span)).unwrap_or(1_000)
}

/// How long the kernel remembers whom it caught: many times as long as the sensor takes to look.
const CAUGHT_FOR: u64 = 60_000;
/// Of the limit that forgives: no unit of nft's is longer. What it gives back within a window only forgives more.
const WEEK: u64 = 604_800;
// enum nft_meta_keys, nft_payload_bases, nft_registers, nft_dynset_attributes, nft_socket_keys
const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;
const META_PACKET_TYPE: u32 = 19;
/// PACKET_HOST of linux/if_packet.h.
const PACKET_HOST: u8 = 0;
/// IPPROTO_FRAGMENT.
const FRAGMENT: u8 = 44;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// NFT_REG32_01 and NFT_REG_2: 4 and 16 bytes behind NFT_REG_1.
const REGISTER_AFTER_4: u32 = 9;
const REGISTER_AFTER_16: u32 = 2;
const DYNSET_EXPRESSION: u16 = 7;
const SOCKET_TRANSPARENT: u32 = 0;
