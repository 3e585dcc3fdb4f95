//! Decodes notification datagrams to [`TableChange`]s by other programs to the daemon's table. Never fails: unreadable
//! messages are skipped.

use std::mem;

use rustables::sys;

use super::super::element::{SetElement, decode_prefixes, elements_of};
use super::super::message::field;
use super::super::set::Set;
use super::super::table::TABLE;
use crate::netlink::message::{Message, Messages, be_u32, text};
use crate::types::{BanTarget, Expiry};

/// A change by another program to `table inet portsentry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableChange {
    /// The table was deleted with all its contents: `nft flush ruleset`, `nft delete table`. Later changes in the same
    /// batch belong to a table created in its place.
    TableGone,
    /// A set was deleted with all its elements. The rules that used it were deleted before.
    SetGone(Set),
    /// The table, a chain, a rule or a set was added, removed or changed: compare the whole ruleset with the desired
    /// one.
    RulesetChanged,
    /// An element was added, or its timeout changed; with its remaining time.
    ElementAdded(BanTarget, Expiry),
    /// An element was added by a ruleset loaded in one transaction, for example from a file.
    ElementLoaded(BanTarget),
    /// An element was deleted. `nft flush set` causes one change per element.
    ElementRemoved(BanTarget),
    /// The contents of `allowed` or `allowed6` changed.
    AllowedChanged,
    /// The ports or interfaces monitored by the trap changed.
    TrapChanged,
    /// Some table changed during a [`MonitorPause`](super::MonitorPause).
    Unmonitored,
    /// Notifications were lost: any change may have happened, including those notified before.
    Overrun,
}

/// The process that made a change, as reported by the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committer {
    /// Process id; the thread id if the process has several threads.
    pub process: u32,
    /// Name, at most 15 bytes, chosen by the process itself; other characters than printable ASCII are replaced with
    /// "?".
    pub name: String,
}

/// Changes that were decoded but not returned yet. Kept in the monitor, so that dropping the future loses none.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    pub(super) changes: Vec<TableChange>,
    pub(super) committer: Option<Committer>,
    /// True while the end of a transaction with changes is outstanding.
    pub(super) open: bool,
    /// True if the transaction created a table, set, chain or rule. Its elements then come from a saved or hand-written
    /// ruleset, and are not decisions of this moment.
    loads: bool,
    /// Number of changes before the transaction began.
    before: usize,
    /// True if notifications were lost and older ones may still be queued.
    pub(super) lost: bool,
    /// Interval bounds in the network sets, with the message kind. They are paired at the end of the transaction.
    bounds: Vec<(Set, u32, SetElement)>,
}

impl Decoder {
    /// Decodes the notifications of one datagram.
    pub(super) fn decode(&mut self, datagram: &[u8], own: &[u32]) {
        if self.lost {
            return;
        }
        let mut messages = Messages(datagram);
        loop {
            let by = port_id(messages.0);
            let Some(message) = messages.next() else { return };
            if let Some(list) = message.generation() {
                self.pair();
                self.convert();
                if self.open {
                    self.committer = committer(list);
                }
                self.open = false;
            } else if by.is_some_and(|by| !own.contains(&by)) {
                self.read(&message);
            }
        }
    }

    /// Decodes one notification about a change by another program.
    fn read(&mut self, message: &Message<'_>) {
        let Some((kind, list)) = message.nft() else { return };
        // In all of these messages attribute 1 is the name of the table.
        if field(list, sys::NFTA_TABLE_NAME).and_then(text) != Some(TABLE) {
            return;
        }
        // The set name has the same attribute number in messages about sets and about elements.
        let set = || field(list, sys::NFTA_SET_NAME).and_then(text).and_then(Set::from_name);
        match kind {
            sys::NFT_MSG_DELTABLE => {
                // Earlier changes have left no trace.
                self.changes.clear();
                self.before = 0;
                self.bounds.clear();
                self.add(TableChange::TableGone);
            }
            sys::NFT_MSG_DELSET => self.add(set().map_or(TableChange::RulesetChanged, TableChange::SetGone)),
            sys::NFT_MSG_NEWTABLE | sys::NFT_MSG_NEWCHAIN | sys::NFT_MSG_NEWRULE | sys::NFT_MSG_NEWSET => {
                self.add(TableChange::RulesetChanged);
                self.loads = true;
            }
            sys::NFT_MSG_DELCHAIN | sys::NFT_MSG_DELRULE => self.add(TableChange::RulesetChanged),
            // Destroyed elements (deleted if present) are notified as deleted.
            sys::NFT_MSG_NEWSETELEM | sys::NFT_MSG_DELSETELEM => match set() {
                Some(Set::Allowed | Set::Allowed6) => self.add(TableChange::AllowedChanged),
                Some(Set::Blocked | Set::Blocked6 | Set::BlockedLink) => {
                    elements_of(list).for_each(|bound| self.add(element_change(kind, bound.target(), bound.left)));
                }
                Some(set @ (Set::BlockedNets | Set::BlockedNets6)) => {
                    self.begin();
                    self.bounds.extend(elements_of(list).map(|bound| (set, kind, bound)));
                    if self.bounds.len() > MAX_BOUNDS {
                        self.record_overrun();
                    }
                }
                Some(
                    Set::Trapped
                    | Set::TrappedUdp
                    | Set::Related
                    | Set::Services
                    | Set::CeilingReached
                    | Set::TrapInterfaces
                    | Set::Guarded,
                ) => self.add(TableChange::TrapChanged),
                // Counts of the trap are irrelevant.
                _ => {}
            },
            _ => {}
        }
    }

