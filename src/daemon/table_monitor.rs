//! What others do to the table, to orders for the sensor: a table that is swept away is laid again, one that is altered is
//! mended, an element that somebody deletes is a ban that somebody lifted, one that somebody adds is a ban of his.
//!
//! Whoever rewrites the table in a loop gets no more than a few repairs a second.

use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::DaemonError;
use crate::engine::ActiveBan;
use crate::events::event::EventKind;
use crate::netlink::nft::monitor::{Author, Change, Monitor, MonitorPause};
use crate::sensor::SensorCommand;
use crate::types::{Backend, Expiry};

/// Follows the table.
pub(super) struct TableMonitor {
    /// `None` where nobody is blocked.
    monitor: Option<Monitor>,
    repairs: Pace,
    protections: Pace,
    armings: Pace,
    notes: Notes,
}

impl TableMonitor {
    /// Follows the table from now on, but for what the sensor does to it through the socket with this port id.
    pub(super) fn over(port_id: Option<u32>) -> Result<Self, DaemonError> {
        let mut monitor = port_id.is_some().then(Monitor::open).transpose()?;
        if let (Some(monitor), Some(port_id)) = (&mut monitor, port_id) {
            monitor.ignore(port_id);
        }
        let repairs = Pace::of(|order| matches!(order, SensorCommand::ReinstallTable | SensorCommand::RepairRules(_)));
        let protections = Pace::of(|order| matches!(order, SensorCommand::ProtectAddresses));
        let armings = Pace::of(|order| matches!(order, SensorCommand::ResetTrap));
        Ok(Self { monitor, repairs, protections, armings, notes: Notes::default() })
    }

    /// A way not to hear for a while what happens to the table.
    pub(super) fn hush(&self) -> Option<MonitorPause> {
        self.monitor.as_ref().map(Monitor::hush)
    }

    /// Waits until somebody else changes the table: what the sensor is to do about it, and what is to be said. Safe to
    /// cancel.
    pub(super) async fn changed(&mut self) -> Result<(Vec<SensorCommand>, Vec<EventKind>), DaemonError> {
        let Some(monitor) = &mut self.monitor else { return pending().await };
        loop {
            let turn = [&self.repairs, &self.protections, &self.armings].into_iter().filter_map(Pace::turn).min();
            let (mut orders, mut said) = match turn {
                Some(turn) => tokio::select! {
                    () = sleep_until(turn) => Default::default(),
                    changes = monitor.next() => answer(&changes?, &author(monitor)),
                },
                None => answer(&monitor.next().await?, &author(monitor)),
            };
            let now = Instant::now();
            self.repairs.hold(&mut orders, now);
            self.protections.hold(&mut orders, now);
            self.armings.hold(&mut orders, now);
            self.notes.hush(&mut said, now);
            if !orders.is_empty() || !said.is_empty() {
                return Ok((orders, said));
            }
        }
    }
}

fn author(monitor: &Monitor) -> String {
    let name = |author: &Author| format!("{} (process {})", author.name, author.process);
    monitor.author().map_or_else(|| "somebody".to_owned(), name)
}

/// Holds orders of one kind back that come too soon after another one.
struct Pace {
    about: fn(&SensorCommand) -> bool,
    last: Option<Instant>,
    held: Option<SensorCommand>,
}

impl Pace {
    fn of(about: fn(&SensorCommand) -> bool) -> Self {
        Self { about, last: None, held: None }
    }

    /// When the order that is held back may go.
    fn turn(&self) -> Option<Instant> {
        self.held.as_ref().and(self.last).map(|last| last + PAUSE)
    }

    /// Takes such an order out of these where it has to wait, and puts one in, before all others, whose time has come.
    fn hold(&mut self, orders: &mut Vec<SensorCommand>, now: Instant) {
        if let Some(place) = orders.iter().position(self.about) {
            let order = orders.remove(place);
            // To lay the table anew is to mend it as well.
            if !matches!(self.held, Some(SensorCommand::ReinstallTable)) {
                self.held = Some(order);
            }
        }
        if self.held.is_some() && self.last.is_none_or(|last| now >= last + PAUSE) {
            self.last = Some(now);
            orders.splice(..0, self.held.take());
        }
    }
}

/// Keeps notes about a table that is changed in a loop from filling the log.
#[derive(Default)]
struct Notes {
    minute: Option<Instant>,
    said: u32,
}

