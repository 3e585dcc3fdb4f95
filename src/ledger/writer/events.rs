//! Defines the events of the ledger's writer, each with its log sentence. A failure is reported when it begins, changes
//! and ends, not at every attempt.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::ledger::LedgerError;
use crate::types::{Backoff, BanTarget, counted, update};

/// An event for the operator or the engine.
#[derive(Debug)]
pub enum WriterEvent {
    /// These bans have ended.
    Expired(Vec<BanTarget>),
    /// Writing failed and is retried; nothing is lost so far, and blocking continues.
    Failing {
        error: LedgerError,
        /// Number of pending changes; 0 if only a text file is affected.
        waiting: usize,
    },
    /// Writing works again after this many failed attempts.
    Recovered { attempts: u32 },
    /// Changes to the database, and lines of the classic history, were lost because a queue was full.
    Lost { changes: u64, lines: u64 },
    /// Rows of the database are invalid and were skipped.
    Unreadable { rows: u64 },
    /// The database was unusable and was replaced.
    Rebuilt {
        damage: String,
        /// The new path of the old database; `None` if it disappeared.
        aside: Option<PathBuf>,
        /// Number of bans in force that could still be read and are carried over.
        carried: usize,
    },
    /// The wall clock was set. The bans in force keep their remaining time.
    ClockSet { back: bool, by: Duration },
}

impl WriterEvent {
    /// True if an operator must act.
    pub fn is_error(&self) -> bool {
        !matches!(self, Self::Expired(_) | Self::Recovered { .. } | Self::ClockSet { .. })
    }
}

impl fmt::Display for WriterEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired(targets) => write!(f, "{} over", counted(targets.len(), "ban")),
            Self::Failing { error, waiting: 0 } => write!(f, "{error}; retrying, blocking continues"),
            Self::Failing { error, waiting } => {
                write!(f, "{error}; retrying, pending changes to the ledger: {waiting}; blocking continues")
            }
            Self::Recovered { attempts } => {
                write!(f, "the ledger can be written again, after {}", counted(*attempts, "failed attempt"))
            }
            Self::Lost { changes, lines } => {
                write!(
                    f,
                    "lost, because the queue was full: {} of the ledger and {} of portsentry.history",
                    counted(*changes, "change"),
                    counted(*lines, "line")
                )
            }
            Self::Unreadable { rows } => write!(f, "invalid rows of the ledger, which were skipped: {rows}"),
            Self::Rebuilt { damage, aside, carried } => {
                write!(
                    f,
                    "the ledger was damaged ({damage}); a new one continues with {} from the old one",
                    counted(*carried, "ban")
                )?;
                match aside {
                    Some(aside) => write!(f, "; the old one is {}", aside.display()),
                    None => Ok(()),
                }
            }
            Self::ClockSet { back, by } => {
                let by = Duration::from_secs((*by + Duration::from_millis(500)).as_secs().max(1));
                let by = humantime::format_duration(by);
                match back {
                    true => write!(f, "the clock was set back by {by}")?,
                    false => write!(f, "the clock was set forward by {by}, or the host was suspended")?,
                }
                f.write_str("; bans in force keep their remaining time")
            }
        }
    }
}

/// When to try again after failures, and which of them was reported last.
pub(super) struct Retry {
    pub(super) backoff: Backoff,
    reported: Option<String>,
}

impl Retry {
    pub(super) const fn new(backoff: Backoff) -> Self {
        Self { backoff, reported: None }
    }

    /// Returns the event for a failed attempt if the failure is new.
    pub(super) fn report(&mut self, error: LedgerError, waiting: usize) -> Option<WriterEvent> {
        update(&mut self.reported, Some(error.to_string())).then_some(WriterEvent::Failing { error, waiting })
    }

    /// True if a failure was reported since the last success.
    pub(super) fn is_failing(&self) -> bool {
        self.reported.is_some()
    }

    /// Records a successful attempt; returns the event if a failure was reported before.
    pub(super) fn succeeded(&mut self) -> Option<WriterEvent> {
        let attempts = self.backoff.failures();
        self.backoff.reset();
        self.reported.take().map(|_| WriterEvent::Recovered { attempts })
    }
}
