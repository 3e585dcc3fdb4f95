//! Decisions to the kernel: one back end a file.

pub mod nft;
pub mod route;
