//! What the writer tells: one sentence for the log each. A failure is told once, when it begins or changes, and once when
//! it is over, not at every attempt.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::ledger::LedgerError;
use crate::types::BanTarget;

/// Something that an operator, or the engine, should know.
#[derive(Debug)]
pub enum WriterEvent {
    /// The time of these bans is over.
    Expired(Vec<BanTarget>),
    /// The disk takes nothing. It is tried again; nothing is lost so far, and blocking goes on.
    Failing {
        /// Why.
        error: LedgerError,
        /// Changes that wait for it; 0 where only a text file is concerned.
        waiting: usize,
    },
    /// The disk takes changes again.
    Recovered {
        /// Attempts that failed.
        attempts: u32,
    },
    /// Changes found no room while the disk took none, or could not keep up, and are lost.
    Lost {
        /// Changes to the database.
        changes: u64,
        /// Lines of the classic history.
        lines: u64,
    },
    /// Rows of the database do not parse and were skipped.
    Unreadable {
        /// How many.
        rows: u64,
    },
    /// The database could not be used any more, and a new one takes its place.
    Rebuilt {
        /// What was wrong.
        damage: String,
        /// Where the old one is now; `None` where it had gone.
        aside: Option<PathBuf>,
        /// Bans in force that could still be read, and are carried over.
        carried: usize,
    },
    /// Somebody has set the clock. The bans in force end when they would have.
    ClockSet {
        /// Back, not forward.
        back: bool,
        /// By so much.
        by: Duration,
    },
}

impl WriterEvent {
    /// True where somebody has to do something.
    #[must_use]
    pub fn is_error(&self) -> bool {
        !matches!(self, Self::Expired(_) | Self::Recovered { .. } | Self::ClockSet { .. })
    }
}

impl fmt::Display for WriterEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired(subjects) => write!(f, "{} bans are over", subjects.len()),
            Self::Failing { error, waiting: 0 } => write!(f, "{error}; it is tried again, and blocking goes on"),
            Self::Failing { error, waiting } => {
                write!(f, "{error}; {waiting} changes to the ledger wait and are tried again, and blocking goes on")
            }
            Self::Recovered { attempts } => write!(f, "the ledger is written again, after {attempts} failed attempts"),
            Self::Lost { changes, lines } => {
                write!(f, "{changes} changes to the ledger and {lines} lines of its history found no room and are lost")
            }
            Self::Unreadable { rows } => write!(f, "{rows} rows of the ledger make no sense and were skipped"),
            Self::Rebuilt { damage, aside, carried } => {
                write!(f, "the ledger is made anew, with {carried} bans of the old one: {damage}")?;
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
    /// An attempt has failed; what to tell of it, if it is new.
    pub(super) fn begun(&mut self, error: LedgerError, waiting: usize) -> Option<WriterEvent> {
        let text = error.to_string();
        let (known, attempts) = self.0.take().unwrap_or_default();
        let new = known != text;
        self.0 = Some((text, attempts.saturating_add(1)));
        new.then_some(WriterEvent::Failing { error, waiting })
    }

    /// True where the last attempt has failed.
    pub(super) fn lasts(&self) -> bool {
        self.0.is_some()
    }

    /// An attempt has not failed; what to tell, if those before it did.
    pub(super) fn over(&mut self) -> Option<WriterEvent> {
        self.0.take().map(|(_, attempts)| WriterEvent::Recovered { attempts })
    }
}
