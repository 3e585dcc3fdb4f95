//! Reads the table's sets, chains and rules from messages into a snapshot that can be compared. The same reader handles
//! own messages and the kernel's dumps of rules that any program created.
//!
//! Details that do not affect the behaviour of rules are left out: counts, handles, comments and register numbers. So
//! are attributes with value zero, because newer kernels add attributes (flags, operations) in which zero means "as
//! before".

use std::collections::BTreeMap;

use rustables::sys;

use super::message::field;
use super::set::{Set, read_size};
use super::table::{CHAIN, TABLE};
use crate::netlink::message::{Message, attributes, be_u32, text};

/// Contents of the table `inet portsentry`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TableSnapshot {
    /// True once a message about the table itself was added.
    pub(super) exists: bool,
    flags: u32,
    sets: BTreeMap<String, SetShape>,
    chains: BTreeMap<String, ChainShape>,
}

/// A set: its attributes without the size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct SetShape {
    attributes: Flat,
    size: u32,
}

/// A chain: its hook and its rules in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ChainShape {
    attributes: Flat,
    rules: Vec<RuleExpressions>,
}

/// A rule: its expressions by name, in order.
pub(super) type RuleExpressions = Vec<(String, Flat)>;

/// Relevant attributes by their path of types.
pub(super) type Flat = BTreeMap<Vec<u16>, Vec<u8>>;

impl TableSnapshot {
    /// Adds one message about the table; skips other messages.
    pub(crate) fn add_message(&mut self, message: &Message<'_>) {
        let Some((kind, body)) = message.nft() else { return };
        // In all of these messages attribute 1 is the name of the table.
        let value = |wanted| field(body, wanted);
        if value(sys::NFTA_TABLE_NAME).and_then(text) != Some(TABLE) {
            return;
        }
        let name = |wanted| value(wanted).and_then(text).unwrap_or_default().to_owned();
        match kind {
            sys::NFT_MSG_NEWTABLE => {
                self.exists = true;
                self.flags = value(sys::NFTA_TABLE_FLAGS).and_then(be_u32).unwrap_or(0);
            }
            sys::NFT_MSG_NEWSET => {
                let set = SetShape { attributes: keep(body, SET_ATTRIBUTES), size: read_size(body).unwrap_or(0) };
                self.sets.insert(name(sys::NFTA_SET_NAME), set);
            }
            sys::NFT_MSG_NEWCHAIN => {
                let mut kept = keep(body, CHAIN_ATTRIBUTES);
                for (kind, value) in value(sys::NFTA_CHAIN_HOOK).into_iter().flat_map(attributes) {
                    kept.insert(vec![sys::NFTA_CHAIN_HOOK, kind], value.to_vec());
                }
                self.chains.entry(name(sys::NFTA_CHAIN_NAME)).or_default().attributes = kept;
            }
            sys::NFT_MSG_NEWRULE => {
                let list = value(sys::NFTA_RULE_EXPRESSIONS).unwrap_or_default();
                let rule = attributes(list).map(|(_, expression)| read_expression(expression)).collect();
                self.chains.entry(name(sys::NFTA_RULE_CHAIN)).or_default().rules.push(unnumber(rule));
            }
            _ => {}
        }
    }

    pub(super) fn has_set(&self, set: Set) -> bool {
        self.sets.contains_key(set.name())
    }

    pub(super) fn has_chain(&self, chain: &str) -> bool {
        self.chains.contains_key(chain)
    }

    /// The rules of a chain in order; empty if the chain does not exist.
    pub(super) fn rules(&self, chain: &str) -> &[RuleExpressions] {
        self.chains.get(chain).map_or(&[], |chain| &chain.rules)
    }

    /// True if the chain for bans contains its rules more than once: a saved ruleset was loaded into the table, and nft
    /// appends the rules of a file. No version of the chain has its first rule twice.
    pub(super) fn has_repeated_rules(&self) -> bool {
        self.rules(CHAIN).split_first().is_some_and(|(first, rest)| rest.contains(first))
    }

    /// Size of a set; 0 if it has none.
    pub(crate) fn size(&self, set: Set) -> u32 {
        self.sets.get(set.name()).map_or(0, |set| set.size)
    }

