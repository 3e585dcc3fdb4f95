//! Converts a [`BanTarget`] to its table key, and to a hash that an attacker cannot predict.

use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use crate::types::{BanTarget, MAX_LINK, Prefix, Response, Tick, shared64};

/// The secret that distributes targets over buckets. With a known secret, an attacker could choose source addresses of
/// one bucket, which evict each other.
#[derive(Clone, Copy)]
pub struct HashKey(pub u64, pub u64);

/// Tag of an address in a shared /64, to which the number of that /64 is added.
const SHARED: u64 = 7;

/// Tag of a link-local address on one link. Six bits of the interface index are stored in the tag, six more after the
/// response.
const LINK: u64 = 0x40;
const LINK_BITS: u32 = 6;
/// The response takes two bits.
const RESPONSE_SHIFT: u32 = 8;
const LINK_SHIFT: u32 = 10;
const _: () = assert!(MAX_LINK < 1 << (2 * LINK_BITS));

/// Tag of a network, combined with its prefix length.
const NETWORK: u64 = 0x80;

/// A target in 16 bytes, together with its response. The second half is zero if there is no target.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TargetKey([u64; 2]);

impl TargetKey {
    /// The key of a row that was never used.
    pub(super) const NONE: Self = Self([0; 2]);

    pub(super) fn new(target: BanTarget, response: Response) -> Self {
        let (tag, bits) = match target {
            BanTarget::V4(v4) => (4, u64::from(v4.to_bits())),
            BanTarget::V6(v6) => {
                let [high, low] = halves(v6.to_bits());
                shared64::prefix_number(v6).map_or((6, high), |number| (SHARED + u64::from(number), low))
            }
            BanTarget::Prefix(wide) => {
                let bits = match wide.network().addr() {
                    IpAddr::V4(v4) => u64::from(v4.to_bits()),
                    IpAddr::V6(v6) => {
                        let [high, _] = halves(v6.to_bits());
                        high
                    }
                };
                (NETWORK | u64::from(wide.network().prefix_len()), bits)
            }
            BanTarget::Link { address, interface } => {
                let [_, low] = halves(address.to_bits());
                let (high, rest) = (u64::from(interface >> LINK_BITS), u64::from(interface) & (LINK - 1));
                (LINK | rest | high << LINK_SHIFT, low)
            }
        };
        Self([bits, tag | (response as u64) << RESPONSE_SHIFT])
    }

    /// The target of the key; `None` if the key counts only a part of its packets.
    pub(super) fn target(self) -> Option<BanTarget> {
        let Self([bits, tag]) = self;
        let v6 = |high: u64, low: u64| BanTarget::V6((u128::from(high) << 64 | u128::from(low)).into());
        match tag & 0xff {
            _ if tag >> 16 != 0 => None,
            4 => u32::try_from(bits).ok().map(|bits| BanTarget::V4(bits.into())),
            6 => Some(v6(bits, 0)),
            code @ LINK..NETWORK => {
                let interface = (tag >> LINK_SHIFT & (LINK - 1)) << LINK_BITS | code & (LINK - 1);
                let address = u128::from(shared64::LINK_LOCAL) << 64 | u128::from(bits);
                Some(BanTarget::Link { address: address.into(), interface: u32::try_from(interface).ok()? })
            }
            code @ SHARED..LINK => Some(v6(shared64::upper_half(u8::try_from(code - SHARED).ok()?)?, bits)),
            // The prefix lengths of the two families do not overlap.
            code if code & NETWORK != 0 => {
                let BanTarget::V6(first) = v6(bits, 0) else { return None };
                let v4 = u32::try_from(bits).map(|bits| IpAddr::V4(bits.into()));
                let length = u8::try_from(code & !NETWORK).ok()?;
                Prefix::containing(if length < 32 { v4.ok()? } else { first.into() }, length).map(BanTarget::Prefix)
            }
            _ => None,
        }
    }

    /// The same target, counted for a single destination.
    pub(super) fn toward(self, destination: IpAddr) -> Self {
        let Self([bits, tag]) = self;
        let folded = match destination {
            IpAddr::V4(v4) => u64::from(v4.to_bits()),
            IpAddr::V6(v6) => {
                let [high, low] = halves(v6.to_bits());
                let mixed = high.rotate_left(17) ^ low;
                mixed ^ mixed >> 32
            }
        };
        Self([bits, tag | folded << 32 | DESTINATION])
    }

    /// The same target, counted over the hosts that it probes.
    pub(super) fn over_hosts(self) -> Self {
        let Self([bits, tag]) = self;
        Self([bits, tag | HOSTS])
    }

