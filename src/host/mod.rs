//! What is true of this host: its addresses and routes, resolvers, DHCP leases and login sessions, as the kernel and files tell.

pub mod dhcp_leases;
pub mod file_watch;
pub mod network;
pub mod resolv_conf;
pub mod sessions;
