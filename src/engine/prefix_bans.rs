//! Widens bans of neighbouring sources to a ban of their network, if the operator has enabled that. An attacker with a
//! /56 or a rack of addresses continues from the next address when one is blocked. This module selects the network; its
//! caller checks the allow-list.
//!
//! The bans must fall within the window, like the ports of one source. Four sources of one network within half an hour
//! are one actor; four within 90 days are the background noise of the Internet.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::class::Class;
use super::evidence::Evidence;
use super::key::{HashKey, Hashed, TargetKey};
use super::sources::SourceTable;
use crate::types::{BanTarget, Prefix, Protocol, Response, Tick, shared64};

/// Maximum width of a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPrefix {
    /// Prefix length of an IPv4 network, 24 to 30. With any other value, such as 32, bans always cover one address.
    pub v4: u8,
    /// Prefix length of an IPv6 network, 48 or 56. With any other value, such as 64, bans always cover one /64.
    pub v6: u8,
}

impl Default for MaxPrefix {
    /// Never wider than one source: blocking sources that have sent nothing is the operator's choice.
    fn default() -> Self {
        Self { v4: 32, v6: 64 }
    }
}

impl MaxPrefix {
    fn v4(self) -> Option<u8> {
        Some(self.v4).filter(|length| (24..=30).contains(length))
    }

    fn v6(self) -> Option<u8> {
        Some(self.v6).filter(|length| [48, 56].contains(length))
    }
}

/// Number of banned sources in an IPv4 network or an IPv6 /56, each on its own proven evidence, before the next ban
/// covers the network. The same number of failed contacts distinguishes a scanner from a visitor (Jung et al., 2004); a
/// banned source has done more than that.
const NEIGHBOURS: usize = 4;

/// The number for a /48, which belongs to an organisation instead of a household. Sources of a single /56 never reach
/// it: the /56 itself is blocked after half as many, and its sources are then removed.
const NEIGHBOURS_48: usize = 8;

/// Maximum number of networks in which bans are counted at one time: nearly the number of bans that the default ceiling
/// admits within the default window.
const MAX_NETWORKS: usize = 16_384;

/// The banned neighbours per network, and the prefix lengths of banned networks.
pub(super) struct PrefixBans {
    widest: MaxPrefix,
    secret: HashKey,
    /// A source table per network, in which the number of a neighbour within its network takes the place of the port.
    banned: SourceTable,
    /// End of the last prefix ban, and a bit for each banned prefix length. Read for every packet.
    until: Tick,
    lengths: u64,
}

impl PrefixBans {
    /// Creates a table for the networks of at most `bans` bans; empty if bans are never widened.
    pub(super) fn new(widest: MaxPrefix, bans: usize, window: Duration, secret: HashKey) -> Self {
        let networks = if widest.v4().or(widest.v6()).is_some() { bans.min(MAX_NETWORKS) } else { 0 };
        Self { widest, secret, banned: SourceTable::new(networks, window, secret), until: Tick::default(), lengths: 0 }
    }

    pub(super) fn set_window(&mut self, window: Duration) {
        self.banned.set_window(window);
    }

    fn key(&self, network: Prefix) -> Hashed {
        TargetKey::new(BanTarget::Prefix(network), Response::Block).under(self.secret)
    }

    /// The widest network of `target`, and the number of `target` in it.
    fn neighbourhood(&self, target: BanTarget) -> Option<(Prefix, u16)> {
        match target {
            BanTarget::V4(v4) => {
                let [_, _, high, low] = v4.octets();
                Some((Prefix::containing(v4.into(), self.widest.v4()?)?, u16::from_be_bytes([high, low])))
            }
            BanTarget::V6(v6) if target.prefix_len() == 64 => {
                let [_, _, _, number, ..] = v6.segments();
                Some((Prefix::containing(v6.into(), self.widest.v6()?)?, number))
            }
            BanTarget::V6(_) | BanTarget::Prefix(_) | BanTarget::Link { .. } => None,
        }
    }

    /// Records a ban of `target` on its own proven evidence.
    pub(super) fn record(&mut self, target: BanTarget, now: Tick) {
        if let Some((network, number)) = self.neighbourhood(target) {
            let evidence = Evidence::new(now, Protocol::Tcp, number, Class::Syn);
            let _ = self.banned.add(self.key(network), evidence, now);
        }
    }

    /// Removes the record of a ban of `target` that failed or was lifted.
    pub(super) fn remove_record(&mut self, target: BanTarget) {
        if let Some((network, number)) = self.neighbourhood(target) {
            self.banned.withdraw_evidence(self.key(network), Protocol::Tcp, number);
        }
    }

    /// Returns the network to block instead of `target`, if enough of its neighbours were banned and `may` permits it.
    /// Removes their records, so that the next probe does not restore a network ban that an operator lifts.
    pub(super) fn widen(&mut self, target: BanTarget, now: Tick, may: impl Fn(IpNet) -> bool) -> Option<Prefix> {
        let (widest, own) = self.neighbourhood(target)?;
        let key = self.key(widest);
        let numbers = || self.banned.within(key, now).map(Evidence::port);
        let shared = |network: IpNet| matches!(network, IpNet::V6(v6) if shared64::is_inside(v6));
        let may = |wide: &Prefix| may(wide.network()) && !shared(wide.network());
        let found = match target {
            BanTarget::V4(_) => Some(widest).filter(|_| numbers().count() >= NEIGHBOURS).filter(may),
            _ => {
                let slash_56 = |number: u16| number >> 8;
                let whole = widest.network().prefix_len() == 48 && numbers().count() >= NEIGHBOURS_48;
                let near = numbers().filter(|number| slash_56(*number) == slash_56(own)).count() >= NEIGHBOURS;
                let household = || Prefix::containing(target.element(), 56).filter(|_| near);
                Some(widest).filter(|_| whole).filter(may).or_else(|| household().filter(may))
            }
        };
        if found.is_some() {
            self.banned.forget(key);
        }
        found
    }

    /// Records that `network` is blocked until `until`.
    pub(super) fn add(&mut self, network: Prefix, until: Tick, now: Tick) {
        if self.are_free(now) {
            self.lengths = 0;
        }
        self.lengths |= 1 << network.network().prefix_len();
        self.until = self.until.max(until);
    }

    /// Records that no network is blocked now.
    pub(super) fn clear(&mut self) {
        self.until = Tick::default();
    }

    /// True if no network is blocked.
    #[inline]
    pub(super) fn are_free(&self, now: Tick) -> bool {
        self.until <= now
    }

    /// The networks around `source` that may be blocked.
    pub(super) fn around(&self, source: IpAddr) -> impl Iterator<Item = Prefix> + '_ {
        // The widest first: an operator may have banned a wider one.
        let lengths = (8..64).filter(|length| self.lengths >> length & 1 == 1);
        lengths.filter_map(move |length| Prefix::containing(source, length))
    }
}
