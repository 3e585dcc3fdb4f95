//! A table of fixed size, keyed by [`Subject`], that never allocates after it is made and never refuses a newcomer: when
//! a bucket is full, its least valuable entry goes. What is stored of each is for its user to say.

use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use super::moment::Tick;
use super::subject::{Subject, Wide};

/// Entries a bucket. They are half a cache line of the index; with eight ways a table that is half full turns away almost
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

/// A subject in 16 bytes, with the lane that it is counted in; the second half is zero for nobody.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key([u64; 2]);

impl Key {
    /// Of a row that has never been anybody's.
    pub(super) const NOBODY: Self = Self([0; 2]);

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

    /// The key with its hash.
    pub(super) fn under(self, secret: HashKey) -> Hashed {
        // All bytes at once: half the time of a hasher that is fed piece by piece.
        let [low, high] = self.0.map(u128::from);
        let hash = SipHasher13::new_with_keys(secret.0, secret.1).hash(&(high << 64 | low).to_le_bytes());
        Hashed { key: self, hash }
    }

    /// Nobody's, for a row that was given back; `next` is the one that was given back before it.
    fn free(next: u32) -> Self {
        Self([next.into(), 0])
    }

    /// The row that a free one has in its key.
    fn next_free(self) -> u32 {
        let Self([next, _]) = self;
        u32::try_from(next).unwrap_or(0)
    }

    fn is_somebodys(self) -> bool {
        let Self([_, tag]) = self;
        tag != 0
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

/// A key with its hash under the secret: made once for a packet, for every table that is asked about it.
#[derive(Clone, Copy)]
pub(super) struct Hashed {
    pub(super) key: Key,
    pub(super) hash: u64,
}

/// What a table keeps of one key.
pub(super) trait Row: Clone {
    /// Nobody's.
    const EMPTY: Self;

    /// Whose it is, as [`Row::give`] was told.
    fn key(&self) -> Key;

    /// It is `key`'s from now on, and says nothing yet.
    fn give(&mut self, key: Key);
}

/// The table. What it keeps lies in the order in which it came, so that a newcomer touches no memory but what the one
/// before him has touched. Where each lies stands in an index, which is small at the start and grows with the table, into
/// room that was set aside for it.
///
/// A place of the index is 32 bits: in the lowest ones the number of the row, counted from 1, or 0 for nobody's; then the
/// rank; above it as much of the key's hash as there is room for, so that a wrong row is hardly ever looked at.
pub(super) struct Table<R> {
    index: Vec<[u32; WAYS]>,
    /// Into how many buckets it can grow.
    buckets: usize,
    /// Those that have been anybody's, and a few more. All that there can be have their room from the start.
    rows: Vec<R>,
    /// How many have been anybody's.
    begun: usize,
    /// The row that was given back last, counted from 1; 0: none. Each has the next one in its key.
    free: u32,
    /// Bits of a place that number the row.
    number_bits: u32,
    /// Those that hold a part of the hash.
    tags: u32,
    secret: HashKey,
    used: usize,
    /// For each bucket, how many of its keys stand in one of the next, because it was full of what must not go.
    astray: Vec<u16>,
    /// All of them: mostly none, and then nobody looks further than into one bucket.
    strays: usize,
}

/// Where a newcomer was put.
pub(super) struct Claim {
    /// The number of its row.
    pub(super) slot: usize,
    /// True where somebody had to go for it.
    pub(super) evicted: bool,
}

/// One of those in a full bucket.
pub(super) struct Way<'a, R> {
    /// How many of them have been claimed since.
    pub(super) age: usize,
    /// What [`Table::rank`] said last.
    pub(super) rank: u8,
    /// Costs a look into memory.
    pub(super) row: &'a R,
}

/// The age of the oldest.
pub(super) const OLDEST: usize = WAYS - 1;

/// The highest rank.
pub(super) const RANKS: u8 = 15;
const RANK_BITS: u32 = 4;

/// Buckets of an index that has its full size from the start: 32 KiB.
const SMALL: usize = 1_024;

/// How many times as many buckets a larger index has after each step, and how many steps there are.
const STEP: usize = 4;
const STEPS: u32 = 3;

/// An index that has not grown yet is at most so full, one part in so many: a bucket is then hardly ever full, and nobody
/// goes for a newcomer. Half of that is enough where there is time to grow.
const SPARSE: usize = 8;

/// So many bytes of rows are touched before anybody needs them: more newcomers than there are between two pauses, unless it
/// is a flood, and few enough to cost nothing where nobody comes.
const AHEAD: usize = 32 << 10;

impl<R: Row> Table<R> {
    /// Room for at least `entries`, rounded up to whole buckets.
    pub(super) fn new(entries: usize, secret: HashKey) -> Self {
        let wanted = entries.div_ceil(WAYS).max(1);
        // Each step is as long as the others, so that nothing moves but from one bucket into those that it becomes.
        let start = if wanted <= SMALL { wanted } else { wanted.div_ceil(STEP.pow(STEPS)) };
        let buckets = if wanted <= SMALL { wanted } else { start * STEP.pow(STEPS) };
        let slots = buckets * WAYS;
        let number_bits = usize::BITS - slots.leading_zeros();
        let mut table = Self {
            index: Vec::with_capacity(buckets),
            rows: Vec::with_capacity(slots),
            begun: 0,
            free: 0,
            buckets,
            number_bits,
            tags: u32::MAX.checked_shl(number_bits + RANK_BITS).unwrap_or(0),
            secret,
            used: 0,
            astray: Vec::with_capacity(buckets),
            strays: 0,
        };
        table.index.resize(start, [0; WAYS]);
        table.astray.resize(start, 0);
        table.prepare();
        table
    }

