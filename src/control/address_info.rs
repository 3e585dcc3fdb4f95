//! Formats the answer to `explain`, the state of one address in the sensor and the ledger, as JSON and as text.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::fleet_info::FleetBan;
use super::format::{compact_ports, format_seconds, line};
use super::notation::ServicePort;
use super::scoped_network::ScopedNetwork;
use crate::clock::{BanEnd, WallTime};
use crate::enforce::nft::{Hold, MAX_HOLDS};
use crate::engine::{self, Class, Explanation, Grade};
use crate::events::json::PortRecord;
use crate::ledger::{BanAuthor, Ending, LedgerEntry};
use crate::types::{Backends, BanTarget, Expiry, counted, nullable};

/// Maximum number of listed bans of an address, the latest ones.
const MAX_HISTORY: usize = 20;

#[serde_with::apply(Option => #[serde(deserialize_with = "nullable")])]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressInfo {
    pub address: ScopedNetwork,
    #[serde(rename = "subject")]
    pub target: BanTarget,
    /// Why it is never blocked.
    pub protected: Option<String>,
    pub blocked: Option<VerdictEnd>,
    pub logged: Option<VerdictEnd>,
    /// Its hold state in the kernel's trap; `None` if the trap holds no sources.
    pub hold: Option<HoldInfo>,
    /// Number of bans of this target that make the next one longer.
    pub strikes: u32,
    pub suspected: Vec<SuspicionInfo>,
    /// Reports of other hosts in the fleet; `None` if there are none.
    pub fleet: Option<FleetBan>,
    /// Closed ports that are not evidence, because they belong to services of this host.
    pub unserved: Vec<ServicePort>,
    /// True if it has a connection to a service of this host.
    pub connected: bool,
    /// Number of its bans in the ledger; `None` without a ledger.
    pub bans: Option<usize>,
    /// The latest of them, newest first.
    pub history: Option<Vec<PastBan>>,
}

/// The end of a verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictEnd {
    pub expires: BanEnd,
    #[serde(deserialize_with = "nullable")]
    pub left_s: Option<u64>,
    /// The blocked network that contains the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<BanTarget>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Grade>,
}

/// Hold state of a source in the kernel's trap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldInfo {
    /// True if its new connections are held now.
    pub now: bool,
    /// Time since it last probed a port that was new for it, while its holds are still counted.
    #[serde(deserialize_with = "nullable")]
    pub last_s_ago: Option<u64>,
    pub for_ms: u64,
    /// Maximum number of holds within `window_s`.
    pub at_most: u32,
    pub window_s: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspicionInfo {
    pub blocks: bool,
    pub distinct_ports: u8,
    pub forgiven: u8,
    pub probes: u32,
    pub last_s_ago: u64,
    pub ports: Vec<PortRecord>,
}

#[serde_with::apply(Option => #[serde(deserialize_with = "nullable")])]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastBan {
    #[serde(rename = "subject")]
    pub target: BanTarget,
    pub since: WallTime,
    pub expires: BanEnd,
    pub class: Option<Class>,
    pub evidence: Option<Grade>,
    pub ports: Vec<PortRecord>,
    pub probes: u32,
    pub method: Backends,
    pub author: BanAuthor,
    pub note: Option<String>,
    /// Number of bans of this target, including this one.
    pub strikes: u32,
    pub ended: Option<EndedBanInfo>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedBanInfo {
    pub at: WallTime,
    pub how: String,
}

impl AddressInfo {
    /// Builds the answer for `address` at `now`; `history` contains the ledger's entries, oldest first.
    pub fn new(address: ScopedNetwork, known: &Explanation, history: Option<&[LedgerEntry]>, now: SystemTime) -> Self {
        let remaining =
            |end: Expiry| VerdictEnd { expires: BanEnd::new(end, now), left_s: end.seconds(), ..VerdictEnd::default() };
        Self {
            address,
            target: known.target,
            protected: known.protection.map(|protection| protection.to_string()),
            blocked: known.blocked.map(|expiry| VerdictEnd {
                network: known.network,
                evidence: known.grade,
                ..remaining(expiry)
            }),
            logged: known.logged.map(remaining),
            hold: None,
            strikes: known.strikes,
            suspected: known.suspicions.iter().flatten().map(SuspicionInfo::from).collect(),
            fleet: None,
            unserved: Vec::new(),
            connected: known.connected,
            bans: history.map(<[_]>::len),
            history: history.map(|bans| bans.iter().rev().take(MAX_HISTORY).map(PastBan::from).collect()),
        }
    }