    /// A number that is unpredictable without the secret, and the same for the same target and time.
    pub(super) fn hash_at(self, secret: HashKey, now: Tick) -> u64 {
        let Self([low, high]) = self;
        let mut hasher = SipHasher13::new_with_keys(secret.0, secret.1);
        [low, high, now.0.into()].into_iter().for_each(|part| hasher.write_u64(part));
        hasher.finish()
    }

    pub(super) fn under(self, secret: HashKey) -> Hashed {
        // Hashing all bytes at once takes half the time of hashing single words.
        let [low, high] = self.0.map(u128::from);
        let hash = SipHasher13::new_with_keys(secret.0, secret.1).hash(&(high << 64 | low).to_le_bytes());
        Hashed { key: self, hash }
    }

    /// The key of a free row; `next` is the previously freed row.
    pub(super) fn free(next: u32) -> Self {
        Self([next.into(), 0])
    }

    /// The previously freed row.
    pub(super) fn next_free(self) -> u32 {
        let Self([next, _]) = self;
        u32::try_from(next).unwrap_or(0)
    }

    pub(super) fn is_in_use(self) -> bool {
        let Self([_, tag]) = self;
        tag != 0
    }
}

/// The key of a whole target in 10 bytes.
#[derive(Clone, Copy)]
#[repr(Rust, packed(2))]
pub(super) struct Brief {
    bits: u64,
    tag: u16,
}

impl Brief {
    pub(super) const NONE: Self = Self { bits: 0, tag: 0 };

    /// Drops the destination: for tables that only hold keys of whole targets.
    pub(super) fn from_key(TargetKey([bits, tag]): TargetKey) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the lower 16 bits are the kind of target and the response"
        )]
        Self { bits, tag: tag as u16 }
    }

    #[inline]
    pub(super) fn key(self) -> TargetKey {
        TargetKey([self.bits, self.tag.into()])
    }

    /// True if the response is to block.
    pub(super) fn blocks(self) -> bool {
        self.tag >> RESPONSE_SHIFT & 3 == Response::Block as u16
    }
}

/// Tags of keys that count a part of the packets. The upper 32 bits distinguish destinations.
const DESTINATION: u64 = 1 << 16;
const HOSTS: u64 = 2 << 16;

/// An address in 16 bits, for uses where a rare collision only costs time. Neighbouring addresses never collide.
pub(super) fn fold(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            u16::from_be_bytes([a, b]).rotate_left(5) ^ u16::from_be_bytes([c, d])
        }
        IpAddr::V6(v6) => v6.segments().into_iter().fold(0, |sum, part| sum.rotate_left(5) ^ part),
    }
}

fn halves(bits: u128) -> [u64; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of 128 bits are 64 bits each")]
    [(bits >> 64) as u64, bits as u64]
}

/// A key with its keyed hash, computed once per packet and used for every table.
#[derive(Clone, Copy)]
pub(super) struct Hashed {
    pub(super) key: TargetKey,
    pub(super) hash: u64,
}

#[cfg(test)]
impl Hashed {
    /// The secret of the tests.
    pub(super) const SECRET: HashKey = HashKey(1, 2);

    /// The key of IPv4 address number `n`.
    pub(super) fn nth(n: u32) -> Self {
        TargetKey::new(BanTarget::V4(n.into()), Response::Block).under(Self::SECRET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_and_families_have_distinct_keys() {
        let v4 = BanTarget::V4("0.0.0.1".parse().unwrap());
        let v6 = BanTarget::containing("::1".parse().unwrap());
        let local = BanTarget::containing("fe80::1".parse().unwrap());
        let wide = |text: &str| BanTarget::Prefix(Prefix::new(text.parse().unwrap()).unwrap());
        let networks = ["0.0.0.0/24", "0.0.0.0/31", "255.255.255.0/24", "::/48", "::/56", "ffff:ffff:ffff:ff00::/56"];
        let links = [1, 63, 64, MAX_LINK].map(|interface| BanTarget::on("fe80::1".parse().unwrap(), interface));
        let translated = BanTarget::containing("64:ff9b::cb00:7109".parse().unwrap());
        let targets = [&[v4, v6, local, translated][..], &networks.map(wide), &links].concat();
        let keys: Vec<_> = targets
            .iter()
            .map(|target| TargetKey::new(*target, Response::Block))
            .chain([TargetKey::new(v4, Response::Log)])
            .collect();
        let back: Vec<_> = keys.iter().map_while(|key| key.target()).collect();
        assert_eq!(back, [&targets[..], &[v4]].concat(), "each key gives back its target");
        for (i, a) in keys.iter().enumerate() {
            assert!(keys.iter().skip(i + 1).all(|b| a != b));
        }
    }
}