    /// How many it can hold.
    pub(super) fn slots(&self) -> usize {
        self.buckets * WAYS
    }

    /// How many it holds.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// How many rows have been anybody's: no slot is beyond.
    pub(super) fn begun(&self) -> usize {
        self.begun
    }

    /// Touches the memory of the next newcomers, if that is due, and makes the index larger. To be called when there is time.
    pub(super) fn prepare(&mut self) {
        if self.is_dense(2 * SPARSE) {
            self.grow();
        }
        let ahead = (AHEAD / size_of::<R>().max(1)).max(1);
        if self.rows.len() - self.begun < ahead / 2 {
            let rows = (self.begun + ahead).min(self.slots());
            self.rows.resize(rows.max(self.rows.len()), R::EMPTY);
        }
    }

    /// `key` as this table wants it.
    pub(super) fn hashed(&self, key: Key) -> Hashed {
        key.under(self.secret)
    }

    /// True where more than one place in so many is taken, of an index that can grow.
    fn is_dense(&self, sparse: usize) -> bool {
        let buckets = self.index.len();
        buckets < self.buckets && self.used * sparse > buckets * WAYS
    }

    /// Makes the index larger. Takes some 50 ns for each entry, a few times in the life of a table.
    #[cold]
    fn grow(&mut self) {
        let before = self.index.len();
        self.index.resize((before * STEP).min(self.buckets), [0; WAYS]);
        self.astray.fill(0);
        self.astray.resize(self.index.len(), 0);
        let strays = std::mem::take(&mut self.strays);
        // From the end: what was in one bucket goes to places that nobody is in any more.
        for old in (0..before).rev() {
            let places = self.index.get_mut(old).map(std::mem::take).unwrap_or_default();
            for place in places.into_iter().filter(|place| *place != 0) {
                let row = self.slot_at(place).and_then(|slot| self.rows.get(slot));
                let home = row.map(|row| self.bucket(self.hashed(row.key()).hash));
                if let Some(home) = home.filter(|home| home / STEP == old) {
                    self.put(home, place);
                }
            }
        }
        if strays > 0 {
            self.put_strays();
        }
    }

