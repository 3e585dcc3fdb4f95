//! Enforces bans: one backend per file, behind the trait [`BanBackend`].

mod backend;
mod ban_context;
pub mod command;
mod entry_file;
mod exempt;
pub mod file_helper;
mod from_config;
pub mod helper_socket;
pub mod hosts_deny;
pub mod nft;
pub mod route;
pub mod slow_backends;
mod template;

pub use backend::{BackendGone, BackendHandles, BanBackend, BlockError, Failed, Refused, Upkeep};
pub use ban_context::BanContext;
pub use entry_file::EntryFile;
pub use exempt::{ExemptPrefixes, Overlap};
