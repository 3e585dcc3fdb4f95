//! Defines a ban in the live view.

use std::cmp::Ordering;
use std::time::{Duration, SystemTime};

use crate::control::format::compact_ports;
use crate::control::list::{KernelState, Listed};
use crate::ledger::BanAuthor;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ban {
    pub(super) target: String,
    pub(super) class: String,
    pub(super) ports: String,
    pub(super) strikes: u32,
    /// `None`: never.
    pub(super) until: Option<SystemTime>,
    /// True if it is in the ledger but not in the kernel.
    pub(super) lacking: bool,
}

impl Ban {
    pub(super) fn new(listed: &Listed, now: SystemTime) -> Self {
        let entry = listed.remembered.as_ref();
        let ban = entry.map(|entry| &entry.ban);
        let class = match ban.map(|ban| (ban.class, ban.author)) {
            None => "unknown",
            Some((Some(class), _)) => class.key(),
            Some((None, BanAuthor::Detector)) => "trap",
            Some((None, BanAuthor::Operator | BanAuthor::Import)) => "by hand",
        };
        let ports = ban.iter().flat_map(|ban| &ban.ports);
        Self {
            target: listed.target.to_string(),
            class: class.to_owned(),
            ports: compact_ports(ports.map(|(protocol, port)| (protocol.key(), *port))),
            strikes: entry.map_or(0, |entry| entry.strikes),
            until: listed.left(now).span().and_then(|left| now.checked_add(left)),
            lacking: listed.kernel == KernelState::Absent,
        }
    }

    /// Orders by expiry, permanent ones last.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        let end = |ban: &Self| (ban.until.is_none(), ban.until);
        end(self).cmp(&end(other)).then_with(|| self.target.cmp(&other.target))
    }

    pub(super) fn left(&self, now: SystemTime) -> Option<Duration> {
        self.until.map(|until| until.duration_since(now).unwrap_or_default())
    }
}
