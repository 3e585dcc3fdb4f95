//! Bans of neighbours to a ban of their whole network, where the operator wants that: whoever has a /56 or a rack of
//! addresses sends from the next one when the last is blocked. Says which network; who may be blocked at all is for
//! others to say.
//!
//! What is needed for it must have happened within the window, as with the ports of one source: four strangers of one
//! network in the same half hour are one actor, four within 90 days are the noise of the Internet.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::class::Class;
use super::key::{HashKey, Hashed, Key, Track};
use super::sources::{Evidence, SourceTable};
use crate::types::{BanTarget, Prefix, Protocol, Tick};

/// How wide a ban may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPrefix {
    /// Prefix length of an IPv4 network, 24 to 30; with any other, such as 32, a ban is always of one address.
    pub v4: u8,
    /// Prefix length of an IPv6 network, 48 or 56; with any other, such as 64, a ban is always of one /64.
    pub v6: u8,
}

impl Default for MaxPrefix {
    /// No wider than one source: blocking whom nobody has seen doing anything is for the operator to choose.
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

/// So many sources of an IPv4 network, or of an IPv6 /56, have to be banned each on its own before the next ban is of the
/// network. As many failed contacts tell a scanner from a visitor (Jung et al., 2004); here each has done more than that.
const NEIGHBOURS: usize = 4;

/// A /48 is some organization's, not a household's: twice as many. They are never all of one /56, which is blocked itself
/// after half as many, and its sources are then forgotten.
const NEIGHBOURS_48: usize = 8;

/// Networks in which bans are remembered at one time, at most: nearly as many as the built-in ceiling lets through within
/// the built-in window.
const NETWORKS: usize = 16_384;

/// Which neighbours were banned, and which networks are.
pub(super) struct PrefixBans {
    widest: MaxPrefix,
    secret: HashKey,
    /// The neighbours' numbers in the network stand for ports.
    banned: SourceTable,
    /// When the last ban of a network ends, and the prefix lengths of all, a bit each: what is asked for every packet.
    until: Tick,
    lengths: u64,
}

impl PrefixBans {
    /// Room for the networks of that many bans, unless no ban is to be of any.
    pub(super) fn new(widest: MaxPrefix, bans: usize, window: Duration, secret: HashKey) -> Self {
        let networks = if widest.v4().or(widest.v6()).is_some() { bans.min(NETWORKS) } else { 0 };
        Self { widest, secret, banned: SourceTable::new(networks, window, secret), until: Tick::default(), lengths: 0 }
    }

    fn key(&self, network: Prefix) -> Hashed {
        Key::new(BanTarget::Prefix(network), Track::Block).under(self.secret)
    }

    /// Where the ban of `subject` is remembered: its widest network, and its number in there.
    fn place(&self, subject: BanTarget) -> Option<(Prefix, u16)> {
        match subject {
            BanTarget::V4(v4) => {
                let [_, _, high, low] = v4.octets();
                Some((Prefix::of(v4.into(), self.widest.v4()?)?, u16::from_be_bytes([high, low])))
            }
            BanTarget::V6(v6) if subject.prefix_len() == 64 => {
                let [_, _, _, number, ..] = v6.segments();
                Some((Prefix::of(v6.into(), self.widest.v6()?)?, number))
            }
            BanTarget::V6(_) | BanTarget::Prefix(_) => None,
        }
    }

    /// `subject` was banned on evidence of its own.
    pub(super) fn note(&mut self, subject: BanTarget, now: Tick) {
        if let Some((network, number)) = self.place(subject) {
            let evidence = Evidence::new(now, Protocol::Tcp, number, Class::Syn);
            let _ = self.banned.observe(self.key(network), evidence, now);
        }
    }

    /// The ban of `subject` was none.
    pub(super) fn forgive(&mut self, subject: BanTarget) {
        if let Some((network, number)) = self.place(subject) {
            self.banned.forgive(self.key(network), Protocol::Tcp, number);
        }
    }

    /// The network that is to be blocked instead of `subject`, if enough of its neighbours have been and `may` says yes.
    /// They are then forgotten: whoever lifts that ban is not to have it back at the next probe.
    pub(super) fn widen(&mut self, subject: BanTarget, now: Tick, may: impl Fn(IpNet) -> bool) -> Option<Prefix> {
        let (widest, own) = self.place(subject)?;
        let key = self.key(widest);
        let numbers = || self.banned.within(key, now).map(Evidence::port);
        let may = |wide: &Prefix| may(wide.network());
        let found = match subject {
            BanTarget::V4(_) => Some(widest).filter(|_| numbers().count() >= NEIGHBOURS).filter(may),
            _ => {
                let slash_56 = |number: u16| number >> 8;
                let whole = widest.prefix_len() == 48 && numbers().count() >= NEIGHBOURS_48;
                let near = numbers().filter(|number| slash_56(*number) == slash_56(own)).count() >= NEIGHBOURS;
                let household = || Prefix::of(subject.element(), 56).filter(|_| near);
                Some(widest).filter(|_| whole).filter(may).or_else(|| household().filter(may))
            }
        };
        if found.is_some() {
            self.banned.forget(key);
        }
        found
    }

    /// `network` is blocked until then.
    pub(super) fn stands(&mut self, network: Prefix, until: Tick, now: Tick) {
        if self.are_free(now) {
            self.lengths = 0;
        }
        self.lengths |= 1 << network.prefix_len();
        self.until = self.until.max(until);
    }

    /// No network is blocked.
    pub(super) fn clear(&mut self) {
        self.until = Tick::default();
    }

    /// True where no network is blocked at all.
    #[inline]
    pub(super) fn are_free(&self, now: Tick) -> bool {
        self.until <= now
    }

    /// The networks that `source` is in and that may be blocked.
    pub(super) fn around(&self, source: IpAddr) -> impl Iterator<Item = Prefix> + '_ {
        // A wider one that somebody asked for goes first.
        let lengths = (8..64).filter(|length| self.lengths >> length & 1 == 1);
        lengths.filter_map(move |length| Prefix::of(source, length))
    }
}