    /// An address of which nothing is known.
    #[cfg(test)]
    pub(super) fn unsuspected(address: &str) -> Self {
        let address: ScopedNetwork = address.parse().unwrap();
        let known = Explanation {
            target: address.target().unwrap(),
            protection: None,
            blocked: None,
            grade: None,
            network: None,
            logged: None,
            strikes: 0,
            connected: false,
            suspicions: [None; 3],
        };
        Self::new(address, &known, None, SystemTime::UNIX_EPOCH)
    }
}

impl HoldInfo {
    /// The kernel's hold state of a source, with the length of a hold and the window in which holds count.
    pub fn new(hold: Hold, length: Duration, window: Duration) -> Self {
        Self {
            now: hold.now,
            last_s_ago: hold.remembered.map(|left| window.saturating_sub(left).as_secs()),
            for_ms: u64::try_from(length.as_millis()).unwrap_or(u64::MAX),
            at_most: MAX_HOLDS,
            window_s: window.as_secs(),
        }
    }
}

impl From<&engine::Suspicion> for SuspicionInfo {
    fn from(known: &engine::Suspicion) -> Self {
        Self {
            blocks: known.blocks,
            distinct_ports: known.distinct,
            forgiven: known.forgiven,
            probes: known.probes,
            last_s_ago: known.silent.as_secs(),
            ports: known.ports.iter().map(PortRecord::from).collect(),
        }
    }
}

impl From<&LedgerEntry> for PastBan {
    fn from(LedgerEntry { ban, strikes, ended }: &LedgerEntry) -> Self {
        let ended = ended.as_ref().map(|ended| EndedBanInfo {
            at: WallTime(ended.at),
            how: match &ended.how {
                Ending::Expired => "expired".to_owned(),
                Ending::Replaced => "replaced by another".to_owned(),
                Ending::Lifted { by } => format!("lifted by {by}"),
            },
        });
        Self {
            target: ban.target,
            since: WallTime(ban.since),
            expires: ban.until.into(),
            class: ban.class,
            evidence: ban.grade,
            ports: ban.ports.iter().map(PortRecord::from).collect(),
            probes: ban.probes,
            method: ban.backends,
            author: ban.author,
            note: ban.note.clone(),
            strikes: strikes.saturating_add(1),
            ended,
        }
    }
}

impl fmt::Display for AddressInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, target, .. } = self;
        // An IPv6 address counts as its /64.
        match address.to_string() == target.to_string() {
            true => line!(f, "address", "{address}")?,
            false => line!(f, "address", "{address}, counted as {target}")?,
        }
        line!(f, "protected", "{}", self.protected.as_deref().unwrap_or("no"))?;
        match &self.blocked {
            Some(remaining) => line!(f, "blocked", "{remaining}")?,
            None => line!(f, "blocked", "no")?,
        }
        // The ban says more; an earlier scan, or one over another protocol, was only logged.
        if let (None, Some(remaining)) = (&self.blocked, &self.logged) {
            line!(f, "only logged", "{remaining}")?;
        }
        if let Some(ban) = &self.fleet {
            line!(f, "fleet", "{ban}")?;
        }
        if let Some(hold) = &self.hold {
            line!(f, "held", "{hold}")?;
        }
        if self.suspected.is_empty() {
            line!(f, "suspected", "no")?;
        }
        self.suspected.iter().try_for_each(|suspicion| line!(f, "suspected", "{suspicion}"))?;
        if self.connected {
            line!(f, "connected", "yes, to a service of this host")?;
        }
        if !self.unserved.is_empty() {
            let ports = self.unserved.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            line!(f, "no evidence", "{ports}, ports of services that are stopped now")?;
        }
        line!(f, "strikes", "{}", self.strikes)?;
        match self.bans {
            Some(bans) => line!(f, "ledger", "{}", counted(bans, "ban"))?,
            None => line!(f, "ledger", "not available")?,
        }
        for ban in self.history.iter().flatten() {
            let end = match (&ban.ended, ban.expires) {
                (Some(EndedBanInfo { at, how }), _) => format!("{how} {}", at.without_fraction()),
                (None, BanEnd(None)) => "no end".to_owned(),
                (None, BanEnd(Some(end))) => format!("until {}", end.without_fraction()),
            };
            let mut details = vec![end];
            details.extend(ban.evidence.map(|grade| format!("{} evidence", grade.key())));
            // A ban of the surrounding network.
            details.extend(Some(ban.target).filter(|of_ban| of_ban != target).map(|network| network.to_string()));
            let ports = compact_ports(ban.ports.iter().map(|port| (port.proto, port.port)));
            details.extend((!ports.is_empty()).then_some(ports));
            details.extend(ban.note.as_ref().map(|note| format!("{note:?}")));
            let class = ban.author.label(ban.class);
            writeln!(f, "  {}  {class:<10} {}", ban.since.without_fraction(), details.join("  "))?;
        }
        Ok(())
    }
}

