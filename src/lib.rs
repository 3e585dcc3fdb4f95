//! `portsentry`: detects port scans against one Linux host and blocks their sources in nftables.
//!
//! The directories follow the path of a packet: [`capture`] reads a frame, [`wire`] decodes it, [`engine`] judges it,
//! [`enforce`] blocks its source through [`netlink`], and [`events`] reports it. [`ledger`] stores bans, and [`report`]
//! summarises them. [`config`] reads the configuration, [`import`] converts a classic one, and [`check`] examines a
//! configuration on this host. [`daemon`] connects the components, [`control`] answers operators, [`metrics`] exports
//! counters, and [`sandbox`] drops privileges. [`panic_guard`] contains panics, [`worker`] runs a thread behind a
//! bounded queue, [`clock`] reads the time since boot, [`atomic_file`] replaces files, and [`mod@file`] opens, reads
//! and identifies files. `wire` and `engine` are pure: they do no I/O, read no clock and draw no random numbers, so
//! that a capture file and a live interface get the same verdicts.

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
pub mod file;
pub mod fleet;
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
