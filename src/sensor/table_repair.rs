//! Repairs `table inet portsentry` after others changed or deleted it, and fills its sets again.
//!
//! A process that may change the table may do so in a loop. The cost of that is bounded: repair commands arrive at a bounded
//! rate (see the table monitor), a packet that finds the table missing repairs it only if that was not just done, and the
//! log gets a few lines a minute.

use std::time::{Duration, Instant};

use super::observer::Observer;
use super::pending_bans::PendingBans;
use super::reporter::Reporter;
use crate::enforce::nft::{BlockError, Nft, NftBackend, Repaired, RulesetError};
use crate::events::event::EventKind;
use crate::types::Backend;

/// How long a packet that finds the table missing leaves the repair to the table monitor.
const RETRY_DELAY: Duration = Duration::from_millis(250);
const MINUTE: Duration = Duration::from_secs(60);
const MAX_LINES_PER_MINUTE: u32 = 5;

/// When the table was filled last, and what the log says of repairs.
#[derive(Debug, Default)]
pub(super) struct TableRepair {
    filled_at: Option<Instant>,
    /// The last error that was logged, so that it is not repeated.
    last_error: Option<String>,
    minute: Option<Instant>,
    /// Lines in this minute, and repairs without one.
    logged: u32,
    suppressed: u32,
}

impl TableRepair {
    /// True if a packet that finds the table missing may repair it. The table monitor sees every deletion and orders the
    /// repairs that are left out here.
    pub(super) fn may_repair_now(&self) -> bool {
        self.filled_at.is_none_or(|at| at.elapsed() >= RETRY_DELAY)
    }

    /// Makes the table what it should be. If `changed_by` names a process that changed only rules, the sets keep their
    /// elements; otherwise they are filled again, with the allow-list and with bans for the rest of their time. True if they
    /// were.
    pub(super) fn repair(
        &mut self,
        backend: &mut NftBackend,
        changed_by: Option<&str>,
        observer: &mut Observer,
        pending: &mut PendingBans,
        reporter: &Reporter,
    ) -> bool {
        let repaired = backend.repair();
        match (repaired, changed_by) {
            (Ok(Repaired::Unchanged), Some(_)) => self.last_error = None,
            (Ok(Repaired::Repaired { difference, emptied }), Some(by)) if emptied.is_empty() => {
                let text = format!(
                    "table inet portsentry had been changed (by {by}: {difference}) and is as it should be again"
                );
                self.report(EventKind::Note(text), reporter);
            }
            (repaired, _) => {
                if let Some(event) = self.fill(&mut backend.nft, repaired, observer, pending) {
                    self.report(event, reporter);
                }
                return true;
            }
        }
        false
    }

    /// Fills the sets after a repair, and says what came of it. A table that could not be repaired is used as far as its sets
    /// still work.
    fn fill(
        &mut self,
        nft: &mut Nft,
        repaired: Result<Repaired, RulesetError>,
        observer: &mut Observer,
        pending: &mut PendingBans,
    ) -> Option<EventKind> {
        self.filled_at = Some(Instant::now());
        let bans = observer.engine().bans().filter(|ban| !pending.awaits_command(ban.subject));
        let bans: Vec<_> = bans.map(|ban| (ban.subject, ban.length, ban.left)).collect();
        // The allow-list first: an exempt source must never be without it.
        let filled = nft.protect(&observer.allowed()).and_then(|()| nft.put_back(&bans));
        // The engine must not take a source for blocked that is not.
        match &filled {
            Ok(()) => pending.expedite(Backend::Nft),
            // It was deleted again: the table monitor has seen that and orders the next repair, with all bans.
            Err(BlockError::Gone) if matches!(repaired, Ok(_) | Err(RulesetError::Contended)) => return None,
            Err(BlockError::Failed { failed, .. }) => failed.iter().for_each(|one| {
                observer.lift(one.subject);
            }),
            Err(BlockError::Gone | BlockError::Socket(_)) => observer.engine_mut().lift_all(),
        }
        Some(match (repaired, filled) {
            (Ok(Repaired::Unchanged | Repaired::Created), Ok(())) => EventKind::Healed { bans: bans.len() },
            (Ok(Repaired::Repaired { difference, .. }), Ok(())) => EventKind::Note(format!(
                "table inet portsentry had been changed ({difference}) and is as it should be again; bans put back with \
                 the time that they had left: {}",
                bans.len()
            )),
            (Err(error @ RulesetError::Foreign { .. }), Ok(())) => {
                EventKind::Error(format!("{error}. It goes on as far as the sets still do their work"))
            }
            (Err(error), _) => EventKind::Error(format!("the table could not be laid again: {error}")),
            (Ok(_), Err(error)) => EventKind::Error(format!("the bans could not be put back: {error}")),
        })
    }