    /// Puts those into the index who were not where they belong.
    fn put_strays(&mut self) {
        for slot in 0..self.begun {
            let Some(key) = self.at(slot).map(Row::key) else { continue };
            let wanted = self.hashed(key);
            let home = self.bucket(wanted.hash);
            if self.look(home, wanted).is_some() {
                continue;
            }
            let place = self.tag(wanted.hash) | u32::try_from(slot + 1).unwrap_or(0);
            let mut near = std::iter::once(home).chain(self.further(home));
            match near.find(|bucket| self.put(*bucket, place)) {
                Some(bucket) if bucket == home => {}
                Some(_) => self.note_stray(home),
                // It cannot be: the index is nearly empty.
                None => self.give_back(slot),
            }
        }
    }

    /// Puts a place behind the others of a bucket; false where it is full.
    fn put(&mut self, bucket: usize, place: u32) -> bool {
        let empty = self.index.get_mut(bucket).and_then(|ways| ways.iter_mut().find(|held| **held == 0));
        empty.map(|held| *held = place).is_some()
    }

    /// The row in `slot` is nobody's any more.
    fn give_back(&mut self, slot: usize) {
        if let Some(row) = self.rows.get_mut(slot) {
            row.give(Key::free(self.free));
            self.free = u32::try_from(slot + 1).unwrap_or(0);
            self.used -= 1;
        }
    }

    /// A key of `home` is elsewhere.
    fn note_stray(&mut self, home: usize) {
        if let Some(astray) = self.astray.get_mut(home) {
            *astray = astray.saturating_add(1);
            self.strays += 1;
        }
    }

    fn bucket(&self, hash: u64) -> usize {
        // Multiply-shift instead of a division (Lemire, 2016): evenly spread for any number of buckets.
        usize::try_from((u128::from(hash) * self.index.len() as u128) >> 64).unwrap_or(0)
    }

    /// The row that a place of the index means.
    fn slot_at(&self, place: u32) -> Option<usize> {
        ((place & !(u32::MAX << self.number_bits)) as usize).checked_sub(1)
    }

    /// What a place of the index has of this hash.
    fn tag(&self, hash: u64) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half; the upper one tells the bucket")]
        let low = hash as u32;
        low & self.tags
    }

    /// In which way of `bucket` the key is, and its slot.
    #[inline]
    fn look(&self, bucket: usize, wanted: Hashed) -> Option<(usize, usize)> {
        let ways = self.index.get(bucket)?;
        let tag = self.tag(wanted.hash);
        // All at once, without a jump for each: a byte is 1 where the tag is the same.
        let mut left = u64::from_le_bytes(ways.map(|place| u8::from((place ^ tag) & self.tags == 0)));
        while left != 0 {
            let way = (left.trailing_zeros() / u8::BITS) as usize;
            if let Some(slot) = ways.get(way).and_then(|place| self.slot_at(*place))
                && self.rows.get(slot).is_some_and(|row| row.key() == wanted.key)
            {
                return Some((way, slot));
            }
            left &= left - 1;
        }
        None
    }

    /// The slot of `wanted`, where it is in the table.
    #[inline]
    pub(super) fn find(&self, wanted: Hashed) -> Option<usize> {
        let bucket = self.bucket(wanted.hash);
        match self.look(bucket, wanted) {
            Some((_, slot)) => Some(slot),
            None if self.strays == 0 => None,
            None => self.find_further(bucket, wanted).map(|(_, _, slot)| slot),
        }
    }

    /// Bucket, way and slot of `wanted` outside of its own bucket.
    #[cold]
    fn find_further(&self, bucket: usize, wanted: Hashed) -> Option<(usize, usize, usize)> {
        if *self.astray.get(bucket)? == 0 {
            return None;
        }
        let mut others = self.further(bucket);
        others.find_map(|other| self.look(other, wanted).map(|(way, slot)| (other, way, slot)))
    }

    /// The buckets behind `bucket`, around the end.
    fn further(&self, bucket: usize) -> impl Iterator<Item = usize> + use<R> {
        let buckets = self.index.len();
        (1..buckets.min(FURTHER + 1)).map(move |step| (bucket + step) % buckets)
    }

