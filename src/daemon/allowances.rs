//! Stores the networks that an operator allows, for a time or until revoked, and those that `block --force` blocks
//! although they are protected. The ledger keeps allowances across restarts, but not forced blocks.

use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;

use crate::clock::end_time;
use crate::ledger::Allowance;

/// Maximum number of entries of both kinds together; more belong in the configuration.
const MAX_ENTRIES: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Allowed,
    Forced,
}

/// The current time by both clocks. Expiry uses the monotonic clock; only the wall clock is meaningful after a restart.
pub(super) type Now = (Instant, SystemTime);

pub(super) fn now() -> Now {
    (Instant::now(), SystemTime::now())
}

struct AllowanceEntry {
    kind: Kind,
    allowance: Allowance,
    ends: Option<Instant>,
}

#[derive(Default)]
pub(super) struct Allowances(Vec<AllowanceEntry>);

impl Allowances {
    /// Allows a network, replacing an earlier entry for it.
    ///
    /// # Errors
    /// There are too many entries.
    pub(super) fn add(&mut self, allowance: Allowance, now: Now) -> Result<(), String> {
        self.insert(Kind::Allowed, allowance, now)
    }

    /// Removes the protection of `network`, replacing an earlier entry for it.
    ///
    /// # Errors
    /// As for [`Allowances::add`].
    pub(super) fn force(&mut self, network: IpNet, span: Option<Duration>, now: Now) -> Result<(), String> {
        let until = end_time(span, now.1);
        self.insert(Kind::Forced, Allowance { network, since: now.1, until, by: String::new() }, now)
    }

    fn insert(&mut self, kind: Kind, allowance: Allowance, now: Now) -> Result<(), String> {
        self.0.retain(|entry| entry.allowance.network != allowance.network);
        if self.of_kind(kind).count() >= MAX_ENTRIES {
            return Err(format!(
                "refused: there are already {MAX_ENTRIES} allowances; move some to allow.networks and reload"
            ));
        }
        let left = allowance.until.map(|until| until.duration_since(now.1).unwrap_or_default());
        self.0.push(AllowanceEntry { kind, allowance, ends: left.and_then(|left| now.0.checked_add(left)) });
        Ok(())
    }

    /// Revokes the allowance of exactly `network`; false if there is none.
    pub(super) fn remove(&mut self, network: IpNet) -> bool {
        let is_meant = |entry: &mut AllowanceEntry| entry.kind == Kind::Allowed && entry.allowance.network == network;
        self.0.extract_if(.., is_meant).count() > 0
    }

    /// Protects `network` again, or with `None` all networks that were forced; true if anything changed.
    pub(super) fn unforce(&mut self, network: Option<IpNet>) -> bool {
        let is_meant = |entry: &mut AllowanceEntry| {
            entry.kind == Kind::Forced && network.is_none_or(|network| entry.allowance.network == network)
        };
        self.0.extract_if(.., is_meant).count() > 0
    }

    /// Drops expired entries; returns the networks whose allowances expired, and whether anything was dropped.
    pub(super) fn expire(&mut self, now: Instant) -> (Vec<IpNet>, bool) {
        let is_over = |entry: &mut AllowanceEntry| entry.ends.is_some_and(|ends| ends <= now);
        let over: Vec<AllowanceEntry> = self.0.extract_if(.., is_over).collect();
        let allowed = over.iter().filter(|entry| entry.kind == Kind::Allowed).map(|entry| entry.allowance.network);
        (allowed.collect(), !over.is_empty())
    }

    /// Networks allowed by operators.
    pub(super) fn allowed(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.of_kind(Kind::Allowed).map(|entry| entry.allowance.network)
    }

    /// The allowances, with their ends converted to the current wall clock, which may have been set since.
    pub(super) fn listed(&self, now: Now) -> impl Iterator<Item = Allowance> + '_ {
        self.of_kind(Kind::Allowed).map(move |entry| {
            let left = entry.ends.map(|ends| ends.saturating_duration_since(now.0));
            Allowance { until: end_time(left, now.1), ..entry.allowance.clone() }
        })
    }

    /// Networks that are blocked although they are protected.
    pub(super) fn forced(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.of_kind(Kind::Forced).map(|entry| entry.allowance.network)
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &AllowanceEntry> + '_ {
        self.0.iter().filter(move |entry| entry.kind == kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowance(network: IpNet, now: Now, span: Option<u64>) -> Allowance {
        let until = span.map(|seconds| now.1 + Duration::from_secs(seconds));
        Allowance { network, since: now.1, until, by: "root".to_owned() }
    }

    #[test]
    fn allowance_ends_on_time() {
        let (now, network) = (now(), "192.0.2.0/24".parse().unwrap());
        let mut allowances = Allowances::default();
        allowances.add(allowance(network, now, None), now).unwrap();
        allowances.add(allowance(network, now, Some(60)), now).unwrap();
        assert_eq!(allowances.allowed().count(), 1);
        assert_eq!(allowances.expire(now.0 + Duration::from_secs(59)), (vec![], false));
        assert_eq!(allowances.expire(now.0 + Duration::from_secs(60)), (vec![network], true));
        assert_eq!(allowances.allowed().count(), 0);
    }

    #[test]
    fn allowances_are_limited() {
        let (now, mut allowances) = (now(), Allowances::default());
        let network = |n: u32| IpNet::from(std::net::IpAddr::from(std::net::Ipv4Addr::from(n)));
        (0..256).for_each(|n| allowances.add(allowance(network(n), now, None), now).unwrap());
        assert!(allowances.add(allowance(network(256), now, None), now).unwrap_err().contains("allow.networks"));
        assert!(allowances.add(allowance(network(255), now, None), now).is_ok(), "an existing one is extended");
    }

    #[test]
    fn allowed_and_forced_exclude_each_other() {
        let (now, network) = (now(), "192.0.2.7/32".parse().unwrap());
        let mut allowances = Allowances::default();
        allowances.force(network, None, now).unwrap();
        allowances.add(allowance(network, now, None), now).unwrap();
        assert_eq!((allowances.allowed().count(), allowances.forced().count()), (1, 0));
        allowances.force(network, None, now).unwrap();
        assert_eq!((allowances.allowed().count(), allowances.forced().count()), (0, 1));
        assert!(!allowances.remove(network), "it is no longer an allowance");
        assert!(allowances.unforce(Some(network)) && !allowances.unforce(Some(network)));
        allowances.add(allowance(network, now, None), now).unwrap();
        assert!(allowances.remove(network) && !allowances.remove(network));
    }
}
