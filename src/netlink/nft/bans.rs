//! Encodes changes of set contents: bans, exempt prefixes, and the sets of the trap. The message that blocks a source
//! is on the path between a packet and its ban, so it is written directly into the batch.

use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_core::NLM_F_EXCL;
use rustables::sys;

use super::element::{Times, put_element, put_elements, put_end, put_flush, put_interval, put_target};
use super::message::DESTROY_ELEMENT;
use super::rule::{TCP, UDP};
use super::set::Set;
use crate::engine::ActiveBan;
use crate::netlink::message::Attributes;
use crate::netlink::socket::Batch;
use crate::types::{BanTarget, Expiry};

/// Optional element operations of the running kernel, beyond those of the oldest supported one. The version number is
/// not used: distributions backport features, and containers run on kernels of other systems. docs/kernels.md lists the
/// other differences between kernels and how they are handled.
///
/// The default is a kernel with nf_tables and timed sets only. Its operations work on every later kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelFeatures {
    /// True if elements that may be missing can be removed (DESTROYSETELEM, Linux 6.3). Otherwise a missing element
    /// fails the whole transaction.
    pub destroys: bool,
}

/// Appends one ban in the form that every kernel supports. See [`put_bans`].
pub fn put_ban(batch: &mut Batch, target: BanTarget, expiry: Expiry) {
    put_bans(batch, KernelFeatures::default(), &[ActiveBan::new(target, expiry)]);
}

/// Appends at most [`BANS_A_MESSAGE`] bans with their whole duration, if known, and remaining time, each as add,
/// delete, add. Re-adding alone does not refresh a timeout before Linux 6.12, and deleting alone fails if the element
/// is missing or has just expired. The three steps work in every case, and no packet passes in between. A kernel with
/// DESTROYSETELEM does not need the first add. The transaction fails with EEXIST if the set contains a target twice,
/// see [`put_lifts`]. `bans` must contain no target twice.
pub(crate) fn put_bans(batch: &mut Batch, kernel: KernelFeatures, bans: &[ActiveBan]) {
    put_per_set(batch, replacing(kernel), bans.iter().map(with_times));
}

/// Appends bans that the kernel has lost, with a third of the work of [`put_bans`]. A target that is still blocked
/// stays blocked; its times are updated from Linux 6.12 on.
pub(crate) fn put_back(batch: &mut Batch, bans: &[ActiveBan]) {
    put_per_set(batch, ADD, bans.iter().map(with_times));
}

/// Appends bans of targets that are not blocked yet: one message instead of three, without a later cleanup in the
/// kernel. If one of them is already blocked, the whole transaction fails.
pub(crate) fn put_new_bans(batch: &mut Batch, bans: &[ActiveBan]) {
    put_per_set(batch, ADD_NEW, bans.iter().map(with_times));
}

fn with_times(ban: &ActiveBan) -> (BanTarget, Times) {
    (ban.target, Times::new(ban.length, ban.left))
}

/// Consecutive messages, by kind and flags.
type Steps = &'static [(u32, u16)];

const ADD: Steps = &[(sys::NFT_MSG_NEWSETELEM, 0)];
const ADD_NEW: Steps = &[(sys::NFT_MSG_NEWSETELEM, NLM_F_EXCL)];
const DELETE: Steps = &[(sys::NFT_MSG_DELSETELEM, 0)];
const ADD_DELETE_ADD: Steps =
    &[(sys::NFT_MSG_NEWSETELEM, 0), (sys::NFT_MSG_DELSETELEM, 0), (sys::NFT_MSG_NEWSETELEM, 0)];

fn replacing(kernel: KernelFeatures) -> Steps {
    match kernel.destroys {
        true => &[(DESTROY_ELEMENT, 0), (sys::NFT_MSG_NEWSETELEM, NLM_F_EXCL)],
        false => &[(sys::NFT_MSG_NEWSETELEM, 0), (sys::NFT_MSG_DELSETELEM, 0), (sys::NFT_MSG_NEWSETELEM, NLM_F_EXCL)],
    }
}

