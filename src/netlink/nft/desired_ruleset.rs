//! What was chosen about the table to the transactions that make a table so: from nothing, or from what is there. Asks
//! nobody and sends nothing.

use netlink_packet_core::NetlinkMessage;
use netlink_packet_netfilter::nftables::{NfTablesMessage, SetAttribute, SetDescription, SetFlags, SetMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use rustables::error::BuilderError;

use super::batch::Batch;
use super::message::Messages;
use super::rules::{Encoded, chain_message, chains, rules, table_message};
use super::snapshot::{Difference, Part, TableSnapshot};
use super::spec::RulesetSpec;
use super::{Set, TABLE, flag, kind, trap};

/// A transaction, and what each of its messages is about.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) batch: Batch,
    names: Vec<String>,
}

impl Work {
    fn new() -> Self {
        Self { batch: Batch::new(), names: Vec::new() }
    }

    /// What the message at `place` is about; the transaction itself is at 0.
    pub(super) fn object(&self, place: u32) -> &str {
        let place = usize::try_from(place).unwrap_or(usize::MAX);
        place.checked_sub(1).and_then(|index| self.names.get(index)).map_or("a change", String::as_str)
    }

    /// True where the message at `place` appends a rule.
    pub(super) fn is_rule(&self, place: u32) -> bool {
        let index = usize::try_from(place).ok().and_then(|place| place.checked_sub(1));
        let message = index.and_then(|index| Messages(self.batch.messages()).nth(index));
        message.and_then(|message| message.nft()).is_some_and(|(kind, _)| kind == kind::NEW_RULE)
    }

    fn splice(&mut self, name: String, message: &[u8], flags: u16) {
        self.batch.splice(message, flags);
        self.names.push(name);
    }

    fn delete_set(&mut self, set: Set) {
        self.batch.put(kind::DELETE_SET, 0, |fields| {
            fields.put_text(1, TABLE);
            fields.put_text(2, set.name());
        });
        self.names.push(format!("deleting set \"{}\"", set.name()));
    }

    fn about_chain(&mut self, doing: &str, kind: u8, chain: &str) {
        self.batch.put(kind, 0, |fields| {
            fields.put_text(1, TABLE);
            // NFTA_RULE_CHAIN and NFTA_CHAIN_NAME.
            fields.put_text(if kind == kind::DELETE_RULE { 2 } else { 3 }, chain);
        });
        self.names.push(format!("{doing} chain \"{chain}\""));
    }
}

/// The table as it was chosen.
pub(super) struct DesiredRuleset {
    spec: RulesetSpec,
    rules: Vec<Encoded>,
    shape: TableSnapshot,
}

impl DesiredRuleset {
    pub(super) fn new(spec: &RulesetSpec) -> Result<Self, BuilderError> {
        let mut blueprint = Self { spec: *spec, rules: rules(spec)?, shape: TableSnapshot::default() };
        let whole = blueprint.create();
        Messages(whole.batch.messages()).for_each(|message| blueprint.shape.absorb(&message));
        Ok(blueprint)
    }

    /// In what `found` differs.
    pub(super) fn differences(&self, found: &TableSnapshot) -> Vec<Difference> {
        let text = |chain: &str, index: usize| {
            self.rules.iter().filter(|rule| rule.chain == chain).nth(index).map_or("", |rule| rule.text.as_str())
        };
        self.shape.differences(found, text)
    }

    /// Makes everything: table, sets, chains, rules.
    pub(super) fn create(&self) -> Work {
        let mut work = Work::new();
        // Exclusive: a table that somebody created meanwhile is looked at, not written into.
        work.splice("the table itself".to_owned(), &table_message(), flag::EXCL);
        sets(&self.spec).for_each(|set| self.put_set(&mut work, set));
        chains(&self.spec).iter().for_each(|chain| put_chain(&mut work, chain));
        self.put_rules(&mut work);
        work
    }

    /// Makes a table like it of one that is `found` to differ in this, and that was made as `old` says, if it is known.
    /// The sets that are there keep their elements. At no moment is a packet judged by half of the rules.
    pub(super) fn mend(&self, found: &TableSnapshot, differences: &[Difference], old: Option<&RulesetSpec>) -> Work {
        let mut work = Work::new();
        let wanted = chains(&self.spec);
        let unwanted = old.into_iter().flat_map(chains).filter(|chain| !wanted.contains(chain));
        let there: Vec<&str> = wanted.iter().copied().chain(unwanted).filter(|name| found.has_chain(name)).collect();
        there.iter().for_each(|chain| work.about_chain("emptying", kind::DELETE_RULE, chain));
        let misplaced =
            |chain: &&str| differences.iter().any(|found| found.part == Part::OtherChain((*chain).to_owned()));
        // What jumps stands behind what it jumps to, and goes first.
        for chain in there.iter().rev().filter(|chain| !wanted.contains(chain) || misplaced(chain)) {
            work.about_chain("deleting", kind::DELETE_CHAIN, chain);
        }
        self.missing_sets(found).for_each(|set| self.put_set(&mut work, set));
        let unwanted = old.into_iter().flat_map(sets).filter(|set| !sets(&self.spec).any(|wanted| wanted == *set));
        unwanted.filter(|set| found.has_set(set.name())).for_each(|set| work.delete_set(set));
        for chain in wanted.iter().filter(|chain| !there.contains(chain) || misplaced(chain)) {
            put_chain(&mut work, chain);
        }
        self.put_rules(&mut work);
        work
    }

