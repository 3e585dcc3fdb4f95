//! Tracks this host's own bans on evidence for the fleet process: the bans in force, and each change.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::clock::end_time;
use crate::daemon::ban_recorder::RememberedBan;
use crate::engine::{Ban, Class, Grade};
use crate::events::event::{Event, EventKind};
use crate::fleet::protocol::OwnBanEvent;
use crate::ledger::Recorder;
use crate::types::BanTarget;

/// Maximum number of stored bans that a new client receives. Above it, the bans that end first are left out.
const MAX_OWN_BANS: usize = 4_096;

/// Maximum number of proven bans read from the ledger at the start.
const MAX_RESTORED: usize = 1_024;

struct OwnBan {
    /// `None`: never expires.
    until: Option<SystemTime>,
    grade: Grade,
    distinct_ports: u32,
    class: Class,
}

#[derive(Default)]
pub(super) struct OwnBans(BTreeMap<BanTarget, OwnBan>);

impl OwnBans {
    /// Adds the ledger's entries of the bans in `remembered` whose evidence is proven.
    pub(super) async fn restore(&mut self, recorder: &Recorder, remembered: &[RememberedBan]) {
        let proven = remembered.iter().filter(|one| one.ban.grade == Some(Grade::Proven));
        let targets: Vec<BanTarget> = proven.map(|one| one.ban.target).take(MAX_RESTORED).collect();
        let read = recorder.ask(move |ledger| {
            let last = |target: &BanTarget| ledger.bans_of(*target).ok()?.items.pop();
            let entries = targets.iter().filter_map(last).filter(|entry| entry.ended.is_none());
            entries.map(|entry| entry.ban).collect::<Vec<_>>()
        });
        for ban in read.await.unwrap_or_default() {
            if let (Some(grade), Some(class)) = (ban.grade, ban.class) {
                let distinct_ports = u32::try_from(ban.ports.len()).unwrap_or(u32::MAX);
                self.insert(ban.target, OwnBan { until: ban.until, grade, distinct_ports, class });
            }
        }
    }

    /// Converts `event` for the fleet; `None` for most events.
    pub(super) fn follow(&mut self, event: &Event) -> Option<OwnBanEvent> {
        match &event.kind {
            EventKind::Blocked { ban, .. } => self.add(ban, event.time),
            EventKind::BanVanished { target } | EventKind::Unblocked { target, .. } => self.lift(*target),
            EventKind::Expired { target } => {
                self.0.remove(target);
                None
            }
            _ => None,
        }
    }

    /// Adds a ban in force since `at`; `None` for a network, and if a second backend reports the same ban.
    fn add(&mut self, ban: &Ban, at: SystemTime) -> Option<OwnBanEvent> {
        let target = ban.probe.target;
        let until = end_time(ban.expiry, at);
        if self.0.get(&target).is_some_and(|known| known.until == until) {
            return None;
        }
        let handshakes = ban.ports.iter().filter(|(.., class)| *class == Class::Connect).count();
        let distinct_ports = match ban.grade {
            Grade::Proven => u32::try_from(handshakes).unwrap_or(u32::MAX),
            Grade::Forgeable => ban.probe.distinct.into(),
        };
        let class = ban.probe.observation.class;
        self.insert(target, OwnBan { until, grade: ban.grade, distinct_ports, class });
        self.event(target, SystemTime::now())
    }

    fn insert(&mut self, target: BanTarget, ban: OwnBan) {
        if target.is_prefix() {
            return;
        }
        if self.0.len() >= MAX_OWN_BANS
            && !self.0.contains_key(&target)
            && let Some(first) = self.0.iter().filter_map(|(target, ban)| Some((ban.until?, *target))).min()
        {
            self.0.remove(&first.1);
        }
        if self.0.len() < MAX_OWN_BANS {
            self.0.insert(target, ban);
        }
    }

    pub(super) fn lift(&mut self, target: BanTarget) -> Option<OwnBanEvent> {
        self.0.remove(&target).map(|_| OwnBanEvent::Lift { target })
    }

    /// Records that all bans were lifted.
    pub(super) fn lift_all(&mut self) -> Vec<OwnBanEvent> {
        std::mem::take(&mut self.0).into_keys().map(|target| OwnBanEvent::Lift { target }).collect()
    }

    pub(super) fn in_force(&mut self, now: SystemTime) -> Vec<OwnBanEvent> {
        self.0.retain(|_, ban| ban.until.is_none_or(|until| until > now));
        self.0.keys().filter_map(|target| self.event(*target, now)).collect()
    }

    fn event(&self, target: BanTarget, now: SystemTime) -> Option<OwnBanEvent> {
        let OwnBan { until, grade, distinct_ports, class } = self.0.get(&target)?;
        Some(OwnBanEvent::Ban {
            target,
            remaining_s: until.map(|until| until.duration_since(now).unwrap_or_default().as_secs()),
            grade: *grade,
            distinct_ports: *distinct_ports,
            class: *class,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::{Backend, Expiry};

    fn blocked(expiry: Expiry) -> Event {
        let ban = Ban { expiry, ..Ban::example() };
        Event::now(EventKind::Blocked { ban, backend: Backend::Nft, reaction: Duration::ZERO })
    }

    #[test]
    fn ban_is_sent_once_and_lifted_once() {
        let (mut own, event) = (OwnBans::default(), blocked(Expiry::After(Duration::from_secs(60))));
        let target = Ban::example().probe.target;
        assert!(matches!(own.follow(&event), Some(OwnBanEvent::Ban { remaining_s: Some(59..=60), .. })));
        assert_eq!(own.follow(&event), None, "a second backend enforces the same ban");
        assert_eq!(own.in_force(SystemTime::now()).len(), 1);
        assert!(own.in_force(SystemTime::now() + Duration::from_secs(61)).is_empty());
        assert!(own.follow(&blocked(Expiry::Never)).is_some());
        let lifted = Event::now(EventKind::Unblocked { target, by: "root".to_owned() });
        assert_eq!(own.follow(&lifted), Some(OwnBanEvent::Lift { target }));
        assert_eq!(own.follow(&lifted), None);
    }

    #[test]
    fn flood_of_bans_keeps_longest() {
        let mut own = OwnBans::default();
        for number in 0..5_000_u32 {
            let mut event = blocked(Expiry::After(Duration::from_secs(60 + u64::from(number))));
            if let EventKind::Blocked { ban, .. } = &mut event.kind {
                ban.probe.target = BanTarget::V4(number.into());
            }
            let _ = own.follow(&event);
        }
        assert_eq!(own.in_force(SystemTime::now()).len(), MAX_OWN_BANS);
        assert!(own.0.contains_key(&BanTarget::V4(4_999.into())));
    }
}
