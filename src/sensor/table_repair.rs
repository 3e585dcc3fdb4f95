//! Repairs `table inet portsentry` after another process changed or deleted it, and fills its sets again.
//!
//! A process with permission to change the table may do so in a loop. Each repair then restores only the rules, the
//! allow-list and the bans of the most recently seen sources immediately. The other bans follow when repairs have used
//! no more than a tenth of a core. The log gets a few lines per minute.

use std::net::IpAddr;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::observer::{Observer, Scope};
use super::pending_bans::PendingBans;
use crate::enforce::nft::{BlockError, Nft, Repaired, RulesetError};
use crate::engine::ActiveBan;
use crate::events::event::EventKind;
use crate::types::{Backend, BanTarget, LineLimiter, MINUTE, Timestamp, update};

/// Time for which a packet that finds the table missing leaves the repair to the table monitor.
const RETRY_DELAY: Duration = Duration::from_millis(10);
const MAX_LINES_PER_MINUTE: u32 = 5;
/// Number of bans that are always restored together, which takes less than a millisecond.
const MAX_QUICK_BANS: usize = 256;
/// Maximum number of foreign objects listed in the log.
const MAX_FOREIGN: usize = 8;
/// Slots for the blocked sources that sent packets last.
const RECENT_SOURCES: usize = 256;

/// Repairs may use 1/`LOAD_DIVISOR` of a core.
const LOAD_DIVISOR: u32 = 10;

/// Damage to the table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Damage<'a> {
    /// The named process changed only rules: the sets keep their elements.
    Rules(&'a str),
    /// The table or a set was deleted, by the named process if it is known: the sets are filled again.
    Deleted(Option<&'a str>),
}

impl<'a> Damage<'a> {
    fn author(self) -> Option<&'a str> {
        match self {
            Self::Rules(by) => Some(by),
            Self::Deleted(by) => by,
        }
    }
}

/// Time of the last fill, and the state of rate-limited logging.
#[derive(Debug)]
pub(super) struct TableRepair {
    filled_at: Option<Timestamp>,
    /// True if the last fill left out some bans, which are still missing in the kernel.
    pub(super) incomplete: bool,
    /// Time at which the processor time of earlier repairs is paid back.
    free_at: Timestamp,
    /// Their bans are restored first.
    pub(super) recent: RecentSources,
    /// Foreign objects in the table at the last report.
    foreign: Vec<String>,
    /// The last logged error, so that it is not repeated.
    last_error: Option<String>,
    lines: LineLimiter,
}

impl Default for TableRepair {
    fn default() -> Self {
        Self {
            filled_at: None,
            incomplete: false,
            free_at: Timestamp::ZERO,
            recent: RecentSources::default(),
            foreign: Vec::new(),
            last_error: None,
            lines: LineLimiter::new(MAX_LINES_PER_MINUTE, MINUTE),
        }
    }
}

impl TableRepair {
    /// True if a packet that finds the table missing may repair it. The table monitor sees every deletion and requests
    /// the repairs that are skipped here.
    pub(super) fn may_repair_at(&self, now: Timestamp) -> bool {
        self.filled_at.is_none_or(|at| now.since(at) >= RETRY_DELAY)
    }

