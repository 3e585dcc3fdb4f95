//! Recovers from the rules of a table the [`RulesetSpec`] with which this program created them.

use std::array;
use std::time::Duration;

use rustables::sys;

use super::exclusions::NAT64;
use super::family::V4;
use super::rule::LINK_LOCAL;
use super::set::Set;
use super::snapshot::{Flat, TableSnapshot};
use super::spec::{DecoyRules, RulesetSpec, Trap};
use super::table::{DECOY_TAKE, REFUSE, TRAP, TRAP_BAN, TRAP_HOLD_NEW, TRAP_TOUCH};
use crate::netlink::message::{be_u32, be_u64};
use crate::types::{Action, Expiry, Rate};

/// Returns the spec with which this program created the table `found`. If another program created it, a table built
/// from the result differs from `found`.
pub(super) fn recognise(found: &TableSnapshot, size: u32) -> RulesetSpec {
    let prefix_sets = found.has_set(Set::BlockedNets);
    let fleet = found.has_set(Set::Fleet).then(|| found.size(Set::Fleet));
    let own_source = found.has_set(Set::Guarded);
    let trap = recognise_trap(found);
    let decoys = recognise_decoys(found);
    let mut spec = RulesetSpec { size, prefix_sets, own_source, fleet, trap, decoys, ..RulesetSpec::default() };
    for rule in found.rules(REFUSE) {
        let names: Vec<&str> = rule.iter().map(|(name, _)| name.as_str()).collect();
        match (names.as_slice(), rule.first()) {
            (["limit", "log"], Some((_, limit))) => {
                let (packets, seconds) =
                    (wide_number(limit, &[sys::NFTA_LIMIT_RATE]), wide_number(limit, &[sys::NFTA_LIMIT_UNIT]));
                spec.log_drops =
                    packets.zip(seconds).and_then(|(packets, seconds)| Rate::from_kernel(packets, seconds));
            }
            (["reject"], _) => spec.action = Action::Reject,
            _ => {}
        }
    }
    spec
}

/// Recovers the options of the trap; `None` if the table has none.
fn recognise_trap(found: &TableSnapshot) -> Option<Trap> {
    let entry = found.rules(TRAP).first()?;
    let addition = |chain: &str, set: Set| {
        let mut expressions = found.rules(chain).iter().flatten().filter(|(name, _)| name == "dynset");
        let names_set = |flat: &&Flat| field(flat, &[sys::NFTA_DYNSET_SET_NAME]) == Some(set.name().as_bytes());
        expressions.find_map(|(_, flat)| Some(flat).filter(names_set))
    };
    let timeout = |add: &Flat| wide_number(add, &[sys::NFTA_DYNSET_TIMEOUT]).map(Duration::from_millis);
    let suspects = addition(TRAP_TOUCH, Set::Suspects);
    let hold = addition(TRAP_HOLD_NEW, Set::Held).and_then(timeout);
    let window = suspects.or_else(|| addition(TRAP_HOLD_NEW, Set::HoldCounts)).and_then(timeout);
    let burst =
        suspects.and_then(|add| flat_number(add, &[sys::NFTA_DYNSET_EXPR, sys::NFTA_EXPR_DATA, sys::NFTA_LIMIT_BURST]));
    let ceiling = found.rules(TRAP_BAN).iter().flatten().find(|(name, _)| name == "limit");
    let limit = |attribute| ceiling.and_then(|(_, limit)| wide_number(limit, &[attribute]));
    let rate = limit(sys::NFTA_LIMIT_RATE).zip(limit(sys::NFTA_LIMIT_UNIT));
    let by_interface = |(name, flat): &(String, Flat)| {
        name == "meta" && flat_number(flat, &[sys::NFTA_META_KEY]) == Some(sys::NFT_META_IIF)
    };
    let mut nat64 = left_out(found);
    Some(Trap {
        nat64: array::from_fn(|_| nat64.next()),
        tcp: found.has_set(Set::Probed),
        udp: found.has_set(Set::TrappedUdp),
        forgiven: burst.and_then(|burst| u8::try_from(burst).ok()).unwrap_or(0),
        window: window.unwrap_or_default(),
        expiry: addition(TRAP_BAN, Set::Blocked).and_then(timeout).map_or(Expiry::Never, Expiry::After),
        ceiling: rate.and_then(|(packets, seconds)| Rate::from_kernel(packets, seconds)).unwrap_or(Rate::per_minute(1)),
        named_interfaces: entry.first().is_some_and(by_interface),
        hold,
    })
}

/// Recovers the options of the decoys; `None` if the table has none.
fn recognise_decoys(found: &TableSnapshot) -> Option<DecoyRules> {
    let ([mut v4, mut v6], mut max_new_tracked) = ([None; 2], None);
    for rule in found.rules(DECOY_TAKE) {
        let limit = rule.iter().find(|(name, _)| name == "limit");
        max_new_tracked = max_new_tracked.or(limit.and_then(|(_, limit)| flat_number(limit, &[sys::NFTA_LIMIT_BURST])));
        let Some((_, tproxy)) = rule.iter().find(|(name, _)| name == "tproxy") else { continue };
        let loaded = rule.iter().filter(|(name, _)| name == "immediate");
        // The address has more bytes than the port.
        let mut port = loaded.filter_map(|(_, flat)| {
            field(flat, &[sys::NFTA_IMMEDIATE_DATA, sys::NFTA_DATA_VALUE])?.try_into().ok().map(u16::from_be_bytes)
        });
        let port = port.next();
        match flat_number(tproxy, &[sys::NFTA_TPROXY_FAMILY]) {
            Some(family) if family == u32::from(V4.number) => v4 = port,
            _ => v6 = port,
        }
    }
    Some(DecoyRules { v4: v4?, v6, max_new_tracked })
}

/// Upper halves of the configured IPv6 sources that the trap leaves to the daemon, without the built-in ones.
fn left_out(found: &TableSnapshot) -> impl Iterator<Item = u64> {
    let compared = found.rules(TRAP_TOUCH).iter().flatten().filter(|(name, _)| name == "cmp");
    let values =
        compared.filter_map(|(_, flat)| field(flat, &[sys::NFTA_CMP_DATA, sys::NFTA_DATA_VALUE])?.try_into().ok());
    values.filter(|upper| ![[0; 8], LINK_LOCAL, NAT64].contains(upper)).map(u64::from_be_bytes)
}

fn field<'a>(flat: &'a Flat, path: &[u16]) -> Option<&'a [u8]> {
    flat.get(path).map(Vec::as_slice)
}

fn flat_number(flat: &Flat, path: &[u16]) -> Option<u32> {
    field(flat, path).and_then(be_u32)
}

fn wide_number(flat: &Flat, path: &[u16]) -> Option<u64> {
    field(flat, path).and_then(be_u64)
}
