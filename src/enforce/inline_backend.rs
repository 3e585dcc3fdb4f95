//! Defines the trait of inline backends, which the sensor thread calls: begin a ban, end it, and restore the bans that
//! the backend has lost.

use std::error::Error;
use std::fmt;

use super::BanContext;
use crate::engine::{ActiveBan, Host};
use crate::types::{Backend, BanTarget, Timestamp};

/// A ban that a backend refused.
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

    /// A refusal of all `targets` for the same reason.
    pub fn all(backend: Backend, targets: impl Iterator<Item = BanTarget>, reason: &impl ToString) -> Vec<Self> {
        targets.map(|target| Self::new(backend, target, reason)).collect()
    }
}

/// A target that could not be blocked or lifted, with the reason.
#[derive(Debug)]
pub struct Failed<R> {
    pub target: BanTarget,
    pub reason: R,
}

impl<R: fmt::Display> Failed<R> {
    fn first(failed: &[Self]) -> String {
        failed.first().map_or_else(String::new, |Self { target, reason }| format!("{target}: {reason}"))
    }
}

/// Failure of a change in the kernel: `R` is the reason for one target, `E` that for all.
#[derive(Debug, thiserror::Error)]
pub enum BlockError<R: fmt::Display, E> {
    /// The table or one of its sets was deleted, for example with `nft flush ruleset`: no ban is in force.
    #[error("table inet portsentry, or one of its sets, is missing; portsentry creates it again and restores the bans")]
    Gone,
    /// Some of the targets failed; all others were changed.
    #[error("{} of {asked} changes failed; {}", failed.len(), Failed::first(failed))]
    Failed {
        asked: usize,
        /// The failed ones with their reasons; at least one.
        failed: Vec<Failed<R>>,
    },
    /// The socket failed, or the kernel refused the whole change.
    #[error(transparent)]
    System(#[from] E),
}

impl<R: fmt::Display, E: fmt::Display> BlockError<R, E> {
    /// The result of a change of `asked` targets, of which these failed.
    pub(super) fn check(asked: usize, failed: Vec<Failed<R>>) -> Result<(), Self> {
        if failed.is_empty() { Ok(()) } else { Err(Self::Failed { asked, failed }) }
    }

    /// The refusals of `backend` in the result of a change of `targets`.
    pub(super) fn refusals(
        changed: Result<(), Self>,
        backend: Backend,
        targets: impl Iterator<Item = BanTarget>,
    ) -> Result<Vec<Refused>, BackendGone> {
        match changed {
            Ok(()) => Ok(Vec::new()),
            Err(Self::Gone) => Err(BackendGone),
            Err(Self::Failed { failed, .. }) => {
                Ok(failed.iter().map(|one| Refused::new(backend, one.target, &one.reason)).collect())
            }
            Err(Self::System(error)) => Ok(Refused::all(backend, targets, &error)),
        }
    }
}

/// Another program deleted the object that holds the backend's bans, so that none of them is in force. It must be
/// created and filled again before the backend can enforce a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendGone;

/// Open inline backends.
pub type BackendHandles = Vec<(Backend, Box<dyn InlineBackend>)>;

/// The error of a backend that cannot be opened or read.
pub type OpenError = Box<dyn Error + Send + Sync>;

/// What [`InlineBackend::remove_stale`] has done, for the log.
#[derive(Debug, Default)]
pub struct MaintenanceReport {
    pub note: Option<String>,
    /// A failure, which the backend retries.
    pub error: Option<String>,
}

/// A backend that takes microseconds. The defaults suit one that expires its bans itself.
pub trait InlineBackend: Send {
    /// Blocks each target from `now` on for its expiry, even if it is already blocked. Returns the refused bans; all
    /// others are in force or, with a slow backend, queued.
    ///
    /// # Errors
    /// [`BackendGone`]: no ban is in force.
    fn block(&mut self, bans: &[BanContext], now: Timestamp) -> Result<Vec<Refused>, BackendGone>;

    /// Ends the bans of `targets`; targets without a ban are skipped.
    ///
    /// # Errors
    /// A text for the log if a ban could not be ended. The backend retries if it can.
    fn lift(&mut self, targets: &[BanTarget]) -> Result<(), String>;

    /// Restores bans that the backend has lost, for their remaining times. Returns the refused bans. By default nothing
    /// is restored: the thread of the slow backends restores its own entries, and what a command did is unknown.
    ///
    /// # Errors
    /// [`BackendGone`], as for [`InlineBackend::block`].
    fn restore(&mut self, _bans: &[ActiveBan], _now: Timestamp) -> Result<Vec<Refused>, BackendGone> {
        Ok(Vec::new())
    }

    /// True if the ban of `target` should be in force in this backend. False for one that it has refused.
    fn wants(&self, _target: BanTarget) -> bool {
        true
    }

    /// Those of `targets` whose bans are not in force in this backend, as far as it can tell.
    fn missing(&mut self, _targets: &[BanTarget]) -> Vec<BanTarget> {
        Vec::new()
    }

    /// Keeps bans from affecting the exempt addresses of `host`, and ends those that do; returns notes about them. By
    /// default nothing is done: the allow-list of the nftables sets is updated separately.
    fn protect(&mut self, _host: &Host) -> Vec<String> {
        Vec::new()
    }

    /// Time at which [`InlineBackend::run_due`] has work to do; `None` if there is none.
    fn next_due(&self) -> Option<Timestamp> {
        None
    }

    /// Ends a bounded number of bans that have expired, and retries failed removals. Returns a failure, which is retried.
    fn run_due(&mut self, _now: Timestamp) -> Option<String> {
        None
    }

    /// The targets of bans that an earlier run left in this backend and that do not expire by themselves.
    ///
    /// # Errors
    /// The backend cannot be read.
    fn unexpiring_targets(&mut self) -> Result<Vec<BanTarget>, OpenError> {
        Ok(Vec::new())
    }

    /// The netlink port id of this backend in the kernel's route notifications; `None` if its bans are not routes.
    fn route_port_id(&self) -> Option<u32> {
        None
    }

    /// Removes what bans of an earlier run have left, unless a ban has claimed it since the start.
    fn remove_stale(&mut self, _now: Timestamp) -> MaintenanceReport {
        MaintenanceReport::default()
    }
}