impl Notes {
    fn hush(&mut self, said: &mut Vec<EventKind>, now: Instant) {
        if self.minute.is_none_or(|minute| now >= minute + MINUTE) {
            (self.minute, self.said) = (Some(now), 0);
        }
        said.retain(|what| {
            self.said += u32::from(matches!(what, EventKind::Note(_)));
            self.said <= MOST_NOTES || !matches!(what, EventKind::Note(_))
        });
    }
}

/// Time between two orders of one kind: at most four a second.
const PAUSE: Duration = Duration::from_millis(250);
const MINUTE: Duration = Duration::from_secs(60);
/// Notes in a minute. The sensor says by itself how often it had to repair.
const MOST_NOTES: u32 = 10;

fn answer(changes: &[Change], by: &str) -> (Vec<SensorCommand>, Vec<EventKind>) {
    // Once a table is gone, what happened to its elements no longer matters: all of them are put back.
    let swept = |change: &Change| matches!(change, Change::TableGone | Change::SetGone(_) | Change::Overrun);
    let swept_at = changes.iter().rposition(swept);
    let (mut orders, mut said) = (Vec::new(), Vec::new());
    if let Some(place) = swept_at {
        if changes.contains(&Change::Overrun) {
            said.push(EventKind::Note("changes of the ruleset came faster than they could be followed".to_owned()));
        }
        if changes.iter().take(place + 1).any(|change| *change == Change::TableGone) {
            said.push(EventKind::Note(format!("{by} deleted table inet portsentry")));
        }
        orders.push(SensorCommand::ReinstallTable);
    } else if changes.contains(&Change::RulesetChanged) {
        orders.push(SensorCommand::RepairRules(by.to_owned()));
    } else if changes.contains(&Change::Unheard) {
        // Mostly it was about another table. Single elements are left to the comparison.
        orders.push(SensorCommand::RepairRules("somebody".to_owned()));
    }
    let (mut lifted, mut added, mut allowed, mut trap) = (Vec::new(), Vec::new(), false, false);
    for change in changes.iter().skip(swept_at.map_or(0, |place| place + 1)) {
        match *change {
            Change::ElementRemoved(subject) => lifted.push(subject),
            Change::ElementAdded(subject, remaining) => {
                added.push((subject, remaining.map_or(Expiry::Never, Expiry::After)));
            }
            Change::AllowedChanged => allowed = true,
            Change::TrapChanged => trap = true,
            Change::TableGone | Change::SetGone(_) | Change::RulesetChanged | Change::Unheard | Change::Overrun => {}
        }
    }
    // An element whose timeout was changed by hand is deleted and added in one transaction: it stays.
    lifted.retain(|subject| added.iter().all(|(kept, _)| kept != subject));
    said.extend(lifted.iter().map(|subject| EventKind::Unblocked { subject: *subject, by: by.to_owned() }));
    said.extend(added.iter().map(|(subject, expiry)| EventKind::ByHand {
        subject: *subject,
        expiry: *expiry,
        by: by.to_owned(),
        note: None,
        way: Some(Backend::Nft),
    }));
    if !lifted.is_empty() {
        orders.push(SensorCommand::BansRemoved(lifted));
    }
    if !added.is_empty() {
        let ban = |(subject, expiry)| ActiveBan::whole(subject, expiry);
        orders.push(SensorCommand::Adopt(added.into_iter().map(ban).collect()));
    }
    if allowed {
        said.push(EventKind::Note(format!(
            "{by} changed the kernel's allow-list; it is put back. Who is to be allowed belongs into allow.networks"
        )));
        orders.push(SensorCommand::ProtectAddresses);
    }
    if trap {
        said.push(EventKind::Note(format!("{by} changed what the kernel's trap watches; it is put back")));
        orders.push(SensorCommand::ResetTrap);
    }
    (orders, said)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::netlink::nft::Set;
    use crate::types::BanTarget;

    fn subject(last: u8) -> BanTarget {
        BanTarget::V4([192, 0, 2, last].into())
    }

    #[test]
    fn what_happened_before_a_sweep_is_part_of_it() {
        let changes = [Change::ElementRemoved(subject(1)), Change::TableGone, Change::ElementAdded(subject(2), None)];
        let (orders, said) = answer(&changes, "nft");
        assert!(
            matches!(&orders[..], [SensorCommand::ReinstallTable, SensorCommand::Adopt(added)] if *added == [ActiveBan::whole(subject(2), Expiry::Never)])
        );
        assert!(matches!(&said[..], [EventKind::Note(_), EventKind::ByHand { .. }]));
    }

    #[test]
    fn a_changed_ruleset_is_mended_and_its_elements_count_as_ever() {
        let changes = [Change::ElementRemoved(subject(1)), Change::RulesetChanged];
        let (orders, said) = answer(&changes, "nft");
        assert!(
            matches!(&orders[..], [SensorCommand::RepairRules(by), SensorCommand::BansRemoved(lifted)] if by == "nft" && *lifted == [subject(1)])
        );
        assert!(matches!(&said[..], [EventKind::Unblocked { .. }]));
        let (orders, _) =
            answer(&[Change::RulesetChanged, Change::SetGone(Set::Blocked), Change::RulesetChanged], "nft");
        assert!(matches!(&orders[..], [SensorCommand::ReinstallTable]), "that mends the rest as well");
    }

    fn repairs() -> Pace {
        Pace::of(|order| matches!(order, SensorCommand::ReinstallTable | SensorCommand::RepairRules(_)))
    }

    fn held(pace: &mut Pace, changes: &[Change], now: Instant) -> Vec<SensorCommand> {
        let (mut orders, _) = answer(changes, "nft");
        pace.hold(&mut orders, now);
        orders
    }

    #[test]
    fn repairs_in_a_loop_are_ordered_a_few_times_a_second_and_none_is_forgotten() {
        let (mut pace, start) = (repairs(), Instant::now());
        let at = |round| start + Duration::from_millis(round);
        let ordered: Vec<u64> =
            (0..1_000).filter(|round| !held(&mut pace, &[Change::TableGone], at(*round)).is_empty()).collect();
        assert_eq!(ordered, [0, 250, 500, 750]);
        assert_eq!(pace.turn(), Some(at(1_000)));
        assert!(matches!(&held(&mut pace, &[], at(1_000))[..], [SensorCommand::ReinstallTable]));
        assert!(pace.turn().is_none() && held(&mut pace, &[], at(2_000)).is_empty());
    }

    #[test]
    fn a_repair_that_is_held_back_holds_nothing_else_back() {
        let (mut pace, now) = (repairs(), Instant::now());
        let changes = [Change::RulesetChanged, Change::ElementRemoved(subject(1)), Change::AllowedChanged];
        assert!(matches!(
            &held(&mut pace, &changes, now)[..],
            [SensorCommand::RepairRules(_), SensorCommand::BansRemoved(_), SensorCommand::ProtectAddresses]
        ));
        assert!(matches!(
            &held(&mut pace, &changes, now)[..],
            [SensorCommand::BansRemoved(_), SensorCommand::ProtectAddresses]
        ));
        assert!(held(&mut pace, &[Change::TableGone], now).is_empty());
        let later = held(&mut pace, &changes, now + PAUSE);
        assert!(
            matches!(
                &later[..],
                [SensorCommand::ReinstallTable, SensorCommand::BansRemoved(_), SensorCommand::ProtectAddresses]
            ),
            "the larger repair of both"
        );
    }

    #[test]
    fn notes_are_few_in_a_minute_and_what_happened_to_a_ban_is_always_said() {
        let (mut notes, start) = (Notes::default(), Instant::now());
        let mut count = |second| {
            let (_, mut said) = answer(&[Change::ElementRemoved(subject(1)), Change::AllowedChanged], "nft");
            notes.hush(&mut said, start + Duration::from_secs(second));
            said.len()
        };
        let lines: Vec<usize> = (0..60).map(&mut count).collect();
        assert_eq!(lines.iter().filter(|lines| **lines == 2).count(), 10);
        assert!(lines.iter().all(|lines| *lines > 0));
        assert_eq!(count(60), 2);
    }

    #[test]
    fn a_changed_timeout_lifts_nobody() {
        let hour = Duration::from_secs(3_600);
        let changes = [Change::ElementRemoved(subject(1)), Change::ElementAdded(subject(1), Some(hour))];
        let (orders, _) = answer(&changes, "nft");
        assert!(
            matches!(&orders[..], [SensorCommand::Adopt(added)] if *added == [ActiveBan::whole(subject(1), Expiry::After(hour))])
        );
    }

    #[test]
    fn a_changed_allow_list_is_put_back() {
        let (orders, said) = answer(&[Change::AllowedChanged], "nft");
        assert!(matches!(&orders[..], [SensorCommand::ProtectAddresses]));
        assert!(matches!(&said[..], [EventKind::Note(text)] if text.contains("allow.networks")));
    }
}
