//! The list of all backends. The section "A backend" of ARCHITECTURE.md lists the steps to add one.

use super::command::{CommandBackend, CommandHelperClient};
use super::file_helper::FileHelper;
use super::hosts_deny::{HostsDeny, HostsDenyBackend};
use super::nft::{Nft, NftBackend};
use super::route::{RouteBackend, Routes};
use super::slow_backends::{CommandQueue, HostsDenyQueue, SlowBackend};
use super::{BanBackend, InlineBackend, OpenError};
use crate::config::Config;
use crate::types::Backend;

/// An open backend.
pub enum Opened {
    Inline(Box<dyn InlineBackend>),
    Slow(Box<dyn SlowBackend>),
}

/// The processes that do work for which the daemon has no permission.
#[derive(Clone, Default)]
pub struct Helpers {
    /// Runs the operator's commands.
    pub commands: Option<CommandHelperClient>,
    /// Writes hosts.deny, if the daemon cannot.
    pub hosts_deny: Option<FileHelper>,
}

/// The implementation of `backend`.
pub fn implementation(backend: Backend) -> &'static dyn BanBackend {
    match backend {
        Backend::Nft => &NftBackend,
        Backend::Route => &RouteBackend,
        Backend::HostsDeny => &HostsDenyBackend,
        Backend::Command => &CommandBackend,
    }
}

/// Opens `backend`; changes nothing on the host and runs no command yet.
///
/// # Errors
/// The system refuses it, for example because a capability or a helper is missing.
pub fn open(backend: Backend, config: &Config, helpers: Helpers) -> Result<Opened, OpenError> {
    Ok(match backend {
        Backend::Nft => Opened::Inline(Box::new(Nft::from_config(config)?)),
        Backend::Route => Opened::Inline(Box::new(Routes::from_config(config)?)),
        Backend::HostsDeny => {
            Opened::Slow(Box::new(HostsDenyQueue::new(HostsDeny::from_config(config)?, helpers.hosts_deny)))
        }
        Backend::Command => {
            let helper = helpers.commands.ok_or("the process that runs commands was not started")?;
            Opened::Slow(Box::new(CommandQueue::new(config.block.run.clone(), helper)))
        }
    })
}
