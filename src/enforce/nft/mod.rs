//! Implements the nftables backend: writes bans as elements into the sets of `table inet portsentry`, and reads them
//! back. The kernel enforces and expires them; this module does not know the reason for a ban.
//!
//! A ban is one transaction with one acknowledgement, about 6 µs in all. It has one message, or three if the target may
//! already be blocked. Once the buffers are warm it does not allocate (benches/nft_encoding.rs).

mod allow_set;
mod bans;
mod fleet_sets;
mod from_config;
mod networks;
mod set_writer;
mod table;
pub mod trap_sets;

use crate::types::BanTarget;
pub use bans::Nft;
pub use fleet_sets::FleetSets;
pub use table::{Generation, Table};
pub use trap_sets::{DecoyCounts, Hold, HoldCounts, TrapUsage};

pub use crate::netlink::nft::{
    DecoyRules, Installed, KernelFeatures, MAX_HOLDS, Repaired, RulesetError, RulesetSpec, TRAP_BURST, Trap,
    TrapContents,
};
use crate::netlink::socket::SocketError;

/// Failure to change the sets.
pub type BlockError = super::BlockError<Failure, SocketError>;

pub type Failed = super::Failed<Failure>;

/// Why one target could not be blocked or lifted.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(
        "set inet portsentry {set} is full ({size} elements); shorten `expire`, or raise block.nft.size, delete the \
         table and restart portsentry"
    )]
    Full {
        set: &'static str,
        /// Size of the set in elements.
        size: u32,
    },
    /// It is part of a network that is blocked for a shorter time. One set cannot hold both.
    #[error(
        "it is in the network {around}, which is blocked for a shorter time; unblock that network first, or block \
         all of it for the same time"
    )]
    Inside {
        /// The surrounding network.
        around: BanTarget,
    },
    /// Another error of the kernel or the socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
}
