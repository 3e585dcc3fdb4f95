//! Defines the interface that describes, checks and opens a backend.

use super::{BanBackend, OpenError};
use crate::config::Config;

/// The result of [`BackendDefinition::check`].
#[derive(Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    /// The backend would work. The text describes its present state; it is empty or begins with a semicolon.
    Works(String),
    /// It would not work, and the daemon would not start.
    Fails(String),
    /// It would not work now, but the daemon would start and retry.
    FailsForNow(String),
    /// This user cannot determine it; why, and what to do.
    Unknown(String),
}

impl CheckOutcome {
    /// [`Self::Works`] or [`Self::Fails`], for a backend that the daemon needs to start.
    pub(super) fn required<E: ToString>(state: Result<String, E>) -> Self {
        state.map_or_else(|error| Self::Fails(error.to_string()), Self::Works)
    }
}

/// Describes, checks and opens one backend. No method changes the host or runs a command.
pub trait BackendDefinition {
    /// What the backend does, for `portsentry check`.
    fn describe(&self, config: &Config) -> String;

    /// Checks whether the backend would work on this host. For an inline backend, the caller needs CAP_NET_ADMIN.
    fn check(&self, config: &Config) -> CheckOutcome;

    /// Opens an inline backend; `None` for a slow one.
    ///
    /// # Errors
    /// The system refuses it, for example because a capability is missing.
    fn open(&self, _config: &Config) -> Result<Option<Box<dyn BanBackend>>, OpenError> {
        Ok(None)
    }
}
