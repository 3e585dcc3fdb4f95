//! Enforces bans: one backend per file, behind the trait [`BanBackend`]. [`definition()`] returns the definition of each.

mod backend;
mod ban_context;
pub mod command;
mod definition;
mod entry_file;
mod exempt;
pub mod file_helper;
pub mod helper_socket;
pub mod hosts_deny;
mod list;
pub mod nft;
pub mod route;
pub mod slow_backends;
mod template;

pub use backend::{BackendGone, BackendHandles, BanBackend, BlockError, Failed, MaintenanceReport, OpenError, Refused};
pub use ban_context::BanContext;
pub use definition::{BackendDefinition, CheckOutcome};
pub use entry_file::EntryFile;
pub use exempt::{ExemptPrefixes, Overlap};
pub use list::definition;
