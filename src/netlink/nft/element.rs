//! Encodes and decodes set elements. In a set of ranges an element is a bound: the first value of a range, or the first
//! value after it.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, IpSubnets, Ipv4Subnets, Ipv6Subnets};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP};
use rustables::sys;

use super::message::{field, put_request};
use super::set::{Set, put_set_name};
use super::table::TABLE;
use crate::netlink::message::{Attributes, attributes, be_u32, be_u64, ip};
use crate::netlink::socket::{Batch, Socket, SocketError};
use crate::types::{BanTarget, Expiry, Prefix};

/// One element of an address set as reported by the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SetElement {
    pub(crate) address: IpAddr,
    /// Index of the interface, if the set holds link-local addresses of single links; otherwise 0.
    pub(crate) interface: u32,
    /// True for the first address after an interval, which is not part of it.
    pub(crate) is_end: bool,
    /// Remaining time. The end of an interval carries none.
    pub(crate) left: Expiry,
    /// The whole time for which it was added.
    pub(crate) length: Expiry,
}

impl SetElement {
    /// The target that the element represents.
    pub(crate) fn target(self) -> BanTarget {
        match self.interface {
            0 => BanTarget::from_element(self.address),
            interface => BanTarget::on(self.address, interface),
        }
    }
}

/// Times of an element in milliseconds: the timeout (`None` if permanent), and the remaining time if it is shorter.
#[derive(Clone, Copy, Default)]
pub(super) struct Times {
    timeout: Option<u64>,
    left: Option<u64>,
}

impl Times {
    /// Times of a ban with this total duration, if known, and remaining time.
    pub(super) fn new(length: Option<Duration>, left: Expiry) -> Self {
        let left = timeout(left);
        let length = length.and_then(|length| timeout(Expiry::After(length)));
        // The kernel refuses a remaining time above the timeout; without a remaining time it starts the whole timeout.
        match (length, left) {
            (Some(length), Some(left)) if left < length => Self { timeout: Some(length), left: Some(left) },
            _ => Self { timeout: left, left: None },
        }
    }

    fn append_to(self, element: &mut Attributes<'_>) {
        if let Some(timeout) = self.timeout {
            element.put_u64(sys::NFTA_SET_ELEM_TIMEOUT, timeout);
        }
        if let Some(left) = self.left {
            element.put_u64(sys::NFTA_SET_ELEM_EXPIRATION, left);
        }
    }
}

