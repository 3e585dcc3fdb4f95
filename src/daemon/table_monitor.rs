//! Converts changes of the table by other programs into commands for the sensor. A deleted table is created again, a
//! changed one is repaired, a deleted element lifts its ban, and an added element is an operator's ban. Elements that
//! came with a loaded ruleset are kept only if they are bans.
//!
//! A program that rewrites the table in a loop causes at most one repair every ten milliseconds.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::DaemonError;
use super::optional::deadline_reached;
use crate::clock::boot_time;
use crate::enforce::nft::Table;
use crate::engine::ActiveBan;
use crate::events::event::EventKind;
use crate::ledger::Recorder;
use crate::netlink::nft::monitor::{Committer, Monitor, TableChange};
use crate::sensor::SensorCommand;
use crate::types::{Backend, LineLimiter, MINUTE, Timestamp};

pub(super) struct TableMonitor {
    /// `None` if nft is not a backend.
    monitor: Option<Monitor>,
    pub(super) bulk: BulkChanges,
    ledger: Recorder,
    /// Time until which further changes wait in the kernel for the ledger.
    ledger_wait: Option<Instant>,
    /// Rate limits for repairs of the rules, the allow-list and the trap.
    paces: [RepairPace; 3],
    notes: LineLimiter,
}

impl TableMonitor {
    /// Monitors the table from now on; without `table` it monitors nothing. Own changes through the socket of `table`
    /// are ignored, and `table` pauses the notifications while it makes many changes. `ledger` records the changes.
    pub(super) fn open(table: Option<&mut Table>, ledger: Recorder) -> Result<Self, DaemonError> {
        let mut monitor = None;
        if let Some(table) = table {
            let monitor = monitor.insert(Monitor::open()?);
            monitor.ignore(table.port_id());
            table.monitor_pause = Some(monitor.pause());
        }
        let paces = [
            RepairPace::new(repairs_table),
            RepairPace::new(|command| matches!(command, SensorCommand::ProtectAddresses)),
            RepairPace::new(|command| matches!(command, SensorCommand::ResetTrap)),
        ];
        Ok(Self {
            monitor,
            bulk: BulkChanges::default(),
            ledger,
            ledger_wait: None,
            paces,
            notes: LineLimiter::new(MAX_NOTES_PER_MINUTE, MINUTE),
        })
    }

    /// Waits until another program changes the table; returns the commands for the sensor, and the events to emit after
    /// them. Cancel safe.
    pub(super) async fn changed(&mut self) -> Result<(Vec<SensorCommand>, Vec<EventKind>), DaemonError> {
        let Some(monitor) = &mut self.monitor else { return pending().await };
        while self.ledger_wait.is_some_and(|end| !self.ledger.has_room() && Instant::now() < end) {
            sleep(LEDGER_POLL_INTERVAL).await;
        }
        self.ledger_wait = None;
        loop {
            let turn = self.paces.iter().filter_map(RepairPace::due).min();
            let (mut commands, mut events) = tokio::select! {
                () = deadline_reached(turn.map(Instant::into_std)) => Default::default(),
                changes = monitor.next() => respond(&changes?, &committer(monitor)),
            };
            let now = Instant::now();
            self.paces.iter_mut().for_each(|pace| pace.delay(&mut commands, now));
            limit_notes(&mut self.notes, &mut events, boot_time());
            if events.len() >= BulkChanges::BURST_CHANGES {
                self.bulk.record(boot_time());
                self.ledger_wait = Some(now + MAX_LEDGER_WAIT);
            }
            if !commands.is_empty() || !events.is_empty() {
                return Ok((commands, events));
            }
        }
    }
}

/// True for a command that creates the table again or repairs it.
pub(super) fn repairs_table(command: &SensorCommand) -> bool {
    matches!(command, SensorCommand::ReinstallTable(_) | SensorCommand::RepairRules(_))
}

fn committer(monitor: &Monitor) -> String {
    let name = |by: &Committer| format!("{} (process {})", by.name, by.process);
    monitor.committer().map_or_else(|| "an unknown process".to_owned(), name)
}

/// The time of the last many changes at once. While a script deletes 100,000 elements, those at the end of its
/// transaction are missing in the kernel for seconds before their notifications are handled.
#[derive(Clone, Default)]
pub(super) struct BulkChanges(Arc<AtomicU64>);