/// Appends the messages for the bans of each set.
fn put_per_set(batch: &mut Batch, steps: Steps, bans: impl Iterator<Item = (BanTarget, Times)> + Clone) {
    for set in [Set::Blocked, Set::Blocked6, Set::BlockedLink] {
        let bans = bans.clone().filter(|(target, _)| Set::for_target(*target) == set);
        if bans.clone().next().is_some() {
            put_steps(batch, steps, set, bans);
        }
    }
}

fn put_steps(batch: &mut Batch, steps: Steps, set: Set, bans: impl Iterator<Item = (BanTarget, Times)> + Clone) {
    for (kind, flags) in steps.iter().copied() {
        put_elements(batch, kind, flags, set, |elements| {
            bans.clone().for_each(|(target, times)| {
                let times = if kind == sys::NFT_MSG_NEWSETELEM { times } else { Times::default() };
                put_target(elements, target, times);
            });
        });
    }
}

/// Appends the deletion of a ban. It fails if there is no such ban and the kernel lacks DESTROYSETELEM.
pub(crate) fn put_lift(batch: &mut Batch, kernel: KernelFeatures, target: BanTarget) {
    let kind = if kernel.destroys { DESTROY_ELEMENT } else { sys::NFT_MSG_DELSETELEM };
    put_elements(batch, kind, 0, Set::for_target(target), |elements| {
        put_target(elements, target, Times::default());
    });
}

/// Appends the deletion of at most [`BANS_A_MESSAGE`] bans of single sources, and of a second element for the same
/// source if there is one: while a transaction adds an element, a rule that adds the same one does not see it yet.
/// Without DESTROYSETELEM, the transaction fails if one of the bans does not exist, and it needs room in the set,
/// because it also adds elements.
pub(crate) fn put_lifts(batch: &mut Batch, kernel: KernelFeatures, targets: &[BanTarget]) {
    let steps: Steps = match kernel.destroys {
        true => &[(DESTROY_ELEMENT, 0), (DESTROY_ELEMENT, 0)],
        false => &[(sys::NFT_MSG_DELSETELEM, 0), (sys::NFT_MSG_NEWSETELEM, 0), (sys::NFT_MSG_DELSETELEM, 0)],
    };
    put_per_set(batch, steps, targets.iter().map(|target| (*target, briefest())));
}

/// The times of an element that no packet meets, because the same transaction deletes it.
fn briefest() -> Times {
    Times::new(None, Expiry::After(Duration::ZERO))
}

/// Appends bans to `set`, which is not one of the sets for local bans, as [`put_bans`].
pub(crate) fn put_bans_in(batch: &mut Batch, kernel: KernelFeatures, set: Set, bans: &[(BanTarget, Expiry)]) {
    put_steps(batch, replacing(kernel), set, bans.iter().map(|(target, expiry)| (*target, Times::new(None, *expiry))));
}

/// Removes these targets from `set`, one of the trap's or the fleet's. They are destroyed, or added and then deleted:
/// deleting a missing element fails, and the rollback of a transaction takes the kernel a thousand times as long as its
/// commit.
pub(crate) fn put_forget(batch: &mut Batch, kernel: KernelFeatures, set: Set, targets: &[BanTarget]) {
    let steps: Steps = match kernel.destroys {
        true => &[(DESTROY_ELEMENT, 0)],
        false => &[(sys::NFT_MSG_NEWSETELEM, 0), (sys::NFT_MSG_DELSETELEM, 0)],
    };
    put_steps(batch, steps, set, targets.iter().map(|target| (*target, briefest())));
}

/// Appends a change of the trap's connected sources: removes `out`, each of which must exist, then adds `into`; adding
/// an existing one has no effect.
pub(crate) fn put_peers(batch: &mut Batch, out: &[BanTarget], into: &[BanTarget]) {
    for (steps, peers) in [(DELETE, out), (ADD, into)] {
        for (blocked, set) in [(Set::Blocked, Set::Peers), (Set::Blocked6, Set::Peers6)] {
            let of_family = peers.iter().copied().filter(|peer| Set::for_target(*peer) == blocked);
            if of_family.clone().next().is_some() {
                put_steps(batch, steps, set, of_family.map(|peer| (peer, Times::default())));
            }
        }
    }
}

