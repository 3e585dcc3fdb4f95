//! A table that somebody altered or deleted to the table as it should be, with whom it blocks and whom it spares.
//!
//! Whoever may alter the table may do it in a loop. What that costs is bounded: orders come at a bounded rate (see the
//! guard), a packet that finds the table gone repairs it only where nobody has just done so, and the log gets a few lines a
//! minute.

use std::time::{Duration, Instant};

use super::controller::BanController;
use crate::enforce::nft::{BlockError, Repaired, RulesetError};
use crate::events::event::EventKind;
use crate::types::Backend;

impl BanController {
    /// The table, or a set in it, is gone: lays it again with the allow-list, and blocks again whom it blocked, for the time
    /// that is left.
    pub(super) fn reinstall_table(&mut self) {
        let Some((nft, spec)) = &mut self.blocker.nft else { return };
        let repaired = nft.repair(spec);
        self.refill(repaired);
    }

    /// The same, for whoever finds it gone on a packet's way: not again and again where somebody keeps deleting it. The
    /// guard sees every deletion, and orders what is left out here.
    pub(super) fn reinstall_now(&mut self) {
        if self.table_repair.healed.is_none_or(|healed| healed.elapsed() >= PAUSE) {
            self.reinstall_table();
        }
    }

    /// Somebody, by these words, altered the table: undoes it where it concerns what is ours. The sets keep what they hold.
    pub(super) fn repair_rules(&mut self, by: &str) {
        let Some((nft, spec)) = &mut self.blocker.nft else { return };
        match nft.repair(spec) {
            Ok(Repaired::Unchanged) => self.table_repair.complaint = None,
            Ok(Repaired::Repaired { difference, emptied }) if emptied.is_empty() => {
                self.tell_repair(EventKind::Note(format!(
                    "table inet portsentry had been changed (by {by}: {difference}) and is as it should be again"
                )));
            }
            repaired => self.refill(repaired),
        }
    }

    /// Fills the sets after a repair. A table that could not be repaired is used as far as its sets still do their work.
    fn refill(&mut self, repaired: Result<Repaired, RulesetError>) {
        let Some((nft, _)) = &mut self.blocker.nft else { return };
        self.table_repair.healed = Some(Instant::now());
        self.trap.forget_ports();
        let bans = self.engine.bans().filter(|ban| !self.waiting.contains_key(&ban.subject));
        let bans: Vec<_> = bans.map(|ban| (ban.subject, ban.length, ban.left)).collect();
        let prefixes: Vec<_> = self.host.allow.prefixes().collect();
        // The allow-list first: at no moment is a protected source without it.
        let filled = nft.protect(&prefixes).and_then(|()| nft.put_back(&bans));
        // Who is not blocked must not be taken for blocked, and is judged anew.
        match &filled {
            // Who was condemned while it was gone need not wait for longer.
            Ok(()) => self.retries.hasten(Backend::Nft),
            // Somebody has just deleted it again: the guard has seen that and orders the next repair, with all bans.
            Err(BlockError::Gone) if matches!(repaired, Ok(_) | Err(RulesetError::Contended)) => return,
            Err(BlockError::Failed { failed, .. }) => failed.iter().for_each(|one| {
                self.engine.lift(one.subject);
            }),
            Err(BlockError::Gone | BlockError::Socket(_)) => self.engine.lift_all(),
        }
        let what = match (repaired, filled) {
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
        };
        self.tell_repair(what);
    }

    fn tell_repair(&mut self, what: EventKind) {
        for what in self.table_repair.heard(what, Instant::now()) {
            self.emit(what);
        }
    }
}

/// What has been repaired of late, and said of it.
#[derive(Debug, Default)]
pub(super) struct TableRepair {
    healed: Option<Instant>,
    /// The last thing that was said about a table that could not be repaired.
    complaint: Option<String>,
    minute: Option<Instant>,
    said: u32,
    unsaid: u32,
}

impl TableRepair {
    /// What is to be said where `what` is to be told at `now`.
    fn heard(&mut self, what: EventKind, now: Instant) -> Vec<EventKind> {
        let mut emit = Vec::new();
        if self.minute.is_none_or(|minute| now.duration_since(minute) >= MINUTE) {
            (self.minute, self.said) = (Some(now), 0);
            let unsaid = std::mem::take(&mut self.unsaid);
            if unsaid > 0 {
                emit.push(EventKind::Note(format!(
                    "table inet portsentry was repaired {unsaid} more times, unsaid here"
                )));
            }
        }
        let text = format!("{what:?}");
        if let EventKind::Error(_) = what {
            if self.complaint.as_deref() == Some(&text) {
                return emit;
            }
            self.complaint = Some(text);
        } else {
            self.complaint = None;
        }
        self.said += 1;
        match self.said {
            1..MAX_LINES_PER_MINUTE => emit.push(what),
            MAX_LINES_PER_MINUTE => emit.extend([
                what,
                EventKind::Note(
                    "somebody keeps changing table inet portsentry; repairs are summed up from here on".to_owned(),
                ),
            ]),
            _ => self.unsaid += 1,
        }
        emit
    }
}

/// How long a packet that finds the table gone leaves the repair to the guard.
const PAUSE: Duration = Duration::from_millis(250);
const MINUTE: Duration = Duration::from_secs(60);
/// Lines about repairs in a minute.
const MAX_LINES_PER_MINUTE: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(table_repair: &mut TableRepair, what: EventKind, now: Instant) -> Vec<String> {
        table_repair.heard(what, now).into_iter().map(|what| crate::events::classic_log::of(&what).unwrap()).collect()
    }

    #[test]
    fn a_loop_of_repairs_is_a_few_lines_a_minute_and_their_sum() {
        let (mut table_repair, start) = (TableRepair::default(), Instant::now());
        let lines: Vec<usize> = (0..240)
            .map(|quarter| heard(&mut table_repair, EventKind::Healed { bans: 1 }, start + PAUSE * quarter).len())
            .collect();
        assert_eq!(lines[..6], [1, 1, 1, 1, 2, 0]);
        assert_eq!(lines[6..].iter().sum::<usize>(), 0);
        let next = heard(&mut table_repair, EventKind::Healed { bans: 1 }, start + MINUTE);
        assert_eq!(next.len(), 2);
        assert_eq!(next[0], "adminalert: table inet portsentry was repaired 235 more times, unsaid here");
    }

    #[test]
    fn the_same_complaint_is_said_once_and_again_after_something_else() {
        let (mut table_repair, now) = (TableRepair::default(), Instant::now());
        let mut said = |what: EventKind| heard(&mut table_repair, what, now).len();
        assert_eq!(said(EventKind::Error("a".into())), 1);
        assert_eq!(said(EventKind::Error("a".into())), 0);
        assert_eq!(said(EventKind::Error("b".into())), 1);
        assert_eq!(said(EventKind::Healed { bans: 1 }), 1);
        assert_eq!(said(EventKind::Error("b".into())), 1);
    }
}
