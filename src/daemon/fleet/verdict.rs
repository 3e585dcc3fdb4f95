//! Defines the result of judging a report, and the reasons for a refusal.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::parse_network;
use crate::fleet::MIN_PROVEN_PORTS;
use crate::types::{BanTarget, Timestamp};

/// The result of judging a report that counts.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReportVerdict {
    /// The target is blocked until `until`.
    Blocks {
        target: BanTarget,
        until: Timestamp,
        /// The change of the ban; `None` if it is already blocked for that long.
        step: Option<BanChange>,
    },
    /// Reports of this many further authors are needed.
    Waits { authors: u32 },
}

/// The change of a ban by a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BanChange {
    New,
    Longer,
}

/// Why a report is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReportRefusal {
    #[error("the name of its author has characters other than a-z, 0-9 and \"-\"")]
    NoAuthor,
    #[error("it names this host as its author")]
    OwnName,
    #[error("it has expired")]
    NoTime,
    #[error("it lasts longer than four hours")]
    TooLong,
    #[error("its class of scan is unknown")]
    NoClass,
    #[error("its target is neither an IPv4 address nor an IPv6 /64 that a host can send from")]
    NoTarget,
    #[error("its target is exempt here ({0})")]
    Exempt(String),
    #[error("an operator has lifted the ban of its target")]
    Lifted,
    #[error("its evidence can be forged, and fleet.accept.forgeable_authors is 0")]
    Forgeable,
    #[error("its target was already blocked for an hour, the maximum on evidence that can be forged")]
    HourOver,
    #[error("its proof covers fewer than {MIN_PROVEN_PORTS} distinct closed ports")]
    TooFewPorts,
    #[error("its author has exceeded fleet.accept.max_per_author_per_hour and is ignored for an hour")]
    AuthorIgnored,
    #[error("its author has reached fleet.accept.max_per_author_per_hour; the report is postponed")]
    AuthorFull,
    #[error("all hosts together have exceeded fleet.accept.max_bans_per_hour")]
    Ceiling,
    #[error("the set is full; raise fleet.accept.size")]
    SetFull,
    #[error("the table of authors or targets is full")]
    TableFull,
}

impl ReportRefusal {
    /// True if no correctly working host sends such a report. Its author is then logged.
    pub(super) fn is_fault(&self) -> bool {
        use ReportRefusal::{Exempt, NoAuthor, NoClass, NoTarget, NoTime, OwnName, TooLong};
        matches!(self, NoAuthor | OwnName | NoTime | TooLong | NoClass | NoTarget | Exempt(_))
    }

    /// True if this host currently accepts no reports of any author.
    pub(super) fn is_limit(&self) -> bool {
        matches!(self, Self::Ceiling | Self::SetFull | Self::TableFull)
    }
}

/// Parses the target in `text` and its network: one IPv4 address or IPv6 /64 from which a host in any network can send.
/// A link-local address is refused, because it is a different host on each link.
pub(super) fn target(text: &str) -> Option<(BanTarget, IpNet)> {
    let network = parse_network(text).ok()?;
    let target = BanTarget::from_prefix(network).ok().filter(|target| !target.is_prefix())?;
    let is_source = match target.element() {
        IpAddr::V4(v4) => v4.octets().first().is_some_and(|first| (1..224).contains(first)) && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unspecified() && !v6.is_unicast_link_local(),
    };
    is_source.then_some((target, target.network()))
}
