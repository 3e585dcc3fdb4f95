//! Bans and prefixes to set elements, and set elements back to bans. This is the one message that stands between a packet
//! and its ban, so it is written by hand, straight into the batch.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::batch::Batch;
use super::message::{Attributes, attributes, be_u32, put_request};
use super::{KernelFeatures, Set, TABLE, flag, kind};
use crate::types::{BanTarget, Expiry};

/// How long a ban has still to run; `None` for one that stays until somebody lifts it.
pub type Remaining = Option<Duration>;

/// One element as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    /// Whom it blocks.
    pub(crate) subject: BanTarget,
    /// How long still.
    pub(crate) remaining: Remaining,
}

/// Appends one ban, as every kernel takes it. See [`put_bans`].
pub fn put_ban(batch: &mut Batch, subject: BanTarget, expiry: Expiry) {
    put_bans(batch, KernelFeatures::oldest(), &[(subject, expiry)]);
}

/// Appends bans, at most [`BANS_A_MESSAGE`]: add, delete, add. Re-adding alone never refreshes a timeout before Linux 6.12,
/// and deleting alone fails where the element is missing or has just expired; the three work in every case, and nobody sees
/// a gap between them. A kernel that destroys needs no first one. A subject must not stand in it twice.
pub(crate) fn put_bans(batch: &mut Batch, kernel: KernelFeatures, bans: &[(BanTarget, Expiry)]) {
    put_anew(batch, kernel, bans, |(subject, expiry)| (*subject, Times { timeout: timeout(*expiry), left: None }));
}

/// Appends bans of whom the kernel has forgotten: as they were before, and with a third of the work of [`put_restored`]. Who
/// is blocked there all the same stays so; only from Linux 6.12 on for as long as is said here.
pub(crate) fn put_back(batch: &mut Batch, bans: &[(BanTarget, Option<Duration>, Expiry)]) {
    for set in [Set::Blocked, Set::Blocked6] {
        let bans = || bans.iter().filter(|(subject, ..)| Set::of(*subject) == set);
        if bans().next().is_some() {
            let element = |(subject, length, left): &(BanTarget, _, _)| (*subject, Times::of(*length, *left));
            batch.put(kind::NEW_ELEMENT, flag::CREATE, |list| fill(list, set, bans().map(element)));
        }
    }
}

/// Appends bans of whom nobody has blocked yet: one message instead of three, and nothing for the kernel to clear away
/// afterwards. Where there is one of them already the whole transaction fails.
pub(crate) fn put_new_bans(batch: &mut Batch, bans: &[(BanTarget, Expiry)]) {
    for set in [Set::Blocked, Set::Blocked6] {
        let times = |expiry: Expiry| Times { timeout: timeout(expiry), left: None };
        let bans = bans.iter().filter(|(subject, _)| Set::of(*subject) == set);
        let mut bans = bans.map(|(subject, expiry)| (*subject, times(*expiry))).peekable();
        if bans.peek().is_some() {
            batch.put(kind::NEW_ELEMENT, flag::CREATE | flag::EXCL, |list| fill(list, set, bans));
        }
    }
}

/// Appends bans as they were before, as [`put_bans`]: who, how long in all, where that is known, and how long still.
/// `nft list set` shows both.
pub(crate) fn put_restored(batch: &mut Batch, kernel: KernelFeatures, bans: &[(BanTarget, Option<Duration>, Expiry)]) {
    put_anew(batch, kernel, bans, |(subject, length, left)| (*subject, Times::of(*length, *left)));
}

fn put_anew<T>(batch: &mut Batch, kernel: KernelFeatures, bans: &[T], read: impl Fn(&T) -> (BanTarget, Times)) {
    for set in [Set::Blocked, Set::Blocked6] {
        let bans = || bans.iter().map(&read).filter(|(subject, _)| Set::of(*subject) == set);
        if bans().next().is_some() {
            if !kernel.destroys() {
                batch.put(kind::NEW_ELEMENT, flag::CREATE, |list| fill(list, set, bans()));
            }
            put_gone(batch, kernel, set, bans().map(|(subject, _)| subject));
            // One that stands in it twice is refused here, as it is by the deletion above: the second time would be lost.
            let exclusive = if kernel.destroys() { flag::EXCL } else { 0 };
            batch.put(kind::NEW_ELEMENT, flag::CREATE | exclusive, |list| fill(list, set, bans()));
        }
    }
}

/// Times of an element in milliseconds: how long in all, `None` for ever; and how long still, where that is less.
#[derive(Clone, Copy, Default)]
pub(super) struct Times {
    timeout: Option<u64>,
    left: Option<u64>,
}