    /// Time at which the bans left out by the last repair are restored.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.incomplete.then_some(self.free_at)
    }

    /// Repairs the table. If only rules were changed, the sets keep their elements. Otherwise the allow-list and the
    /// bans, with their remaining time, are restored. Returns true if the sets were filled.
    pub(super) fn repair(
        &mut self,
        scope: &mut Scope<'_>,
        backend: &mut Nft,
        damage: Damage<'_>,
        pending: &mut PendingBans,
    ) -> bool {
        let before = thread_time();
        let repaired = backend.repair_to_spec();
        let filled = match (repaired, damage) {
            (Ok(Repaired::Unchanged), Damage::Rules(_)) => {
                self.last_error = None;
                false
            }
            (Ok(Repaired::Repaired { difference, emptied }), Damage::Rules(by)) if emptied.is_empty() => {
                let text =
                    format!("table inet portsentry had been changed (by {by}: {difference}) and has been restored");
                self.report(scope, EventKind::Note(text), damage.author());
                false
            }
            (repaired, _) => {
                self.fill(scope, backend, repaired, pending, damage.author());
                true
            }
        };
        match damage {
            Damage::Rules(by) => self.report_foreign(scope, backend, Some(by)),
            Damage::Deleted(_) => self.foreign.clear(),
        }
        self.spend(scope.now, thread_time().saturating_sub(before));
        filled
    }

    /// Reports foreign objects in the table if they have changed. They stay: a foreign chain may be intentional.
    pub(super) fn report_foreign(&mut self, scope: &Scope<'_>, backend: &mut Nft, author: Option<&str>) {
        // The repair runs into the same error and reports it.
        let Ok(mut foreign) = backend.foreign_objects() else { return };
        foreign.truncate(MAX_FOREIGN);
        if foreign == self.foreign {
            return;
        }
        self.foreign.clone_from(&foreign);
        let event = if foreign.is_empty() {
            EventKind::Note("table inet portsentry no longer contains objects of other programs".to_owned())
        } else {
            let by = author.map_or_else(String::new, |by| format!(" (changed by {by})"));
            EventKind::Error(format!(
                "table inet portsentry contains {}{by}; these objects stay, and may drop or accept packets in \
                 addition to the rules of portsentry; inspect them with `nft list table inet portsentry`, and move \
                 them to another table",
                foreign.join(", ")
            ))
        };
        self.report(scope, event, author);
    }

    /// Restores the bans that the last repair left out, if that is due.
    pub(super) fn complete(&mut self, scope: &mut Scope<'_>, backend: &mut Nft, pending: &mut PendingBans) {
        if self.next_due().is_none_or(|due| scope.now < due) {
            return;
        }
        let before = thread_time();
        self.fill(scope, backend, Ok(Repaired::Unchanged), pending, None);
        self.spend(scope.now, thread_time().saturating_sub(before));
    }

    /// Fills the sets after a repair, and reports the result. If the table could not be repaired, its remaining sets
    /// are used.
    fn fill(
        &mut self,
        scope: &mut Scope<'_>,
        nft: &mut Nft,
        repaired: Result<Repaired, RulesetError>,
        pending: &mut PendingBans,
        author: Option<&str>,
    ) {
        self.filled_at = Some(scope.now);
        let (bans, left_out) = self.choose(scope, pending);
        let Observer { engine, host, .. } = &mut *scope.observer;
        // The allow-list first, so that an exempt source is never without it.
        let allowed: Vec<_> = host.allow.prefixes().collect();
        let filled = nft.replace_allow_list(&allowed).and_then(|()| nft.restore_lost(&bans));
        // The engine must not treat a source as blocked if it is not. The other backends keep its ban.
        match &filled {
            Ok(()) => pending.expedite(Backend::Nft),
            // The table was deleted again. The table monitor has seen that and requests the next repair, with all bans.
            Err(BlockError::Gone) if matches!(repaired, Ok(_) | Err(RulesetError::Contended)) => return,
            Err(BlockError::Failed { failed, .. }) => failed.iter().for_each(|one| {
                engine.lift(one.target);
            }),
            Err(BlockError::Gone | BlockError::System(_)) => engine.lift_all(),
        }
        self.incomplete = left_out > 0 && filled.is_ok();
        let event = match (repaired, filled) {
            (Ok(_), Ok(())) if left_out > 0 => EventKind::Note(format!(
                "table inet portsentry was missing and has been created again; bans restored, of the most \
                 recently seen sources: {}; bans that are restored later, because repairs may use a tenth of a core: \
                 {left_out}",
                bans.len()
            )),
            (Ok(Repaired::Unchanged | Repaired::Created), Ok(())) => EventKind::TableReinstalled { bans: bans.len() },
            (Ok(Repaired::Repaired { difference, .. }), Ok(())) => EventKind::Note(format!(
                "table inet portsentry had been changed ({difference}) and has been restored; bans restored with \
                 their remaining time: {}",
                bans.len()
            )),
            (Err(error @ RulesetError::Foreign { .. }), Ok(())) => {
                EventKind::Error(format!("{error}; blocking continues with the sets that still work"))
            }
            (Err(error), _) => EventKind::Error(format!("cannot create table inet portsentry again: {error}")),
            (Ok(_), Err(error)) => {
                EventKind::Error(format!("cannot restore the bans after the repair of table inet portsentry: {error}"))
            }
        };
        self.report(scope, event, author);
    }

    /// Returns the bans to restore now, and the number left out. Normally all bans are restored. If they are many and
    /// repairs have used their share of the processor, only those of the most recently seen sources are.
    fn choose(&self, scope: &Scope<'_>, pending: &PendingBans) -> (Vec<ActiveBan>, usize) {
        let (now, engine) = (scope.now, &scope.observer.engine);
        // The size of the source table is a cheap upper bound; it includes expired bans.
        let (_, judged) = engine.tracked();
        let wanted = |ban: &ActiveBan| !pending.awaits_command(ban.target);
        if judged <= MAX_QUICK_BANS || now >= self.free_at {
            return (engine.bans().filter(wanted).collect(), 0);
        }
        let recent = self.recent.targets().filter_map(|target| engine.standing_of(now, target));
        let bans: Vec<_> = recent.filter(wanted).collect();
        let left_out = judged.saturating_sub(bans.len());
        (bans, left_out)
    }

    /// After a repair that took n ms, the next full one waits 10 × n ms.
    fn spend(&mut self, now: Timestamp, taken: Duration) {
        self.free_at = self.free_at.max(now).after(taken.saturating_mul(LOAD_DIVISOR));
    }

    fn report(&mut self, scope: &Scope<'_>, event: EventKind, author: Option<&str>) {
        self.limit(event, author, scope.now).into_iter().for_each(|event| scope.reporter.emit(event));
    }

    /// Returns the events to emit for `event` at `now`, within the limit per minute.
    fn limit(&mut self, event: EventKind, author: Option<&str>, now: Timestamp) -> Vec<EventKind> {
        let mut emit = Vec::new();
        let author = author.unwrap_or(UNKNOWN_AUTHOR);
        if let Some(suppressed @ 1..) = self.lines.take_suppressed(now) {
            emit.push(EventKind::Note(format!(
                "table inet portsentry was repaired {suppressed} more times without a log line; the last change was made by \
                 {author}"
            )));
        }
        let error = if let EventKind::Error(text) = &event { Some(text.clone()) } else { None };
        let is_error = error.is_some();
        if (update(&mut self.last_error, error) || !is_error) && self.lines.admit(now) {
            emit.push(event);
            if self.lines.is_exhausted() {
                emit.push(EventKind::Note(format!(
                    "{author} keeps changing table inet portsentry; stop that process. Further repairs are only counted"
                )));
            }
        }
        emit
    }
}

