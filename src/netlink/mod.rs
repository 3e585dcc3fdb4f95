//! The kernel's netlink messages: bytes to values and back. Judges nothing and decides nothing.

pub mod nft;
pub mod socket;
