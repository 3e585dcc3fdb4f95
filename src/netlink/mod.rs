//! The kernel's netlink messages: bytes to values and back. Judges nothing and decides nothing.

pub mod files;
pub mod host;
pub mod leases;
pub mod nft;
pub mod resolvers;
pub mod routes;
pub mod sessions;
pub mod sock_diag;
pub mod socket;
