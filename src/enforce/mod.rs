//! Enforces bans. Each backend implements the trait [`BanBackend`]; [`implementation()`] returns it, and [`open`] opens
//! it.

mod backend;
mod ban_context;
pub mod command;
mod exempt;
pub mod file_helper;
pub mod helper_socket;
pub mod hosts_deny;
mod inline_backend;
mod list;
pub mod nft;
pub mod route;
pub mod slow_backends;
mod template;

pub use backend::{BanBackend, CheckOutcome};
pub use ban_context::BanContext;
pub use exempt::{ExemptPrefixes, Overlap};
pub use inline_backend::{
    BackendGone, BackendHandles, BlockError, Failed, InlineBackend, MaintenanceReport, OpenError, Refused,
};
pub use list::{Helpers, Opened, implementation, open};
