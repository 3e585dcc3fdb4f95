//! Collects the facts about this host: addresses and routes, sockets, resolvers, DHCP leases, login sessions and the
//! rules of other programs, from the kernel and from files. Builds the snapshot of them for the engine, and provides
//! name look-ups that never block the event loop.

pub mod boot;
pub mod dhcp_leases;
pub mod file_watch;
pub mod firewall;
pub mod listers;
pub mod lookup;
pub mod network;
pub mod resolv_conf;
pub mod service_ports;
pub mod sessions;
pub mod snapshot;
