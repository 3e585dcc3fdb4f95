//! What others do to the table, to orders for the sensor: a table that is swept away is laid again, an element that
//! somebody deletes is a ban that somebody lifted, one that somebody adds is a ban of his.

use std::future::pending;

use super::DaemonError;
use crate::engine::StandingBan;
use crate::engine::subject::Expiry;
use crate::netlink::nft::monitor::{Change, Monitor};
use crate::report::event::What;
use crate::sensor::Order;

/// Follows the table. Follows nothing where nobody is blocked.
pub(super) struct Guard(Option<Monitor>);

impl Guard {
    /// Follows the table from now on, but for what the sensor does to it through the socket with this port id.
    pub(super) fn over(port_id: Option<u32>) -> Result<Self, DaemonError> {
        let Some(port_id) = port_id else { return Ok(Self(None)) };
        let mut monitor = Monitor::open()?;
        monitor.ignore(port_id);
        Ok(Self(Some(monitor)))
    }

    /// Waits until somebody else changes the table: what the sensor is to do about it, and what is to be said. Safe to
    /// cancel.
    pub(super) async fn changed(&mut self) -> Result<(Vec<Order>, Vec<What>), DaemonError> {
        let Some(monitor) = &mut self.0 else { return pending().await };
        let changes = monitor.next().await?;
        let by = monitor
            .author()
            .map_or_else(|| "somebody".to_owned(), |author| format!("{} (process {})", author.name, author.process));
        Ok(answer(&changes, &by))
    }
}

fn answer(changes: &[Change], by: &str) -> (Vec<Order>, Vec<What>) {
    // Once a table is gone, what happened to its elements no longer matters: all of them are put back.
    let swept = |change: &Change| {
        matches!(change, Change::TableGone | Change::SetGone(_) | Change::RulesetChanged | Change::Overrun)
    };
    let swept_at = changes.iter().rposition(swept);
    let (mut orders, mut said) = (Vec::new(), Vec::new());
    if let Some(place) = swept_at {
        if changes.contains(&Change::Overrun) {
            said.push(What::Note("changes of the ruleset came faster than they could be followed".to_owned()));
        }
        if changes.iter().take(place + 1).any(|change| *change == Change::TableGone) {
            said.push(What::Note(format!("{by} deleted table inet portsentry")));
        }
        orders.push(Order::Heal);
    }
    let (mut lifted, mut added, mut allowed) = (Vec::new(), Vec::new(), false);
    for change in changes.iter().skip(swept_at.map_or(0, |place| place + 1)) {
        match *change {
            Change::ElementRemoved(subject) => lifted.push(subject),
            Change::ElementAdded(subject, remaining) => {
                added.push((subject, remaining.map_or(Expiry::Never, Expiry::After)));
            }
            Change::AllowedChanged => allowed = true,
            Change::TableGone | Change::SetGone(_) | Change::RulesetChanged | Change::Overrun => {}
        }
    }
    // An element whose timeout was changed by hand is deleted and added in one transaction: it stays.
    lifted.retain(|subject| added.iter().all(|(kept, _)| kept != subject));
    said.extend(lifted.iter().map(|subject| What::Unblocked { subject: *subject, by: by.to_owned() }));
    said.extend(added.iter().map(|(subject, expiry)| What::ByHand {
        subject: *subject,
        expiry: *expiry,
        by: by.to_owned(),
    }));
    if !lifted.is_empty() {
        orders.push(Order::Lift(lifted));
    }
    if !added.is_empty() {
        let ban = |(subject, expiry)| StandingBan::whole(subject, expiry);
        orders.push(Order::Adopt(added.into_iter().map(ban).collect()));
    }
    if allowed {
        said.push(What::Note(format!(
            "{by} changed the kernel's allow-list; it is put back. Who is to be allowed belongs into allow.networks"
        )));
        orders.push(Order::Protect);
    }
    (orders, said)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::subject::Subject;

    fn subject(last: u8) -> Subject {
        Subject::V4([192, 0, 2, last].into())
    }

    #[test]
    fn what_happened_before_a_sweep_is_part_of_it() {
        let changes = [Change::ElementRemoved(subject(1)), Change::TableGone, Change::ElementAdded(subject(2), None)];
        let (orders, said) = answer(&changes, "nft");
        assert!(
            matches!(&orders[..], [Order::Heal, Order::Adopt(added)] if *added == [StandingBan::whole(subject(2), Expiry::Never)])
        );
        assert!(matches!(&said[..], [What::Note(_), What::ByHand { .. }]));
    }

    #[test]
    fn a_changed_timeout_lifts_nobody() {
        let hour = Duration::from_secs(3_600);
        let changes = [Change::ElementRemoved(subject(1)), Change::ElementAdded(subject(1), Some(hour))];
        let (orders, _) = answer(&changes, "nft");
        assert!(
            matches!(&orders[..], [Order::Adopt(added)] if *added == [StandingBan::whole(subject(1), Expiry::After(hour))])
        );
    }

    #[test]
    fn a_changed_allow_list_is_put_back() {
        let (orders, said) = answer(&[Change::AllowedChanged], "nft");
        assert!(matches!(&orders[..], [Order::Protect]));
        assert!(matches!(&said[..], [What::Note(text)] if text.contains("allow.networks")));
    }
}