/// The processor time of this thread.
fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// The blocked sources that sent packets last. The last bytes of a target select its slot: many forged sources displace
/// others, whose bans are then restored with the rest.
#[derive(Debug)]
pub(super) struct RecentSources(Box<[Option<BanTarget>; RECENT_SOURCES]>);

impl Default for RecentSources {
    fn default() -> Self {
        Self(Box::new([None; RECENT_SOURCES]))
    }
}

impl RecentSources {
    pub(super) fn insert(&mut self, target: BanTarget) {
        let mix = |octets: &[u8]| octets.iter().fold(target.prefix_len(), |sum, byte| sum.wrapping_mul(31) ^ byte);
        let slot = match target.element() {
            IpAddr::V4(address) => mix(&address.octets()),
            IpAddr::V6(address) => mix(&address.octets()),
        };
        if let Some(slot) = self.0.get_mut(usize::from(slot)) {
            *slot = Some(target);
        }
    }

    fn targets(&self) -> impl Iterator<Item = BanTarget> + '_ {
        self.0.iter().flatten().copied()
    }
}

/// Used if the kernel does not report the process.
const UNKNOWN_AUTHOR: &str = "an unknown process";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::at;

    fn limited(table_repair: &mut TableRepair, event: EventKind, now: Timestamp) -> Vec<String> {
        table_repair
            .limit(event, Some("nft (process 7)"), now)
            .iter()
            .map(|event| crate::events::classic_log::line(event).unwrap())
            .collect()
    }

    #[test]
    fn repeated_repairs_are_summarised() {
        let (mut table_repair, start) = (TableRepair::default(), at(1_000));
        let lines: Vec<usize> = (0..240)
            .map(|quarter| {
                limited(
                    &mut table_repair,
                    EventKind::TableReinstalled { bans: 1 },
                    start.after(Duration::from_millis(250) * quarter),
                )
                .len()
            })
            .collect();
        assert_eq!(lines[..6], [1, 1, 1, 1, 2, 0]);
        assert_eq!(lines[6..].iter().sum::<usize>(), 0);
        let next = limited(&mut table_repair, EventKind::TableReinstalled { bans: 1 }, start.after(MINUTE));
        assert_eq!(next.len(), 2);
        assert_eq!(
            next[0],
            "adminalert: table inet portsentry was repaired 235 more times without a log line; the last change was made by nft (process 7)"
        );
    }

    #[test]
    fn repeated_error_is_reported_once() {
        let (mut table_repair, now) = (TableRepair::default(), at(1_000));
        let mut lines = |event: EventKind| limited(&mut table_repair, event, now).len();
        assert_eq!(lines(EventKind::Error("a".into())), 1);
        assert_eq!(lines(EventKind::Error("a".into())), 0);
        assert_eq!(lines(EventKind::Error("b".into())), 1);
        assert_eq!(lines(EventKind::TableReinstalled { bans: 1 }), 1);
        assert_eq!(lines(EventKind::Error("b".into())), 1);
    }

    #[test]
    fn repairs_use_a_tenth_of_time() {
        let (mut share, at) = (TableRepair::default(), |millis| Timestamp::at(Duration::from_millis(millis)));
        share.spend(at(1_000), Duration::from_millis(3));
        assert_eq!(share.free_at, at(1_030));
        share.spend(at(1_010), Duration::from_millis(2));
        assert_eq!(share.free_at, at(1_050), "unpaid time adds up");
        share.spend(at(9_000), Duration::from_millis(1));
        assert_eq!(share.free_at, at(9_010));
    }

    #[test]
    fn recent_sources_stay_few_in_a_flood() {
        let mut recent = RecentSources::default();
        (0..100_000_u32).for_each(|number| recent.insert(BanTarget::V4(number.into())));
        assert_eq!(recent.targets().count(), RECENT_SOURCES);
        assert!(recent.targets().any(|target| target == BanTarget::V4(99_999_u32.into())), "the last source is kept");
    }
}
