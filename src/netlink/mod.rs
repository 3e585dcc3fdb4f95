//! The kernel's netlink messages: bytes to values and back. Judges nothing and decides nothing.

pub mod conntrack;
pub(crate) mod message;
pub mod nft;
pub mod routes;
pub mod sock_diag;
pub mod socket;