    /// The sets that are wanted and not there.
    pub(super) fn missing_sets(&self, found: &TableSnapshot) -> impl Iterator<Item = Set> {
        sets(&self.spec).filter(|set| !found.has_set(set.name()))
    }

    fn put_set(&self, work: &mut Work, set: Set) {
        // Told apart within the transaction only.
        let id = u32::try_from(work.names.len()).unwrap_or(0) + 1;
        work.splice(format!("set \"{}\"", set.name()), &set_message(set, id, &self.spec), flag::EXCL);
    }

    fn put_rules(&self, work: &mut Work) {
        for Encoded { text, message, .. } in &self.rules {
            work.splice(format!("the rule `{text}`"), message, 0);
        }
    }
}

/// Takes the flags from a table that is there.
pub(super) fn wake() -> Work {
    let mut work = Work::new();
    work.splice("the table's flags".to_owned(), &table_message(), 0);
    work
}

fn put_chain(work: &mut Work, chain: &str) {
    work.splice(format!("chain \"{chain}\""), &chain_message(chain), flag::EXCL);
}

/// The message that creates `set`.
fn set_message(set: Set, id: u32, spec: &RulesetSpec) -> Vec<u8> {
    let (key_type, key_length, flags, size) = trap::set(set).unwrap_or_else(|| plain_set(set, spec));
    let attributes = [
        SetAttribute::Table(TABLE.to_owned()),
        SetAttribute::Name(set.name().to_owned()),
        SetAttribute::Flags(flags),
        SetAttribute::KeyType(key_type),
        SetAttribute::KeyLen(key_length),
        SetAttribute::Id(id),
    ];
    let size = size.map(|size| SetAttribute::Description(vec![SetDescription::Size(size)]));
    let message = SetMessage { attributes: attributes.into_iter().chain(size).collect() };
    let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
    let mut message = NetlinkMessage::from(NetfilterMessage::new(header, NfTablesMessage::NewSet(message)));
    message.header.flags = flag::REQUEST | flag::CREATE;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Type and length of the key, flags and size of a set that bans or allows.
fn plain_set(set: Set, spec: &RulesetSpec) -> (u32, u32, SetFlags, Option<u32>) {
    let (key_type, key_length) = match set {
        Set::Blocked | Set::BlockedNets | Set::Allowed => (NFT_TYPE_IPV4, 4),
        _ => (NFT_TYPE_IPV6, 16),
    };
    let (flags, size) = match set {
        Set::Blocked | Set::Blocked6 => (SetFlags::Eval | SetFlags::Timeout, Some(spec.size)),
        Set::BlockedNets | Set::BlockedNets6 => (SetFlags::Interval | SetFlags::Timeout, Some(NETWORK_BOUNDS)),
        _ => (SetFlags::Interval, None),
    };
    (key_type, key_length, flags, size)
}

/// The sets of such a table, in the order in which they are made.
pub(super) fn sets(spec: &RulesetSpec) -> impl Iterator<Item = Set> + use<> {
    let plain = [Set::Blocked, Set::Blocked6, Set::Allowed, Set::Allowed6];
    let wide = spec.wide.then_some([Set::BlockedNets, Set::BlockedNets6]);
    let trap = spec.trap.into_iter().flat_map(trap::sets);
    plain.into_iter().chain(wide.into_iter().flatten()).chain(trap)
}

/// Ends of intervals in each set of networks: 4,096 networks. To add one takes time with their number, some 0.2 ms here.
const NETWORK_BOUNDS: u32 = 8_192;

/// Numbers that nft gives to its types ipv4_addr and ipv6_addr, so that it knows how to print the elements.
pub(super) const NFT_TYPE_IPV4: u32 = 7;
pub(super) const NFT_TYPE_IPV6: u32 = 8;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::spec::{Action, Trap};
    use super::*;
    use crate::types::Expiry;

    const TRAP: Trap = Trap {
        tcp: true,
        udp: false,
        forgiven: 2,
        window: Duration::from_secs(1_800),
        expiry: Expiry::After(Duration::from_secs(86_400)),
        most_a_minute: 600,
        named_interfaces: false,
    };
    const FIRST_TOUCH: Trap = Trap { forgiven: 0, window: Duration::ZERO, ..TRAP };
    const BOTH: Trap = Trap { udp: true, ..TRAP };
    const UDP: Trap = Trap { tcp: false, ..BOTH };

    /// Every kind of table that can be chosen.
    fn variants() -> [RulesetSpec; 18] {
        let rate = |text: &str| text.parse().ok();
        [
            RulesetSpec::default(),
            RulesetSpec { log_drops: rate("3/minute"), ..RulesetSpec::default() },
            RulesetSpec { action: Action::Reject, ..RulesetSpec::default() },
            RulesetSpec { action: Action::Reject, log_drops: rate("1000000/second"), size: 7, wide: false, trap: None },
            RulesetSpec { wide: true, ..RulesetSpec::default() },
            RulesetSpec { action: Action::Reject, wide: true, ..RulesetSpec::default() },
            RulesetSpec { trap: Some(TRAP), ..RulesetSpec::default() },
            RulesetSpec { trap: Some(Trap { forgiven: 15, ..TRAP }), ..RulesetSpec::default() },
            RulesetSpec { trap: Some(Trap { expiry: Expiry::Never, ..TRAP }), ..RulesetSpec::default() },
            RulesetSpec { trap: Some(Trap { most_a_minute: 1, ..TRAP }), ..RulesetSpec::default() },
            RulesetSpec { trap: Some(Trap { window: Duration::from_secs(1), ..TRAP }), ..RulesetSpec::default() },
            RulesetSpec { trap: Some(Trap { named_interfaces: true, ..TRAP }), wide: true, ..RulesetSpec::default() },
            RulesetSpec { trap: Some(FIRST_TOUCH), action: Action::Reject, ..RulesetSpec::default() },
            RulesetSpec { trap: Some(BOTH), ..RulesetSpec::default() },
            RulesetSpec { trap: Some(UDP), ..RulesetSpec::default() },
            RulesetSpec { trap: Some(Trap { named_interfaces: true, ..UDP }), ..RulesetSpec::default() },
            RulesetSpec { trap: Some(Trap { udp: true, ..FIRST_TOUCH }), wide: true, ..RulesetSpec::default() },
            RulesetSpec { trap: Some(Trap { udp: true, tcp: false, ..FIRST_TOUCH }), ..RulesetSpec::default() },
        ]
    }

    fn shape(work: &Work) -> TableSnapshot {
        let mut shape = TableSnapshot::default();
        Messages(work.batch.messages()).for_each(|message| shape.absorb(&message));
        shape
    }

    #[test]
    fn every_message_has_a_name() {
        for spec in variants() {
            let blueprint = DesiredRuleset::new(&spec).unwrap();
            let whole = blueprint.create();
            let found = shape(&whole);
            for work in [whole, wake(), blueprint.mend(&found, &[], Some(&variants()[3]))] {
                assert_eq!(Messages(work.batch.messages()).count(), work.names.len());
            }
        }
        let whole = DesiredRuleset::new(&RulesetSpec::default()).unwrap().create();
        assert_eq!(whole.object(0), "a change");
        assert_eq!(whole.object(1), "the table itself");
        assert_eq!(whole.object(2), "set \"blocked\"");
        assert_eq!(whole.object(6), "chain \"prerouting\"");
        assert_eq!(whole.object(7), "the rule `ip saddr @allowed accept`");
        assert_eq!(whole.object(11), "the rule `ip6 saddr @blocked6 counter drop`");
        assert_eq!(whole.object(12), "a change");
    }

    #[test]
    fn a_table_differs_from_every_other_variant_and_not_from_itself_whatever_its_size() {
        for (one, spec) in variants().iter().enumerate() {
            let blueprint = DesiredRuleset::new(spec).unwrap();
            for (two, other) in variants().iter().enumerate() {
                let other = shape(&DesiredRuleset::new(&RulesetSpec { size: 9, ..*other }).unwrap().create());
                assert_eq!(blueprint.differences(&other).is_empty(), one == two, "{one} {two}");
            }
        }
    }

    #[test]
    fn what_was_chosen_can_be_told_from_the_rules() {
        for spec in variants() {
            let found = shape(&DesiredRuleset::new(&spec).unwrap().create());
            assert_eq!(super::super::rules::chosen(&found, spec.size), spec);
            assert_eq!(found.size("blocked"), spec.size);
        }
    }

    #[test]
    fn a_table_cut_after_any_message_differs() {
        for spec in variants() {
            let blueprint = DesiredRuleset::new(&spec).unwrap();
            let whole = blueprint.create();
            for taken in 1..whole.names.len() {
                let mut part = TableSnapshot::default();
                Messages(whole.batch.messages()).take(taken).for_each(|message| part.absorb(&message));
                assert!(!blueprint.differences(&part).is_empty(), "{taken}");
            }
        }
    }
}
