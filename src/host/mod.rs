//! What is true of this host: its addresses and routes, resolvers, DHCP leases and login sessions, as the kernel and files
//! tell, the snapshot of them for the engine, and name look-ups that never block the event loop.

pub mod dhcp_leases;
pub mod file_watch;
pub mod lookup;
pub mod network;
pub mod resolv_conf;
pub mod sessions;
pub mod snapshot;
