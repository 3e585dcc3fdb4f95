//! The options of the table: what the configuration decides about its sets and rules.

use std::time::Duration;

use crate::types::Expiry;
use crate::types::Rate;
use crate::types::shared64::MAX_NAT64;

/// What can be chosen about the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RulesetSpec {
    /// How many elements `blocked` and `blocked6` hold, each. Reading a set takes time with the square of it.
    pub size: u32,
    /// What becomes of a blocked source's packets.
    pub action: Action,
    /// How many of those packets the kernel writes into its log; `None`: none.
    pub log_drops: Option<Rate>,
    /// Whether whole networks can be blocked, in sets of their own. A table that has these sets keeps them, whatever is
    /// asked for: they may hold bans.
    pub wide: bool,
    /// Whether frames that come in with a source address of this host's own are dropped, at the interfaces that a set names.
    /// Needs nft_fib.
    pub own_source: bool,
    /// What the kernel counts and blocks by itself; `None`: nothing.
    pub trap: Option<Trap>,
    /// How many bans the sets `fleet` and `fleet6` hold, each; `None`: this host is in no fleet, and there are no such sets.
    pub fleet: Option<u32>,
    /// The listener that gets connections to closed TCP ports; `None`: there is none. Only where [`Trap::tcp`] is not set.
    pub decoys: Option<DecoyRules>,
}

/// Where connections to closed TCP ports are led, and whether the kernel tracks them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoyRules {
    /// The port of the transparent listener at 127.0.0.1.
    pub v4: u16,
    /// The port of that at ::1; `None` where this host has no IPv6.
    pub v6: Option<u16>,
    /// New connections that are tracked at once, at most; as many follow within two minutes. `None`: none is tracked, which
    /// would leave them out of address translation.
    pub max_new_tracked: Option<u32>,
}

impl DecoyRules {
    /// New connections that are tracked in a second when those at once are used up.
    pub(super) fn tracked_per_second(self) -> u32 {
        (self.max_new_tracked.unwrap_or(0) / TRACKED_FOR).max(1)
    }
}

/// How long connection tracking remembers a connection that has ended or was never completed, at most, in seconds
/// (nf_conntrack_tcp_timeout_time_wait, nf_conntrack_tcp_timeout_fin_wait, nf_conntrack_tcp_timeout_syn_recv).
const TRACKED_FOR: u32 = 120;

/// What the kernel counts and blocks by itself: distinct trapped ports that one source probes, those of TCP and
/// UDP together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Whether TCP ports count; they or those of UDP do.
    pub tcp: bool,
    /// Whether UDP ports count.
    pub udp: bool,
    /// Distinct ports that are forgiven, 0 to 15; 0: the first touch blocks.
    pub forgiven: u8,
    /// How long a touched port and a hold count. Of no meaning where none is forgiven and none is held.
    pub window: Duration,
    /// How long a ban lasts.
    pub expiry: Expiry,
    /// Upper halves of the /64s of configured NAT64 translators, whose sources are left to the daemon.
    pub nat64: [Option<u64>; MAX_NAT64],
    /// Bans that the kernel makes by itself, at most [`TRAP_BURST`] at once. Above it the kernel bans no source.
    pub ceiling: Rate,
    /// Whether only the interfaces count that the set of them holds.
    pub named_interfaces: bool,
    /// How long a source is held when it probes a TCP port that is new for it: its SYNs to this host are dropped. In tenths
    /// of a second, so that it is whole in the kernel's clock whatever that is; only with [`Trap::tcp`].
    pub hold: Option<Duration>,
}

impl RulesetSpec {
    /// True where the daemon fills sets of ports: a trap counts there, or decoys serve them.
    #[must_use]
    pub fn watches_ports(&self) -> bool {
        self.trap.is_some() || self.decoys.is_some()
    }

    /// The same table with a trap that holds no source.
    #[must_use]
    pub fn without_hold(self) -> Self {
        Self { trap: self.trap.map(|trap| Trap { hold: None, ..trap }), ..self }
    }
}

/// Bans that the kernel makes at once, and of which the sensor has said nothing yet. It has no part in deciding on them, so
/// they are few.
pub const TRAP_BURST: u32 = 10;

/// Connected sources of each family that the trap knows; the daemon knows no more of both.
pub const MAX_TRAP_PEERS: u32 = 4_096;

impl Default for RulesetSpec {
    fn default() -> Self {
        Self {
            size: 131_072,
            action: Action::Drop,
            log_drops: None,
            wide: false,
            own_source: false,
            trap: None,
            fleet: None,
            decoys: None,
        }
    }
}

/// What becomes of a blocked source's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// They vanish: the source waits for an answer that never comes.
    #[default]
    Drop,
    /// They are answered as by a host on which nothing listens, so that an innocent client gives up at once; above a rate
    /// that cannot hurt a third party, they vanish.
    Reject,
}
