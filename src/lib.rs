//! `portsentry`: notices who touches ports that nobody has a reason to touch, and blocks them in nftables.
//!
//! The folders are the way of a packet, in this order: [`capture`] brings a frame, [`wire`] decodes it, [`engine`]
//! judges it, [`enforce`] blocks its source through [`netlink`], and [`events`] tells people and machines. [`ledger`]
//! remembers, and [`report`] sums it up. [`config`] reads what an operator wants, [`import`] what classic PortSentry was told,
//! [`daemon`] wires it all together, [`check`] says what settings come to, [`control`] answers operators, [`metrics`] counts
//! and [`sandbox`] gives up rights. [`panic_guard`] says what a panic may end, [`worker`] is
//! a thread behind a bounded queue, [`clock`] reads the time since boot, and [`atomic_file`] replaces files. `wire` and `engine` are pure: no
//! I/O, no clock and no randomness of their own, so that a capture file and a live interface get the same verdicts.

pub mod atomic_file;
pub mod capture;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod enforce;
pub mod engine;
pub mod events;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod host;
pub mod import;
pub mod lazy_queue;
pub mod ledger;
pub mod metrics;
pub mod netlink;
pub mod panic_guard;
pub mod replay;
pub mod report;
pub mod sandbox;
pub mod sensor;
pub mod types;
pub mod wire;
pub mod worker;
