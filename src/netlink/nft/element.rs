//! Bans and prefixes to set elements, and set elements back to bans. This is the one message that stands between a packet
//! and its ban, so it is written by hand, straight into the batch.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::batch::Batch;
use super::message::{Attributes, attributes, put_request};
use super::{Set, TABLE, flag, kind};
use crate::engine::subject::{Expiry, Subject};

/// How long a ban has still to run; `None` for one that stays until somebody lifts it.
pub type Remaining = Option<Duration>;

/// One element as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    /// Whom it blocks.
    pub(crate) subject: Subject,
    /// How long still.
    pub(crate) remaining: Remaining,
}

/// Appends a ban: add, delete, add. Re-adding alone never refreshes a timeout before Linux 6.12, and deleting alone fails
/// where the element is missing or has just expired; the three work in every case, and nobody sees a gap between them.
pub fn put_ban(batch: &mut Batch, subject: Subject, expiry: Expiry) {
    let timeout = timeout(expiry);
    put_element(batch, kind::NEW_ELEMENT, flag::CREATE, subject, timeout);
    put_element(batch, kind::DELETE_ELEMENT, 0, subject, None);
    put_element(batch, kind::NEW_ELEMENT, flag::CREATE, subject, timeout);
}

/// Appends the deletion of a ban, which fails where there is none.
pub(crate) fn put_lift(batch: &mut Batch, subject: Subject) {
    put_element(batch, kind::DELETE_ELEMENT, 0, subject, None);
}

/// Makes `request` the question whether `subject` is blocked.
pub(crate) fn put_one_element_query(request: &mut Vec<u8>, subject: Subject) {
    put_request(request, kind::GET_ELEMENT, 0, |list| fill(list, subject, None));
}

/// Makes `request` the question for every element of `set`.
pub(crate) fn put_set_dump(request: &mut Vec<u8>, set: Set) {
    put_request(request, kind::GET_ELEMENT, flag::DUMP, |list| name(list, set));
}

/// Appends the replacement of what an interval set holds: everything out, then these prefixes in. They must be of one
/// family, sorted, and must not overlap.
pub(crate) fn put_protected(batch: &mut Batch, set: Set, prefixes: &[IpNet]) {
    batch.put(kind::DELETE_ELEMENT, 0, |list| name(list, set));
    for prefixes in prefixes.chunks(PREFIXES_A_MESSAGE) {
        batch.put(kind::NEW_ELEMENT, flag::CREATE, |list| {
            name(list, set);
            list.nest(LIST_ELEMENTS, |elements| {
                for prefix in prefixes {
                    elements.nest(LIST_ELEMENT, |element| put_key(element, prefix.network()));
                    // An interval ends before the next address. One that runs to the last address has no end element.
                    if let Some(end) = after(prefix.broadcast()) {
                        elements.nest(LIST_ELEMENT, |element| {
                            put_key(element, end);
                            element.put(ELEMENT_FLAGS, &INTERVAL_END.to_be_bytes());
                        });
                    }
                }
            });
        });
    }
}

/// The elements in the attributes of one NEWSETELEM message. Those without an address or with one of another length, such
/// as a catch-all, are no bans and are passed over.
pub(crate) fn elements_of(list: &[u8]) -> impl Iterator<Item = Element> {
    attributes(list)
        .filter(|(kind, _)| *kind == LIST_ELEMENTS)
        .flat_map(|(_, elements)| attributes(elements))
        .filter_map(|(_, element)| read_element(element))
}

fn read_element(element: &[u8]) -> Option<Element> {
    let (mut subject, mut timed, mut remaining) = (None, None, None);
    for (kind, value) in attributes(element) {
        match kind {
            ELEMENT_KEY => subject = attributes(value).find(|(kind, _)| *kind == DATA_VALUE).and_then(read_address),
            ELEMENT_TIMEOUT => timed = milliseconds(value),
            ELEMENT_EXPIRATION => remaining = milliseconds(value),
            _ => {}
        }
    }
    Some(Element { subject: Subject::from_element(subject?), remaining: remaining.or(timed) })
}

fn read_address((_, value): (u16, &[u8])) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from).ok();
    v4.or_else(|| <[u8; 16]>::try_from(value).map(IpAddr::from).ok())
}

fn milliseconds(value: &[u8]) -> Option<Duration> {
    value.try_into().ok().map(|bytes| Duration::from_millis(u64::from_be_bytes(bytes)))
}

