//! Builds the ruleset described by a [`RulesetSpec`], and the transactions that create it from nothing or from an
//! existing table. Does no I/O.

use netlink_packet_core::NLM_F_EXCL;
use rustables::sys;

use super::rule::Rule;
use super::rules::rules;
use super::set::{Set, put_set};
use super::snapshot::{Difference, SnapshotPart, TableSnapshot};
use super::spec::RulesetSpec;
use super::table::{TABLE, chain_message, chains, table_message};
use crate::netlink::message::Messages;
use crate::netlink::socket::Batch;

/// The desired table.
pub(super) struct DesiredRuleset {
    spec: RulesetSpec,
    rules: Vec<Rule>,
    shape: TableSnapshot,
}

impl DesiredRuleset {
    pub(super) fn new(spec: &RulesetSpec) -> Self {
        let mut desired = Self { spec: *spec, rules: rules(spec), shape: TableSnapshot::default() };
        desired.shape = desired.create().outcome();
        desired
    }

    /// Returns the differences between `found` and the desired table.
    pub(super) fn differences(&self, found: &TableSnapshot) -> Vec<Difference> {
        let text = |chain: &str, index: usize| {
            self.rules.iter().filter(|rule| rule.chain == chain).nth(index).map_or("", |rule| rule.text.as_str())
        };
        self.shape.differences(found, text)
    }

    /// Returns the foreign objects in `found`, each as the end of the sentence "it has …".
    pub(super) fn foreign(&self, found: &TableSnapshot) -> Vec<String> {
        let foreign = self.differences(found).into_iter().filter(|difference| difference.part == SnapshotPart::Foreign);
        foreign.map(|difference| difference.text).collect()
    }

    /// Returns the transaction that creates everything: table, sets, chains, rules.
    pub(super) fn create(&self) -> RulesetChange {
        let mut change = RulesetChange::new();
        // If another program created it meanwhile, this fails, and the table is read again.
        change.splice("the table itself".to_owned(), &table_message(), NLM_F_EXCL);
        Set::all_of(&self.spec).for_each(|set| change.create_set(set, &self.spec));
        chains(&self.spec).iter().for_each(|chain| change.create_chain(chain));
        self.rules.iter().for_each(|rule| change.append_rule(rule));
        change
    }

    /// Returns the transaction that changes the table `found`, with these differences, to the desired one. `old` is the
    /// spec of the existing table. Existing sets keep their elements, and no packet is judged by an incomplete ruleset.
    pub(super) fn repair(&self, found: &TableSnapshot, differences: &[Difference], old: &RulesetSpec) -> RulesetChange {
        let mut change = RulesetChange::new();
        let wanted = chains(&self.spec);
        let unwanted = chains(old).into_iter().filter(|chain| !wanted.contains(chain));
        let there: Vec<&str> = wanted.iter().copied().chain(unwanted).filter(|name| found.has_chain(name)).collect();
        for chain in &there {
            let name = format!("flushing chain \"{chain}\"");
            change.delete(name, sys::NFT_MSG_DELRULE, sys::NFTA_RULE_CHAIN, chain);
        }
        let misplaced =
            |chain: &&str| differences.iter().any(|found| found.part == SnapshotPart::OtherChain((*chain).to_owned()));
        // A chain comes after the chains to which it jumps, and is deleted before them.
        for chain in there.iter().rev().filter(|chain| !wanted.contains(chain) || misplaced(chain)) {
            let name = format!("deleting chain \"{chain}\"");
            change.delete(name, sys::NFT_MSG_DELCHAIN, sys::NFTA_CHAIN_NAME, chain);
        }
        self.missing_sets(found).for_each(|set| change.create_set(set, &self.spec));
        let unwanted = Set::all_of(old).filter(|set| Set::all_of(&self.spec).all(|wanted| wanted != *set));
        for set in unwanted.filter(|set| found.has_set(*set)) {
            let name = format!("deleting set \"{}\"", set.name());
            change.delete(name, sys::NFT_MSG_DELSET, sys::NFTA_SET_NAME, set.name());
        }
        for chain in wanted.iter().filter(|chain| !there.contains(chain) || misplaced(chain)) {
            change.create_chain(chain);
        }
        self.rules.iter().for_each(|rule| change.append_rule(rule));
        change
    }

    /// The required sets that are missing.
    pub(super) fn missing_sets(&self, found: &TableSnapshot) -> impl Iterator<Item = Set> {
        Set::all_of(&self.spec).filter(|set| !found.has_set(*set))
    }
}

/// A transaction that changes the ruleset. Each message has a name, so that an error can report the object that the
/// kernel refused.
pub(super) struct RulesetChange {
    pub(super) batch: Batch,
    pub(super) names: Vec<String>,
}

