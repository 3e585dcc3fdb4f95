//! Defines the trait of all backends: their texts, their check, how they are opened, and what earlier runs left in them.

use std::path::PathBuf;

use crate::config::Config;
use crate::enforce::command::CommandHelperClient;
use crate::enforce::file_helper::FileHelper;
use crate::enforce::slow_backends::SlowBackend;
use crate::enforce::{InlineBackend, OpenError};

/// The result of [`BanBackend::check`].
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

/// An open backend, which is of one of two kinds.
pub enum Opened {
    /// The sensor thread calls it.
    Inline(Box<dyn InlineBackend>),
    /// The slow-backends thread runs it.
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

/// A place where bans are enforced.
pub trait BanBackend {
    /// What the backend does, for `portsentry check`.
    fn describe(&self, config: &Config) -> String;

    /// Checks whether the backend would work on this host; changes nothing and runs no command. For an inline backend,
    /// the caller needs CAP_NET_ADMIN.
    fn check(&self, config: &Config) -> CheckOutcome;

    /// Opens the backend; changes nothing on the host and runs no command yet.
    ///
    /// # Errors
    /// The system refuses it, for example because a capability or a helper is missing.
    fn open(&self, config: &Config, helpers: &Helpers) -> Result<Opened, OpenError>;

    /// The configuration key to which errors of this backend refer.
    fn key(&self) -> &'static str {
        "block.method"
    }

    /// A warning for a configuration without a stronger backend: what stays unprotected, and the remedy. `None` if the
    /// backend stops all packets.
    fn weakness(&self) -> Option<&'static str> {
        None
    }

    /// What happens to its bans while the program does not run, as a clause for the log.
    fn after_stop(&self, config: &Config) -> &'static str;

    /// The file that it writes.
    fn file(&self, _config: &Config) -> Option<PathBuf> {
        None
    }

    /// True if bans of an earlier run may have left something in this backend.
    fn has_leftovers(&self, _config: &Config) -> bool {
        false
    }

    /// Removes everything that earlier runs left in this backend, because the configuration no longer uses it. `used`
    /// lists the backends in use, for the note. Returns a note if something was removed; `None` if there was nothing, or
    /// if the kernel could not be queried.
    ///
    /// # Errors
    /// A text for the log if the removal failed.
    fn discard_leftovers(&self, _config: &Config, _used: &str) -> Result<Option<String>, String> {
        Ok(None)
    }
}