/// Appends a message for elements of `set`, which `fill` appends.
pub(super) fn put_elements(batch: &mut Batch, kind: u32, flags: u16, set: Set, fill: impl FnOnce(&mut Attributes<'_>)) {
    let create = if kind == sys::NFT_MSG_NEWSETELEM { NLM_F_CREATE } else { 0 };
    batch.append(kind, create | flags, |list| {
        put_list_name(list, set);
        list.nest(sys::NFTA_SET_ELEM_LIST_ELEMENTS, fill);
    });
}

/// Appends the removal of all elements of `set`.
pub(crate) fn put_flush(batch: &mut Batch, set: Set) {
    batch.append(sys::NFT_MSG_DELSETELEM, 0, |list| put_list_name(list, set));
}

/// Replaces `request` with the query for the ban of `target`.
pub(crate) fn put_ban_query(request: &mut Vec<u8>, target: BanTarget) {
    put_query(request, Set::for_target(target), |elements| put_target(elements, target, Times::default()));
}

/// Replaces `request` with the query for the element of `set` with this address, or the first bound of the surrounding
/// interval.
pub(crate) fn put_element_query(request: &mut Vec<u8>, set: Set, address: IpAddr) {
    put_query(request, set, |elements| put_address(elements, address, Times::default()));
}

/// Replaces `request` with the query for the element of `set` that `fill` appends.
fn put_query(request: &mut Vec<u8>, set: Set, fill: impl FnOnce(&mut Attributes<'_>)) {
    put_request(request, sys::NFT_MSG_GETSETELEM, 0, |list| {
        put_list_name(list, set);
        list.nest(sys::NFTA_SET_ELEM_LIST_ELEMENTS, fill);
    });
}

/// True if the trap has recorded that this host sent from the UDP port; `None` if the set does not exist.
pub(crate) fn has_sent_from(
    socket: &mut Socket,
    request: &mut Vec<u8>,
    port: u16,
) -> Result<Option<bool>, SocketError> {
    recorded(socket, request, Set::Outbound, &port.to_be_bytes())
}

/// True if the trap has recorded that the TCP port answered the peer; `None` if the set does not exist.
pub(crate) fn has_answered(
    socket: &mut Socket,
    request: &mut Vec<u8>,
    peer: IpAddr,
    port: u16,
) -> Result<Option<bool>, SocketError> {
    // Each part of a concatenated key fills whole registers of four bytes.
    let [high, low] = port.to_be_bytes();
    match peer {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            recorded(socket, request, Set::Answered, &[a, b, c, d, high, low, 0, 0])
        }
        IpAddr::V6(v6) => {
            let key = key_of(v6.octets().into_iter().chain([high, low]));
            recorded(socket, request, Set::Answered6, &key)
        }
    }
}

/// True if `set` contains the key; `None` if the set does not exist.
fn recorded(socket: &mut Socket, request: &mut Vec<u8>, set: Set, key: &[u8]) -> Result<Option<bool>, SocketError> {
    put_query(request, set, |elements| put_element(elements, key, |_| {}));
    if socket.find(request, |_| {})? {
        return Ok(Some(true));
    }
    // The kernel also returns ENOENT if the set does not exist.
    put_request(request, sys::NFT_MSG_GETSET, 0, |fields| put_set_name(fields, set));
    Ok(socket.find(request, |_| {})?.then_some(false))
}

/// Replaces `request` with the query for all elements of `set`.
pub(crate) fn put_set_dump(request: &mut Vec<u8>, set: Set) {
    put_request(request, sys::NFT_MSG_GETSETELEM, NLM_F_DUMP, |list| put_list_name(list, set));
}

fn put_list_name(list: &mut Attributes<'_>, set: Set) {
    list.put_text(sys::NFTA_SET_ELEM_LIST_TABLE, TABLE);
    list.put_text(sys::NFTA_SET_ELEM_LIST_SET, set.name());
}

/// Appends the element for a ban, or both bounds of a blocked network.
pub(super) fn put_target(elements: &mut Attributes<'_>, target: BanTarget, times: Times) {
    let (address, interface) = match target {
        BanTarget::Link { address, interface } => (address, interface),
        BanTarget::Prefix(network) => return put_interval(elements, network.network(), times),
        BanTarget::V4(_) | BanTarget::V6(_) => return put_address(elements, target.element(), times),
    };
    let key = key_of(interface.to_ne_bytes().into_iter().chain(address.octets()));
    put_element(elements, &key, |element| times.append_to(element));
}

/// Builds a concatenated key with an IPv6 address: these bytes, padded with zeros.
fn key_of(bytes: impl Iterator<Item = u8>) -> [u8; 20] {
    let mut key = [0; 20];
    key.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
    key
}

/// Appends an element with this address.
pub(super) fn put_address(elements: &mut Attributes<'_>, address: IpAddr, times: Times) {
    match address {
        IpAddr::V4(v4) => put_element(elements, &v4.octets(), |element| times.append_to(element)),
        IpAddr::V6(v6) => put_element(elements, &v6.octets(), |element| times.append_to(element)),
    }
}

/// Appends an element with this key and the attributes that `fill` appends.
pub(super) fn put_element(elements: &mut Attributes<'_>, key: &[u8], fill: impl FnOnce(&mut Attributes<'_>)) {
    elements.nest(sys::NFTA_LIST_ELEM, |element| {
        element.nest(sys::NFTA_SET_ELEM_KEY, |value| value.put(sys::NFTA_DATA_VALUE, key));
        fill(element);
    });
}

/// Appends the first value after a range.
pub(super) fn put_end(elements: &mut Attributes<'_>, key: &[u8]) {
    put_element(elements, key, |element| element.put_u32(sys::NFTA_SET_ELEM_FLAGS, sys::NFT_SET_ELEM_INTERVAL_END));
}

/// Appends both bounds of a network.
pub(super) fn put_interval(elements: &mut Attributes<'_>, network: IpNet, times: Times) {
    put_address(elements, network.network(), times);
    // An interval ends before the next address. One that extends to the last address has no end element.
    match next_address(network.broadcast()) {
        Some(IpAddr::V4(end)) => put_end(elements, &end.octets()),
        Some(IpAddr::V6(end)) => put_end(elements, &end.octets()),
        None => {}
    }
}

