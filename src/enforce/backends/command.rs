//! Implements the command backend.

use super::{BanBackend, CheckOutcome, CommandQueue, Helpers, Opened};
use crate::config::Config;
use crate::enforce::OpenError;
use crate::enforce::command::quoted;

/// The command backend.
pub(super) struct CommandBackend;

impl BanBackend for CommandBackend {
    fn describe(&self, config: &Config) -> String {
        format!("the command {}", quoted(&config.block.run.command))
    }

    fn check(&self, config: &Config) -> CheckOutcome {
        CheckOutcome::required(config.block.run.check().map(|()| String::new()))
    }

    fn open(&self, config: &Config, helpers: &Helpers) -> Result<Opened, OpenError> {
        let helper = helpers.commands.clone().ok_or("the process that runs commands was not started")?;
        Ok(Opened::Slow(Box::new(CommandQueue::new(config.block.run.clone(), helper))))
    }

    fn key(&self) -> &'static str {
        "block.run.command"
    }

    fn weakness(&self) -> Option<&'static str> {
        Some("with a command alone, a source is blocked only if the command does it; \"nft\" stops all packets")
    }

    fn after_stop(&self, _config: &Config) -> &'static str {
        "expire_command is not run before the next start"
    }

    /// What a command has done is unknown, but the expiry command undoes it.
    fn has_leftovers(&self, config: &Config) -> bool {
        !config.block.run.expire_command.is_empty()
    }
}