impl RulesetChange {
    pub(super) fn new() -> Self {
        Self { batch: Batch::new(), names: Vec::new() }
    }

    /// The table that the transaction creates from nothing.
    fn outcome(&self) -> TableSnapshot {
        let mut outcome = TableSnapshot::default();
        Messages(self.batch.messages()).for_each(|message| outcome.add_message(&message));
        outcome
    }

    /// Name of the message at `place`; place 0 is the transaction itself.
    pub(super) fn object(&self, place: u32) -> &str {
        index(place).and_then(|index| self.names.get(index)).map_or("a change", String::as_str)
    }

    /// True if the message at `place` appends a rule.
    pub(super) fn is_rule(&self, place: u32) -> bool {
        let message = index(place).and_then(|index| Messages(self.batch.messages()).nth(index));
        message.and_then(|message| message.nft()).is_some_and(|(kind, _)| kind == sys::NFT_MSG_NEWRULE)
    }

    /// Clears the flags of an existing table.
    pub(super) fn clear_table_flags(&mut self) {
        self.splice("the table's flags".to_owned(), &table_message(), 0);
    }

    fn create_set(&mut self, set: Set, spec: &RulesetSpec) {
        let id = u32::try_from(self.names.len()).unwrap_or(0) + 1;
        put_set(&mut self.batch, set, id, spec);
        self.names.push(format!("set \"{}\"", set.name()));
    }

    fn create_chain(&mut self, chain: &str) {
        self.splice(format!("chain \"{chain}\""), &chain_message(chain), NLM_F_EXCL);
    }

    /// Appends a deletion. Attribute 1 is the name of the table, and `attribute` holds the name of the object.
    fn delete(&mut self, name: String, message_type: u32, attribute: u16, object: &str) {
        self.batch.append(message_type, 0, |fields| {
            fields.put_text(sys::NFTA_TABLE_NAME, TABLE);
            fields.put_text(attribute, object);
        });
        self.names.push(name);
    }

    fn append_rule(&mut self, rule: &Rule) {
        self.splice(format!("the rule `{}`", rule.text), &rule.message(), 0);
    }

    fn splice(&mut self, name: String, message: &[u8], flags: u16) {
        self.batch.splice(message, flags);
        self.names.push(name);
    }
}

