//! Netlink messages of the kernel, encoded and decoded. Makes no decisions.

pub mod conntrack;
pub(crate) mod message;
pub mod nft;
pub mod routes;
pub mod sock_diag;
pub mod socket;