impl fmt::Display for VerdictEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.expires, self.left_s) {
            (BanEnd(Some(end)), Some(left)) => {
                write!(f, "yes, until {} ({} left)", end.without_fraction(), format_seconds(left))?
            }
            _ => f.write_str("yes, until it is lifted")?,
        }
        self.network.iter().try_for_each(|network| write!(f, ", by the ban of {network}"))?;
        self.evidence.iter().try_for_each(|grade| write!(f, ", on {} evidence", grade.key()))
    }
}

impl fmt::Display for HoldInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { now, last_s_ago, for_ms, at_most, window_s } = self;
        f.write_str(if *now { "yes" } else { "no" })?;
        if let Some(ago) = last_s_ago {
            write!(f, ", the last new port was probed {} ago", format_seconds(*ago))?;
        }
        write!(
            f,
            "; after each probe of a new closed port, its new connections are dropped for {for_ms} ms, at most \
             {at_most} times in {}",
            format_seconds(*window_s)
        )
    }
}

impl fmt::Display for SuspicionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports: Vec<String> = self
            .ports
            .iter()
            .map(|port| format!("{}/{} {}", port.proto.key(), port.port, port.class.map_or("-", Class::key)))
            .collect();
        write!(
            f,
            "{} of {} forgiven ({}), {}, the last one {} ago: {}",
            counted(self.distinct_ports, "distinct port"),
            self.forgiven,
            match (self.blocks, self.distinct_ports <= self.forgiven) {
                (false, _) => "only logged",
                (true, true) => "the next one blocks",
                (true, false) => "not blocked: related ports, or a connection to a service",
            },
            counted(self.probes, "probe"),
            format_seconds(self.last_s_ago),
            ports.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::ledger::BanRecord;
    use crate::types::Backend;

    #[test]
    fn unreadable_ledger_is_not_empty_ledger() {
        let text = |bans| AddressInfo { bans, ..AddressInfo::unsuspected("192.0.2.7") }.to_string();
        assert!(text(Some(0)).ends_with("0 bans\n"), "{}", text(Some(0)));
        assert!(text(None).ends_with("not available\n"), "{}", text(None));
    }

    #[test]
    fn ipv6_address_is_counted_as_its_prefix() {
        let first_line = |address| AddressInfo::unsuspected(address).to_string().lines().next().map(str::to_owned);
        assert!(first_line("2001:db8::7").unwrap().ends_with("2001:db8::7, counted as 2001:db8::/64"));
        for address in ["192.0.2.7", "fe80::7%2"] {
            assert!(first_line(address).unwrap().ends_with(&format!(" {address}")), "{address}");
        }
    }

    #[test]
    fn imported_ban_is_not_by_hand() {
        let target = "192.0.2.7".parse().unwrap();
        for (author, label) in [(BanAuthor::Import, "  import  "), (BanAuthor::Operator, "  by hand  ")] {
            let ban = BanRecord::wanted_by(author, target, UNIX_EPOCH, Expiry::Never, Backend::Nft);
            let history = Some(vec![PastBan::from(&LedgerEntry { ban, strikes: 0, ended: None })]);
            let text = AddressInfo { history, ..AddressInfo::unsuspected("192.0.2.7") }.to_string();
            assert!(text.contains(label), "{text}");
        }
    }
}