fn index(place: u32) -> Option<usize> {
    usize::try_from(place).ok()?.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::spec::{DecoyRules, Trap};
    use super::*;
    use crate::types::{Action, Expiry, Rate};

    const TRAP: Trap = Trap {
        tcp: true,
        udp: false,
        forgiven: 2,
        window: Duration::from_secs(1_800),
        expiry: Expiry::After(Duration::from_secs(86_400)),
        ceiling: Rate::per_minute(60),
        nat64: [None; 8],
        named_interfaces: false,
        hold: None,
    };
    const FIRST_PROBE: Trap = Trap { forgiven: 0, window: Duration::ZERO, ..TRAP };
    const BOTH: Trap = Trap { udp: true, ..TRAP };
    const UDP: Trap = Trap { tcp: false, ..BOTH };
    const TRANSLATED: Trap =
        Trap { nat64: [Some(0x2001_0db8_0064_0000), None, None, None, None, None, None, None], ..TRAP };

    const DECOYS: DecoyRules = DecoyRules { v4: 40_001, v6: Some(40_003), max_new_tracked: None };
    const HOLD: Trap = Trap { hold: Some(Duration::from_millis(900)), ..TRAP };

    #[test]
    fn loaded_ruleset_repeats_the_first_rule() {
        for spec in variants() {
            let wanted = DesiredRuleset::new(&spec);
            assert!(!wanted.shape.has_repeated_rules(), "{spec:?}");
        }
    }

    /// All variants of the table.
    fn variants() -> [RulesetSpec; 33] {
        let rate = |text: &str| text.parse().ok();
        let trapped = |trap| RulesetSpec { trap: Some(trap), ..RulesetSpec::default() };
        [
            RulesetSpec::default(),
            RulesetSpec { log_drops: rate("3/minute"), ..RulesetSpec::default() },
            RulesetSpec { action: Action::Reject, ..RulesetSpec::default() },
            RulesetSpec {
                action: Action::Reject,
                log_drops: rate("1000000/second"),
                size: 7,
                ..RulesetSpec::default()
            },
            RulesetSpec { prefix_sets: true, ..RulesetSpec::default() },
            RulesetSpec { fleet: Some(16_384), ..RulesetSpec::default() },
            RulesetSpec { fleet: Some(7), action: Action::Reject, prefix_sets: true, ..RulesetSpec::default() },
            RulesetSpec { fleet: Some(7), trap: Some(HOLD), ..RulesetSpec::default() },
            RulesetSpec { action: Action::Reject, prefix_sets: true, ..RulesetSpec::default() },
            trapped(TRAP),
            trapped(Trap { forgiven: 15, ..TRAP }),
            trapped(Trap { expiry: Expiry::Never, ..TRAP }),
            trapped(Trap { ceiling: Rate::per_minute(1), ..TRAP }),
            trapped(Trap { window: Duration::from_secs(1), ..TRAP }),
            RulesetSpec {
                trap: Some(Trap { named_interfaces: true, ..TRAP }),
                prefix_sets: true,
                ..RulesetSpec::default()
            },
            RulesetSpec { trap: Some(FIRST_PROBE), action: Action::Reject, ..RulesetSpec::default() },
            trapped(BOTH),
            trapped(TRANSLATED),
            trapped(UDP),
            trapped(Trap { named_interfaces: true, ..UDP }),
            RulesetSpec { trap: Some(Trap { udp: true, ..FIRST_PROBE }), prefix_sets: true, ..RulesetSpec::default() },
            trapped(Trap { udp: true, tcp: false, ..FIRST_PROBE }),
            RulesetSpec { own_source: true, ..RulesetSpec::default() },
            RulesetSpec { own_source: true, trap: Some(HOLD), ..RulesetSpec::default() },
            trapped(HOLD),
            trapped(Trap { hold: Some(Duration::from_millis(100)), ..HOLD }),
            trapped(Trap { udp: true, named_interfaces: true, ..HOLD }),
            RulesetSpec { trap: Some(Trap { forgiven: 0, ..HOLD }), prefix_sets: true, ..RulesetSpec::default() },
            trapped(Trap { window: Duration::from_secs(1), ..HOLD }),
            RulesetSpec { decoys: Some(DECOYS), ..RulesetSpec::default() },
            RulesetSpec { decoys: Some(DecoyRules { v6: None, ..DECOYS }), trap: Some(UDP), ..RulesetSpec::default() },
            RulesetSpec { decoys: Some(DecoyRules { max_new_tracked: Some(64), ..DECOYS }), ..RulesetSpec::default() },
            RulesetSpec {
                decoys: Some(DecoyRules { v4: 40_002, ..DECOYS }),
                prefix_sets: true,
                ..RulesetSpec::default()
            },
        ]
    }

    #[test]
    fn every_message_has_a_name() {
        for spec in variants() {
            let desired = DesiredRuleset::new(&spec);
            let whole = desired.create();
            let found = whole.outcome();
            let mut flags = RulesetChange::new();
            flags.clear_table_flags();
            for work in [whole, flags, desired.repair(&found, &[], &variants()[3])] {
                assert_eq!(Messages(work.batch.messages()).count(), work.names.len());
            }
        }
        let whole = DesiredRuleset::new(&RulesetSpec::default()).create();
        assert_eq!(whole.object(0), "a change");
        assert_eq!(whole.object(1), "the table itself");
        assert_eq!(whole.object(2), "set \"blocked\"");
        assert_eq!(whole.object(7), "chain \"prerouting\"");
        assert_eq!(whole.object(8), "the rule `ip saddr @allowed accept`");
        assert_eq!(whole.object(12), "the rule `ip6 saddr @blocked6 counter drop`");
        assert_eq!(whole.object(14), "a change");
    }

    #[test]
    fn table_equals_only_its_own_variant() {
        let of_size = |spec: &RulesetSpec| DesiredRuleset::new(&RulesetSpec { size: 9, ..*spec }).shape;
        let others: Vec<_> = variants().iter().map(of_size).collect();
        for (one, spec) in variants().iter().enumerate() {
            let desired = DesiredRuleset::new(spec);
            for (two, other) in others.iter().enumerate() {
                assert_eq!(desired.differences(other).is_empty(), one == two, "{one} {two}");
            }
        }
    }

    #[test]
    fn variant_is_recognised_from_rules() {
        for spec in variants() {
            let found = DesiredRuleset::new(&spec).shape;
            assert_eq!(super::super::recognise::recognise(&found, spec.size), spec);
            assert_eq!(found.size(Set::Blocked), spec.size);
        }
    }

    #[test]
    fn table_truncated_after_any_message_differs() {
        for spec in variants() {
            let desired = DesiredRuleset::new(&spec);
            let whole = desired.create();
            for taken in 1..whole.names.len() {
                let mut part = TableSnapshot::default();
                Messages(whole.batch.messages()).take(taken).for_each(|message| part.add_message(&message));
                assert!(!desired.differences(&part).is_empty(), "{taken}");
            }
        }
    }
}
