//! Builds a transaction that changes the ruleset. Each message has a name, so that an error can report the object that
//! the kernel refused.

use netlink_packet_core::NLM_F_EXCL;
use rustables::sys;

use super::rule::Rule;
use super::set::{Set, put_set, put_set_deletion};
use super::spec::RulesetSpec;
use super::table::{TABLE, chain_message, table_message};
use crate::netlink::message::Messages;
use crate::netlink::socket::Batch;

/// The messages and their names.
pub(super) struct RulesetChange {
    pub(super) batch: Batch,
    pub(super) names: Vec<String>,
}

impl RulesetChange {
    pub(super) fn new() -> Self {
        Self { batch: Batch::new(), names: Vec::new() }
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

    /// Creates the table. If another program created it meanwhile, this fails, and the table is read again.
    pub(super) fn create_table(&mut self) {
        self.splice("the table itself".to_owned(), &table_message(), NLM_F_EXCL);
    }

    /// Clears the flags of an existing table.
    pub(super) fn clear_table_flags(&mut self) {
        self.splice("the table's flags".to_owned(), &table_message(), 0);
    }

    pub(super) fn create_set(&mut self, set: Set, spec: &RulesetSpec) {
        let id = u32::try_from(self.names.len()).unwrap_or(0) + 1;
        put_set(&mut self.batch, set, id, spec);
        self.names.push(format!("set \"{}\"", set.name()));
    }

    pub(super) fn delete_set(&mut self, set: Set) {
        put_set_deletion(&mut self.batch, set);
        self.names.push(format!("deleting set \"{}\"", set.name()));
    }

    pub(super) fn create_chain(&mut self, chain: &str) {
        self.splice(format!("chain \"{chain}\""), &chain_message(chain), NLM_F_EXCL);
    }

    pub(super) fn delete_chain(&mut self, chain: &str) {
        self.put_for_chain(sys::NFT_MSG_DELCHAIN, sys::NFTA_CHAIN_NAME, chain);
        self.names.push(format!("deleting chain \"{chain}\""));
    }

    /// Deletes all rules of a chain.
    pub(super) fn empty_chain(&mut self, chain: &str) {
        self.put_for_chain(sys::NFT_MSG_DELRULE, sys::NFTA_RULE_CHAIN, chain);
        self.names.push(format!("flushing chain \"{chain}\""));
    }

    pub(super) fn append_rule(&mut self, rule: &Rule) {
        self.splice(format!("the rule `{}`", rule.text), &rule.message(), 0);
    }

    fn put_for_chain(&mut self, kind: u32, name: u16, chain: &str) {
        self.batch.append(kind, 0, |fields| {
            fields.put_text(sys::NFTA_CHAIN_TABLE, TABLE);
            fields.put_text(name, chain);
        });
    }

    fn splice(&mut self, name: String, message: &[u8], flags: u16) {
        self.batch.splice(message, flags);
        self.names.push(name);
    }
}

fn index(place: u32) -> Option<usize> {
    usize::try_from(place).ok()?.checked_sub(1)
}
