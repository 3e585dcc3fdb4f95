//! Events of the ledger's writer, one log sentence each. A failure is reported when it begins, when it changes and
//! when it ends, not at every attempt.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::ledger::LedgerError;
use crate::types::{BanTarget, counted};

/// Something that an operator, or the engine, should know.
#[derive(Debug)]
pub enum WriterEvent {
    /// These bans are over.
    Expired(Vec<BanTarget>),
    /// Writing failed. It is retried; nothing is lost so far, and blocking goes on.
    Failing {
        error: LedgerError,
        /// Changes that wait; 0 where only a text file is concerned.
        waiting: usize,
    },
    /// Writing works again after so many failed attempts.
    Recovered { attempts: u32 },
    /// Changes to the database, and lines of the classic history, found no room and are lost.
    Lost { changes: u64, lines: u64 },
    /// Rows of the database cannot be parsed and were skipped.
    Unreadable { rows: u64 },
    /// The database was unusable, and a new one takes its place.
    Rebuilt {
        damage: String,
        /// The path of the old database; `None` where it is gone.
        aside: Option<PathBuf>,
        /// Bans in force that could still be read, and are carried over.
        carried: usize,
    },
    /// The wall clock was set. The bans in force end when they would have.
    ClockSet { back: bool, by: Duration },
}

impl WriterEvent {
    /// True where an operator has to act.
    #[must_use]
    pub fn is_error(&self) -> bool {
        !matches!(self, Self::Expired(_) | Self::Recovered { .. } | Self::ClockSet { .. })
    }
}

impl fmt::Display for WriterEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired(targets) => write!(f, "{} over", counted(targets.len(), "ban")),
            Self::Failing { error, waiting: 0 } => write!(f, "{error}; it is tried again, and blocking goes on"),
            Self::Failing { error, waiting } => {
                write!(f, "{error}; changes to the ledger that wait and are tried again: {waiting}; blocking goes on")
            }
            Self::Recovered { attempts } => {
                write!(f, "the ledger is written again, after {}", counted(*attempts, "failed attempt"))
            }
            Self::Lost { changes, lines } => {
                write!(
                    f,
                    "lost because there was no room: {} to the ledger and {} of its history",
                    counted(*changes, "change"),
                    counted(*lines, "line")
                )
            }
            Self::Unreadable { rows } => write!(f, "rows of the ledger that make no sense and were skipped: {rows}"),
            Self::Rebuilt { damage, aside, carried } => {
                write!(f, "the ledger is made anew, with {} of the old one: {damage}", counted(*carried, "ban"))?;
                match aside {
                    Some(aside) => write!(f, "; the old one is {}", aside.display()),
                    None => Ok(()),
                }
            }
            Self::ClockSet { back, by } => {
                let (way, by) = (
                    if *back { "back" } else { "forward" },
                    Duration::from_secs((*by + Duration::from_millis(500)).as_secs().max(1)),
                );
                let by = humantime::format_duration(by);
                write!(f, "the clock was set {way} by {by}; bans in force end when they would have, by the new time")
            }
        }
    }
}

/// A failure that may last.
#[derive(Default)]
pub(super) struct Trouble(Option<(String, u32)>);

impl Trouble {
    /// An attempt failed; the event to report, if the failure is new.
    pub(super) fn begun(&mut self, error: LedgerError, waiting: usize) -> Option<WriterEvent> {
        let text = error.to_string();
        let (known, attempts) = self.0.take().unwrap_or_default();
        let new = known != text;
        self.0 = Some((text, attempts.saturating_add(1)));
        new.then_some(WriterEvent::Failing { error, waiting })
    }

    /// True where the last attempt failed.
    pub(super) fn lasts(&self) -> bool {
        self.0.is_some()
    }

    /// An attempt succeeded; the event to report, if the one before failed.
    pub(super) fn over(&mut self) -> Option<WriterEvent> {
        self.0.take().map(|(_, attempts)| WriterEvent::Recovered { attempts })
    }
}
