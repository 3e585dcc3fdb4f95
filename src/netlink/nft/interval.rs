//! Bans of whole networks to elements of interval sets, and back. Such an element is two: its first address, and the first
//! one after it.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::batch::Batch;
use super::element::{LIST_ELEMENT, LIST_ELEMENTS, Times, name, put_interval, put_key, read};
use super::message::{attributes, put_request};
use super::{Element, Remaining, Set, flag, kind};
use crate::types::{BanTarget, Expiry, Prefix};

/// One end of an interval as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) address: IpAddr,
    /// The first address after the interval, not the first one in it.
    pub(crate) is_end: bool,
    /// How long the interval still stands; its end does not say.
    pub(crate) remaining: Remaining,
}

/// Appends a ban of `network` that lasts so long in all, where that is known, and so long still: add, delete, add, as for
/// every ban. It must be there, or nothing that overlaps it: where both its ends are ends of networks inside, Linux 6.1 and
/// older take it for one that is there.
pub(crate) fn put_network(batch: &mut Batch, network: Prefix, length: Option<Duration>, left: Expiry) {
    let times = Times::of(length, left);
    put(batch, kind::NEW_ELEMENT, flag::CREATE, network, times);
    put(batch, kind::DELETE_ELEMENT, 0, network, Times::default());
    put(batch, kind::NEW_ELEMENT, flag::CREATE, network, times);
}

/// The same where there is no ban of it yet, nor, once the transaction has deleted it, of anything inside; fails where there
/// is. To delete it here as well is more than the kernel can do at once, because two dead elements and a live one then stand
/// at one address.
pub(crate) fn put_new_network(batch: &mut Batch, network: Prefix, length: Option<Duration>, left: Expiry) {
    put(batch, kind::NEW_ELEMENT, flag::CREATE | flag::EXCL, network, Times::of(length, left));
}

/// Appends the deletion of a ban of `network`, which fails where there is none of exactly this one.
pub(crate) fn put_network_lift(batch: &mut Batch, network: Prefix) {
    put(batch, kind::DELETE_ELEMENT, 0, network, Times::default());
}

fn put(batch: &mut Batch, kind: u8, flags: u16, network: Prefix, times: Times) {
    batch.put(kind, flags, |list| {
        name(list, Set::of(BanTarget::Prefix(network)));
        list.nest(LIST_ELEMENTS, |elements| put_interval(elements, network.network(), times));
    });
}

/// Makes `request` the question which interval of `set` the address is in: its first bound comes back.
pub(crate) fn put_place_query(request: &mut Vec<u8>, set: Set, address: IpAddr) {
    put_request(request, kind::GET_ELEMENT, 0, |list| {
        name(list, set);
        list.nest(LIST_ELEMENTS, |elements| elements.nest(LIST_ELEMENT, |element| put_key(element, address)));
    });
}

/// The bounds in the attributes of one NEWSETELEM or DELSETELEM message.
pub(crate) fn bounds_of(list: &[u8]) -> impl Iterator<Item = Bound> {
    let elements = attributes(list).filter(|(kind, _)| *kind == LIST_ELEMENTS);
    let elements = elements.flat_map(|(_, elements)| attributes(elements));
    elements.filter_map(|(_, element)| {
        let raw = read(element)?;
        Some(Bound { address: raw.address, is_end: raw.is_end, remaining: raw.remaining })
    })
}

/// The networks whose bounds are among these, of one family and in any order. An interval that is no network, which only
/// somebody else can have added, comes as the networks that it is made of; what is wider or narrower than a ban of a
/// network can be is passed over.
pub(crate) fn networks(mut bounds: Vec<Bound>) -> Vec<Element> {
    // Of two at one address the end belongs to the interval before.
    bounds.sort_by_key(|bound| (bound.address, !bound.is_end));
    bounds.dedup_by_key(|bound| (bound.address, bound.is_end));
    let mut found = Vec::new();
    let mut bounds = bounds.into_iter().peekable();
    while let Some(start) = bounds.next() {
        if start.is_end {
            continue;
        }
        let end = bounds.peek().filter(|next| next.is_end).map(|next| next.address);
        let inside = pieces(start.address, end).filter_map(Prefix::new);
        found.extend(inside.map(|wide| Element { subject: BanTarget::Prefix(wide), remaining: start.remaining }));
    }
    found
}

