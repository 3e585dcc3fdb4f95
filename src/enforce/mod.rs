//! Enforces bans. Each backend implements the trait [`BanBackend`]; [`implementation()`] returns it.

mod backends;
mod ban_context;
pub mod command;
mod exempt;
pub mod file_helper;
pub mod helper_socket;
pub mod hosts_deny;
mod inline_backend;
pub mod nft;
pub mod route;
pub mod slow_backends;
mod template;

pub use backends::{BanBackend, CheckOutcome, CommandQueue, Helpers, HostsDenyQueue, Opened, implementation};
pub use ban_context::BanContext;
pub use exempt::{ExemptPrefixes, Overlap};
pub use inline_backend::{
    BackendGone, BackendHandles, BlockError, Failed, InlineBackend, MaintenanceReport, OpenError, Refused,
};
