//! Decisions to the kernel: one back end a file.

mod case;
pub mod hands;
pub mod hosts_deny;
mod macros;
pub mod nft;
pub mod run;

pub use case::Case;