    /// What is kept in `slot`.
    #[inline]
    pub(super) fn get(&self, slot: usize) -> Option<&R> {
        self.rows.get(slot)
    }

    /// The same, to be changed.
    #[inline]
    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut R> {
        self.rows.get_mut(slot)
    }

    /// What is kept of `wanted`.
    pub(super) fn of(&self, wanted: Hashed) -> Option<&R> {
        self.rows.get(self.find(wanted)?)
    }

    /// The same, to be changed.
    pub(super) fn of_mut(&mut self, wanted: Hashed) -> Option<&mut R> {
        let slot = self.find(wanted)?;
        self.rows.get_mut(slot)
    }

    /// The slot of `wanted`, or a new one for it: a free one, or that of the entry with the smallest `worth`.
    pub(super) fn claim(&mut self, wanted: Hashed, worth: impl Fn(Way<'_, R>) -> u64) -> Result<usize, Claim> {
        let mut bucket = self.bucket(wanted.hash);
        let (way, claimed) = match self.look(bucket, wanted) {
            Some((way, slot)) => (way, Ok(slot)),
            None => {
                if self.is_dense(SPARSE) {
                    self.grow();
                    bucket = self.bucket(wanted.hash);
                }
                let (way, claim) = self.settle(bucket, wanted, worth);
                (way, Err(claim))
            }
        };
        // The latest first.
        if let Some(ways) = self.index.get_mut(bucket).and_then(|ways| ways.get_mut(..=way)) {
            ways.rotate_right(1);
        }
        claimed
    }

    /// The same, but nobody goes who `stays`: where a bucket is full of those, the newcomer stands in one behind it. Only
    /// where there is no room far and wide does the entry with the smallest `worth` go all the same.
    pub(super) fn claim_beside(
        &mut self,
        wanted: Hashed,
        worth: impl Fn(&R) -> u32,
        stays: impl Fn(&R) -> bool,
    ) -> Result<usize, Claim> {
        if let Some(slot) = self.find(wanted) {
            return Ok(slot);
        }
        if self.is_dense(SPARSE) {
            self.grow();
        }
        let home = self.bucket(wanted.hash);
        let is_full = |bucket: usize| {
            let ways = self.index.get(bucket).into_iter().flatten();
            let rows = ways.map_while(|place| self.rows.get(self.slot_at(*place)?));
            rows.filter(|row| stays(row)).count() == WAYS
        };
        let room = if is_full(home) { self.further(home).find(|other| !is_full(*other)) } else { None };
        let bucket = room.unwrap_or(home);
        // Who stays is worth more than anybody who does not.
        let worth = |way: Way<'_, R>| u64::from(stays(way.row)) << 32 | u64::from(worth(way.row));
        let (_, claim) = self.settle(bucket, wanted, worth);
        if bucket != home {
            self.note_stray(home);
        }
        Err(claim)
    }

    /// Puts `wanted`, which is nowhere, into `bucket`; in which way.
    fn settle(&mut self, bucket: usize, wanted: Hashed, worth: impl Fn(Way<'_, R>) -> u64) -> (usize, Claim) {
        let none = (0, Claim { slot: 0, evicted: false });
        let Some(ways) = self.index.get(bucket) else { return none };
        let empty = ways.iter().position(|place| *place == 0);
        let (way, slot) = match empty {
            Some(way) => (way, self.take_row()),
            None => {
                // Of equals the one that was claimed longest ago.
                let all = ways.iter().enumerate().rev().filter_map(|(age, place)| {
                    let slot = self.slot_at(*place)?;
                    let rank = (place >> self.number_bits).to_le_bytes().first()? & RANKS;
                    Some((worth(Way { age, rank, row: self.rows.get(slot)? }), age, slot))
                });
                let Some((_, way, slot)) = all.min_by_key(|(worth, ..)| *worth) else { return none };
                (way, slot)
            }
        };
        let place = self.tag(wanted.hash) | u32::try_from(slot + 1).unwrap_or(0);
        if let Some(held) = self.index.get_mut(bucket).and_then(|ways| ways.get_mut(way)) {
            *held = place;
        }
        let gone = self.rows.get_mut(slot).map(|row| {
            let gone = row.key();
            row.give(wanted.key);
            gone
        });
        match (empty, gone) {
            (None, Some(gone)) => self.forget_stray(gone, bucket),
            _ => self.used += 1,
        }
        (way, Claim { slot, evicted: empty.is_none() })
    }

    /// A row that is nobody's. There is one for every place of the index.
    fn take_row(&mut self) -> usize {
        if let Some(slot) = (self.free as usize).checked_sub(1) {
            self.free = self.rows.get(slot).map_or(0, |row| row.key().next_free());
            return slot;
        }
        let slot = self.begun;
        if slot == self.rows.len() {
            self.rows.push(R::EMPTY);
        }
        self.begun += 1;
        slot
    }

    /// `key` has gone from `bucket`.
    fn forget_stray(&mut self, key: Key, bucket: usize) {
        if self.strays == 0 {
            return;
        }
        let home = self.bucket(self.hashed(key).hash);
        if home != bucket
            && let Some(astray) = self.astray.get_mut(home)
        {
            *astray = astray.saturating_sub(1);
            self.strays -= 1;
        }
    }

    /// What the row of `known` in `slot` is worth, [`RANKS`] at most.
    #[inline]
    pub(super) fn rank(&mut self, known: Hashed, slot: usize, rank: u8) {
        let (bucket, bits) = (self.bucket(known.hash), self.number_bits);
        let numbers = !(u32::MAX << bits);
        let places = self.index.get_mut(bucket).into_iter().flatten();
        if let Some(place) = places.into_iter().find(|place| (**place & numbers) as usize == slot + 1) {
            *place = *place & !(u32::from(RANKS) << bits) | u32::from(rank.min(RANKS)) << bits;
        }
    }

    /// All that is kept.
    pub(super) fn iter(&self) -> impl Iterator<Item = &R> + '_ {
        self.rows.iter().take(self.begun).filter(|row| row.key().is_somebodys())
    }

    /// What is kept in `slot`; `None` where it is nobody's.
    pub(super) fn at(&self, slot: usize) -> Option<&R> {
        self.rows.get(slot).filter(|row| row.key().is_somebodys())
    }

    /// Empties the slot of `known`; `None` where it is not in the table.
    pub(super) fn remove(&mut self, known: Hashed) -> Option<usize> {
        let home = self.bucket(known.hash);
        let near = self.look(home, known).map(|(way, slot)| (home, way, slot));
        let further = || (self.strays > 0).then(|| self.find_further(home, known))?;
        let (bucket, way, slot) = near.or_else(further)?;
        if let Some(ways) = self.index.get_mut(bucket).and_then(|ways| ways.get_mut(way..)) {
            // The empty ones stand behind the others.
            ways.rotate_left(1);
            if let Some(place) = ways.last_mut() {
                *place = 0;
            }
        }
        self.give_back(slot);
        self.forget_stray(known.key, bucket);
        Some(slot)
    }

    /// Empties the whole table.
    pub(super) fn clear(&mut self) {
        self.index.fill([0; WAYS]);
        self.astray.fill(0);
        self.rows.iter_mut().take(self.begun).for_each(|row| row.give(Key::NOBODY));
        (self.used, self.strays, self.begun, self.free) = (0, 0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const SECRET: HashKey = HashKey(1, 2);

    fn key(n: u32) -> Hashed {
        Key::new(Subject::V4(std::net::Ipv4Addr::from_bits(n)), 0).under(SECRET)
    }

    /// A row with a number in it.
    #[derive(Clone)]
    struct Noted(Key, u32);

    impl Row for Noted {
        const EMPTY: Self = Self(Key::NOBODY, 0);

        fn key(&self) -> Key {
            self.0
        }

        fn give(&mut self, key: Key) {
            *self = Self(key, 0);
        }
    }

    fn table(entries: usize) -> Table<Noted> {
        Table::new(entries, SECRET)
    }

    /// All numbers below `end` that are in the table.
    fn found(table: &Table<Noted>, end: u32) -> Vec<u32> {
        (0..end).filter(|n| table.find(key(*n)).is_some()).collect()
    }

    #[test]
    fn a_full_table_lets_the_least_worthy_go_and_keeps_its_size() {
        let mut table = table(8);
        for n in 1..=8 {
            let Err(claim) = table.claim(key(n), |way| way.row.1.into()) else { panic!("{n} is new") };
            assert!(!claim.evicted);
            table.get_mut(claim.slot).unwrap().1 = n;
        }
        let Err(claim) = table.claim(key(9), |way| way.row.1.into()) else { panic!("9 is new") };
        assert!(claim.evicted);
        assert_eq!(found(&table, 12), (2..=9).collect::<Vec<_>>(), "1 was worth least");
        assert_eq!((table.used(), table.begun(), table.slots()), (8, 8, 8));
        assert_eq!(table.get(claim.slot).unwrap().1, 0, "the newcomer does not take over what was kept of another");
    }

    #[test]
    fn among_equals_of_the_lowest_rank_the_one_that_was_claimed_longest_ago_goes() {
        let mut table = table(8);
        let claim = |table: &mut Table<Noted>, n| {
            let worth = |way: Way<'_, Noted>| u64::from(way.rank) << 8 | (OLDEST - way.age) as u64;
            let (Ok(slot) | Err(Claim { slot, .. })) = table.claim(key(n), worth);
            slot
        };
        for n in 0..8 {
            let slot = claim(&mut table, n);
            // Of two ranks, the odd ones the higher.
            table.rank(key(n), slot, if n % 2 == 1 { RANKS } else { 3 });
        }
        claim(&mut table, 0);
        let slot = claim(&mut table, 4);
        table.rank(key(4), slot, RANKS + 1);
        for (newcomer, gone) in [(8, 2), (9, 6), (10, 0)] {
            let slot = claim(&mut table, newcomer);
            table.rank(key(newcomer), slot, 4);
            assert!(table.find(key(gone)).is_none() && table.find(key(newcomer)).is_some(), "{gone}");
            assert_eq!(found(&table, 20).len(), 8);
        }
        assert_eq!(found(&table, 20), [1, 3, 4, 5, 7, 8, 9, 10]);
    }

    #[test]
    fn what_is_removed_leaves_its_slot_to_the_next() {
        let mut table = table(8);
        let Err(Claim { slot, .. }) = table.claim(key(1), |_| 0) else { panic!("1 is new") };
        assert_eq!(table.remove(key(1)), Some(slot));
        assert!(table.remove(key(1)).is_none() && table.at(slot).is_none() && table.iter().next().is_none());
        assert_eq!(table.used(), 0);
        let Err(claim) = table.claim(key(2), |_| 0) else { panic!("2 is new") };
        assert_eq!((claim.slot, claim.evicted, table.begun()), (slot, false, 1));
    }

    #[test]
    fn newcomers_lie_one_behind_the_other_in_memory_that_was_touched_before() {
        let mut table = table(100_000);
        let ahead = table.rows.len();
        assert!((1_000..10_000).contains(&ahead), "{ahead}");
        let before = (table.rows.as_ptr(), table.rows.capacity());
        for n in 0..50_000 {
            let Err(Claim { slot, .. }) = table.claim_beside(key(n), |_| 0, |_| true) else { panic!("{n} is new") };
            assert_eq!(slot, n as usize);
            if n % 100 == 0 {
                table.prepare();
                assert!(table.rows.len() >= slot + 100, "{slot}");
            }
        }
        assert_eq!((table.rows.as_ptr(), table.rows.capacity()), before, "nothing was allocated");
        assert_eq!(table.iter().count(), 50_000);
        let mut small = self::table(8);
        (0..20).for_each(|_| small.prepare());
        assert_eq!(small.rows.len(), 8, "and never more than there can be");
    }

    #[test]
    fn the_index_grows_with_the_table_and_nobody_is_lost_on_the_way() {
        for prepared in [false, true] {
            let mut table = table(100_000);
            let (start, room) = (table.index.len(), table.index.capacity());
            assert!(start * WAYS * 4 < 8_192, "{start}");
            // More of one bucket than it holds, so that some are elsewhere when it grows.
            let crowd: Vec<u32> = (0..).filter(|n| table.bucket(key(*n).hash) == 7).take(20).collect();
            let others: Vec<u32> = (1_000_000..1_040_000).collect();
            for (count, n) in crowd.iter().chain(&others).enumerate() {
                let Err(claim) = table.claim_beside(key(*n), |_| 0, |_| true) else { panic!("{n} is new") };
                assert!(!claim.evicted, "{n}");
                table.get_mut(claim.slot).unwrap().1 = *n;
                if count == 19 {
                    assert_eq!(table.strays, 12);
                }
                if prepared && count % 64 == 0 {
                    table.prepare();
                    assert!(!table.is_dense(SPARSE + 1));
                }
            }
            let all = || crowd.iter().chain(&others);
            assert!(all().all(|n| table.of(key(*n)).is_some_and(|row| row.1 == *n)));
            assert_eq!((table.index.len(), table.index.capacity()), (start * 64, room));
            assert_eq!((table.used(), table.slots()), (40_020, start * 64 * WAYS));
            all().for_each(|n| assert!(table.remove(key(*n)).is_some()));
            assert_eq!((table.used(), table.strays), (0, 0));
        }
    }

    #[test]
    fn ranks_and_ages_outlive_the_growth_of_the_index() {
        let mut table = table(100_000);
        let crowd: Vec<u32> = (0..).filter(|n| table.bucket(key(*n).hash) == 7).take(8).collect();
        for (rank, n) in (0..).zip(&crowd) {
            let (Ok(slot) | Err(Claim { slot, .. })) = table.claim(key(*n), |_| 0);
            table.rank(key(*n), slot, rank);
        }
        table.grow();
        for bucket in 7 * STEP..8 * STEP {
            let places = table.index[bucket].iter().filter(|place| **place != 0);
            let ranks: Vec<u32> = places.map(|place| place >> table.number_bits & 15).collect();
            assert!(ranks.is_sorted_by(|a, b| a > b), "the latest first: {ranks:?}");
        }
        assert!(crowd.iter().all(|n| table.find(key(*n)).is_some()));
    }

    #[test]
    fn who_stays_is_never_pushed_out_and_is_found_also_when_others_have_gone() {
        let mut table = table(512);
        // Three of four slots: a bucket in four is too small for its keys.
        for n in 0..384 {
            let Err(claim) = table.claim_beside(key(n), |_| 0, |_| true) else { panic!("{n} is new") };
            assert!(!claim.evicted, "{n}");
        }
        assert!(table.strays > 10, "{} of them are elsewhere", table.strays);
        assert_eq!(table.used(), 384);
        assert_eq!(found(&table, 384).len(), 384);
        assert!(table.claim_beside(key(3), |_| 0, |_| true).is_ok(), "who is there is not there twice");
        (0..384).step_by(2).for_each(|n| assert!(table.remove(key(n)).is_some()));
        assert_eq!((found(&table, 384).len(), table.used()), (192, 192));
        (0..384).step_by(2).for_each(|n| assert!(table.claim_beside(key(n), |_| 0, |_| true).is_err()));
        assert_eq!(found(&table, 384).len(), 384);
        (0..384).for_each(|n| assert!(table.remove(key(n)).is_some()));
        assert_eq!((table.used(), table.strays), (0, 0));
        assert!(table.astray.iter().all(|astray| *astray == 0));
    }

    #[test]
    fn a_table_that_is_full_of_who_stays_takes_a_newcomer_for_the_least_worthy_and_one_of_others_for_another() {
        let mut table = table(64);
        for n in 0..64 {
            let (Ok(slot) | Err(Claim { slot, .. })) = table.claim_beside(key(n), |_| 0, |_| true);
            table.get_mut(slot).unwrap().1 = n;
        }
        assert_eq!((table.used(), found(&table, 64).len()), (64, 64));
        let other = table.find(key(9)).unwrap();
        let Err(claim) = table.claim_beside(key(64), |_| 0, |row| row.1 != 9) else { panic!("64 is new") };
        assert_eq!((claim.slot, claim.evicted), (other, true));
        assert!(table.find(key(9)).is_none() && table.find(key(64)).is_some());
        let Err(claim) = table.claim_beside(key(65), |_| 0, |_| true) else { panic!("65 is new") };
        assert!(claim.evicted && table.find(key(65)).is_some());
        assert_eq!(found(&table, 66).len(), 64);
    }

    #[test]
    fn the_largest_table_that_can_be_asked_for_tells_its_rows_apart() {
        // The index alone: of so many rows none is touched.
        let table = table(1 << 24);
        assert_eq!((table.number_bits, table.tag(u64::MAX)), (25, 0xe000_0000));
        assert_eq!((table.slots(), table.begun()), (1 << 24, 0));
        assert_eq!(table.slot_at(u32::try_from(table.slots()).unwrap() | 0xfe00_0000), Some(table.slots() - 1));
        assert_eq!(table.slot_at(0xfe00_0000), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Claim(u32),
        Beside(u32),
        Remove(u32),
        Clear,
        Prepare,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            40 => (0..150_u32).prop_map(Step::Claim),
            30 => (0..150_u32).prop_map(Step::Remove),
            1 => Just(Step::Clear),
            2 => Just(Step::Prepare),
        ];
        let beside = prop_oneof![
            40 => (0..150_u32).prop_map(Step::Beside),
            20 => (0..150_u32).prop_map(Step::Remove),
            1 => Just(Step::Clear),
        ];
        prop_oneof![prop::collection::vec(step, 0..600), prop::collection::vec(beside, 0..600)]
    }

    proptest! {
        /// Whatever is done to it, it holds what a plain map would, but for who was pushed out.
        #[test]
        fn a_table_is_a_map_that_forgets(entries in 1_usize..130, steps in steps()) {
            let mut table = table(entries);
            let mut model: HashMap<u32, u32> = HashMap::new();
            for (at, step) in (1..).zip(steps) {
                match step {
                    Step::Claim(n) | Step::Beside(n) => {
                        let claim = match step {
                            Step::Beside(_) => table.claim_beside(key(n), |row| row.1, |row| row.1 % 2 == 0),
                            _ => table.claim(key(n), |way| way.row.1.into()),
                        };
                        let slot = match claim {
                            Ok(slot) => {
                                prop_assert_eq!(Some(&table.get(slot).unwrap().1), model.get(&n));
                                slot
                            }
                            Err(Claim { slot, evicted }) => {
                                prop_assert!(!model.contains_key(&n));
                                prop_assert_eq!(table.get(slot).unwrap().1, 0, "it says nothing yet");
                                if evicted {
                                    let gone: Vec<u32> =
                                        model.keys().copied().filter(|n| table.find(key(*n)).is_none()).collect();
                                    prop_assert_eq!(gone.len(), 1);
                                    model.remove(&gone[0]);
                                }
                                slot
                            }
                        };
                        table.get_mut(slot).unwrap().1 = at;
                        model.insert(n, at);
                    }
                    Step::Remove(n) => prop_assert_eq!(table.remove(key(n)).is_some(), model.remove(&n).is_some()),
                    Step::Clear => {
                        table.clear();
                        model.clear();
                    }
                    Step::Prepare => table.prepare(),
                }
                prop_assert_eq!(table.used(), model.len());
                prop_assert_eq!(table.iter().count(), model.len());
                for n in 0..150 {
                    prop_assert_eq!(table.of(key(n)).map(|row| row.1), model.get(&n).copied());
                }
            }
            for n in 0..150 {
                table.remove(key(n));
            }
            prop_assert_eq!((table.used(), table.strays), (0, 0));
        }
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