    /// Pairs the interval bounds at the end of a transaction into added and removed networks.
    fn pair(&mut self) {
        if self.bounds.is_empty() {
            return;
        }
        let bounds = mem::take(&mut self.bounds);
        for wanted in [sys::NFT_MSG_DELSETELEM, sys::NFT_MSG_NEWSETELEM] {
            for set in [Set::BlockedNets, Set::BlockedNets6] {
                let of_these = bounds.iter().filter(|(of, kind, _)| (*of, *kind) == (set, wanted));
                let prefixes = decode_prefixes(of_these.map(|(.., bound)| *bound).collect());
                prefixes.into_iter().for_each(|(target, left)| self.add(element_change(wanted, target, left)));
            }
        }
    }

    /// Marks the elements that came with a ruleset as loaded.
    fn convert(&mut self) {
        let loaded = self.changes.iter_mut().skip(self.before).filter(|_| self.loads);
        for change in loaded {
            if let TableChange::ElementAdded(target, _) = *change {
                *change = TableChange::ElementLoaded(target);
            }
        }
    }

    /// Called for each change of a transaction that concerns the table.
    fn begin(&mut self) {
        if !mem::replace(&mut self.open, true) {
            self.committer = None;
            (self.loads, self.before) = (false, self.changes.len());
        }
    }

    fn add(&mut self, change: TableChange) {
        self.begin();
        if self.changes.last() != Some(&change) {
            self.changes.push(change);
        }
    }

    /// Records that notifications were lost. Queued ones are older and are skipped: after the table has been read again
    /// they would be outdated.
    pub(super) fn record_overrun(&mut self) {
        self.lost = true;
        self.open = false;
        (self.loads, self.before) = (false, 0);
        self.committer = None;
        self.bounds.clear();
        self.changes.clear();
        self.changes.push(TableChange::Overrun);
    }

    /// Records that changes may have happened during a pause.
    pub(super) fn miss(&mut self) {
        if !self.lost && self.changes.last() != Some(&TableChange::Unmonitored) {
            self.changes.push(TableChange::Unmonitored);
        }
    }

    pub(super) fn drain(&mut self) -> Vec<TableChange> {
        // In a transaction that arrives in parts, elements after a part that created rules come from the same ruleset.
        if self.open {
            self.convert();
        }
        self.before = 0;
        let next = if self.lost { vec![TableChange::Overrun] } else { Vec::new() };
        mem::replace(&mut self.changes, next)
    }
}