    /// Returns the differences between this snapshot and `found`, ignoring the sizes of timed sets. `text` returns the
    /// nft text of the rule at an index of a chain.
    pub(super) fn differences<'a>(&self, found: &Self, text: impl Fn(&str, usize) -> &'a str) -> Vec<Difference> {
        let mut differences = Vec::new();
        let mut add = |part, text| differences.push(Difference { part, text });
        if found.flags != self.flags {
            let text = format!("the flags {:#x} (1 dormant, 2 owned by a process, 4 persistent)", found.flags);
            add(SnapshotPart::Flags(found.flags), text);
        }
        for (name, set) in &self.sets {
            match found.sets.get(name) {
                None => add(SnapshotPart::Own, format!("no set \"{name}\"")),
                Some(other) if other.attributes != set.attributes => {
                    add(SnapshotPart::OtherSet, format!("a set \"{name}\" of another type or with other flags"));
                }
                // Without a size the packet path stops adding at 65,535 elements, and the kernel never reports that the
                // set is full.
                Some(other) if set.size != 0 && other.size == 0 => {
                    add(SnapshotPart::OtherSet, format!("a set \"{name}\" without a size"));
                }
                Some(_) => {}
            }
        }
        for name in found.sets.keys().filter(|name| !self.sets.contains_key(*name)) {
            add(SnapshotPart::Foreign, format!("another set \"{name}\""));
        }
        for (name, chain) in &self.chains {
            match found.chains.get(name) {
                None => add(SnapshotPart::Own, format!("no chain \"{name}\"")),
                Some(other) if other.attributes != chain.attributes => {
                    let text = format!("a chain \"{name}\" with another type, hook, priority or policy");
                    add(SnapshotPart::OtherChain(name.clone()), text);
                }
                Some(other) => {
                    let other = differing_rule(name, &chain.rules, &other.rules, &text);
                    other.into_iter().for_each(|text| add(SnapshotPart::Own, text));
                }
            }
        }
        for name in found.chains.keys().filter(|name| !self.chains.contains_key(*name)) {
            add(SnapshotPart::Foreign, found.foreign_chain(name));
        }
        differences
    }

    /// Describes a chain of another program. Its hook determines its effect on packets.
    fn foreign_chain(&self, name: &str) -> String {
        let attribute = |path: &[u16]| self.chains.get(name)?.attributes.get(path);
        let Some(hook) = attribute(&[sys::NFTA_CHAIN_HOOK, sys::NFTA_HOOK_HOOKNUM]).and_then(|hook| be_u32(hook))
        else {
            return format!("another chain \"{name}\"");
        };
        let hook = usize::try_from(hook).ok().and_then(|hook| HOOKS.get(hook)).unwrap_or(&"unknown");
        // NF_DROP is zero, and zero values are not stored.
        let policy = if attribute(&[sys::NFTA_CHAIN_POLICY]).is_some() { "accept" } else { "drop" };
        format!("another chain \"{name}\" (hook {hook}, policy {policy})")
    }

    /// True if all sets for bans and for the allow-list exist, so that this program created the table.
    pub(super) fn has_base_sets(&self) -> bool {
        [Set::Blocked, Set::Blocked6, Set::Allowed, Set::Allowed6].into_iter().all(|set| self.has_set(set))
    }
}

/// Describes the first rule that differs between two versions of a chain.
fn differing_rule<'a>(
    chain: &str,
    wanted: &[RuleExpressions],
    found: &[RuleExpressions],
    text: impl Fn(&str, usize) -> &'a str,
) -> Option<String> {
    for (index, rule) in wanted.iter().enumerate() {
        let (number, text) = (index + 1, text(chain, index));
        match found.get(index) {
            Some(other) if other == rule => {}
            Some(_) => return Some(format!("another rule than `{text}` at position {number} of chain \"{chain}\"")),
            None => return Some(format!("no rule `{text}` at position {number} of chain \"{chain}\"")),
        }
    }
    let (more, ours) = (found.len(), wanted.len());
    (more > ours).then(|| format!("{more} rules in chain \"{chain}\" instead of {ours}"))
}

/// One difference from the desired table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) part: SnapshotPart,
    /// The difference, as the end of the sentence "the table has …".
    pub(super) text: String,
}

