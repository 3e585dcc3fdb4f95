//! Networks that an operator allows for a while, and those that were blocked although they are protected. They do not
//! outlive the program.

use std::time::{Duration, Instant};

use ipnet::IpNet;

/// How many there may be of each kind: more belong into the configuration.
const MAX_ENTRIES: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Allowed,
    Forced,
}

struct Entry {
    network: IpNet,
    kind: Kind,
    /// `None`: until the program ends.
    until: Option<Instant>,
}

#[derive(Default)]
pub(super) struct TemporaryAllow(Vec<Entry>);

impl TemporaryAllow {
    /// Allows `network`; what was set for it before no longer holds.
    ///
    /// # Errors
    /// A sentence where there are too many.
    pub(super) fn add(&mut self, network: IpNet, span: Option<Duration>, now: Instant) -> Result<(), String> {
        self.insert(network, Kind::Allowed, span, now)
    }

    /// Takes `network` out of whatever protects it; what was set for it before no longer holds.
    ///
    /// # Errors
    /// As [`TemporaryAllow::add`].
    pub(super) fn force(&mut self, network: IpNet, span: Option<Duration>, now: Instant) -> Result<(), String> {
        self.insert(network, Kind::Forced, span, now)
    }

    fn insert(&mut self, network: IpNet, kind: Kind, span: Option<Duration>, now: Instant) -> Result<(), String> {
        self.retain(|entry| entry.network != network);
        if self.networks_of(kind).count() >= MAX_ENTRIES {
            return Err(format!(
                "there are {MAX_ENTRIES} of them by hand already; write them into the settings and reload"
            ));
        }
        self.0.push(Entry { network, kind, until: span.and_then(|span| now.checked_add(span)) });
        Ok(())
    }

    /// Protects `network` again, `None`: all that was forced; true where something changed.
    pub(super) fn unforce(&mut self, network: Option<IpNet>) -> bool {
        self.retain(|entry| entry.kind != Kind::Forced || network.is_some_and(|network| entry.network != network))
    }

    /// Drops what is over; true where something was.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        self.retain(|entry| entry.until.is_none_or(|until| until > now))
    }

    fn retain(&mut self, keep: impl Fn(&Entry) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(keep);
        self.0.len() != before
    }

    pub(super) fn networks(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.networks_of(Kind::Allowed)
    }

    /// What is blocked although it is protected.
    pub(super) fn forced(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.networks_of(Kind::Forced)
    }

    fn networks_of(&self, kind: Kind) -> impl Iterator<Item = IpNet> + '_ {
        self.0.iter().filter(move |entry| entry.kind == kind).map(|entry| entry.network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_ends_when_its_time_is_over_and_the_last_word_counts() {
        let (now, network) = (Instant::now(), "192.0.2.0/24".parse().unwrap());
        let mut allowance = TemporaryAllow::default();
        allowance.add(network, None, now).unwrap();
        allowance.add(network, Some(Duration::from_secs(60)), now).unwrap();
        assert_eq!(allowance.networks().count(), 1);
        assert!(!allowance.expire(now + Duration::from_secs(59)));
        assert!(allowance.expire(now + Duration::from_secs(60)));
        assert_eq!(allowance.networks().count(), 0);
    }

    #[test]
    fn there_is_a_bound() {
        let mut allowance = TemporaryAllow::default();
        let network = |n: u32| IpNet::from(std::net::IpAddr::from(std::net::Ipv4Addr::from(n)));
        (0..256).for_each(|n| allowance.add(network(n), None, Instant::now()).unwrap());
        assert!(allowance.add(network(256), None, Instant::now()).unwrap_err().contains("settings"));
        assert!(allowance.add(network(255), None, Instant::now()).is_ok(), "one that is there already");
    }

    #[test]
    fn what_is_allowed_is_not_forced_and_the_other_way_round() {
        let (now, network) = (Instant::now(), "192.0.2.7/32".parse().unwrap());
        let mut allowance = TemporaryAllow::default();
        allowance.force(network, None, now).unwrap();
        allowance.add(network, None, now).unwrap();
        assert_eq!((allowance.networks().count(), allowance.forced().count()), (1, 0));
        allowance.force(network, None, now).unwrap();
        assert_eq!((allowance.networks().count(), allowance.forced().count()), (0, 1));
        assert!(allowance.unforce(Some(network)) && !allowance.unforce(Some(network)));
    }
}
