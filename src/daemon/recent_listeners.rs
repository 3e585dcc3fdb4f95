//! Remembers across restarts which ports were open recently. The sensor's own memory of two minutes ends with the
//! process, and an upgrade restarts the services together with the daemon.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::engine::{RECENT_USE, Service};
use crate::host::service_ports::{PortRanges, is_eligible, services};
use crate::ledger::{LedgerChange, Recorder};
use crate::netlink::sock_diag::Listener;
use crate::types::{Timestamp, update};

/// Maximum number of recorded listeners, separately for unprivileged users and for all listeners.
pub(super) const MAX_LISTENERS: usize = 1_024;
const MAX_UNPRIVILEGED: usize = MAX_LISTENERS / 2;

/// Minimum interval between two writes, so that a program that opens and closes ports does not keep the disk busy.
const WRITE_INTERVAL: Duration = Duration::from_secs(5);

/// The listeners outside `ip_local_port_range`, each with the time at which it closed; `None` if it is open.
#[derive(Default)]
pub struct RecentListeners {
    known: BTreeMap<Service, Option<SystemTime>>,
    /// True if the ledger does not contain the state of `known`.
    unwritten: bool,
    next_write: Timestamp,
}

impl RecentListeners {
    /// Restores the state from the ledger; returns for how long each port still counts as open. Ports that were open
    /// when the daemon ended, for any reason, count as closed from now on.
    pub fn restore(
        &mut self,
        listeners: impl IntoIterator<Item = (Service, Option<SystemTime>)>,
        wall: SystemTime,
    ) -> Vec<(Service, Duration)> {
        self.unwritten = true;
        let gone = listeners.into_iter().map(|(service, gone)| (service, Some(gone.unwrap_or(wall).min(wall))));
        self.known = gone.take(MAX_LISTENERS).collect();
        let left = |(service, gone): (&Service, &Option<SystemTime>)| {
            let since = wall.duration_since((*gone)?).ok()?;
            Some((*service, RECENT_USE.checked_sub(since)?))
        };
        self.known.iter().filter_map(left).collect()
    }

    /// Observes the current listeners; true if a system program has started to listen. Ephemeral ports are ignored.
    pub fn observe(
        &mut self,
        now: Timestamp,
        wall: SystemTime,
        listeners: &[Listener],
        ranges: PortRanges<'_>,
        recorder: &Recorder,
    ) -> bool {
        let mut appeared = false;
        let mut present = BTreeMap::new();
        let lasting = listeners.iter().filter(|listener| !ranges.ephemeral.contains(listener.port));
        for listener in lasting {
            let privileged = is_eligible(listener, ranges);
            for service in services(listener) {
                let is_new = !matches!(self.known.get(&service), Some(None));
                appeared |= is_new && privileged;
                if present.len() < if privileged { MAX_LISTENERS } else { MAX_UNPRIVILEGED } {
                    present.insert(service, None);
                }
            }
        }
        for (service, gone) in &self.known {
            let gone = gone.unwrap_or(wall).min(wall);
            if wall.duration_since(gone).is_ok_and(|since| since < RECENT_USE) && present.len() < MAX_LISTENERS {
                present.entry(*service).or_insert(Some(gone));
            }
        }
        self.unwritten |= update(&mut self.known, present);
        if now >= self.next_write {
            self.write(now, recorder);
        }
        appeared
    }

    /// The state for the ledger.
    pub fn records(&self) -> Vec<(Service, Option<SystemTime>)> {
        self.known.iter().map(|(service, gone)| (*service, *gone)).collect()
    }

    /// Writes pending changes.
    pub(super) fn write(&mut self, now: Timestamp, recorder: &Recorder) {
        if self.unwritten {
            self.unwritten = !recorder.send(LedgerChange::Listeners(self.records()));
            self.next_write = now.after(WRITE_INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::netlink::sock_diag::Bound;
    use crate::types::{Protocol, at};

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

    fn listener(port: u16, user: u32) -> Listener {
        Listener { protocol: Protocol::Tcp, port, bound: Bound::AnyV4, interface: 0, user }
    }

    fn service(port: u16) -> Service {
        Service { protocol: Protocol::Tcp, port, address: V4 }
    }

    fn wall(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    fn observe(recent: &mut RecentListeners, seconds: u64, listeners: &[Listener]) -> bool {
        let ranges = PortRanges { ephemeral: &(32_768..=60_999).collect(), first_unprivileged: 1_024 };
        recent.observe(at(seconds), wall(seconds), listeners, ranges, &Recorder::default())
    }

    /// The ports that a start restores `seconds` after the origin.
    fn restored(recent: &RecentListeners, seconds: u64) -> Vec<(Service, Duration)> {
        RecentListeners::default().restore(recent.known.clone(), wall(seconds))
    }

    #[test]
    fn open_port_counts_two_minutes_after_start() {
        let mut recent = RecentListeners::default();
        assert!(observe(&mut recent, 0, &[listener(80, 0), listener(40_000, 0)]));
        assert_eq!(restored(&recent, 500), [(service(80), RECENT_USE)], "no port of the ephemeral range is restored");
        assert!(!observe(&mut recent, 1, &[]));
        assert_eq!(restored(&recent, 31), [(service(80), RECENT_USE - Duration::from_secs(30))]);
        assert_eq!(restored(&recent, 121), [(service(80), Duration::ZERO)]);
        assert_eq!(restored(&recent, 122), [], "the rule expires");
    }

    #[test]
    fn repeated_restarts_give_no_more_time() {
        let mut recent = RecentListeners::default();
        let _ = observe(&mut recent, 0, &[listener(80, 0)]);
        let mut left = Duration::MAX;
        for start in [10, 50, 90, 129] {
            let mut next = RecentListeners::default();
            left = next.restore(std::mem::take(&mut recent.known), wall(start))[0].1;
            let _ = observe(&mut next, start + 1, &[]);
            recent = next;
        }
        assert_eq!(left, Duration::from_secs(1), "two minutes from the first start");
    }

    #[test]
    fn clock_ahead_keeps_port_two_minutes() {
        let mut recent = RecentListeners::default();
        assert_eq!(recent.restore([(service(80), Some(wall(9_999)))], wall(0)), [(service(80), RECENT_USE)]);
    }

    #[test]
    fn user_ports_cannot_evict_system_ports() {
        let mut recent = RecentListeners::default();
        let mut all: Vec<_> = (2_000..20_000).map(|port| listener(port, 1_000)).collect();
        assert!(!observe(&mut recent, 0, &all), "a user's program does not trigger a review of bans");
        assert_eq!(recent.known.len(), MAX_UNPRIVILEGED);
        all.push(listener(80, 0));
        assert!(observe(&mut recent, 1, &all));
        assert!(recent.known.contains_key(&service(80)));
    }
}