impl BulkChanges {
    /// Number of changes at once after which more are expected.
    const BURST_CHANGES: usize = 256;
    /// Time for which more are expected.
    const BURST_TIME: Duration = Duration::from_secs(8);

    fn record(&self, now: Timestamp) {
        let millis = now.since_origin().as_millis();
        self.0.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// True if a missing element may be one that an operator has just deleted.
    pub(super) fn are_under_way(&self, now: Timestamp) -> bool {
        let last = Duration::from_millis(self.0.load(Ordering::Relaxed));
        !last.is_zero() && now.since(Timestamp::at(last)) < Self::BURST_TIME
    }
}

/// Delays commands of one kind that follow each other too quickly.
struct RepairPace {
    about: fn(&SensorCommand) -> bool,
    last: Option<Instant>,
    delayed: Option<SensorCommand>,
}

impl RepairPace {
    fn new(about: fn(&SensorCommand) -> bool) -> Self {
        Self { about, last: None, delayed: None }
    }

    /// Time at which the delayed command is due.
    fn due(&self) -> Option<Instant> {
        self.delayed.as_ref().and(self.last).map(|last| last + REPAIR_INTERVAL)
    }

    /// Removes a command of this kind from `commands` if it has to wait. Inserts a delayed command that is due before
    /// all others.
    fn delay(&mut self, commands: &mut Vec<SensorCommand>, now: Instant) {
        if let Some(place) = commands.iter().position(self.about) {
            let command = commands.remove(place);
            // Reinstalling the table includes repairing its rules.
            if !matches!(self.delayed, Some(SensorCommand::ReinstallTable(_))) {
                self.delayed = Some(command);
            }
        }
        if self.delayed.is_some() && self.last.is_none_or(|last| now >= last + REPAIR_INTERVAL) {
            self.last = Some(now);
            commands.splice(..0, self.delayed.take());
        }
    }
}

/// Removes the notes above the limit, about a table that is changed in a loop.
fn limit_notes(notes: &mut LineLimiter, events: &mut Vec<EventKind>, now: Timestamp) {
    events.retain(|kind| !matches!(kind, EventKind::Note(_)) || notes.admit(now));
}

/// Maximum delay of a repair, and minimum interval between two commands of one kind. The sensor limits the cost of
/// restoring many bans ([`crate::sensor`], table repair).
const REPAIR_INTERVAL: Duration = Duration::from_millis(10);
/// Maximum delay of further changes while the ledger records many, also with a disk that hangs.
const MAX_LEDGER_WAIT: Duration = Duration::from_secs(5);
const LEDGER_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Maximum number of notes per minute. The sensor reports its number of repairs itself.
const MAX_NOTES_PER_MINUTE: u32 = 10;

/// The commands and events that follow from `changes` by the program `by`.
fn respond(changes: &[TableChange], by: &str) -> (Vec<SensorCommand>, Vec<EventKind>) {
    // Once a table is gone, earlier changes of its elements are irrelevant: all are restored.
    let forces_restore = |change: &TableChange| {
        matches!(change, TableChange::TableGone | TableChange::SetGone(_) | TableChange::Overrun)
    };
    let restore_at = changes.iter().rposition(forces_restore);
    let (repair, mut events) = repair(changes, restore_at, by);
    let mut commands = Vec::from_iter(repair);
    let (mut lifted, mut added, mut masked, mut loaded) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut allowed, mut trap) = (false, false);
    for change in changes.iter().skip(restore_at.map_or(0, |place| place + 1)) {
        match *change {
            TableChange::ElementRemoved(target) => lifted.push(target),
            TableChange::ElementAdded(target, left) if target != target.masked() => masked.push((target, left)),
            TableChange::ElementAdded(target, left) => added.push((target, left)),
            TableChange::ElementLoaded(target) => loaded.push(target),
            TableChange::AllowedChanged => allowed = true,
            TableChange::TrapChanged => trap = true,
            TableChange::TableGone
            | TableChange::SetGone(_)
            | TableChange::RulesetChanged
            | TableChange::Unmonitored
            | TableChange::Overrun => {}
        }
    }
    // An element whose timeout an operator changed is deleted and added in one transaction: it stays.
    lifted.retain(|target| added.iter().chain(&masked).all(|(kept, _)| kept != target) && !loaded.contains(target));
    events.extend(lifted.iter().map(|target| EventKind::Unblocked { target: *target, by: by.to_owned() }));
    events.extend(masked.iter().map(|(target, _)| {
        let (element, network) = (target.element(), target.masked());
        EventKind::Note(format!(
            "{by} added {element} to set inet portsentry blocked6, where only a /64 matches packets; it was replaced \
             with {network}"
        ))
    }));
    events.extend(added.iter().chain(&masked).map(|(target, expiry)| EventKind::ByHand {
        target: target.masked(),
        expiry: *expiry,
        by: by.to_owned(),
        note: None,
        backend: Some(Backend::Nft),
    }));
    if !lifted.is_empty() {
        commands.push(SensorCommand::BansRemoved(lifted));
    }
    if !masked.is_empty() {
        commands.push(SensorCommand::MaskElements(masked));
    }
    if !added.is_empty() {
        let ban = |(target, expiry)| ActiveBan::new(target, expiry);
        commands.push(SensorCommand::Adopt(added.into_iter().map(ban).collect()));
    }
    if !loaded.is_empty() {
        commands.push(SensorCommand::ReviewLoaded(loaded, by.to_owned()));
    }
    if allowed {
        events.push(EventKind::Note(format!(
            "{by} changed the kernel's allow-list, which was restored; use `portsentry allow` or allow.networks to \
             exempt an address"
        )));
        commands.push(SensorCommand::ProtectAddresses);
    }
    if trap {
        events.push(EventKind::Note(format!(
            "{by} changed the ports or interfaces of the kernel's trap, which were restored"
        )));
        commands.push(SensorCommand::ResetTrap);
    }
    (commands, events)
}

