//! Decisions to the kernel: one back end a file.

mod ban_context;
pub mod command;
mod from_config;
pub mod hosts_deny;
pub mod nft;
pub mod route;
pub mod slow_backends;
mod template;

pub use ban_context::BanContext;
