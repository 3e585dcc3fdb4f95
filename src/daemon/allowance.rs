//! Networks that an operator allows for a while, while the program runs.

use std::time::{Duration, Instant};

use ipnet::IpNet;

/// How many there may be: more belong into the settings.
const MOST: usize = 256;

/// Networks with the time until which they are allowed; `None`: until the program ends.
#[derive(Default)]
pub(super) struct Allowance(Vec<(IpNet, Option<Instant>)>);

impl Allowance {
    /// Allows `network`; what was said of it before no longer holds.
    ///
    /// # Errors
    /// A sentence where there are too many.
    pub(super) fn add(&mut self, network: IpNet, span: Option<Duration>, now: Instant) -> Result<(), String> {
        self.0.retain(|(other, _)| *other != network);
        if self.0.len() >= MOST {
            return Err(format!(
                "{MOST} networks are allowed by hand already; write them into allow.networks and reload"
            ));
        }
        self.0.push((network, span.and_then(|span| now.checked_add(span))));
        Ok(())
    }

    /// Drops what is over; true where something was.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0.retain(|(_, until)| until.is_none_or(|until| until > now));
        self.0.len() != before
    }

    /// What is allowed.
    pub(super) fn networks(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.0.iter().map(|(network, _)| *network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_ends_when_its_time_is_over_and_the_last_word_counts() {
        let (now, network) = (Instant::now(), "192.0.2.0/24".parse().unwrap());
        let mut allowance = Allowance::default();
        allowance.add(network, None, now).unwrap();
        allowance.add(network, Some(Duration::from_secs(60)), now).unwrap();
        assert_eq!(allowance.networks().count(), 1);
        assert!(!allowance.expire(now + Duration::from_secs(59)));
        assert!(allowance.expire(now + Duration::from_secs(60)));
        assert_eq!(allowance.networks().count(), 0);
    }

    #[test]
    fn there_is_a_bound() {
        let mut allowance = Allowance::default();
        let network = |n: u32| IpNet::from(std::net::IpAddr::from(std::net::Ipv4Addr::from(n)));
        (0..256).for_each(|n| allowance.add(network(n), None, Instant::now()).unwrap());
        assert!(allowance.add(network(256), None, Instant::now()).unwrap_err().contains("allow.networks"));
        assert!(allowance.add(network(255), None, Instant::now()).is_ok(), "one that is there already");
    }
}
