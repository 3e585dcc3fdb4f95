//! Tracks the addresses of one name on the allow-list, from the answers of name servers over time. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::events::event::EventKind;
use crate::host::lookup::{MAX_ADDRESSES, usable_addresses};

/// Interval between look-ups of a name: the caching time that DNS zones commonly use for records that may change soon,
/// and long enough not to burden a name server.
pub(super) const LOOKUP_INTERVAL: Duration = Duration::from_secs(300);

/// Time after which a look-up counts as failed, even if it is still running: glibc queries three name servers twice, 5
/// seconds each.
pub(super) const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum number of addresses of one name at one time, including those of earlier answers.
pub(super) const MAX_KEPT: usize = 2 * MAX_ADDRESSES;

/// Time for which an address is kept after it is missing in an answer: one interval plus the longest duration of the
/// following look-up. A server pool returns only a few of its addresses each time.
const GRACE_PERIOD: Duration = Duration::from_secs(LOOKUP_INTERVAL.as_secs() + LOOKUP_TIMEOUT.as_secs());

/// Maximum number of addresses listed in a log line; further ones are only counted.
const MAX_LOGGED_ADDRESSES: usize = 8;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LookupState {
    #[default]
    Asked,
    Good,
    /// The answer had no address that another host can have.
    Empty,
    Failed,
}

#[derive(Debug, Default)]
pub(super) struct Known {
    /// `None` if the address was in the last good answer; otherwise the time until which it is kept.
    addresses: BTreeMap<IpAddr, Option<Instant>>,
    state: LookupState,
}

impl Known {
    /// The current addresses, including recent ones that are kept for a while.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.keys().copied()
    }

    /// Applies an answer; returns whether the addresses changed, and the event to report.
    pub(super) fn learn(&mut self, name: &str, now: Instant, answer: &[SocketAddr]) -> (bool, Option<EventKind>) {
        let (usable, left_out) = usable_addresses(answer);
        for until in self.addresses.values_mut() {
            until.get_or_insert(now + GRACE_PERIOD);
        }
        let mut fresh = Vec::new();
        for address in &usable {
            if self.addresses.insert(*address, None).is_none() {
                fresh.push(*address);
            }
        }
        let crowded = self.trim();
        let before =
            std::mem::replace(&mut self.state, if usable.is_empty() { LookupState::Empty } else { LookupState::Good });
        let resolves = match before {
            LookupState::Failed => "can be resolved again, to",
            LookupState::Asked => "resolves to",
            LookupState::Good | LookupState::Empty => "now also resolves to",
        };
        let effect = if usable.is_empty() && before != LookupState::Empty {
            let so = match self.addresses.is_empty() {
                true => "it exempts no address".to_owned(),
                false => format!("its last addresses stay exempt for {}", humantime::format_duration(GRACE_PERIOD)),
            };
            Some(format!("resolves to no usable address; {so}"))
        } else if !fresh.is_empty() {
            let ignored = match left_out {
                0 => String::new(),
                more => format!("; further addresses, which are ignored: {more}"),
            };
            Some(format!("{resolves} {}{ignored}", list(&fresh)))
        } else {
            (before == LookupState::Failed).then(|| "can be resolved again".to_owned())
        };
        let event = effect.map(|effect| EventKind::Note(format!("{name} on the allow-list {effect}")));
        (!fresh.is_empty() || crowded, event)
    }

    /// Records that a look-up failed with the error `why`; known addresses are kept. Returns the event to report,
    /// unless the previous look-up failed as well.
    pub(super) fn fail(&mut self, name: &str, why: &str) -> Option<EventKind> {
        if std::mem::replace(&mut self.state, LookupState::Failed) == LookupState::Failed {
            return None;
        }
        let so = if self.addresses.is_empty() {
            "until it can be resolved, it exempts no address"
        } else {
            "its last addresses stay exempt"
        };
        Some(EventKind::Error(format!("{name} on the allow-list cannot be resolved: {why}; {so}")))
    }

    /// Removes and returns the addresses whose time has expired.
    pub(super) fn forget(&mut self, now: Instant) -> Vec<IpAddr> {
        let over = |until: &Option<Instant>| until.is_some_and(|until| until <= now);
        let gone = self.addresses.iter().filter(|(_, until)| over(until)).map(|(address, _)| *address).collect();
        self.addresses.retain(|_, until| !over(until));
        gone
    }

    /// If there are too many addresses, drops those that expire first; true if any were dropped.
    fn trim(&mut self) -> bool {
        let surplus = self.addresses.len().saturating_sub(MAX_KEPT);
        let mut old: Vec<(Instant, IpAddr)> =
            self.addresses.iter().filter_map(|(address, until)| Some(((*until)?, *address))).collect();
        old.sort_unstable();
        for (_, address) in old.iter().take(surplus) {
            self.addresses.remove(address);
        }
        surplus > 0
    }
}

