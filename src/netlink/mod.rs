//! Encodes and decodes the netlink messages of the kernel. Makes no decisions.

pub mod conntrack;
pub(crate) mod message;
pub mod nft;
pub mod routes;
pub mod sock_diag;
pub mod socket;
