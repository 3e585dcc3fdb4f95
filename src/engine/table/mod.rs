//! A table of fixed size, keyed by a [`BanTarget`](super::subject::Subject), that never allocates after it is made and never
//! refuses a newcomer: when a bucket is full, its least valuable entry goes. What is stored of each is for its user to say.

mod growth;
#[cfg(test)]
mod tests;

use super::key::{HashKey, Hashed, Key};

/// Entries a bucket. They are half a cache line of the index; with eight ways a table that is half full turns away almost
/// nobody early.
const WAYS: usize = 8;

/// Buckets behind a full one in which a key that must not go finds room. In a table that is half full of such keys, where
/// one bucket of fifty is too small, there is room within the next few; that these are all full never happens.
const FURTHER: usize = 64;

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
    #[inline(always)]
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
        self.rows.iter_mut().take(self.begun).for_each(|row| row.give(Key::NONE));
        (self.used, self.strays, self.begun, self.free) = (0, 0, 0, 0);
    }
}