/// Appends `ban`, which is of a network, in the form that every kernel supports. The set must contain either exactly
/// this network or nothing that overlaps it. If both bounds of the network are bounds of inner networks, Linux 6.1 and
/// older take it for an existing element.
pub(crate) fn put_prefix_ban(batch: &mut Batch, ban: &ActiveBan) {
    put_steps(batch, ADD_DELETE_ADD, Set::for_target(ban.target), std::iter::once(with_times(ban)));
}

/// Appends `ban`, of a network that is not blocked yet. The transaction must already delete everything inside it;
/// otherwise it fails. The network is not deleted here as well, because the kernel cannot handle two dead elements and
/// a live one at the same address.
pub(crate) fn put_new_prefix_ban(batch: &mut Batch, ban: &ActiveBan) {
    put_steps(batch, ADD_NEW, Set::for_target(ban.target), std::iter::once(with_times(ban)));
}

/// Appends the replacement of a prefix set's contents: removes all elements, then adds these prefixes. They must be of
/// one family, sorted and free of overlaps.
pub(crate) fn put_allowed(batch: &mut Batch, set: Set, prefixes: &[IpNet]) {
    put_flush(batch, set);
    put_prefixes(batch, sys::NFT_MSG_NEWSETELEM, set, prefixes);
}

/// Appends a change of a prefix set's contents: removes the prefixes `out`, which must exist exactly as given, then
/// adds `into`. No bound may occur in both: the kernel cannot distinguish two dead elements and a live one at the same
/// address.
pub(crate) fn put_allowed_change(batch: &mut Batch, set: Set, out: &[IpNet], into: &[IpNet]) {
    put_prefixes(batch, sys::NFT_MSG_DELSETELEM, set, out);
    put_prefixes(batch, sys::NFT_MSG_NEWSETELEM, set, into);
}

fn put_prefixes(batch: &mut Batch, kind: u32, set: Set, prefixes: &[IpNet]) {
    put_each(batch, kind, set, prefixes, |elements, prefix| put_interval(elements, *prefix, Times::default()));
}

/// The contents of the trap's sets: ports and interfaces that it monitors. Ports are inclusive ranges, ascending and
/// not adjacent. `None` if the table has no set for the protocol, because its probes do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrapContents<'a> {
    /// TCP ports.
    pub tcp: Option<&'a [(u16, u16)]>,
    /// UDP ports.
    pub udp: Option<&'a [(u16, u16)]>,
    /// The TCP ports, a subset of `tcp`, whose probes only hold their source and do not count.
    pub related: Option<&'a [(u16, u16)]>,
    /// TCP ports of services, if the table has holds.
    pub services: Option<&'a [(u16, u16)]>,
    /// Interface indexes, if the rules of the table check them; `None` if the table has no trap.
    pub interfaces: Option<&'a [u32]>,
    /// True if the trap must not ban; `None` if the table has no trap.
    pub ceiling_reached: Option<bool>,
}

/// Appends the replacement of the monitored ports and interfaces.
pub(crate) fn put_trapped(batch: &mut Batch, contents: TrapContents<'_>) {
    let trapped = [(Set::Trapped, contents.tcp), (Set::TrappedUdp, contents.udp), (Set::Related, contents.related)];
    for (set, ports) in trapped.into_iter().chain([(Set::Services, contents.services)]) {
        let Some(ports) = ports else { continue };
        put_flush(batch, set);
        put_each(batch, sys::NFT_MSG_NEWSETELEM, set, ports, |elements, (first, last)| {
            put_element(elements, &first.to_be_bytes(), |_| {});
            if let Some(end) = last.checked_add(1) {
                put_end(elements, &end.to_be_bytes());
            }
        });
    }
    if let Some(interfaces) = contents.interfaces {
        put_interfaces(batch, Set::TrapInterfaces, interfaces);
    }
    if let Some(ceiling_reached) = contents.ceiling_reached {
        put_flush(batch, Set::CeilingReached);
        let protocols: &[u8] = if ceiling_reached { &[TCP, UDP] } else { &[] };
        put_each(batch, sys::NFT_MSG_NEWSETELEM, Set::CeilingReached, protocols, |elements, protocol| {
            put_element(elements, &[*protocol], |_| {});
        });
    }
}

