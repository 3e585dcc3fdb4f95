//! A table of fixed size, keyed by [`Subject`], that never allocates after it is made and never refuses a newcomer: when
//! a bucket is full, its least valuable entry goes. What is stored lies in columns beside it; this file keeps the keys.

use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use super::moment::Tick;
use super::subject::{Subject, Wide};

/// Entries a bucket. A bucket's keys are two cache lines; with eight ways a table that is half full turns away almost
/// nobody early.
const WAYS: usize = 8;

/// Buckets behind a full one in which a key that must not go finds room. In a table that is half full of such keys, where
/// one bucket of fifty is too small, there is room within the next few; that these are all full never happens.
const FURTHER: usize = 64;

/// The secret that places subjects in buckets. With a known one, chosen source addresses would all land in one bucket
/// and push each other out.
#[derive(Clone, Copy)]
pub struct HashKey(pub u64, pub u64);

/// Marks a network; its prefix length stands beside it.
const NETWORK: u64 = 0x80;

/// A subject in 16 bytes, with the lane that it is counted in; never all zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key([u64; 2]);

impl Key {
    pub(super) fn new(subject: Subject, lane: u8) -> Self {
        let (tag, bits) = match subject {
            Subject::V4(v4) => (4, u64::from(v4.to_bits())),
            Subject::V6(v6) => {
                let [high, low] = halves(v6.to_bits());
                if subject.prefix_len() == 128 { (7, low) } else { (6, high) }
            }
            Subject::Wide(wide) => {
                let bits = match wide.network().addr() {
                    IpAddr::V4(v4) => u64::from(v4.to_bits()),
                    IpAddr::V6(v6) => {
                        let [high, _] = halves(v6.to_bits());
                        high
                    }
                };
                (NETWORK | u64::from(wide.prefix_len()), bits)
            }
        };
        Self([bits, tag | u64::from(lane) << 8])
    }

    /// The subject that the key was made of; `None` for one that counts something apart.
    pub(super) fn subject(self) -> Option<Subject> {
        let Self([bits, tag]) = self;
        let v6 = |high: u64, low: u64| Subject::V6((u128::from(high) << 64 | u128::from(low)).into());
        match tag & 0xff {
            _ if tag >> 16 != 0 => None,
            4 => u32::try_from(bits).ok().map(|bits| Subject::V4(bits.into())),
            6 => Some(v6(bits, 0)),
            7 => Some(v6(0xfe80 << 48, bits)),
            // The lengths of the two families do not meet.
            code if code & NETWORK != 0 => {
                let Subject::V6(first) = v6(bits, 0) else { return None };
                let v4 = u32::try_from(bits).map(|bits| IpAddr::V4(bits.into()));
                let length = u8::try_from(code & !NETWORK).ok()?;
                Wide::of(if length < 32 { v4.ok()? } else { first.into() }, length).map(Subject::Wide)
            }
            _ => None,
        }
    }

    /// The same subject, counted for one destination alone.
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

    /// The same subject, counted for the hosts that it touches.
    pub(super) fn over_hosts(self) -> Self {
        let Self([bits, tag]) = self;
        Self([bits, tag | HOSTS])
    }

    /// A number that nobody without the secret can foretell, the same for the same subject at the same time.
    pub(super) fn hash_at(self, secret: HashKey, now: Tick) -> u64 {
        let Self([low, high]) = self;
        let mut hasher = SipHasher13::new_with_keys(secret.0, secret.1);
        [low, high, now.0.into()].into_iter().for_each(|part| hasher.write_u64(part));
        hasher.finish()
    }

    fn hash(self, key: HashKey) -> u64 {
        // All bytes at once: half the time of a hasher that is fed piece by piece.
        let [low, high] = self.0.map(u128::from);
        SipHasher13::new_with_keys(key.0, key.1).hash(&(high << 64 | low).to_le_bytes())
    }
}

/// What is counted apart from the subject as a whole. The upper 32 bits tell one destination from another.
const DESTINATION: u64 = 1 << 16;
const HOSTS: u64 = 2 << 16;