/// Returns the event for addresses that a name no longer has.
pub(super) fn addresses_gone(name: &str, gone: &[IpAddr]) -> Option<EventKind> {
    let text = || {
        format!("{name} on the allow-list no longer resolves to {}; these addresses are no longer exempt", list(gone))
    };
    (!gone.is_empty()).then(|| EventKind::Note(text()))
}

fn list(addresses: &[IpAddr]) -> String {
    let shown: Vec<String> = addresses.iter().take(MAX_LOGGED_ADDRESSES).map(IpAddr::to_string).collect();
    match addresses.len().saturating_sub(MAX_LOGGED_ADDRESSES) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "monitor.example.org";

    fn answer(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect()
    }

    fn held(known: &Known) -> Vec<String> {
        known.addresses().map(|address| address.to_string()).collect()
    }

    /// Learns an answer; returns whether the addresses changed, and the text of the event.
    fn learned(known: &mut Known, now: Instant, answer: &[SocketAddr]) -> (bool, String) {
        let (changed, message) = known.learn(NAME, now, answer);
        (changed, text(message))
    }

    fn text(message: Option<EventKind>) -> String {
        match message {
            Some(EventKind::Note(text) | EventKind::Error(text)) => text,
            _ => String::new(),
        }
    }

    #[test]
    fn missing_address_stays_one_more_interval() {
        let (mut known, now) = (Known::default(), Instant::now());
        let resolves = format!("{NAME} on the allow-list resolves to 192.0.2.7, 2001:db8::7");
        assert_eq!(learned(&mut known, now, &answer(&["192.0.2.7", "2001:db8::7"])), (true, resolves));
        let resolves = format!("{NAME} on the allow-list now also resolves to 192.0.2.9");
        assert_eq!(learned(&mut known, now + LOOKUP_INTERVAL, &answer(&["192.0.2.9"])), (true, resolves));
        assert_eq!(held(&known), ["192.0.2.7", "192.0.2.9", "2001:db8::7"]);
        let (changed, message) = known.learn(NAME, now + 2 * LOOKUP_INTERVAL, &answer(&["192.0.2.9"]));
        assert!(!changed && message.is_none() && known.forget(now + 2 * LOOKUP_INTERVAL).is_empty());
        let gone = known.forget(now + LOOKUP_INTERVAL + GRACE_PERIOD);
        let expected = format!(
            "{NAME} on the allow-list no longer resolves to 192.0.2.7, 2001:db8::7; these addresses are no longer \
             exempt"
        );
        assert_eq!(text(addresses_gone(NAME, &gone)), expected);
        assert_eq!(held(&known), ["192.0.2.9"]);
    }

    #[test]
    fn dns_pool_keeps_all_addresses_silently() {
        let (mut known, start) = (Known::default(), Instant::now());
        let halves = [answer(&["192.0.2.1", "192.0.2.2"]), answer(&["192.0.2.3", "192.0.2.4"])];
        let mut lines = 0;
        for (round, half) in (0..20_u32).zip(halves.iter().cycle()) {
            let now = start + round * LOOKUP_INTERVAL + Duration::from_secs(u64::from(round % 5));
            lines += usize::from(known.learn(NAME, now, half).1.is_some()) + known.forget(now).len();
        }
        assert_eq!((lines, known.addresses().count()), (2, 4));
    }

    #[test]
    fn failed_lookup_removes_no_protection() {
        let (mut known, now) = (Known::default(), Instant::now());
        let _ = known.learn(NAME, now, &answer(&["192.0.2.7"]));
        let expected = format!("{NAME} on the allow-list cannot be resolved: down; its last addresses stay exempt");
        assert_eq!(text(known.fail(NAME, "down")), expected);
        assert!(known.fail(NAME, "still down").is_none());
        assert!(known.forget(now + 100 * LOOKUP_INTERVAL).is_empty());
        assert_eq!(held(&known), ["192.0.2.7"]);
        let resolves = format!("{NAME} on the allow-list can be resolved again");
        assert_eq!(learned(&mut known, now + 100 * LOOKUP_INTERVAL, &answer(&["192.0.2.7"])), (false, resolves));
        assert!(!text(known.fail(NAME, "down")).is_empty(), "it is reported again");
    }

    #[test]
    fn unresolved_name_protects_nothing() {
        let mut known = Known::default();
        let expected = format!(
            "{NAME} on the allow-list cannot be resolved: down; until it can be resolved, it exempts no address"
        );
        assert_eq!(text(known.fail(NAME, "down")), expected);
        let (_, text) = learned(&mut known, Instant::now(), &answer(&["192.0.2.7"]));
        assert_eq!(text, format!("{NAME} on the allow-list can be resolved again, to 192.0.2.7"));
    }

    #[test]
    fn impossible_addresses_protect_nothing() {
        let (mut known, now) = (Known::default(), Instant::now());
        let hostile = answer(&[
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.3.2.1",
            "224.0.0.1",
            "239.1.1.1",
            "255.255.255.255",
            "169.254.1.1",
            "::",
            "::1",
            "ff02::1",
            "fe80::1",
            "febf::1",
            "::ffff:127.0.0.1",
            "::ffff:0.0.0.0",
            "::ffff:255.255.255.255",
        ]);
        let expected = format!("{NAME} on the allow-list resolves to no usable address; it exempts no address");
        assert_eq!(learned(&mut known, now, &hostile), (false, expected));
        assert!(known.learn(NAME, now, &hostile).1.is_none(), "said once");
        assert!(held(&known).is_empty());
        let scoped = SocketAddr::V6(std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 0, 0, 2));
        let _ = known.learn(NAME, now, &[scoped, "[::ffff:192.0.2.7]:0".parse().unwrap()]);
        assert_eq!(held(&known), ["192.0.2.7", "fe80::1"]);
    }

    #[test]
    fn invalid_answer_replaces_older_answer() {
        let (mut known, now) = (Known::default(), Instant::now());
        let _ = known.learn(NAME, now, &answer(&["192.0.2.7"]));
        let (_, text) = learned(&mut known, now, &answer(&["0.0.0.0"]));
        assert!(text.ends_with("its last addresses stay exempt for 5m 30s"));
        assert_eq!(known.forget(now + GRACE_PERIOD).len(), 1);
        assert!(held(&known).is_empty());
    }

    #[test]
    fn name_with_thousands_addresses_protects_few() {
        let (mut known, now) = (Known::default(), Instant::now());
        let many = |block: u32| -> Vec<SocketAddr> {
            (0..4_000)
                .map(|n| SocketAddr::new(IpAddr::from((0x0b00_0000 + block * 0x1_0000 + n).to_be_bytes()), 0))
                .collect()
        };
        let (_, line) = learned(&mut known, now, &many(0));
        assert!(
            line.ends_with("and 56 more; further addresses, which are ignored: 3936") && line.len() < 300,
            "{line}"
        );
        assert_eq!(known.addresses().count(), MAX_ADDRESSES);
        for round in 1..50 {
            let _ = known.learn(NAME, now + Duration::from_secs(u64::from(round)), &many(round));
            assert!(known.addresses().count() <= MAX_KEPT);
        }
        let first = IpAddr::from((0x0b00_0000_u32 + 49 * 0x1_0000).to_be_bytes());
        assert!(known.addresses().any(|address| address == first), "the last answer is complete");
    }
}
