//! Collects the facts about this host: addresses and routes, resolvers, DHCP leases and login sessions, from the kernel
//! and from files. Builds the snapshot of them for the engine, and provides name look-ups that never block the event
//! loop.

pub mod dhcp_leases;
pub mod file_watch;
pub mod lookup;
pub mod network;
pub mod resolv_conf;
pub mod sessions;
pub mod snapshot;
