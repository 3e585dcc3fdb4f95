//! Networks that an operator allows for a while, and those that he has blocked although they are protected, while the
//! program runs.

use std::time::{Duration, Instant};

use ipnet::IpNet;

/// How many there may be: more belong into the settings.
const MOST: usize = 256;

/// Networks with the time until which they are allowed, or not; `None`: until the program ends.
#[derive(Default)]
pub(super) struct TemporaryAllow {
    allowed: Vec<(IpNet, Option<Instant>)>,
    forced: Vec<(IpNet, Option<Instant>)>,
}

impl TemporaryAllow {
    /// Allows `network`; what was said of it before no longer holds.
    ///
    /// # Errors
    /// A sentence where there are too many.
    pub(super) fn add(&mut self, network: IpNet, span: Option<Duration>, now: Instant) -> Result<(), String> {
        self.forget(network);
        put(&mut self.allowed, network, span, now)
    }

    /// Takes `network` out of whatever protects it; what was said of it before no longer holds.
    ///
    /// # Errors
    /// As [`TemporaryAllow::add`].
    pub(super) fn force(&mut self, network: IpNet, span: Option<Duration>, now: Instant) -> Result<(), String> {
        self.forget(network);
        put(&mut self.forced, network, span, now)
    }

    /// Takes back what was said of `network`; true where something was.
    pub(super) fn forget(&mut self, network: IpNet) -> bool {
        let before = self.allowed.len() + self.forced.len();
        self.allowed.retain(|(other, _)| *other != network);
        self.forced.retain(|(other, _)| *other != network);
        self.allowed.len() + self.forced.len() != before
    }

    /// `network` is protected again, if it was; true where something changed.
    pub(super) fn forget_forced(&mut self, network: IpNet) -> bool {
        let before = self.forced.len();
        self.forced.retain(|(other, _)| *other != network);
        self.forced.len() != before
    }

    /// Everything is protected again that was; true where something changed.
    pub(super) fn forget_all_forced(&mut self) -> bool {
        !std::mem::take(&mut self.forced).is_empty()
    }

    /// Drops what is over; true where something was.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let lists = [&mut self.allowed, &mut self.forced];
        let mut expired = false;
        for list in lists {
            let before = list.len();
            list.retain(|(_, until)| until.is_none_or(|until| until > now));
            expired |= list.len() != before;
        }
        expired
    }

    /// What is allowed.
    pub(super) fn networks(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.allowed.iter().map(|(network, _)| *network)
    }

    /// What is blocked although it is protected.
    pub(super) fn forced(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.forced.iter().map(|(network, _)| *network)
    }
}

fn put(
    list: &mut Vec<(IpNet, Option<Instant>)>,
    network: IpNet,
    span: Option<Duration>,
    now: Instant,
) -> Result<(), String> {
    if list.len() >= MOST {
        return Err(format!("there are {MOST} of them by hand already; write them into the settings and reload"));
    }
    list.push((network, span.and_then(|span| now.checked_add(span))));
    Ok(())
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
        assert!(allowance.forget(network) && !allowance.forget(network));
    }
}