/// The networks from `first` to just before `end`; to the last address where there is none.
fn pieces(first: IpAddr, end: Option<IpAddr>) -> Box<dyn Iterator<Item = IpNet>> {
    match (first, end) {
        (IpAddr::V4(first), Some(IpAddr::V4(end))) => match end.to_bits().checked_sub(1) {
            Some(last) => Box::new(Ipv4Subnets::new(first, last.into(), 0).map(IpNet::V4)),
            None => Box::new(std::iter::empty()),
        },
        (IpAddr::V6(first), Some(IpAddr::V6(end))) => match end.to_bits().checked_sub(1) {
            Some(last) => Box::new(Ipv6Subnets::new(first, last.into(), 0).map(IpNet::V6)),
            None => Box::new(std::iter::empty()),
        },
        (IpAddr::V4(first), None) => Box::new(Ipv4Subnets::new(first, u32::MAX.into(), 0).map(IpNet::V4)),
        (IpAddr::V6(first), None) => Box::new(Ipv6Subnets::new(first, u128::MAX.into(), 0).map(IpNet::V6)),
        _ => Box::new(std::iter::empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Messages;
    use super::*;

    fn wide(text: &str) -> Prefix {
        Prefix::new(text.parse().unwrap()).unwrap()
    }

    fn shown(bounds: Vec<Bound>) -> Vec<String> {
        networks(bounds).into_iter().map(|element| element.subject.to_string()).collect()
    }

    fn bound(address: &str, is_end: bool) -> Bound {
        Bound { address: address.parse().unwrap(), is_end, remaining: None }
    }

    #[test]
    fn a_ban_of_a_network_reads_back_as_it_was_written() {
        for text in ["203.0.113.0/24", "10.0.0.0/8", "255.255.255.0/24", "192.0.2.6/31", "2001:db8:1:ff00::/56"] {
            let mut batch = Batch::new();
            put_network(&mut batch, wide(text), Some(Duration::from_secs(60)), Expiry::After(Duration::from_secs(20)));
            let lists: Vec<_> = Messages(batch.messages()).filter_map(|message| message.nft()).collect();
            assert_eq!(lists.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [12, 14, 12]);
            let found = networks(bounds_of(lists[2].1).collect());
            let remaining = Some(Duration::from_secs(20));
            assert_eq!(found, [Element { subject: BanTarget::Prefix(wide(text)), remaining }]);
        }
    }

    #[test]
    fn neighbours_share_an_address_and_are_two_networks_in_any_order() {
        let mut bounds = vec![
            bound("192.0.2.0", false),
            bound("192.0.2.128", true),
            bound("192.0.2.128", false),
            bound("192.0.3.0", true),
        ];
        for _ in 0..bounds.len() {
            bounds.rotate_left(1);
            assert_eq!(shown(bounds.clone()), ["192.0.2.0/25", "192.0.2.128/25"]);
        }
    }

    #[test]
    fn what_is_no_network_comes_in_networks_and_single_addresses_are_passed_over() {
        let ragged = vec![bound("192.0.2.1", false), bound("192.0.2.8", true)];
        assert_eq!(shown(ragged), ["192.0.2.2/31", "192.0.2.4/30"]);
        let odd = vec![bound("0.0.0.0", true), bound("192.0.2.9", true), bound("192.0.2.9", false)];
        assert_eq!(shown(odd).first().map(String::as_str), Some("192.0.2.10/31"), "an end without a start is none");
        assert!(shown(vec![bound("0.0.0.0", false), bound("0.0.0.0", true)]).is_empty());
        assert!(shown(vec![bound("::", false)]).is_empty(), "no ban is as wide as that");
    }
}