impl Times {
    /// Of a ban that lasts so long in all, where that is known, and so long still.
    pub(super) fn of(length: Option<Duration>, left: Expiry) -> Self {
        let left = timeout(left);
        let length = length.and_then(|length| timeout(Expiry::After(length)));
        // The kernel takes nothing that runs longer than it was to last; without an expiration it starts the whole anew.
        match (length, left) {
            (Some(length), Some(left)) if left < length => Self { timeout: Some(length), left: Some(left) },
            _ => Self { timeout: left, left: None },
        }
    }

    pub(super) fn put(self, element: &mut Attributes<'_>) {
        if let Some(timeout) = self.timeout {
            element.put(ELEMENT_TIMEOUT, &timeout.to_be_bytes());
        }
        if let Some(left) = self.left {
            element.put(ELEMENT_EXPIRATION, &left.to_be_bytes());
        }
    }
}

/// Appends the deletion of a ban, which fails where there is none and the kernel does not destroy.
pub(crate) fn put_lift(batch: &mut Batch, kernel: KernelFeatures, subject: BanTarget) {
    put_gone(batch, kernel, Set::of(subject), std::iter::once(subject));
}

fn put_gone(batch: &mut Batch, kernel: KernelFeatures, set: Set, subjects: impl Iterator<Item = BanTarget>) {
    let kind = if kernel.destroys() { kind::DESTROY_ELEMENT } else { kind::DELETE_ELEMENT };
    batch.put(kind, 0, |list| fill(list, set, subjects.map(|subject| (subject, Times::default()))));
}

/// Makes `request` the question whether `subject` is blocked.
pub(crate) fn put_one_element_query(request: &mut Vec<u8>, subject: BanTarget) {
    put_request(request, kind::GET_ELEMENT, 0, |list| fill_one(list, subject));
}

/// Makes `request` the question for every element of `set`.
pub(crate) fn put_set_dump(request: &mut Vec<u8>, set: Set) {
    put_request(request, kind::GET_ELEMENT, flag::DUMP, |list| name(list, set));
}

/// Appends the replacement of what an interval set holds: everything out, then these prefixes in. They must be of one
/// family, sorted, and must not overlap.
pub(crate) fn put_protected(batch: &mut Batch, set: Set, prefixes: &[IpNet]) {
    batch.put(kind::DELETE_ELEMENT, 0, |list| name(list, set));
    put_prefixes(batch, kind::NEW_ELEMENT, set, prefixes);
}

/// Appends a change of what an interval set holds: these prefixes out, which must stand there as they are given, then those
/// in. No bound of the one may be a bound of the other: two dead elements and a live one at one address are more than the
/// kernel can tell apart.
pub(crate) fn put_protected_change(batch: &mut Batch, set: Set, out: &[IpNet], into: &[IpNet]) {
    put_prefixes(batch, kind::DELETE_ELEMENT, set, out);
    put_prefixes(batch, kind::NEW_ELEMENT, set, into);
}

