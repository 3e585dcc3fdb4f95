//! The kernel's netlink messages: bytes to values and back. Judges nothing and decides nothing.

pub mod host;
pub mod nft;
pub mod resolvers;
pub mod sock_diag;
pub mod socket;
