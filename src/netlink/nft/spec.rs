//! Defines the options of the table: the configuration's effect on its sets and rules.

use std::time::Duration;

use crate::types::shared64::MAX_NAT64;
use crate::types::{Action, Expiry, Rate};

/// Options of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RulesetSpec {
    /// Maximum number of elements in each of `blocked` and `blocked6`. The time to read a set grows with its square.
    pub size: u32,
    /// Treatment of a blocked source's packets.
    pub action: Action,
    /// Rate at which the kernel logs these packets; `None`: not at all.
    pub log_drops: Option<Rate>,
    /// True if whole networks can be blocked, in separate sets. A table that already has these sets keeps them in any
    /// case, because they may hold bans.
    pub prefix_sets: bool,
    /// True if frames that arrive with an own source address are dropped, on the interfaces listed in a set. Needs
    /// nft_fib.
    pub own_source: bool,
    /// Ports that the kernel itself counts, and sources that it blocks; `None`: none.
    pub trap: Option<Trap>,
    /// Size of each of the sets `fleet` and `fleet6`; `None` if this host is in no fleet, and the sets do not exist.
    pub fleet: Option<u32>,
    /// The listener for connections to closed TCP ports; `None` if there is none. Only if [`Trap::tcp`] is not set.
    pub decoys: Option<DecoyRules>,
}

/// Destination of connections to closed TCP ports, and whether the kernel tracks them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoyRules {
    /// Port of the transparent listener at 127.0.0.1.
    pub v4: u16,
    /// Port of the transparent listener at ::1; `None` if this host has no IPv6.
    pub v6: Option<u16>,
    /// Maximum number of new connections tracked at once; the same number is admitted over the next two minutes.
    /// `None`: no connection is tracked, and address translation does not apply to them.
    pub max_new_tracked: Option<u32>,
}

/// Options of the kernel's trap, which counts the distinct trapped ports of TCP and UDP together that one source
/// probes, and blocks the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// True if TCP ports count; at least one of `tcp` and `udp` is true.
    pub tcp: bool,
    /// True if UDP ports count.
    pub udp: bool,
    /// Number of forgiven distinct ports, 0 to 15; 0: the first probe blocks.
    pub forgiven: u8,
    /// Time for which a probed port and a hold count. Unused if no port is forgiven and no source is held.
    pub window: Duration,
    /// Duration of a ban.
    pub expiry: Expiry,
    /// Upper halves of the /64s of configured NAT64 translators, whose sources are left to the daemon.
    pub nat64: [Option<u64>; MAX_NAT64],
    /// Rate of the kernel's own bans, at most [`TRAP_BURST`] at once. Above it the kernel bans no source.
    pub ceiling: Rate,
    /// True if only the interfaces in the set `trap_interfaces` count.
    pub named_interfaces: bool,
    /// Duration of a hold, which drops all SYNs of a source to this host after it probed a TCP port that is new for it.
    /// A multiple of 100 ms, which is exact for every kernel clock rate; only with [`Trap::tcp`].
    pub hold: Option<Duration>,
}

impl RulesetSpec {
    /// True if the daemon fills port sets, for a trap or for decoys.
    pub fn watches_ports(&self) -> bool {
        self.trap.is_some() || self.decoys.is_some()
    }

    /// The same table with a trap that holds no source.
    pub fn without_hold(self) -> Self {
        Self { trap: self.trap.map(|trap| Trap { hold: None, ..trap }), ..self }
    }
}

/// Maximum number of the kernel's own bans that the sensor has not reviewed yet. It is small, because the sensor takes
/// no part in these bans.
pub const TRAP_BURST: u32 = 10;

/// Maximum number of connected sources per family in the trap; the daemon tracks no more in total.
pub const MAX_TRAP_PEERS: u32 = 4_096;

impl Default for RulesetSpec {
    fn default() -> Self {
        Self {
            size: 131_072,
            action: Action::Drop,
            log_drops: None,
            prefix_sets: false,
            own_source: false,
            trap: None,
            fleet: None,
            decoys: None,
        }
    }
}
