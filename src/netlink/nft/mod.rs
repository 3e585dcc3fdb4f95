//! Encodes and decodes the nf_tables table `inet portsentry`: its sets, chains, rules and elements.

mod bans;
mod decoy_rules;
mod desired_ruleset;
mod element;
mod exclusions;
mod family;
mod firewall;
mod fragment_rules;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod generation;
mod hold_rules;
mod message;
pub mod monitor;
mod recognise;
mod rule;
mod rules;
mod ruleset;
mod set;
mod snapshot;
mod spec;
mod table;
mod trap_rules;

pub(crate) use bans::{
    BANS_A_MESSAGE, put_allowed, put_allowed_change, put_back, put_bans, put_bans_in, put_forget, put_interfaces,
    put_lift, put_lifts, put_new_bans, put_new_prefix_ban, put_peers, put_prefix_ban, put_trapped,
};
pub use bans::{KernelFeatures, TrapContents, put_ban};
pub(crate) use element::{
    SetElement, decode_prefixes, elements_of, has_answered, has_sent_from, next_address, put_ban_query,
    put_element_query, put_flush, put_set_dump,
};
pub use firewall::Firewall;
pub(crate) use generation::{await_turn, counted_packets, generation, kernel_features};
pub use hold_rules::MAX_HOLDS;
pub(crate) use ruleset::table_handle;
pub use ruleset::{
    Installed, Repaired, RulesetError, SetSizes, examine, foreign_objects, has_repeated_rules, install, remove, repair,
};
pub use set::Set;
pub(crate) use set::{is_created_by_nft, set_count, set_size};
pub use spec::{DecoyRules, MAX_TRAP_PEERS, RulesetSpec, TRAP_BURST, Trap};
pub use table::{CHAIN, REFUSE, TABLE, TRAP};
pub(crate) use table::{DECOY_ANSWERED, DECOY_TAKE, TRAP_FULL, TRAP_HELD};

pub use super::socket::Batch;
