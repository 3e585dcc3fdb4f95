//! The trap: rules by which the kernel itself counts the distinct ports that a source touches, and blocks it before any
//! program wakes up. nft/portsentry-trap.nft says what each of them is for, nft/portsentry-trap-udp.nft those for datagrams.
//!
//! A touch counts here only where it counts for the sensor as well: never more than the sensor would hold against the
//! source, often less. What the kernel caught is in `caught` for a minute, so that the sensor can look at it.
//!
//! Read with: the kernel's net/netfilter/nft_dynset.c, nft_socket.c, nft_limit.c.

mod expressions;
mod rules;

use std::time::Duration;

use netlink_packet_netfilter::nftables::SetFlags;

use super::batch::Batch;
use super::desired_ruleset::{NFT_TYPE_IPV4, NFT_TYPE_IPV6};
use super::element::{
    DATA_VALUE, ELEMENT_FLAGS, ELEMENT_KEY, ELEMENT_TIMEOUT, INTERVAL_END, LIST_ELEMENT, LIST_ELEMENTS, name, put_key,
};
use super::message::{Attributes, be_u32, be_u64};
use super::rules::{LIMIT_BURST, LIMIT_RATE};
use super::snapshot::{Flat, Rule, TableSnapshot};
use super::spec::Trap;
use super::{KernelFeatures, Set, TRAP, TRAP_BAN, TRAP_TOUCH, flag, kind};
pub(super) use rules::rules;

use crate::types::{BanTarget, Expiry};

/// The sets of the trap in the order in which they are made.
pub(super) fn sets(trap: Trap) -> impl Iterator<Item = Set> {
    const ALL: [Set; 12] = [
        Set::Trapped,
        Set::TrappedUdp,
        Set::TrapInterfaces,
        Set::Probed,
        Set::Probed6,
        Set::TouchedUdp,
        Set::TouchedUdp6,
        Set::Outbound,
        Set::Suspects,
        Set::Suspects6,
        Set::TrapBanned,
        Set::TrapBanned6,
    ];
    ALL.into_iter().filter(move |set| match set {
        Set::Trapped | Set::Probed | Set::Probed6 => trap.tcp,
        Set::TrappedUdp | Set::TouchedUdp | Set::TouchedUdp6 | Set::Outbound => trap.udp,
        _ => true,
    })
}

/// Those of them in which it remembers who touched what, and whom it caught.
pub(crate) fn memory(trap: Trap) -> impl Iterator<Item = Set> {
    sets(trap).filter(|set| !matches!(set, Set::Trapped | Set::TrappedUdp | Set::TrapInterfaces | Set::Outbound))
}

/// Type and length of the key, flags and size of a set of the trap; `None` for every other one.
///
/// The sizes bound what a flood of forged sources can take: some 50 MB, and at most half as much again where datagrams count as
/// well, while it lasts and for the window after it. A full set takes nobody new, and the sensor still counts.
pub(super) fn set(set: Set) -> Option<(u32, u32, SetFlags, Option<u32>)> {
    let counting = SetFlags::Eval | SetFlags::Timeout;
    let with_port = |address: u32| address << TYPE_BITS | NFT_TYPE_SERVICE;
    Some(match set {
        Set::Trapped | Set::TrappedUdp => (NFT_TYPE_SERVICE, 2, SetFlags::Interval, None),
        // Few, and never with a flag: nft prints none.
        Set::TrapInterfaces => (NFT_TYPE_INTERFACE, 4, SetFlags::empty(), None),
        Set::Probed => (with_port(NFT_TYPE_IPV4), 8, counting, Some(131_072)),
        Set::Probed6 => (with_port(NFT_TYPE_IPV6), 20, counting, Some(65_536)),
        Set::TouchedUdp => (with_port(NFT_TYPE_IPV4), 8, counting, Some(65_536)),
        Set::TouchedUdp6 => (with_port(NFT_TYPE_IPV6), 20, counting, Some(32_768)),
        // Room for every port.
        Set::Outbound => (NFT_TYPE_SERVICE, 2, counting, Some(65_536)),
        Set::Suspects => (NFT_TYPE_IPV4, 4, counting, Some(65_536)),
        Set::Suspects6 => (NFT_TYPE_IPV6, 16, counting, Some(32_768)),
        Set::TrapBanned => (NFT_TYPE_IPV4, 4, counting, Some(CAUGHT)),
        Set::TrapBanned6 => (NFT_TYPE_IPV6, 16, counting, Some(CAUGHT)),
        _ => return None,
    })
}

