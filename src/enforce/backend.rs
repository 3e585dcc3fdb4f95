//! The trait of all backends: begin a ban, end it, and report the bans that the backend has lost.

use std::fmt;

use super::BanContext;
use crate::engine::ActiveBan;
use crate::types::{Backend, BanTarget, Timestamp};

/// A ban that a backend did not take.
#[derive(Debug)]
pub struct Refused {
    pub backend: Backend,
    pub target: BanTarget,
    pub reason: String,
}

impl Refused {
    pub(super) fn new(backend: Backend, target: BanTarget, reason: &impl ToString) -> Self {
        Self { backend, target, reason: reason.to_string() }
    }

    /// All of `targets`, for one reason.
    #[must_use]
    pub fn all(backend: Backend, targets: impl Iterator<Item = BanTarget>, reason: &impl ToString) -> Vec<Self> {
        targets.map(|target| Self::new(backend, target, reason)).collect()
    }
}

/// One target that could not be blocked or lifted, and why.
#[derive(Debug)]
pub struct Failed<R> {
    pub target: BanTarget,
    pub reason: R,
}

impl<R: fmt::Display> Failed<R> {
    pub(super) fn first(failed: &[Self]) -> String {
        failed.first().map_or_else(String::new, |Self { target, reason }| format!("{target}: {reason}"))
    }
}

/// Another program deleted what holds the backend's bans: none of them is in force. It has to be created and filled again
/// before the backend takes a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// A place where bans are enforced.
pub trait BanBackend {
    /// Blocks each target from `now` on for its expiry, whether it is blocked already or not. Returns the bans that are
    /// refused; all others are in force or, with a slow backend, queued.
    ///
    /// # Errors
    /// [`Gone`], and then no ban is in force.
    fn block(&mut self, bans: &[BanContext], now: Timestamp) -> Result<Vec<Refused>, Gone>;

    /// Ends the bans of `targets`; targets without a ban are passed over.
    ///
    /// # Errors
    /// A text for the log, where a ban could not be ended. The backend tries again by itself where it can.
    fn lift(&mut self, targets: &[BanTarget]) -> Result<(), String>;

    /// Blocks again what the backend has lost, for the time that is left. Returns the bans that are refused.
    ///
    /// # Errors
    /// [`Gone`], as for [`BanBackend::block`].
    fn put_back(&mut self, bans: &[ActiveBan], now: Timestamp) -> Result<Vec<Refused>, Gone>;

    /// The targets whose ban should be in force here, as far as the backend knows, and is not.
    fn missing(&mut self, targets: &[BanTarget]) -> Vec<BanTarget>;
}