/// Appends the replacement of the contents of `set` with these interface indexes.
pub(crate) fn put_interfaces(batch: &mut Batch, set: Set, interfaces: &[u32]) {
    put_flush(batch, set);
    put_each(batch, sys::NFT_MSG_NEWSETELEM, set, interfaces, |elements, index| {
        put_element(elements, &index.to_ne_bytes(), |_| {});
    });
}

/// Appends messages with the elements that `put` appends for each item.
fn put_each<T>(batch: &mut Batch, kind: u32, set: Set, items: &[T], put: impl Fn(&mut Attributes<'_>, &T)) {
    for items in items.chunks(RANGES_A_MESSAGE) {
        put_elements(batch, kind, 0, set, |elements| items.iter().for_each(|item| put(elements, item)));
    }
}

/// Elements have at most 52 bytes: 52 KB in all, below the 64 KiB limit of the list's length field. A transaction of
/// three such messages fits into the default send buffer of an unprivileged process (212,992 bytes).
pub(crate) const BANS_A_MESSAGE: usize = 1_000;

/// A range has two elements of at most 40 bytes each: about 40 KB in all, below the 64 KiB limit of the list's length
/// field.
const RANGES_A_MESSAGE: usize = 500;

#[cfg(test)]
mod tests {
    use super::super::element::{CENTURY, decode_prefixes, elements_of};
    use super::*;
    use crate::netlink::message::{Messages, attributes};
    use crate::types::Prefix;

    fn bans_of(list: &[u8]) -> impl Iterator<Item = (BanTarget, Expiry)> {
        elements_of(list).map(|element| (element.target(), element.left))
    }

    fn target(text: &str) -> BanTarget {
        BanTarget::containing(text.parse().unwrap())
    }

    fn ban(text: &str, length: Option<Duration>, left: Expiry) -> ActiveBan {
        ActiveBan { length, ..ActiveBan::new(target(text), left) }
    }

    /// The kinds and the attributes of the messages.
    fn lists(batch: &Batch) -> Vec<(u32, &[u8])> {
        Messages(batch.messages()).filter_map(|message| message.nft()).collect()
    }

    #[test]
    fn ban_reads_back_unchanged() {
        for target in ["192.0.2.7", "2001:db8:1:2::/64", "fe80::1/128", "fe80::1%2"].map(|text| text.parse().unwrap()) {
            for (expiry, left) in [
                (Expiry::Never, Expiry::Never),
                (Expiry::After(Duration::from_secs(86_400)), Expiry::After(Duration::from_secs(86_400))),
                (Expiry::After(Duration::ZERO), Expiry::After(Duration::from_secs(1))),
                (Expiry::After(Duration::MAX), Expiry::After(Duration::from_millis(CENTURY))),
            ] {
                let mut batch = Batch::new();
                put_ban(&mut batch, target, expiry);
                let messages = lists(&batch);
                let kinds: Vec<_> = messages.iter().map(|(kind, _)| *kind).collect();
                assert_eq!(kinds, [12, 14, 12]);
                let last = bans_of(messages[2].1).collect::<Vec<_>>();
                assert_eq!(last, [(target, left)]);
            }
        }
    }

    #[test]
    fn replaced_ban_takes_two_or_three_messages() {
        let kinds = |fill: &dyn Fn(&mut Batch)| {
            let mut batch = Batch::new();
            fill(&mut batch);
            lists(&batch).iter().map(|(kind, _)| *kind).collect::<Vec<_>>()
        };
        let (target, hour) = (target("192.0.2.7"), Expiry::After(Duration::from_secs(3_600)));
        for (kernel, again, gone, both) in [
            (KernelFeatures::default(), &[12, 14, 12][..], 14, &[14, 12, 14][..]),
            (KernelFeatures { destroys: true }, &[30, 12], 30, &[30, 30]),
        ] {
            assert_eq!(kinds(&|batch| put_bans(batch, kernel, &[ActiveBan::new(target, hour)])), again);
            assert_eq!(kinds(&|batch| put_lift(batch, kernel, target)), [gone]);
            assert_eq!(kinds(&|batch| put_lifts(batch, kernel, &[target])), both);
        }
    }

    #[test]
    fn restored_ban_has_exact_bytes() {
        let mut batch = Batch::new();
        let hour = Expiry::After(Duration::from_secs(3_600));
        put_bans(&mut batch, KernelFeatures::default(), &[ban("192.0.2.7", Some(Duration::from_secs(86_400)), hour)]);
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
        let [add, add_new] = [0x401, 0x601].map(|flags| [head(92, 0x0a0c, flags), long.clone()].concat());
        let delete = [head(68, 0x0a0e, 0x001), short].concat();
        assert_eq!(batch.messages(), [add, delete, add_new].concat());
    }

    #[test]
    fn remaining_time_is_stored_if_shorter() {
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
            put_bans(&mut batch, KernelFeatures::default(), &[ban("fe80::1", length, left)]);
            let message = Messages(batch.messages()).last().unwrap();
            let (_, list) = message.nft().unwrap();
            let (_, elements) = attributes(list).find(|(kind, _)| *kind == sys::NFTA_SET_ELEM_LIST_ELEMENTS).unwrap();
            let (_, element) = attributes(elements).next().unwrap();
            let field = |wanted| {
                let found = attributes(element).find(|(kind, _)| *kind == wanted);
                found.map(|(_, value)| u64::from_be_bytes(value.try_into().unwrap()))
            };
            assert_eq!(
                (field(sys::NFTA_SET_ELEM_TIMEOUT), field(sys::NFTA_SET_ELEM_EXPIRATION)),
                (timeout, expiration),
                "{length:?} {left:?}"
            );
        }
    }

    #[test]
    fn many_bans_are_three_messages_per_set() {
        let addresses = 1..=u32::try_from(BANS_A_MESSAGE).unwrap();
        let bans: Vec<_> = addresses
            .flat_map(|n| [BanTarget::V4(n.into()), BanTarget::V6(u128::from(n).into())])
            .map(|target| ActiveBan {
                length: Some(Duration::from_secs(60)),
                ..ActiveBan::new(target, Expiry::After(Duration::from_secs(20)))
            })
            .collect();
        let mut batch = Batch::new();
        put_bans(&mut batch, KernelFeatures::default(), &bans);
        let lists = lists(&batch);
        assert_eq!(lists.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [12, 14, 12, 12, 14, 12]);
        for (_, list) in lists {
            assert!(bans_of(list).count() == BANS_A_MESSAGE && list.len() < usize::from(u16::MAX));
        }
    }

    #[test]
    fn long_prefix_list_is_split() {
        let prefixes: Vec<IpNet> =
            (0..1_200_u128).map(|n| ipnet::Ipv6Net::new_assert((n << 80).into(), 64).into()).collect();
        let mut batch = Batch::new();
        put_allowed(&mut batch, Set::Allowed6, &prefixes);
        let lists = lists(&batch);
        assert_eq!(lists.iter().map(|(_, list)| bans_of(list).count()).collect::<Vec<_>>(), [0, 1000, 1000, 400]);
        assert!(lists.iter().all(|(_, list)| list.len() < usize::from(u16::MAX)));
    }

    #[test]
    fn interval_to_last_address_has_no_end() {
        let mut batch = Batch::new();
        put_allowed(&mut batch, Set::Allowed, &["0.0.0.0/0".parse().unwrap()]);
        let elements: usize = lists(&batch).into_iter().map(|(_, list)| bans_of(list).count()).sum();
        assert_eq!(elements, 1);
    }

    fn wide(text: &str) -> BanTarget {
        BanTarget::Prefix(Prefix::new(text.parse().unwrap()).unwrap())
    }

    #[test]
    fn network_ban_reads_back_unchanged() {
        for text in ["203.0.113.0/24", "10.0.0.0/8", "255.255.255.0/24", "192.0.2.6/31", "2001:db8:1:ff00::/56"] {
            let mut batch = Batch::new();
            let (minute, left) = (Duration::from_secs(60), Expiry::After(Duration::from_secs(20)));
            put_prefix_ban(&mut batch, &ActiveBan { length: Some(minute), ..ActiveBan::new(wide(text), left) });
            let lists = lists(&batch);
            assert_eq!(lists.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [12, 14, 12]);
            let found = decode_prefixes(elements_of(lists[2].1).collect());
            assert_eq!(found, [(wide(text), left)]);
        }
    }
}
