//! Decisions to the kernel: one back end a file.

mod case;
pub mod hosts_deny;
mod macros;
pub mod nft;

pub use case::Case;