/// Returns the command that repairs the table or its rules, if one is needed, and the events to report. `restore_at` is
/// the index of the last change after which the whole table must be restored.
fn repair(changes: &[TableChange], restore_at: Option<usize>, by: &str) -> (Option<SensorCommand>, Vec<EventKind>) {
    let Some(place) = restore_at else {
        let by = if changes.contains(&TableChange::RulesetChanged) {
            by
        } else if changes.contains(&TableChange::Unmonitored) {
            // The change usually concerned another table. The comparison finds changes of single elements.
            "an unknown process"
        } else {
            return (None, Vec::new());
        };
        return (Some(SensorCommand::RepairRules(by.to_owned())), Vec::new());
    };
    let mut events = Vec::new();
    if changes.contains(&TableChange::Overrun) {
        events.push(EventKind::Note(
            "some changes of the ruleset were missed, because they arrived too fast; the table is checked as a whole"
                .to_owned(),
        ));
    }
    if changes.iter().take(place + 1).any(|change| *change == TableChange::TableGone) {
        events.push(EventKind::Note(format!("{by} deleted table inet portsentry")));
    }
    (Some(SensorCommand::ReinstallTable(by.to_owned())), events)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::netlink::nft::Set;
    use crate::types::{BanTarget, Expiry, at};

    fn target(last: u8) -> BanTarget {
        BanTarget::V4([192, 0, 2, last].into())
    }

    #[test]
    fn bulk_changes_delay_repairs_for_seconds() {
        let bulk = BulkChanges::default();
        assert!(!bulk.are_under_way(at(1)), "nothing has changed");
        bulk.record(at(10));
        assert_eq!([17, 18].map(|second| bulk.are_under_way(at(second))), [true, false]);
    }

    #[test]
    fn changes_before_loss_of_table_are_dropped() {
        let changes = [
            TableChange::ElementRemoved(target(1)),
            TableChange::TableGone,
            TableChange::ElementAdded(target(2), Expiry::Never),
        ];
        let (commands, events) = respond(&changes, "nft");
        assert!(
            matches!(&commands[..], [SensorCommand::ReinstallTable(_), SensorCommand::Adopt(added)] if *added == [ActiveBan::new(target(2), Expiry::Never)])
        );
        assert!(matches!(&events[..], [EventKind::Note(_), EventKind::ByHand { .. }]));
    }

    #[test]
    fn changed_ruleset_is_repaired_with_its_elements() {
        let changes = [TableChange::ElementRemoved(target(1)), TableChange::RulesetChanged];
        let (commands, events) = respond(&changes, "nft");
        assert!(
            matches!(&commands[..], [SensorCommand::RepairRules(by), SensorCommand::BansRemoved(lifted)] if by == "nft" && *lifted == [target(1)])
        );
        assert!(matches!(&events[..], [EventKind::Unblocked { .. }]));
        let (commands, _) = respond(
            &[TableChange::RulesetChanged, TableChange::SetGone(Set::Blocked), TableChange::RulesetChanged],
            "nft",
        );
        assert!(matches!(&commands[..], [SensorCommand::ReinstallTable(_)]), "this repairs the rules as well");
    }

    fn held(pace: &mut RepairPace, changes: &[TableChange], now: Instant) -> Vec<SensorCommand> {
        let (mut commands, _) = respond(changes, "nft");
        pace.delay(&mut commands, now);
        commands
    }

    #[test]
    fn repeated_repairs_are_paced_without_loss() {
        let (mut pace, start) = (RepairPace::new(repairs_table), Instant::now());
        let at = |round| start + Duration::from_millis(round);
        let ordered: Vec<u64> =
            (0..40).filter(|round| !held(&mut pace, &[TableChange::TableGone], at(*round)).is_empty()).collect();
        assert_eq!(ordered, [0, 10, 20, 30]);
        assert_eq!(pace.due(), Some(at(40)));
        assert!(matches!(&held(&mut pace, &[], at(40))[..], [SensorCommand::ReinstallTable(_)]));
        assert!(pace.due().is_none() && held(&mut pace, &[], at(2_000)).is_empty());
    }

    #[test]
    fn delayed_repair_delays_nothing_else() {
        let (mut pace, now) = (RepairPace::new(repairs_table), Instant::now());
        let changes =
            [TableChange::RulesetChanged, TableChange::ElementRemoved(target(1)), TableChange::AllowedChanged];
        assert!(matches!(
            &held(&mut pace, &changes, now)[..],
            [SensorCommand::RepairRules(_), SensorCommand::BansRemoved(_), SensorCommand::ProtectAddresses]
        ));
        assert!(matches!(
            &held(&mut pace, &changes, now)[..],
            [SensorCommand::BansRemoved(_), SensorCommand::ProtectAddresses]
        ));
        assert!(held(&mut pace, &[TableChange::TableGone], now).is_empty());
        let later = held(&mut pace, &changes, now + REPAIR_INTERVAL);
        assert!(
            matches!(
                &later[..],
                [SensorCommand::ReinstallTable(_), SensorCommand::BansRemoved(_), SensorCommand::ProtectAddresses]
            ),
            "the larger repair of both"
        );
    }

    #[test]
    fn notes_are_limited_and_bans_reported() {
        let mut notes = LineLimiter::new(MAX_NOTES_PER_MINUTE, MINUTE);
        let mut count = |second| {
            let (_, mut events) =
                respond(&[TableChange::ElementRemoved(target(1)), TableChange::AllowedChanged], "nft");
            limit_notes(&mut notes, &mut events, at(second));
            events.len()
        };
        let lines: Vec<usize> = (0..60).map(&mut count).collect();
        assert_eq!(lines.iter().filter(|lines| **lines == 2).count(), 10);
        assert!(lines.iter().all(|lines| *lines > 0));
        assert_eq!(count(60), 2);
    }

    #[test]
    fn changed_timeout_lifts_no_ban() {
        let hour = Expiry::After(Duration::from_secs(3_600));
        let changes = [TableChange::ElementRemoved(target(1)), TableChange::ElementAdded(target(1), hour)];
        let (commands, _) = respond(&changes, "nft");
        assert!(matches!(&commands[..], [SensorCommand::Adopt(added)] if *added == [ActiveBan::new(target(1), hour)]));
    }

    #[test]
    fn element_with_host_bits_is_replaced() {
        let wrong = BanTarget::from_element("2001:db8:1:2::7".parse().unwrap());
        let (commands, events) = respond(&[TableChange::ElementAdded(wrong, Expiry::Never)], "nft");
        let replaced = [(wrong, Expiry::Never)];
        assert!(matches!(&commands[..], [SensorCommand::MaskElements(elements)] if elements[..] == replaced));
        let masked = wrong.masked();
        assert!(matches!(&events[..], [EventKind::Note(_), EventKind::ByHand { target, .. }] if *target == masked));
    }

    #[test]
    fn changed_allow_list_is_restored() {
        let (commands, events) = respond(&[TableChange::AllowedChanged], "nft");
        assert!(matches!(&commands[..], [SensorCommand::ProtectAddresses]));
        assert!(matches!(&events[..], [EventKind::Note(text)] if text.contains("allow.networks")));
    }
}