/// The affected object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SnapshotPart {
    /// The table has these flags.
    Flags(u32),
    /// A set with an own name has another definition.
    OtherSet,
    /// An own set or chain is missing, or rules differ.
    Own,
    /// An own chain with this name has another hook.
    OtherChain(String),
    /// An object of another program.
    Foreign,
}

/// Type and attributes of one expression of a rule.
fn read_expression(expression: &[u8]) -> (String, Flat) {
    let name = field(expression, sys::NFTA_EXPR_NAME).map_or("", |name| text(name).unwrap_or("?"));
    let data = field(expression, sys::NFTA_EXPR_DATA).unwrap_or_default();
    let mut flat = Flat::new();
    if name != "counter" {
        flatten(name, data, &mut Vec::new(), &mut flat);
    }
    (name.to_owned(), flat)
}

fn flatten(expression: &str, bytes: &[u8], path: &mut Vec<u16>, flat: &mut Flat) {
    for (kind, value) in attributes(bytes) {
        path.push(kind);
        // The kernel does not mark nested attributes. Their positions are fixed: data (mask, xor), verdict, and the
        // expression of a set's elements.
        if matches!(
            (expression, path.as_slice()),
            ("cmp", [3]) | ("bitwise", [4 | 5]) | ("immediate", [2] | [2, 2]) | ("dynset", [7] | [7, 2])
        ) {
            flatten(expression, value, path, flat);
        } else if matches!(
            (expression, path.as_slice()),
            ("lookup" | "dynset", [1]) | ("immediate", [2, 2, 2]) | ("dynset", [7, 1])
        ) {
            // The name of a set or chain: the kernel terminates texts with a zero byte, rustables does not.
            flat.insert(path.clone(), value.strip_suffix(&[0]).unwrap_or(value).to_vec());
        } else if value.iter().any(|byte| *byte != 0) {
            flat.insert(path.clone(), value.to_vec());
        }
        path.pop();
    }
}

/// Numbers the registers of a rule in the order of their first use.
fn unnumber(mut rule: RuleExpressions) -> RuleExpressions {
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for (name, flat) in &mut rule {
        let registers: &[u16] = match name.as_str() {
            "meta" | "cmp" | "payload" | "immediate" | "fib" | "exthdr" => &[1],
            "bitwise" => &[1, 2],
            "lookup" => &[2, 3],
            "dynset" => &[4],
            "socket" => &[2],
            _ => &[],
        };
        for register in registers {
            let Some(number) = flat.get_mut([*register].as_slice()) else { continue };
            let place = seen.iter().position(|known| known == number).unwrap_or_else(|| {
                seen.push(number.clone());
                seen.len() - 1
            });
            *number = place.to_be_bytes().to_vec();
        }
    }
    rule
}

/// The attributes of these types whose value is not zero.
fn keep(body: &[u8], kinds: &[u16]) -> Flat {
    attributes(body)
        .filter(|(kind, value)| kinds.contains(kind) && value.iter().any(|byte| *byte != 0))
        .map(|(kind, value)| (vec![kind], text(value).map_or_else(|| value.to_vec(), |text| text.as_bytes().to_vec())))
        .collect()
}

/// The hooks of the family inet by their numbers.
const HOOKS: [&str; 6] = ["prerouting", "input", "forward", "output", "postrouting", "ingress"];
/// The attributes that define a set, without the size.
const SET_ATTRIBUTES: &[u16] = &[
    sys::NFTA_SET_FLAGS,
    sys::NFTA_SET_KEY_TYPE,
    sys::NFTA_SET_KEY_LEN,
    sys::NFTA_SET_DATA_TYPE,
    sys::NFTA_SET_DATA_LEN,
    sys::NFTA_SET_TIMEOUT,
    sys::NFTA_SET_OBJ_TYPE,
    sys::NFTA_SET_EXPR,
    sys::NFTA_SET_EXPRESSIONS,
];
/// The kernel derives its flag "base chain" from the hook.
const CHAIN_ATTRIBUTES: &[u16] = &[sys::NFTA_CHAIN_POLICY, sys::NFTA_CHAIN_TYPE];