/// What was chosen when the rules of the trap that `found` holds were made; `None` where it has no trap.
pub(super) fn chosen(found: &TableSnapshot) -> Option<Trap> {
    let entry = found.rules(TRAP).first()?;
    let adds = |chain: &str, set: Set| -> Option<Flat> {
        let adds = found.rules(chain).iter().flatten().filter(|(name, _)| name == "dynset");
        let mut flats = adds.map(|(_, flat)| flat);
        flats.find(|flat| field(flat, &[1]).is_some_and(|name| name == set.name().as_bytes())).cloned()
    };
    let suspects = adds(TRAP_TOUCH, Set::Suspects);
    let burst = suspects.as_ref().and_then(|add| field(add, &[7, 2, LIMIT_BURST])).and_then(be_u32);
    let span = |add: &Flat| field(add, &[DYNSET_TIMEOUT]).and_then(be_u64).map(Duration::from_millis);
    let limit = found.rules(TRAP_BAN).first().and_then(|rule: &Rule| rule.first());
    let most = limit.and_then(|(_, limit)| field(limit, &[LIMIT_RATE])).and_then(be_u64);
    let by_interface =
        |(name, flat): &(String, Flat)| name == "meta" && field(flat, &[2]).and_then(be_u32) == Some(META_INTERFACE);
    Some(Trap {
        tcp: found.has_set(Set::Trapped.name()),
        udp: found.has_set(Set::TrappedUdp.name()),
        forgiven: burst.and_then(|burst| u8::try_from(burst).ok()).unwrap_or(0),
        window: suspects.as_ref().and_then(span).unwrap_or_default(),
        expiry: adds(TRAP_BAN, Set::Blocked).as_ref().and_then(span).map_or(Expiry::Never, Expiry::After),
        most_a_minute: most.and_then(|most| u32::try_from(most).ok()).unwrap_or(1),
        named_interfaces: entry.first().is_some_and(by_interface),
    })
}

fn field<'a>(flat: &'a Flat, path: &[u16]) -> Option<&'a [u8]> {
    flat.get(path).map(Vec::as_slice)
}

/// What the trap watches: ports as inclusive ranges, ascending, none touching another; `None` where the table has no set for
/// them, because those of this protocol do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched<'a> {
    /// TCP ports.
    pub tcp: Option<&'a [(u16, u16)]>,
    /// UDP ports.
    pub udp: Option<&'a [(u16, u16)]>,
    /// Interfaces by their indexes, where the table's rules ask for them.
    pub interfaces: &'a [u32],
}

/// Appends the replacement of what the trap watches.
pub(crate) fn put_trapped(batch: &mut Batch, watched: Watched<'_>) {
    for (set, ports) in [(Set::Trapped, watched.tcp), (Set::TrappedUdp, watched.udp)] {
        if let Some(ports) = ports {
            put_flush(batch, set);
            put_ports(batch, set, ports);
        }
    }
    put_flush(batch, Set::TrapInterfaces);
    for interfaces in watched.interfaces.chunks(RANGES_A_MESSAGE) {
        put_list(batch, kind::NEW_ELEMENT, Set::TrapInterfaces, |elements| {
            for index in interfaces {
                elements.nest(LIST_ELEMENT, |element| put_raw_key(element, &index.to_ne_bytes()));
            }
        });
    }
}

fn put_ports(batch: &mut Batch, set: Set, ports: &[(u16, u16)]) {
    for ports in ports.chunks(RANGES_A_MESSAGE) {
        put_list(batch, kind::NEW_ELEMENT, set, |elements| {
            for (first, last) in ports {
                elements.nest(LIST_ELEMENT, |element| put_raw_key(element, &first.to_be_bytes()));
                if let Some(end) = last.checked_add(1) {
                    elements.nest(LIST_ELEMENT, |element| {
                        put_raw_key(element, &end.to_be_bytes());
                        element.put(ELEMENT_FLAGS, &INTERVAL_END.to_be_bytes());
                    });
                }
            }
        });
    }
}

/// Appends that these are in `set` no more, one of the trap's: destroyed, or added and deleted, because to delete who is not
/// there fails, and to undo a transaction takes the kernel a thousand times as long as to do one.
pub(crate) fn put_forget(batch: &mut Batch, kernel: KernelFeatures, set: Set, subjects: &[BanTarget]) {
    let portable = [kind::NEW_ELEMENT, kind::DELETE_ELEMENT];
    let kinds = if kernel.destroys() { &[kind::DESTROY_ELEMENT][..] } else { &portable };
    for kind in kinds.iter().copied() {
        put_list(batch, kind, set, |elements| {
            for subject in subjects {
                elements.nest(LIST_ELEMENT, |element| {
                    put_key(element, subject.element());
                    if kind == kind::NEW_ELEMENT {
                        // Never met by anybody.
                        element.put(ELEMENT_TIMEOUT, &1_000_u64.to_be_bytes());
                    }
                });
            }
        });
    }
}

/// Appends that `set` is empty.
pub(crate) fn put_flush(batch: &mut Batch, set: Set) {
    batch.put(kind::DELETE_ELEMENT, 0, |list| name(list, set));
}

fn put_list(batch: &mut Batch, kind: u8, set: Set, fill: impl FnOnce(&mut Attributes<'_>)) {
    let flags = if kind == kind::NEW_ELEMENT { flag::CREATE } else { 0 };
    batch.put(kind, flags, |list| {
        name(list, set);
        list.nest(LIST_ELEMENTS, fill);
    });
}

fn put_raw_key(element: &mut Attributes<'_>, key: &[u8]) {
    element.nest(ELEMENT_KEY, |value| value.put(DATA_VALUE, key));
}

/// So many of them at most; then the kernel catches nobody more until the sensor has looked.
const CAUGHT: u32 = 8_192;
/// Ranges, or interfaces, of two elements of at most 24 bytes each: below the 64 KiB that the length of a list can tell.
const RANGES_A_MESSAGE: usize = 1_000;

/// Numbers that nft gives to inet_service and iface_index, and the bits by which it joins types.
const NFT_TYPE_SERVICE: u32 = 13;
const NFT_TYPE_INTERFACE: u32 = 20;
const TYPE_BITS: u32 = 6;
// enum nft_meta_keys, nft_dynset_attributes
const META_INTERFACE: u32 = 4;
const DYNSET_TIMEOUT: u16 = 6;