    fn report(&mut self, event: EventKind, reporter: &Reporter) {
        self.limit(event, Instant::now()).into_iter().for_each(|event| reporter.emit(event));
    }

    /// The events to emit for `event` at `now`, within the limit for a minute.
    fn limit(&mut self, event: EventKind, now: Instant) -> Vec<EventKind> {
        let mut emit = Vec::new();
        if self.minute.is_none_or(|minute| now.duration_since(minute) >= MINUTE) {
            (self.minute, self.logged) = (Some(now), 0);
            let suppressed = std::mem::take(&mut self.suppressed);
            if suppressed > 0 {
                emit.push(EventKind::Note(format!(
                    "table inet portsentry was repaired {suppressed} more times, unsaid here"
                )));
            }
        }
        if let EventKind::Error(text) = &event {
            if self.last_error.as_ref() == Some(text) {
                return emit;
            }
            self.last_error = Some(text.clone());
        } else {
            self.last_error = None;
        }
        self.logged += 1;
        match self.logged {
            1..MAX_LINES_PER_MINUTE => emit.push(event),
            MAX_LINES_PER_MINUTE => emit.extend([
                event,
                EventKind::Note(
                    "somebody keeps changing table inet portsentry; repairs are summed up from here on".to_owned(),
                ),
            ]),
            _ => self.suppressed += 1,
        }
        emit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(table_repair: &mut TableRepair, event: EventKind, now: Instant) -> Vec<String> {
        table_repair.limit(event, now).iter().map(|event| crate::events::classic_log::of(event).unwrap()).collect()
    }

    #[test]
    fn a_loop_of_repairs_is_a_few_lines_a_minute_and_their_sum() {
        let (mut table_repair, start) = (TableRepair::default(), Instant::now());
        let lines: Vec<usize> = (0..240)
            .map(|quarter| {
                limited(&mut table_repair, EventKind::Healed { bans: 1 }, start + RETRY_DELAY * quarter).len()
            })
            .collect();
        assert_eq!(lines[..6], [1, 1, 1, 1, 2, 0]);
        assert_eq!(lines[6..].iter().sum::<usize>(), 0);
        let next = limited(&mut table_repair, EventKind::Healed { bans: 1 }, start + MINUTE);
        assert_eq!(next.len(), 2);
        assert_eq!(next[0], "adminalert: table inet portsentry was repaired 235 more times, unsaid here");
    }

    #[test]
    fn the_same_complaint_is_said_once_and_again_after_something_else() {
        let (mut table_repair, now) = (TableRepair::default(), Instant::now());
        let mut lines = |event: EventKind| limited(&mut table_repair, event, now).len();
        assert_eq!(lines(EventKind::Error("a".into())), 1);
        assert_eq!(lines(EventKind::Error("a".into())), 0);
        assert_eq!(lines(EventKind::Error("b".into())), 1);
        assert_eq!(lines(EventKind::Healed { bans: 1 }), 1);
        assert_eq!(lines(EventKind::Error("b".into())), 1);
    }
}