/// An address in 16 bits, for places where a rare mistake of one for another only costs time: neighbours never collide.
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

/// The keys of a table.
pub(super) struct Buckets {
    // Plain integers, so that the allocator hands out zero pages: what is never touched is never resident.
    keys: Vec<[[u64; 2]; WAYS]>,
    secret: HashKey,
    used: usize,
    /// For each bucket, how many of its keys stand in one of the next, because it was full of what must not go.
    astray: Vec<u16>,
    /// All of them: mostly none, and then nobody looks further than into one bucket.
    strays: usize,
}

/// Where a newcomer was put.
pub(super) struct Claim {
    /// Index into the columns.
    pub(super) slot: usize,
    /// True where somebody had to go for it.
    pub(super) evicted: bool,
}

impl Buckets {
    /// Room for at least `entries`, rounded up to whole buckets.
    pub(super) fn new(entries: usize, secret: HashKey) -> Self {
        let buckets = entries.div_ceil(WAYS).max(1);
        Self { keys: vec![[[0; 2]; WAYS]; buckets], secret, used: 0, astray: vec![0; buckets], strays: 0 }
    }

    /// How many slots the columns must have.
    pub(super) fn slots(&self) -> usize {
        self.keys.len() * WAYS
    }

    /// How many of them are taken.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    fn bucket(&self, key: Key) -> usize {
        // Multiply-shift instead of a division (Lemire, 2016): evenly spread for any number of buckets.
        let buckets = self.keys.len() as u128;
        usize::try_from((u128::from(key.hash(self.secret)) * buckets) >> 64).unwrap_or(0)
    }

    /// The slot of `key`, where it is in the table.
    #[inline]
    pub(super) fn find(&self, key: Key) -> Option<usize> {
        let bucket = self.bucket(key);
        match self.keys.get(bucket)?.iter().position(|held| *held == key.0) {
            Some(way) => Some(bucket * WAYS + way),
            None if self.strays == 0 => None,
            None => self.find_further(bucket, key),
        }
    }

    /// The slot of `key` outside of its bucket.
    #[cold]
    fn find_further(&self, bucket: usize, key: Key) -> Option<usize> {
        if *self.astray.get(bucket)? == 0 {
            return None;
        }
        self.further(bucket).find_map(|other| {
            let way = self.keys.get(other)?.iter().position(|held| *held == key.0)?;
            Some(other * WAYS + way)
        })
    }

    /// The buckets behind `bucket`, around the end.
    fn further(&self, bucket: usize) -> impl Iterator<Item = usize> + use<> {
        let buckets = self.keys.len();
        (1..buckets.min(FURTHER + 1)).map(move |step| (bucket + step) % buckets)
    }

    /// The slot of `key`, or a new one for it: an empty one, or that of the entry with the smallest `worth`.
    pub(super) fn claim(&mut self, key: Key, worth: impl Fn(usize) -> u64) -> Result<usize, Claim> {
        let bucket = self.bucket(key);
        let base = bucket * WAYS;
        let Some(ways) = self.keys.get_mut(bucket) else {
            return Ok(0);
        };
        if let Some(way) = ways.iter().position(|held| *held == key.0) {
            return Ok(base + way);
        }
        let empty = ways.iter().position(|held| *held == [0; 2]);
        let way = empty.unwrap_or_else(|| (0..WAYS).min_by_key(|way| worth(base + way)).unwrap_or(0));
        if let Some(held) = ways.get_mut(way) {
            *held = key.0;
        }
        self.used += usize::from(empty.is_some());
        Err(Claim { slot: base + way, evicted: empty.is_none() })
    }

    /// The same, but nobody goes who `stays`: where a bucket is full of those, the newcomer stands in one behind it. Only
    /// where there is no room far and wide does the entry with the smallest `worth` go all the same.
    pub(super) fn claim_beside(
        &mut self,
        key: Key,
        worth: impl Fn(usize) -> u64,
        stays: impl Fn(usize) -> bool,
    ) -> Result<usize, Claim> {
        if let Some(slot) = self.find(key) {
            return Ok(slot);
        }
        let home = self.bucket(key);
        let is_full = |bucket: usize| {
            let ways = self.keys.get(bucket).into_iter().flatten().enumerate();
            ways.filter(|(_, held)| **held != [0; 2]).filter(|(way, _)| stays(bucket * WAYS + way)).count() == WAYS
        };
        let room = if is_full(home) { self.further(home).find(|other| !is_full(*other)) } else { None };
        let bucket = room.unwrap_or(home);
        let base = bucket * WAYS;
        let Some(ways) = self.keys.get_mut(bucket) else {
            return Ok(0);
        };
        let empty = ways.iter().position(|held| *held == [0; 2]);
        let least = (0..WAYS).min_by_key(|way| (stays(base + way), worth(base + way)));
        let way = empty.or(least).unwrap_or(0);
        let gone = ways.get_mut(way).map_or([0; 2], |held| std::mem::replace(held, key.0));
        self.used += usize::from(empty.is_some());
        if empty.is_none() {
            self.forget_stray(Key(gone), bucket);
        }
        if bucket != home
            && let Some(astray) = self.astray.get_mut(home)
        {
            *astray = astray.saturating_add(1);
            self.strays += 1;
        }
        Err(Claim { slot: base + way, evicted: empty.is_none() })
    }

    /// `key` has gone from `bucket`.
    fn forget_stray(&mut self, key: Key, bucket: usize) {
        let home = self.bucket(key);
        if home != bucket
            && let Some(astray) = self.astray.get_mut(home)
        {
            *astray = astray.saturating_sub(1);
            self.strays -= 1;
        }
    }

    /// The taken slots with their keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, Key)> + '_ {
        let keys = self.keys.iter().flatten().enumerate();
        keys.filter(|(_, held)| **held != [0; 2]).map(|(slot, held)| (slot, Key(*held)))
    }

    /// Whose `slot` is; `None` where it is nobody's.
    pub(super) fn at(&self, slot: usize) -> Option<Key> {
        let held = self.keys.get(slot / WAYS)?.get(slot % WAYS)?;
        (*held != [0; 2]).then_some(Key(*held))
    }

    /// Empties the slot of `key`; `None` where it is not in the table.
    pub(super) fn remove(&mut self, key: Key) -> Option<usize> {
        let slot = self.find(key)?;
        if let Some(held) = self.keys.get_mut(slot / WAYS).and_then(|ways| ways.get_mut(slot % WAYS)) {
            *held = [0; 2];
            self.used -= 1;
        }
        self.forget_stray(key, slot / WAYS);
        Some(slot)
    }

    /// Empties the whole table.
    pub(super) fn clear(&mut self) {
        self.keys.fill([[0; 2]; WAYS]);
        self.astray.fill(0);
        (self.used, self.strays) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        Key::new(Subject::V4(std::net::Ipv4Addr::from_bits(n)), 0)
    }

    #[test]
    fn a_full_table_lets_the_least_worthy_go_and_keeps_its_size() {
        let mut buckets = Buckets::new(8, HashKey(1, 2));
        let mut worths = vec![0u64; buckets.slots()];
        for n in 1..=8 {
            let Err(claim) = buckets.claim(key(n), |slot| worths[slot]) else { panic!("{n} is new") };
            assert!(!claim.evicted);
            worths[claim.slot] = u64::from(n);
        }
        let Err(claim) = buckets.claim(key(9), |slot| worths[slot]) else { panic!("9 is new") };
        assert!(claim.evicted);
        assert!(buckets.find(key(1)).is_none(), "1 was worth least");
        assert!((2..=9).all(|n| buckets.find(key(n)).is_some()));
        assert_eq!(buckets.used(), 8);
    }

    #[test]
    fn what_is_removed_leaves_its_slot_to_the_next() {
        let mut buckets = Buckets::new(8, HashKey(3, 4));
        assert!(buckets.claim(key(1), |_| 0).is_err());
        assert!(buckets.remove(key(1)).is_some());
        assert!(buckets.remove(key(1)).is_none());
        assert_eq!(buckets.used(), 0);
    }

    #[test]
    fn who_stays_is_never_pushed_out_and_is_found_also_when_others_have_gone() {
        let mut buckets = Buckets::new(512, HashKey(5, 6));
        // Three of four slots: a bucket in four is too small for its keys.
        for n in 0..384 {
            let Err(claim) = buckets.claim_beside(key(n), |_| 0, |_| true) else { panic!("{n} is new") };
            assert!(!claim.evicted, "{n}");
        }
        assert!(buckets.strays > 10, "{} of them are elsewhere", buckets.strays);
        assert_eq!(buckets.used(), 384);
        let found = |buckets: &Buckets| (0..384).filter(|n| buckets.find(key(*n)).is_some()).count();
        assert_eq!(found(&buckets), 384);
        assert!(buckets.claim_beside(key(3), |_| 0, |_| true).is_ok(), "who is there is not there twice");
        (0..384).step_by(2).for_each(|n| assert!(buckets.remove(key(n)).is_some()));
        assert_eq!((found(&buckets), buckets.used()), (192, 192));
        (0..384).step_by(2).for_each(|n| assert!(buckets.claim_beside(key(n), |_| 0, |_| true).is_err()));
        assert_eq!(found(&buckets), 384);
        (0..384).for_each(|n| assert!(buckets.remove(key(n)).is_some()));
        assert_eq!((buckets.used(), buckets.strays), (0, 0));
        assert!(buckets.astray.iter().all(|astray| *astray == 0));
    }

    #[test]
    fn a_table_that_is_full_of_who_stays_takes_a_newcomer_for_the_least_worthy_and_one_of_others_for_another() {
        let mut buckets = Buckets::new(64, HashKey(7, 8));
        (0..64).for_each(|n| drop(buckets.claim_beside(key(n), |_| 0, |_| true)));
        assert_eq!((buckets.used(), (0..64).filter(|n| buckets.find(key(*n)).is_some()).count()), (64, 64));
        let other = buckets.find(key(9)).unwrap();
        let Err(claim) = buckets.claim_beside(key(64), |_| 0, |slot| slot != other) else { panic!("64 is new") };
        assert_eq!((claim.slot, claim.evicted), (other, true));
        assert!(buckets.find(key(9)).is_none() && buckets.find(key(64)).is_some());
        let Err(claim) = buckets.claim_beside(key(65), |_| 0, |_| true) else { panic!("65 is new") };
        assert!(claim.evicted && buckets.find(key(65)).is_some());
        assert_eq!((0..66).filter(|n| buckets.find(key(*n)).is_some()).count(), 64);
    }

    #[test]
    fn lanes_and_families_do_not_meet() {
        let v4 = Subject::V4("0.0.0.1".parse().unwrap());
        let v6 = Subject::of("::1".parse().unwrap());
        let local = Subject::of("fe80::1".parse().unwrap());
        let wide = |text: &str| Subject::Wide(Wide::new(text.parse().unwrap()).unwrap());
        let networks = ["0.0.0.0/24", "0.0.0.0/31", "255.255.255.0/24", "::/48", "::/56", "ffff:ffff:ffff:ff00::/56"];
        let subjects = [&[v4, v6, local][..], &networks.map(wide)].concat();
        let keys: Vec<_> = subjects.iter().map(|subject| Key::new(*subject, 0)).chain([Key::new(v4, 1)]).collect();
        let back: Vec<_> = keys.iter().map_while(|key| key.subject()).collect();
        assert_eq!(back, [&subjects[..], &[v4]].concat(), "and each gives back its subject");
        for (i, a) in keys.iter().enumerate() {
            assert!(keys.iter().skip(i + 1).all(|b| a != b));
        }
    }
}
