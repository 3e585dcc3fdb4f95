//! Describes and checks the command backend for a configuration.

use super::quoted;
use crate::config::Config;
use crate::enforce::{BackendDefinition, CheckOutcome};

/// The definition of the command backend.
pub(crate) struct CommandDefinition;

impl BackendDefinition for CommandDefinition {
    fn describe(&self, config: &Config) -> String {
        format!("the command {}", quoted(&config.block.run.command))
    }

    fn check(&self, config: &Config) -> CheckOutcome {
        CheckOutcome::required(config.block.run.check().map(|()| String::new()))
    }
}