fn put_prefixes(batch: &mut Batch, kind: u8, set: Set, prefixes: &[IpNet]) {
    let flags = if kind == kind::NEW_ELEMENT { flag::CREATE } else { 0 };
    for prefixes in prefixes.chunks(PREFIXES_A_MESSAGE) {
        batch.put(kind, flags, |list| {
            name(list, set);
            list.nest(LIST_ELEMENTS, |elements| {
                prefixes.iter().for_each(|prefix| put_interval(elements, *prefix, Times::default()));
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
    let Raw { address, remaining, .. } = read(element)?;
    Some(Element { subject: BanTarget::from_element(address), remaining })
}

/// An element of a set of addresses, as it stands there.
pub(super) struct Raw {
    pub(super) address: IpAddr,
    pub(super) remaining: Remaining,
    /// The first address after an interval.
    pub(super) is_end: bool,
}

pub(super) fn read(element: &[u8]) -> Option<Raw> {
    let (mut address, mut timed, mut remaining, mut flags) = (None, None, None, 0);
    for (kind, value) in attributes(element) {
        match kind {
            ELEMENT_KEY => address = attributes(value).find(|(kind, _)| *kind == DATA_VALUE).and_then(read_address),
            ELEMENT_FLAGS => flags = be_u32(value).unwrap_or(0),
            ELEMENT_TIMEOUT => timed = milliseconds(value),
            ELEMENT_EXPIRATION => remaining = milliseconds(value),
            _ => {}
        }
    }
    Some(Raw { address: address?, remaining: remaining.or(timed), is_end: flags & INTERVAL_END != 0 })
}

fn read_address((_, value): (u16, &[u8])) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from).ok();
    v4.or_else(|| <[u8; 16]>::try_from(value).map(IpAddr::from).ok())
}

fn milliseconds(value: &[u8]) -> Option<Duration> {
    value.try_into().ok().map(|bytes| Duration::from_millis(u64::from_be_bytes(bytes)))
}

fn fill_one(list: &mut Attributes<'_>, subject: BanTarget) {
    fill(list, Set::of(subject), std::iter::once((subject, Times::default())));
}

fn fill(list: &mut Attributes<'_>, set: Set, bans: impl Iterator<Item = (BanTarget, Times)>) {
    name(list, set);
    list.nest(LIST_ELEMENTS, |elements| {
        for (subject, times) in bans {
            elements.nest(LIST_ELEMENT, |element| {
                put_key(element, subject.element());
                times.put(element);
            });
        }
    });
}

/// Appends both ends of an interval.
pub(super) fn put_interval(elements: &mut Attributes<'_>, prefix: IpNet, times: Times) {
    elements.nest(LIST_ELEMENT, |element| {
        put_key(element, prefix.network());
        times.put(element);
    });
    // An interval ends before the next address. One that runs to the last address has no end element.
    if let Some(end) = after(prefix.broadcast()) {
        elements.nest(LIST_ELEMENT, |element| {
            put_key(element, end);
            element.put(ELEMENT_FLAGS, &INTERVAL_END.to_be_bytes());
        });
    }
}

pub(super) fn name(list: &mut Attributes<'_>, set: Set) {
    list.put_text(LIST_TABLE, TABLE);
    list.put_text(LIST_SET, set.name());
}

pub(super) fn put_key(element: &mut Attributes<'_>, address: IpAddr) {
    element.nest(ELEMENT_KEY, |key| match address {
        IpAddr::V4(v4) => key.put(DATA_VALUE, &v4.octets()),
        IpAddr::V6(v6) => key.put(DATA_VALUE, &v6.octets()),
    });
}

/// The next address; none after the last one.
pub(crate) fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

/// Milliseconds of a ban; `None` for ever. The kernel refuses what does not fit its clock and takes zero for "no timeout", so both
/// ends are held: a second at least, a hundred years at most.
pub(super) fn timeout(expiry: Expiry) -> Option<u64> {
    match expiry {
        Expiry::Never => None,
        Expiry::After(span) => Some(u64::try_from(span.as_millis()).unwrap_or(CENTURY).clamp(1_000, CENTURY)),
    }
}

const CENTURY: u64 = 100 * 365 * 86_400 * 1_000;

/// Elements of at most 52 bytes: 52 KB, below the 64 KiB that the length of the list can tell. The transaction of three such
/// messages is below the send buffer that a process without privilege over buffers gets (212,992 bytes).
pub(crate) const BANS_A_MESSAGE: usize = 1_000;

/// Two elements of at most 40 bytes each: some 40 KB, below the 64 KiB that the length of the list can tell.
const PREFIXES_A_MESSAGE: usize = 500;

// enum nft_set_elem_list_attributes, nft_list_attributes, nft_set_elem_attributes, nft_data_attributes
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
pub(super) const LIST_ELEMENTS: u16 = 3;
pub(super) const LIST_ELEMENT: u16 = 1;
pub(super) const ELEMENT_KEY: u16 = 1;
pub(super) const ELEMENT_FLAGS: u16 = 3;
pub(super) const ELEMENT_TIMEOUT: u16 = 4;
const ELEMENT_EXPIRATION: u16 = 5;
pub(super) const DATA_VALUE: u16 = 1;
/// NFT_SET_ELEM_INTERVAL_END.
pub(super) const INTERVAL_END: u32 = 1;

#[cfg(test)]
mod tests {
    use super::super::message::Messages;
    use super::*;

    fn subject(text: &str) -> BanTarget {
        BanTarget::of(text.parse().unwrap())
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
    fn a_kernel_that_destroys_is_sent_two_messages_and_another_one_three() {
        let kinds = |fill: &dyn Fn(&mut Batch)| {
            let mut batch = Batch::new();
            fill(&mut batch);
            let messages = Messages(batch.messages()).filter_map(|message| message.nft());
            messages.map(|(kind, _)| kind).collect::<Vec<_>>()
        };
        let (who, hour) = (subject("192.0.2.7"), Expiry::After(Duration::from_secs(3_600)));
        for (kernel, again, gone) in
            [(KernelFeatures::oldest(), &[12, 14, 12][..], 14), (KernelFeatures::of_later(), &[30, 12], 30)]
        {
            assert_eq!(kinds(&|batch| put_bans(batch, kernel, &[(who, hour)])), again);
            assert_eq!(kinds(&|batch| put_restored(batch, kernel, &[(who, None, hour)])), again);
            assert_eq!(kinds(&|batch| put_lift(batch, kernel, who)), [gone]);
        }
    }

    #[test]
    fn a_restored_ban_is_these_bytes() {
        let day = Some(Duration::from_secs(86_400));
        let mut batch = Batch::new();
        put_restored(
            &mut batch,
            KernelFeatures::oldest(),
            &[(subject("192.0.2.7"), day, Expiry::After(Duration::from_secs(3_600)))],
        );
        // struct nlmsghdr with NLM_F_REQUEST and NLM_F_CREATE, struct nfgenmsg, table, set.
        let head = |length: u32, kind: u16, flags: u16| {
            let mut bytes = length.to_ne_bytes().to_vec();
            [kind, flags].into_iter().for_each(|field| bytes.extend(field.to_ne_bytes()));
            bytes.extend([0; 8]);
            bytes.extend(*b"\x01\0\0\0");
            bytes.extend(attribute(15, 1, b"portsentry\0\0"));
            bytes.extend(attribute(12, 2, b"blocked\0"));
            bytes
        };
        fn attribute(length: u16, kind: u16, value: &[u8]) -> Vec<u8> {
            [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
        }
        let key = [attribute(12, 0x8001, &[]), attribute(8, 1, &[192, 0, 2, 7])].concat();
        let day = attribute(12, 4, &[0, 0, 0, 0, 0x05, 0x26, 0x5c, 0x00]);
        let hour = attribute(12, 5, &[0, 0, 0, 0, 0x00, 0x36, 0xee, 0x80]);
        let long = [attribute(44, 0x8003, &[]), attribute(40, 0x8001, &[]), key.clone(), day, hour].concat();
        let short = [attribute(20, 0x8003, &[]), attribute(16, 0x8001, &[]), key].concat();
        let add = [head(92, 0x0a0c, 0x401), long].concat();
        let delete = [head(68, 0x0a0e, 0x001), short].concat();
        assert_eq!(batch.messages(), [add.clone(), delete, add].concat());
    }

    #[test]
    fn what_is_left_of_a_ban_is_told_only_where_it_is_less_than_the_whole() {
        let seconds = Duration::from_secs;
        for (length, left, timeout, expiration) in [
            (Some(seconds(60)), Expiry::After(seconds(20)), Some(60_000), Some(20_000)),
            (Some(seconds(60)), Expiry::After(Duration::ZERO), Some(60_000), Some(1_000)),
            (Some(seconds(60)), Expiry::After(seconds(60)), Some(60_000), None),
            (Some(seconds(60)), Expiry::After(seconds(61)), Some(61_000), None),
            (Some(Duration::MAX), Expiry::After(Duration::MAX), Some(CENTURY), None),
            (Some(seconds(60)), Expiry::Never, None, None),
            (None, Expiry::After(seconds(20)), Some(20_000), None),
            (None, Expiry::Never, None, None),
        ] {
            let mut batch = Batch::new();
            put_restored(&mut batch, KernelFeatures::oldest(), &[(subject("fe80::1"), length, left)]);
            let message = Messages(batch.messages()).last().unwrap();
            let (_, list) = message.nft().unwrap();
            let (_, elements) = attributes(list).find(|(kind, _)| *kind == LIST_ELEMENTS).unwrap();
            let (_, element) = attributes(elements).next().unwrap();
            let field = |wanted| {
                let found = attributes(element).find(|(kind, _)| *kind == wanted);
                found.map(|(_, value)| u64::from_be_bytes(value.try_into().unwrap()))
            };
            assert_eq!(
                (field(ELEMENT_TIMEOUT), field(ELEMENT_EXPIRATION)),
                (timeout, expiration),
                "{length:?} {left:?}"
            );
        }
    }

    #[test]
    fn many_bans_are_three_messages_a_set_below_the_length_of_an_attribute() {
        let addresses = 1..=u32::try_from(BANS_A_MESSAGE).unwrap();
        let bans: Vec<_> = addresses
            .flat_map(|n| [BanTarget::V4(n.into()), BanTarget::V6(u128::from(n).into())])
            .map(|subject| (subject, Some(Duration::from_secs(60)), Expiry::After(Duration::from_secs(20))))
            .collect();
        let mut batch = Batch::new();
        put_restored(&mut batch, KernelFeatures::oldest(), &bans);
        let lists: Vec<_> = Messages(batch.messages()).filter_map(|message| message.nft()).collect();
        assert_eq!(lists.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [12, 14, 12, 12, 14, 12]);
        for (_, list) in lists {
            assert!(elements_of(list).count() == BANS_A_MESSAGE && list.len() < usize::from(u16::MAX));
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