fn put_element(batch: &mut Batch, kind: u8, flags: u16, subject: Subject, timeout: Option<u64>) {
    batch.put(kind, flags, |list| fill(list, subject, timeout));
}

fn fill(list: &mut Attributes<'_>, subject: Subject, timeout: Option<u64>) {
    name(list, Set::of(subject));
    list.nest(LIST_ELEMENTS, |elements| {
        elements.nest(LIST_ELEMENT, |element| {
            put_key(element, subject.element());
            if let Some(timeout) = timeout {
                element.put(ELEMENT_TIMEOUT, &timeout.to_be_bytes());
            }
        });
    });
}

fn name(list: &mut Attributes<'_>, set: Set) {
    list.put_text(LIST_TABLE, TABLE);
    list.put_text(LIST_SET, set.name());
}

fn put_key(element: &mut Attributes<'_>, address: IpAddr) {
    element.nest(ELEMENT_KEY, |key| match address {
        IpAddr::V4(v4) => key.put(DATA_VALUE, &v4.octets()),
        IpAddr::V6(v6) => key.put(DATA_VALUE, &v6.octets()),
    });
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

/// Milliseconds; `None` for ever. The kernel refuses what does not fit its clock and takes zero for "no timeout", so both
/// ends are held: a second at least, a hundred years at most.
fn timeout(expiry: Expiry) -> Option<u64> {
    match expiry {
        Expiry::Never => None,
        Expiry::After(span) => Some(u64::try_from(span.as_millis()).unwrap_or(CENTURY).clamp(1_000, CENTURY)),
    }
}

const CENTURY: u64 = 100 * 365 * 86_400 * 1_000;

/// Two elements of at most 40 bytes each: some 40 KB, below the 64 KiB that the length of the list can tell.
const PREFIXES_A_MESSAGE: usize = 500;

// enum nft_set_elem_list_attributes, nft_list_attributes, nft_set_elem_attributes, nft_data_attributes
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_TIMEOUT: u16 = 4;
const ELEMENT_EXPIRATION: u16 = 5;
const DATA_VALUE: u16 = 1;
/// NFT_SET_ELEM_INTERVAL_END.
const INTERVAL_END: u32 = 1;

#[cfg(test)]
mod tests {
    use super::super::message::Messages;
    use super::*;

    fn subject(text: &str) -> Subject {
        Subject::of(text.parse().unwrap())
    }

    #[test]
    fn a_ban_reads_back_as_it_was_written() {
        for text in ["192.0.2.7", "2001:db8:1:2:3::4", "fe80::1"] {
            for (expiry, remaining) in [
                (Expiry::Never, None),
                (Expiry::After(Duration::from_secs(86_400)), Some(Duration::from_secs(86_400))),
                (Expiry::After(Duration::ZERO), Some(Duration::from_secs(1))),
                (Expiry::After(Duration::MAX), Some(Duration::from_millis(CENTURY))),
            ] {
                let mut batch = Batch::new();
                put_ban(&mut batch, subject(text), expiry);
                let messages: Vec<_> = Messages(batch.messages()).filter_map(|message| message.nft()).collect();
                let kinds: Vec<_> = messages.iter().map(|(kind, _)| *kind).collect();
                assert_eq!(kinds, [12, 14, 12]);
                let last = elements_of(messages[2].1).collect::<Vec<_>>();
                assert_eq!(last, [Element { subject: subject(text), remaining }]);
            }
        }
    }

    #[test]
    fn a_long_list_of_prefixes_is_split_below_the_length_of_an_attribute() {
        let prefixes: Vec<IpNet> =
            (0..1_200_u128).map(|n| ipnet::Ipv6Net::new_assert((n << 80).into(), 64).into()).collect();
        let mut batch = Batch::new();
        put_protected(&mut batch, Set::Allowed6, &prefixes);
        let lists: Vec<_> = Messages(batch.messages()).filter_map(|message| message.nft()).collect();
        assert_eq!(lists.iter().map(|(_, list)| elements_of(list).count()).collect::<Vec<_>>(), [0, 1000, 1000, 400]);
        assert!(lists.iter().all(|(_, list)| list.len() < usize::from(u16::MAX)));
    }

    #[test]
    fn an_interval_to_the_last_address_has_no_end() {
        let mut batch = Batch::new();
        put_protected(&mut batch, Set::Allowed, &["0.0.0.0/0".parse().unwrap()]);
        let elements: usize = Messages(batch.messages())
            .filter_map(|message| message.nft())
            .map(|(_, list)| elements_of(list).count())
            .sum();
        assert_eq!(elements, 1);
    }
}
