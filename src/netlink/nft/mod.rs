//! Values to nf_tables messages and back: the table, its sets, its chain and the elements in the sets.
//!
//! Read with: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h, and the kernel's net/netfilter/nf_tables_api.c.
//! Headers are in host order, attributes of nf_tables in network order.

mod batch;
mod desired_ruleset;
mod element;
mod features;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod interval;
mod message;
pub mod monitor;
mod rules;
mod ruleset;
mod snapshot;
mod spec;
mod trap;

pub use batch::Batch;
pub(crate) use element::{
    BANS_A_MESSAGE, Element, after, elements_of, put_back, put_bans, put_lift, put_new_bans, put_one_element_query,
    put_protected, put_protected_change, put_restored, put_set_dump,
};
pub use element::{Remaining, put_ban};
pub use features::KernelFeatures;
pub(crate) use features::{await_turn, generation};
pub(crate) use interval::{bounds_of, networks, put_network, put_network_lift, put_new_network, put_place_query};
pub(crate) use message::{Message, Messages, attributes, text};
pub use ruleset::{Installed, Repaired, RulesetError, examine, install, remove, repair};
pub(crate) use ruleset::{set_count, set_size};
pub use spec::{Action, RulesetSpec, Trap};
pub use trap::Watched;
pub(crate) use trap::{memory, put_flush, put_forget, put_trapped};

use ipnet::IpNet;

use crate::types::BanTarget;

/// The one table that is the daemon's own, in the family `inet`.
pub const TABLE: &str = "portsentry";

/// The chain in it that sees every packet.
pub const CHAIN: &str = "prerouting";

/// The chain that logs or answers packets before they are dropped, where that is wanted.
pub const REFUSE: &str = "refuse";

/// A named set of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Blocked IPv4 addresses.
    Blocked,
    /// Blocked IPv6 /64 prefixes, by their first address, and link-local addresses.
    Blocked6,
    /// Blocked IPv4 networks. Only in a table with [`RulesetSpec::wide`].
    BlockedNets,
    /// Blocked IPv6 networks wider than a /64, likewise.
    BlockedNets6,
    /// IPv4 prefixes that are never dropped.
    Allowed,
    /// IPv6 prefixes that are never dropped.
    Allowed6,
    /// Ports that nobody has a reason to touch. This and all below only in a table with [`RulesetSpec::trap`].
    Trapped,
    /// The same of UDP. This and what else is of UDP only with [`Trap::udp`]; what is of TCP alone only with [`Trap::tcp`].
    TrappedUdp,
    /// Interfaces on which touches count, where not all do.
    TrapInterfaces,
    /// Who touched which of them.
    Probed,
    /// The same for IPv6, by /64.
    Probed6,
    /// Who touched which of those of UDP.
    TouchedUdp,
    /// The same for IPv6, by /64.
    TouchedUdp6,
    /// Trapped UDP ports that this host has sent from a moment ago.
    Outbound,
    /// Who touched any, and how many more it may.
    Suspects,
    /// The same for IPv6, by /64.
    Suspects6,
    /// Whom the kernel has blocked by itself a moment ago.
    TrapBanned,
    /// The same for IPv6, by /64.
    TrapBanned6,
}

impl Set {
    /// Its name in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Blocked6 => "blocked6",
            Self::BlockedNets => "blocked_nets",
            Self::BlockedNets6 => "blocked_nets6",
            Self::Allowed => "allowed",
            Self::Allowed6 => "allowed6",
            Self::Trapped => "trapped",
            Self::TrappedUdp => "trapped_udp",
            Self::TrapInterfaces => "trap_interfaces",
            Self::Probed => "touched",
            Self::Probed6 => "touched6",
            Self::TouchedUdp => "touched_udp",
            Self::TouchedUdp6 => "touched_udp6",
            Self::Outbound => "asked",
            Self::Suspects => "suspects",
            Self::Suspects6 => "suspects6",
            Self::TrapBanned => "caught",
            Self::TrapBanned6 => "caught6",
        }
    }

    /// The set in which `subject` is blocked.
    #[must_use]
    pub const fn of(subject: BanTarget) -> Self {
        match subject {
            BanTarget::V4(_) => Self::Blocked,
            BanTarget::V6(_) => Self::Blocked6,
            BanTarget::Prefix(wide) => match wide.network() {
                IpNet::V4(_) => Self::BlockedNets,
                IpNet::V6(_) => Self::BlockedNets6,
            },
        }
    }
}

/// The chain through which everything goes that comes to a trapped port, and those that it jumps to.
pub const TRAP: &str = "trap";
/// What becomes of a touch.
pub(crate) const TRAP_TOUCH: &str = "trap_touch";
/// What becomes of who touched too many.
pub(crate) const TRAP_BAN: &str = "trap_ban";
/// Where this host asks, and so waits for answers.
pub(crate) const TRAP_ASKED: &str = "trap_asked";

/// NFPROTO_INET: rules for IPv4 and IPv6 in one table.
const FAMILY_INET: u8 = 1;

/// NFNL_SUBSYS_NFTABLES, the upper byte of a message's type.
const SUBSYSTEM: u16 = 10;

/// Lower bytes of a message's type (enum nf_tables_msg_types).
pub(crate) mod kind {
    pub(crate) const NEW_TABLE: u8 = 0;
    pub(crate) const GET_TABLE: u8 = 1;
    pub(crate) const DELETE_TABLE: u8 = 2;
    pub(crate) const NEW_CHAIN: u8 = 3;
    pub(crate) const GET_CHAIN: u8 = 4;
    pub(crate) const DELETE_CHAIN: u8 = 5;
    pub(crate) const NEW_RULE: u8 = 6;
    pub(crate) const GET_RULE: u8 = 7;
    pub(crate) const DELETE_RULE: u8 = 8;
    pub(crate) const NEW_SET: u8 = 9;
    pub(crate) const GET_SET: u8 = 10;
    pub(crate) const DELETE_SET: u8 = 11;
    pub(crate) const NEW_ELEMENT: u8 = 12;
    pub(crate) const GET_ELEMENT: u8 = 13;
    pub(crate) const DELETE_ELEMENT: u8 = 14;
    pub(crate) const NEW_GENERATION: u8 = 15;
    pub(crate) const GET_GENERATION: u8 = 16;
    pub(crate) const DESTROY_ELEMENT: u8 = 30;
}

/// Flags of a request (linux/netlink.h).
pub(crate) mod flag {
    pub(crate) const REQUEST: u16 = 0x001;
    pub(crate) const ACK: u16 = 0x004;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const EXCL: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
}