/// The next address; `None` after the last one.
pub(crate) fn next_address(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

/// Timeout of a ban in milliseconds; `None` if permanent. The kernel refuses values that overflow its clock and treats
/// zero as "no timeout", so the value is clamped to between one second and a hundred years.
pub(super) fn timeout(expiry: Expiry) -> Option<u64> {
    match expiry {
        Expiry::Never => None,
        Expiry::After(span) => Some(u64::try_from(span.as_millis()).unwrap_or(CENTURY).clamp(1_000, CENTURY)),
    }
}

/// The elements in the attributes of one NEWSETELEM or DELSETELEM message. Those without an address, or with one of
/// another length, such as a catch-all, are skipped.
pub(crate) fn elements_of(list: &[u8]) -> impl Iterator<Item = SetElement> {
    attributes(list)
        .filter(|(kind, _)| *kind == sys::NFTA_SET_ELEM_LIST_ELEMENTS)
        .flat_map(|(_, elements)| attributes(elements))
        .filter_map(|(_, element)| read_element(element))
}

fn read_element(element: &[u8]) -> Option<SetElement> {
    let key = field(field(element, sys::NFTA_SET_ELEM_KEY)?, sys::NFTA_DATA_VALUE)?;
    let (interface, key) = match key.split_first_chunk() {
        // The address fills the rest of the concatenated key.
        Some((interface, rest)) if key.len() == 20 && *interface != [0; 4] => (u32::from_ne_bytes(*interface), rest),
        _ => (0, key),
    };
    let address = ip(key)?;
    if interface != 0 && !matches!(BanTarget::on(address, interface), BanTarget::Link { .. }) {
        return None;
    }
    let span = |kind| field(element, kind).and_then(be_u64).map(Duration::from_millis);
    let length = span(sys::NFTA_SET_ELEM_TIMEOUT);
    let flags = field(element, sys::NFTA_SET_ELEM_FLAGS).and_then(be_u32).unwrap_or(0);
    Some(SetElement {
        address,
        interface,
        is_end: flags & sys::NFT_SET_ELEM_INTERVAL_END != 0,
        left: span(sys::NFTA_SET_ELEM_EXPIRATION).or(length).into(),
        length: length.into(),
    })
}

/// Decodes the networks that these bounds form, which are of one family and in any order. An interval that is not a
/// network, which only another program can have added, is split into networks. Networks outside of the permitted prefix
/// lengths are skipped.
pub(crate) fn decode_prefixes(mut bounds: Vec<SetElement>) -> Vec<(BanTarget, Expiry)> {
    // If two bounds have the same address, the end belongs to the preceding interval.
    bounds.sort_by_key(|bound| (bound.address, !bound.is_end));
    bounds.dedup_by_key(|bound| (bound.address, bound.is_end));
    let mut found = Vec::new();
    let mut bounds = bounds.into_iter().peekable();
    while let Some(start) = bounds.next() {
        if start.is_end {
            continue;
        }
        let end = bounds.peek().filter(|next| next.is_end).map(|next| next.address);
        let inside = split(start.address, end).into_iter().flatten().filter_map(Prefix::new);
        found.extend(inside.map(|wide| (BanTarget::Prefix(wide), start.left)));
    }
    found
}

/// The networks from `first` up to, but excluding, `end`; up to the last address if there is no end.
fn split(first: IpAddr, end: Option<IpAddr>) -> Option<IpSubnets> {
    Some(match (first, end) {
        (IpAddr::V4(first), Some(IpAddr::V4(end))) => {
            IpSubnets::V4(Ipv4Subnets::new(first, end.to_bits().checked_sub(1)?.into(), 0))
        }
        (IpAddr::V6(first), Some(IpAddr::V6(end))) => {
            IpSubnets::V6(Ipv6Subnets::new(first, end.to_bits().checked_sub(1)?.into(), 0))
        }
        (IpAddr::V4(first), None) => IpSubnets::V4(Ipv4Subnets::new(first, u32::MAX.into(), 0)),
        (IpAddr::V6(first), None) => IpSubnets::V6(Ipv6Subnets::new(first, u128::MAX.into(), 0)),
        _ => return None,
    })
}

pub(super) const CENTURY: u64 = 100 * 365 * 86_400 * 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(bounds: Vec<SetElement>) -> Vec<String> {
        decode_prefixes(bounds).into_iter().map(|(target, _)| target.to_string()).collect()
    }

    fn bound(address: &str, is_end: bool) -> SetElement {
        SetElement {
            address: address.parse().unwrap(),
            interface: 0,
            is_end,
            left: Expiry::Never,
            length: Expiry::Never,
        }
    }

    #[test]
    fn neighbours_sharing_address_are_two_networks() {
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
    fn foreign_interval_is_split_into_networks() {
        let ragged = vec![bound("192.0.2.1", false), bound("192.0.2.8", true)];
        assert_eq!(shown(ragged), ["192.0.2.2/31", "192.0.2.4/30"]);
        let odd = vec![bound("0.0.0.0", true), bound("192.0.2.9", true), bound("192.0.2.9", false)];
        assert_eq!(
            shown(odd).first().map(String::as_str),
            Some("192.0.2.10/31"),
            "an end without a start is no interval"
        );
        assert!(shown(vec![bound("0.0.0.0", false), bound("0.0.0.0", true)]).is_empty());
        assert!(shown(vec![bound("::", false)]).is_empty(), "no ban is that wide");
    }
}
