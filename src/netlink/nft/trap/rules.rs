//! What was chosen about the trap to the rules of its chains.

use std::time::Duration;

use super::{DYNSET_TIMEOUT, META_INTERFACE};
use crate::engine::subject::Expiry;
use crate::netlink::nft::element::timeout;
use crate::netlink::nft::message::Attributes;
use crate::netlink::nft::rules::{
    EQUAL, Encoded, FIB_DESTINATION, FIB_SOURCE, IPV4, IPV6, LIMIT_OVER, LOCAL, REGISTER, TCP, UNICAST, fill_limit,
    put_address_type, put_compare, put_drop, put_expression, put_limit, raw,
};
use crate::netlink::nft::spec::Trap;
use crate::netlink::nft::{Set, TRAP, TRAP_BAN, TRAP_TOUCH};

/// The rules of its chains.
pub(in super::super) fn rules(trap: &Trap) -> Vec<Encoded> {
    [banning(trap), touching(trap), vec![entering(trap)]].into_iter().flatten().collect()
}

/// Which packets are touches at all.
fn entering(trap: &Trap) -> Encoded {
    let interfaces = if trap.named_interfaces { "iif @trap_interfaces " } else { "" };
    let text = format!(
        "{interfaces}tcp flags & (fin | syn | rst | ack) == syn tcp dport @trapped fib daddr type local fib saddr type \
         unicast jump {TRAP_TOUCH}"
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
        put_address_type(list, FIB_DESTINATION);
        put_compare(list, EQUAL, &LOCAL.to_ne_bytes());
        put_address_type(list, FIB_SOURCE);
        put_compare(list, EQUAL, &UNICAST.to_ne_bytes());
        put_jump(list, TRAP_TOUCH);
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
    if trap.forgiven == 0 {
        rules.push(raw(TRAP_TOUCH, format!("jump {TRAP_BAN}"), |list| put_jump(list, TRAP_BAN)));
        return rules;
    }
    for family in [Family::V4, Family::V6] {
        let text = format!("{} . tcp dport @{} return", family.text(), family.touched().name());
        rules.push(raw(TRAP_TOUCH, text, |list| {
            family.put_touch(list);
            put_lookup(list, family.touched());
            put_return(list);
        }));
    }
    for family in [Family::V4, Family::V6] {
        let (source, touched, suspects) = (family.text(), family.touched().name(), family.suspects().name());
        let window = humantime::format_duration(trap.window);
        let text = format!(
            "add @{touched} {{ {source} . tcp dport timeout {window} }} add @{suspects} {{ {source} timeout {window} limit \
             rate over 1/week burst {} packets }} jump {TRAP_BAN}",
            trap.forgiven
        );
        let window = millis(trap.window);
        rules.push(raw(TRAP_TOUCH, text, |list| {
            family.put_touch(list);
            put_add(list, family.touched(), Some(window), |_| {});
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

    fn touched(self) -> Set {
        self.pick(Set::Touched, Set::Touched6)
    }

    fn suspects(self) -> Set {
        self.pick(Set::Suspects, Set::Suspects6)
    }

    fn caught(self) -> Set {
        self.pick(Set::Caught, Set::Caught6)
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
    fn put_touch(self, list: &mut Attributes<'_>) {
        self.put(list);
        put_meta(list, META_PROTOCOL);
        put_compare(list, EQUAL, &[TCP]);
        self.put_masked_source(list);
        // Right behind the address.
        let register = if matches!(self, Self::V4) { REGISTER_AFTER_4 } else { REGISTER_AFTER_16 };
        put_payload(list, register, TRANSPORT, 2, 2);
    }
}

fn put_meta(list: &mut Attributes<'_>, key: u32) {
    put_expression(list, "meta", |meta| {
        meta.put(1, &REGISTER.to_be_bytes());
        meta.put(2, &key.to_be_bytes());
    });
}

fn put_payload(list: &mut Attributes<'_>, register: u32, base: u32, offset: u32, length: u32) {
    put_expression(list, "payload", |payload| {
        payload.put(1, &register.to_be_bytes());
        payload.put(2, &base.to_be_bytes());
        payload.put(3, &offset.to_be_bytes());
        payload.put(4, &length.to_be_bytes());
    });
}

fn put_mask(list: &mut Attributes<'_>, mask: &[u8]) {
    put_expression(list, "bitwise", |bitwise| {
        bitwise.put(1, &REGISTER.to_be_bytes());
        bitwise.put(2, &REGISTER.to_be_bytes());
        let length = u32::try_from(mask.len()).unwrap_or(0);
        bitwise.put(3, &length.to_be_bytes());
        bitwise.nest(4, |data| data.put(1, mask));
        let nothing = [0; 16];
        bitwise.nest(5, |data| data.put(1, nothing.get(..mask.len()).unwrap_or(&nothing)));
    });
}

fn put_lookup(list: &mut Attributes<'_>, set: Set) {
    put_expression(list, "lookup", |lookup| {
        lookup.put_text(1, set.name());
        lookup.put(2, &REGISTER.to_be_bytes());
    });
}

/// Adds what was loaded to `set`, where it is not in it yet. Where it is, the expression of its element goes on counting,
/// but its time is not prolonged: then what counts together always came within one window.
fn put_add(list: &mut Attributes<'_>, set: Set, millis: Option<u64>, more: impl FnOnce(&mut Attributes<'_>)) {
    put_expression(list, "dynset", |add| {
        add.put_text(1, set.name());
        // NFT_DYNSET_OP_ADD.
        add.put(3, &0_u32.to_be_bytes());
        add.put(4, &REGISTER.to_be_bytes());
        if let Some(millis) = millis {
            add.put(DYNSET_TIMEOUT, &millis.to_be_bytes());
        }
        more(add);
    });
}

fn put_return(list: &mut Attributes<'_>) {
    put_verdict(list, |verdict| verdict.put(1, &RETURN.to_be_bytes()));
}

fn put_jump(list: &mut Attributes<'_>, chain: &str) {
    put_verdict(list, |verdict| {
        verdict.put(1, &JUMP.to_be_bytes());
        verdict.put_text(2, chain);
    });
}

fn put_verdict(list: &mut Attributes<'_>, fill: impl FnOnce(&mut Attributes<'_>)) {
    put_expression(list, "immediate", |immediate| {
        // Register 0 is the verdict.
        immediate.put(1, &0_u32.to_be_bytes());
        immediate.nest(2, |data| data.nest(2, fill));
    });
}

/// Whole seconds, as the settings have it; a second at least, because zero is no timeout.
fn millis(span: Duration) -> u64 {
    timeout(Expiry::After(span)).unwrap_or(1_000)
}

/// How long the kernel remembers whom it caught: many times as long as the sensor takes to look.
const CAUGHT_FOR: u64 = 60_000;
/// Of the limit that forgives: no unit of nft's is longer. What it gives back within a window only forgives more.
const WEEK: u64 = 604_800;
// enum nft_meta_keys, nft_payload_bases, nft_registers, nft_verdicts, nft_dynset_attributes, nft_socket_keys
const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// NFT_REG32_01 and NFT_REG_2: 4 and 16 bytes behind NFT_REG_1.
const REGISTER_AFTER_4: u32 = 9;
const REGISTER_AFTER_16: u32 = 2;
const JUMP: i32 = -3;
const RETURN: i32 = -5;
const DYNSET_EXPRESSION: u16 = 7;
const SOCKET_TRANSPARENT: u32 = 0;
