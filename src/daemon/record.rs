//! Events to the ledger, and what the ledger remembers back to the kernel at the start. A ledger that cannot be opened or
//! written is said, and blocking goes on.

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::engine::StandingBan;
use crate::engine::subject::{Expiry, Subject};
use crate::ledger::{
    Author, Banned, Change, Classic, Ended, Ending, Flushed, Ledger, LedgerError, Opened, Recorder, Writer,
};
use crate::report::event::{Event, What};
use crate::report::queue::Sender;

/// How long the disk has for what is not written yet when the program ends.
const FLUSH: Duration = Duration::from_millis(400);

/// The ledger, the bans that it says are in force, and what is to be said.
type Opening = (Record, Vec<Remembered>, Vec<What>);

/// A ban from before the start, and what is left of it.
pub(super) struct Remembered {
    pub(super) ban: Banned,
    pub(super) left: Expiry,
}

impl Remembered {
    /// As the engine and the ways to block want it.
    pub(super) fn standing(&self) -> StandingBan {
        let length = self.ban.until.and_then(|until| until.duration_since(self.ban.since).ok());
        StandingBan { subject: self.ban.subject, length, left: self.left }
    }
}

/// The ledger while the program runs; of nothing where there is none.
#[derive(Default)]
pub(super) struct Record(Option<Writer>);

impl Record {
    /// Opens the ledger in `directory`.
    pub(super) fn open(directory: &Path, events: &Sender) -> Opening {
        match Self::try_open(directory, events) {
            Ok(opened) => opened,
            Err(error) => {
                let text =
                    format!("{error}. Blocking goes on, but bans do not outlive a reboot or a flush of the ruleset");
                (Self::default(), Vec::new(), vec![What::Error(text)])
            }
        }
    }

    fn try_open(directory: &Path, events: &Sender) -> Result<Opening, LedgerError> {
        let now = SystemTime::now();
        let mut said = Vec::new();
        let (mut ledger, opened) = Ledger::open(directory)?;
        if let Opened::Rebuilt { aside, damage } = opened {
            said.push(What::Error(format!(
                "the ledger was damaged ({damage}) and is kept as {}; a new one is made from the bans in the kernel",
                aside.display()
            )));
        }
        // Marked before they are asked for: what ended while the program was down is no ban any more.
        let _ = ledger.expire(now)?;
        let active = ledger.active(now)?;
        if active.unreadable > 0 {
            said.push(What::Error(format!("{} rows of the ledger cannot be read and are left out", active.unreadable)));
        }
        let left = |ban: Banned| ban.left(now).map(|left| Remembered { ban, left });
        let bans = active.items.into_iter().filter_map(|entry| left(entry.ban)).collect();
        let classic = Classic::open(directory).map_err(|error| said.push(What::Error(error.to_string()))).ok();
        let events = events.clone();
        let tell = move |news: crate::ledger::News| {
            let text = news.to_string();
            match news {
                crate::ledger::News::Expired(subjects) => {
                    subjects.into_iter().for_each(|subject| events.send(Event::now(What::Expired { subject })));
                }
                news if news.is_error() => events.send(Event::now(What::Error(text))),
                _ => events.send(Event::now(What::Note(text))),
            }
        };
        let writer =
            Writer::start(ledger, classic, tell).map_err(LedgerError::system("start a thread for", directory))?;
        Ok((Self(Some(writer)), bans, said))
    }

    /// A way to hand changes over from another thread.
    pub(super) fn recorder(&self) -> Option<Recorder> {
        self.0.as_ref().map(Writer::recorder)
    }

    /// Notes what `event` says about a ban, if it does. `interface` names the interface of an index.
    pub(super) fn note(&self, event: &Event, interface: impl Fn(u32) -> Option<String>) {
        let Some(writer) = &self.0 else { return };
        let change = match &event.what {
            What::Blocked { ban, way, .. } => {
                let interface = interface(ban.probe.sighting.interface);
                Banned::from_ban(ban, event.time, interface.as_deref()).into()
            }
            What::ByHand { subject, expiry, .. } => {
                Banned::wanted_by(Author::Operator, *subject, event.time, *expiry).into()
            }
            What::Unblocked { subject, by } => lifted(*subject, by, event.time),
            What::Lifted { subject } => lifted(*subject, "somebody", event.time),
            _ => return,
        };
        // What finds no room is counted and said by the writer.
        let _ = writer.recorder().put(change);
    }

    /// Writes what is left, and ends; a sentence where that did not work.
    pub(super) fn close(self) -> Option<What> {
        let flushed = self.0?.stop(FLUSH);
        match flushed {
            Flushed::Whole => None,
            Flushed::Left(changes) => {
                Some(What::Error(format!("{changes} changes could not be written to the ledger")))
            }
            Flushed::Stuck => Some(What::Error("the disk did not take the ledger's last changes in time".to_owned())),
        }
    }
}

/// A ban that somebody lifted.
pub(super) fn lifted(subject: Subject, by: &str, at: SystemTime) -> Change {
    Change::Ended { subject, ended: Ended { how: Ending::Lifted { by: by.to_owned() }, at } }
}