/// The port id in the first message header of `bytes`: it identifies the socket that made the transaction.
fn port_id(bytes: &[u8]) -> Option<u32> {
    bytes.get(12..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

fn element_change(kind: u32, target: BanTarget, left: Expiry) -> TableChange {
    match kind {
        sys::NFT_MSG_NEWSETELEM => TableChange::ElementAdded(target, left),
        _ => TableChange::ElementRemoved(target),
    }
}

/// The process named in the attributes at the end of a transaction.
fn committer(list: &[u8]) -> Option<Committer> {
    let name = field(list, sys::NFTA_GEN_PROC_NAME).unwrap_or_default();
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    let printable = |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' };
    let process = field(list, sys::NFTA_GEN_PROC_PID).and_then(be_u32)?;
    Some(Committer { process, name: name.iter().take(15).map(printable).collect() })
}

/// Maximum number of interval bounds per transaction; far more than both sets hold when they are flushed and filled
/// again.
const MAX_BOUNDS: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::super::super::message::put_message;
    use super::*;
    use crate::netlink::message::{Attributes, patch};
    use proptest::prelude::*;

    const OTHER: u32 = 4711;

    fn message(kind: u32, by: u32, fill: impl FnOnce(&mut Attributes<'_>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_message(&mut bytes, kind, 0, fill);
        patch(&mut bytes, 12, by.to_ne_bytes());
        bytes
    }

    fn element(kind: u32, by: u32, key: &[u8]) -> Vec<u8> {
        message(kind, by, |list| {
            list.put_text(1, TABLE);
            list.put_text(2, "blocked");
            list.nest(3, |elements| elements.nest(1, |element| element.nest(1, |value| value.put(1, key))));
        })
    }

    fn end(by: u32, name: &[u8]) -> Vec<u8> {
        let mut bytes = message(15, by, |list| {
            list.put(1, &7_u32.to_be_bytes());
            list.put(2, &812_u32.to_be_bytes());
            list.put(3, name);
        });
        // The only notification without a family.
        patch(&mut bytes, 16, [0]);
        bytes
    }

    fn removed(last: u8) -> TableChange {
        TableChange::ElementRemoved(BanTarget::V4([192, 0, 2, last].into()))
    }

    #[test]
    fn message_is_judged_by_its_socket() {
        let mut decoder = Decoder::default();
        let datagram = [1, 2, 3].map(|n| element(14, u32::from(n), &[192, 0, 2, n])).concat();
        decoder.decode(&datagram, &[1, 3]);
        assert_eq!((decoder.drain(), decoder.open), (vec![removed(2)], true));
    }

    #[test]
    fn transaction_ends_with_printable_process_name() {
        let mut decoder = Decoder::default();
        decoder.decode(&end(OTHER, b"idle\0"), &[]);
        assert_eq!(decoder.committer, None, "nothing was changed");
        decoder.decode(&element(14, OTHER, &[192, 0, 2, 1]), &[]);
        assert!(decoder.open);
        decoder.decode(&end(OTHER, b"a\x1b[2J\n\xff and far too long\0"), &[]);
        assert!(!decoder.open);
        assert_eq!(decoder.committer, Some(Committer { process: 812, name: "a?[2J?? and far".to_owned() }));
        decoder.decode(&element(14, OTHER, &[192, 0, 2, 2]), &[]);
        assert_eq!(decoder.committer, None, "the committer of the next transaction is not known yet");
    }

    #[test]
    fn element_without_address_is_skipped() {
        for length in (0..40).filter(|length| ![4, 16].contains(length)) {
            let mut decoder = Decoder::default();
            decoder.decode(&element(12, OTHER, &vec![1; length]), &[]);
            assert!(decoder.changes.is_empty(), "{length}");
        }
    }

    #[test]
    fn queue_is_discarded_after_loss() {
        let mut decoder = Decoder::default();
        decoder.decode(&element(14, OTHER, &[192, 0, 2, 1]), &[]);
        decoder.record_overrun();
        decoder.decode(&element(14, OTHER, &[192, 0, 2, 2]), &[]);
        assert_eq!(decoder.drain(), [TableChange::Overrun]);
        assert_eq!(decoder.drain(), [TableChange::Overrun], "until the queue is empty");
        decoder.lost = false;
        decoder.drain();
        decoder.decode(&element(14, OTHER, &[192, 0, 2, 3]), &[]);
        assert_eq!(decoder.drain(), [removed(3)]);
    }

    #[test]
    fn truncated_datagram_gives_complete_messages() {
        let messages = [1, 2].map(|n| element(14, OTHER, &[192, 0, 2, n]));
        let datagram = [messages.concat(), end(OTHER, b"nft\0")].concat();
        for length in 0..datagram.len() {
            let mut decoder = Decoder::default();
            decoder.decode(&datagram[..length], &[]);
            assert_eq!(decoder.drain().len(), (length / messages[0].len()).min(2), "{length}");
        }
    }

    proptest! {
        #[test]
        fn changed_bytes_cause_no_panic(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        ) {
            let mut datagram = [element(14, OTHER, &[192, 0, 2, 1]), end(OTHER, b"nft\0")].concat();
            for (place, byte) in edits {
                let place = place.index(datagram.len());
                datagram[place] = byte;
            }
            let mut decoder = Decoder::default();
            decoder.decode(&datagram, &[]);
            prop_assert!(decoder.drain().len() <= 2);
        }
    }
}
