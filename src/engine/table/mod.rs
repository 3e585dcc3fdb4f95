//! Implements a hash table of fixed size, keyed by ban target, that never allocates after its construction and never
//! refuses a new key. A full table evicts the least valuable of a constant number of inspected entries. The row type
//! defines the value stored for each key.
//!
//! There are two ways to insert. [`HashTable::claim`] evicts within the bucket of the key, like a set-associative
//! cache, and needs an index as large as the table. [`HashTable::claim_beside`] evicts only if every row is in use, so
//! that the table holds as many entries as it was created for. Its index, from [`HashTable::with_spare_index`], is at
//! most half full, so that a free place is near. For any sequence of keys, one call inspects at most `MAX_INSPECTED`
//! buckets and rows.

mod growth;
#[cfg(test)]
mod tests;

use super::key::{HashKey, Hashed, TargetKey};

/// Entries per bucket: half a cache line of the index. With eight ways, a half-full table hardly ever evicts an entry
/// early.
const WAYS: usize = 8;

/// Number of buckets after the home bucket in which a key may be placed. In a half-full index, one bucket in fifty
/// overflows into the next. A sequence of this many full buckets does not occur with a secret hash key.
const MAX_PROBE_LENGTH: usize = 16;

/// Ratio of index places to rows in a table from [`HashTable::with_spare_index`].
const SPARE_INDEX: usize = 2;

/// Number of runs of rows that a full table inspects to find the row to evict, evenly spaced. Rows are in the order of
/// their insertion: a single run might hold only old long bans while short ones fill the rest of the table.
const EVICTION_RUNS: usize = 8;
const RUN_LEN: usize = 8;

/// Maximum number of buckets and rows inspected by one call. It looks for the new key, for the evicted key and for a
/// free place in the home bucket and those after it, including rows with the same tag. It also inspects the runs and
/// one full bucket.
#[cfg(test)]
const MAX_INSPECTED: usize = (1 + MAX_PROBE_LENGTH) * (2 * (1 + WAYS) + 1) + EVICTION_RUNS * RUN_LEN + WAYS;

/// The value that a table stores for one key.
pub(super) trait Row: Clone {
    /// A row without a key.
    const EMPTY: Self;

    /// The key given to [`Row::assign`].
    fn key(&self) -> TargetKey;

    /// Assigns the row to `key` and resets its contents.
    fn assign(&mut self, key: TargetKey);
}

/// The table. Rows are in the order of their insertion, so that a new key uses memory next to the previous one. The
/// index, which maps keys to rows, starts small and grows with the table into reserved memory.
///
/// A place of the index has 32 bits. The lowest hold the row number, counted from 1, or 0 for an empty place. Next
/// comes the rank, and then as many bits of the hash as fit, so that a wrong row is hardly ever read.
pub(super) struct HashTable<R> {
    index: Vec<[u32; WAYS]>,
    /// Number of buckets to which the index can grow.
    buckets: usize,
    /// Maximum number of rows in use.
    slots: usize,
    /// Rows that were ever used, and a few more. Capacity for all rows is reserved at the start.
    rows: Vec<R>,
    /// Number of rows that were ever used.
    begun: usize,
    /// The last freed row, counted from 1; 0: none. The key of each free row holds the number of the next one.
    free: u32,
    /// Bits of a place that hold the row number.
    number_bits: u32,
    /// Mask of the bits of a place that hold a part of the hash.
    tags: u32,
    secret: HashKey,
    used: usize,
    /// Per bucket, the number of its keys that are in a later bucket because it was full.
    astray: Vec<u16>,
    /// Sum of `astray`. It is mostly 0, and then a look-up reads a single bucket.
    strays: usize,
    /// Start of the runs that the next eviction inspects, relative to the start of each share of the rows.
    hand: usize,
    #[cfg(test)]
    inspected: std::cell::Cell<usize>,
}

/// The place of a new key.
pub(super) struct Claim {
    /// Number of its row.
    pub(super) slot: usize,
    /// True if another entry was evicted for it.
    pub(super) evicted: bool,
}

/// One entry of a full bucket.
pub(super) struct Occupant<'a, R> {
    /// Number of entries of the bucket that were claimed later.
    pub(super) age: usize,
    /// The last argument of [`HashTable::rank`].
    pub(super) rank: u8,
    /// Reading the row costs a memory access.
    pub(super) row: &'a R,
}

/// Age of the entry that was claimed the longest time ago.
pub(super) const OLDEST: usize = WAYS - 1;

pub(super) const RANKS: u8 = 15;
const RANK_BITS: u32 = 4;

/// Maximum number of buckets of an index that has its full size from the start: 32 KiB.
const MAX_SMALL_BUCKETS: usize = 1_024;

/// Factor by which the index grows at each step, and number of steps.
const GROWTH_FACTOR: usize = 4;
const GROWTH_STEPS: u32 = 3;

/// An index that can still grow is filled to at most 1/`MAX_FILL_DIVISOR`, so that hardly any bucket is full and no
/// entry is evicted. During idle time it grows at half that fill level.
const MAX_FILL_DIVISOR: usize = 8;

/// Bytes of rows that are faulted in in advance: more than are inserted between two pauses, except in a flood, and few
/// enough to cost nothing in idle time.
const PREFAULT_BYTES: usize = 32 << 10;

impl<R: Row> HashTable<R> {
    /// Creates a table for at least `entries`, rounded up to whole buckets, that evicts within a bucket.
    pub(super) fn new(entries: usize, secret: HashKey) -> Self {
        Self::with_index(entries, 1, secret)
    }

    /// Creates a table for at least `entries`, for use with [`HashTable::claim_beside`].
    pub(super) fn with_spare_index(entries: usize, secret: HashKey) -> Self {
        Self::with_index(entries, SPARE_INDEX, secret)
    }

    /// Creates a table whose index has `spare` times as many places as rows.
    fn with_index(entries: usize, spare: usize, secret: HashKey) -> Self {
        let wanted = entries.div_ceil(WAYS).max(1) * spare;
        // All steps use the same factor, so that entries only move from one bucket to those that replace it.
        let start = if wanted <= MAX_SMALL_BUCKETS { wanted } else { wanted.div_ceil(GROWTH_FACTOR.pow(GROWTH_STEPS)) };
        let buckets = if wanted <= MAX_SMALL_BUCKETS { wanted } else { start * GROWTH_FACTOR.pow(GROWTH_STEPS) };
        let slots = buckets / spare * WAYS;
        let number_bits = usize::BITS - slots.leading_zeros();
        let mut table = Self {
            index: Vec::with_capacity(buckets),
            rows: Vec::with_capacity(slots),
            begun: 0,
            free: 0,
            buckets,
            slots,
            number_bits,
            tags: u32::MAX.checked_shl(number_bits + RANK_BITS).unwrap_or(0),
            secret,
            used: 0,
            astray: Vec::with_capacity(buckets),
            strays: 0,
            hand: 0,
            #[cfg(test)]
            inspected: std::cell::Cell::default(),
        };
        table.index.resize(start, [0; WAYS]);
        table.astray.resize(start, 0);
        table.prepare();
        table
    }

    /// Current number of entries.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Number of rows that were ever used; every slot is below it.
    pub(super) fn begun(&self) -> usize {
        self.begun
    }

    /// Counts inspected buckets and rows, for the tests that bound the work of one call.
    #[inline(always)]
    fn count_inspected(&self, _count: usize) {
        #[cfg(test)]
        self.inspected.set(self.inspected.get() + _count);
    }

    /// Faults in the memory of the next rows if needed, and grows the index. Call it in idle time.
    pub(super) fn prepare(&mut self) {
        if self.is_dense(2 * MAX_FILL_DIVISOR) {
            self.grow();
        }
        let ahead = (PREFAULT_BYTES / size_of::<R>().max(1)).max(1);
        if self.rows.len() - self.begun < ahead / 2 {
            let rows = (self.begun + ahead).min(self.slots);
            self.rows.resize(rows.max(self.rows.len()), R::EMPTY);
        }
    }

    /// `key` with its hash under the secret of this table.
    pub(super) fn hashed(&self, key: TargetKey) -> Hashed {
        key.under(self.secret)
    }

    fn free_row(&mut self, slot: usize) {
        if let Some(row) = self.rows.get_mut(slot) {
            row.assign(TargetKey::free(self.free));
            self.free = u32::try_from(slot + 1).unwrap_or(0);
            self.used -= 1;
        }
    }

    /// Records that a key whose home bucket is `home` is in another bucket.
    fn add_stray(&mut self, home: usize) {
        if let Some(astray) = self.astray.get_mut(home) {
            *astray = astray.saturating_add(1);
            self.strays += 1;
        }
    }

    fn bucket(&self, hash: u64) -> usize {
        // Multiply-shift instead of a division (Lemire, 2016): evenly spread for any number of buckets.
        usize::try_from((u128::from(hash) * self.index.len() as u128) >> 64).unwrap_or(0)
    }

    /// The slot to which a place of the index refers.
    fn slot_at(&self, place: u32) -> Option<usize> {
        ((place & !(u32::MAX << self.number_bits)) as usize).checked_sub(1)
    }

    /// The part of `hash` that a place of the index holds.
    fn tag(&self, hash: u64) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half; the upper one tells the bucket")]
        let low = hash as u32;
        low & self.tags
    }

    /// The way of `bucket` that holds the key, and its slot.
    #[inline(always)]
    fn find_in(&self, bucket: usize, wanted: Hashed) -> Option<(usize, usize)> {
        let ways = self.index.get(bucket)?;
        self.count_inspected(1);
        let tag = self.tag(wanted.hash);
        // Compares all ways without a branch for each: a bit is 1 if the tag matches.
        let matches = |place: &u32| u32::from((place ^ tag) & self.tags == 0);
        let mut left = ways.iter().rfold(0, |left, place| left << 1 | matches(place));
        while left != 0 {
            let way = left.trailing_zeros() as usize;
            self.count_inspected(1);
            if let Some(slot) = ways.get(way).and_then(|place| self.slot_at(*place))
                && self.rows.get(slot).is_some_and(|row| row.key() == wanted.key)
            {
                return Some((way, slot));
            }
            left &= left - 1;
        }
        None
    }

    /// The slot of `wanted`, if it is in the table.
    #[inline]
    pub(super) fn find(&self, wanted: Hashed) -> Option<usize> {
        let bucket = self.bucket(wanted.hash);
        match self.find_in(bucket, wanted) {
            Some((_, slot)) => Some(slot),
            None if self.strays == 0 => None,
            None => self.find_further(bucket, wanted).map(|(_, _, slot)| slot),
        }
    }

    /// Bucket, way and slot of `wanted` outside of its home bucket.
    #[cold]
    fn find_further(&self, bucket: usize, wanted: Hashed) -> Option<(usize, usize, usize)> {
        if *self.astray.get(bucket)? == 0 {
            return None;
        }
        let mut others = self.further(bucket);
        others.find_map(|other| self.find_in(other, wanted).map(|(way, slot)| (other, way, slot)))
    }

    /// The buckets after `bucket`, wrapping around after the last.
    fn further(&self, bucket: usize) -> impl Iterator<Item = usize> + use<R> {
        let buckets = self.index.len();
        (1..buckets.min(MAX_PROBE_LENGTH + 1)).map(move |step| (bucket + step) % buckets)
    }

    /// The row in `slot`, in use or not.
    #[inline]
    pub(super) fn get(&self, slot: usize) -> Option<&R> {
        self.rows.get(slot)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut R> {
        self.rows.get_mut(slot)
    }

    pub(super) fn row(&self, wanted: Hashed) -> Option<&R> {
        self.rows.get(self.find(wanted)?)
    }

    pub(super) fn row_mut(&mut self, wanted: Hashed) -> Option<&mut R> {
        let slot = self.find(wanted)?;
        self.rows.get_mut(slot)
    }

    /// Returns the slot of `wanted`, or a new one: a free slot, or if its bucket is full, the slot of the entry in the
    /// bucket with the smallest `worth`.
    pub(super) fn claim(&mut self, wanted: Hashed, worth: impl Fn(Occupant<'_, R>) -> u64) -> Result<usize, Claim> {
        let mut bucket = self.bucket(wanted.hash);
        let (way, claimed) = match self.find_in(bucket, wanted) {
            Some((way, slot)) => (way, Ok(slot)),
            None => {
                if self.is_dense(MAX_FILL_DIVISOR) {
                    self.grow();
                    bucket = self.bucket(wanted.hash);
                }
                let (way, claim) = self.insert(bucket, wanted, worth);
                (way, Err(claim))
            }
        };
        // The most recent entry first.
        if let Some(ways) = self.index.get_mut(bucket).and_then(|ways| ways.get_mut(..=way)) {
            ways.rotate_right(1);
        }
        claimed
    }

    /// Returns the slot of `wanted`, or a new one. Entries are evicted only if no row is free: the inspected row with
    /// the smallest `worth`. An entry that `stays` is evicted only if all inspected rows do.
    pub(super) fn claim_beside(
        &mut self,
        wanted: Hashed,
        worth: impl Fn(&R) -> u32,
        stays: impl Fn(&R) -> bool,
    ) -> Result<usize, Claim> {
        if let Some(slot) = self.find(wanted) {
            return Ok(slot);
        }
        if self.is_dense(MAX_FILL_DIVISOR) {
            self.grow();
        }
        // An entry that stays is worth more than any that does not.
        let worth = |row: &R| u64::from(stays(row)) << 32 | u64::from(worth(row));
        let is_full = self.used == self.slots;
        if is_full && let Some(key) = self.least_worth(worth) {
            self.remove(self.hashed(key));
        }
        let home = self.bucket(wanted.hash);
        let has_room = |bucket: &usize| {
            self.count_inspected(1);
            self.index.get(*bucket).is_some_and(|ways| ways.contains(&0))
        };
        let bucket = std::iter::once(home).chain(self.further(home)).find(has_room).unwrap_or(home);
        let (_, claim) = self.insert(bucket, wanted, |occupant| worth(occupant.row));
        if bucket != home {
            self.add_stray(home);
        }
        Err(Claim { evicted: is_full || claim.evicted, ..claim })
    }

    /// Returns the key of the row with the smallest `worth` among the next [`EVICTION_RUNS`] runs; the next call
    /// inspects the rows after them.
    fn least_worth(&mut self, worth: impl Fn(&R) -> u64) -> Option<TargetKey> {
        let share = self.slots / EVICTION_RUNS;
        let start = if self.hand < share { self.hand } else { 0 };
        let end = (start + RUN_LEN).min(share);
        self.hand = end;
        let runs = (0..EVICTION_RUNS).filter_map(|run| self.rows.get(run * share + start..run * share + end));
        let rows = runs.flatten().filter(|row| row.key().is_in_use()).inspect(|_| self.count_inspected(1));
        rows.min_by_key(|row| worth(row)).map(Row::key)
    }

    /// Inserts `wanted`, which is not in the table, into `bucket`, and returns its way.
    fn insert(&mut self, bucket: usize, wanted: Hashed, worth: impl Fn(Occupant<'_, R>) -> u64) -> (usize, Claim) {
        let none = (0, Claim { slot: 0, evicted: false });
        let Some(ways) = self.index.get(bucket) else { return none };
        let empty = ways.iter().position(|place| *place == 0);
        let (way, slot) = match empty {
            Some(way) => (way, self.allocate_row()),
            None => {
                // Among equals the entry that was claimed the longest time ago.
                self.count_inspected(WAYS);
                // A loop, because iterator adapters take twice as many instructions.
                let mut least: Option<(u64, usize, usize)> = None;
                for age in (0..WAYS).rev() {
                    let Some(place) = ways.get(age) else { continue };
                    let Some(slot) = self.slot_at(*place) else { continue };
                    let [rank, ..] = (place >> self.number_bits).to_le_bytes();
                    let Some(row) = self.rows.get(slot) else { continue };
                    let worth = worth(Occupant { age, rank: rank & RANKS, row });
                    if least.is_none_or(|(known, ..)| worth < known) {
                        least = Some((worth, age, slot));
                    }
                }
                let Some((_, way, slot)) = least else { return none };
                (way, slot)
            }
        };
        let place = self.tag(wanted.hash) | u32::try_from(slot + 1).unwrap_or(0);
        if let Some(held) = self.index.get_mut(bucket).and_then(|ways| ways.get_mut(way)) {
            *held = place;
        }
        let gone = self.rows.get_mut(slot).map(|row| {
            let gone = row.key();
            row.assign(wanted.key);
            gone
        });
        match (empty, gone) {
            (None, Some(gone)) => self.remove_stray(gone, bucket),
            _ => self.used += 1,
        }
        (way, Claim { slot, evicted: empty.is_none() })
    }

    /// Takes a free row. The caller must have made sure that there is one.
    fn allocate_row(&mut self) -> usize {
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

    /// Records that `key` has been removed from `bucket`.
    fn remove_stray(&mut self, key: TargetKey, bucket: usize) {
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

    /// Sets the rank of the row of `known` in `slot`, at most [`RANKS`].
    #[inline]
    pub(super) fn rank(&mut self, known: Hashed, slot: usize, rank: u8) {
        let (bucket, bits) = (self.bucket(known.hash), self.number_bits);
        let numbers = !(u32::MAX << bits);
        let places = self.index.get_mut(bucket).into_iter().flatten();
        if let Some(place) = places.into_iter().find(|place| (**place & numbers) as usize == slot + 1) {
            *place = *place & !(u32::from(RANKS) << bits) | u32::from(rank.min(RANKS)) << bits;
        }
    }

    /// All rows in use.
    pub(super) fn iter(&self) -> impl Iterator<Item = &R> + '_ {
        self.rows.iter().take(self.begun).filter(|row| row.key().is_in_use())
    }

    /// The row in `slot`; `None` if it is not in use.
    pub(super) fn at(&self, slot: usize) -> Option<&R> {
        self.rows.get(slot).filter(|row| row.key().is_in_use())
    }

    /// Removes `known` and returns its slot; `None` if it is not in the table.
    pub(super) fn remove(&mut self, known: Hashed) -> Option<usize> {
        let home = self.bucket(known.hash);
        let near = self.find_in(home, known).map(|(way, slot)| (home, way, slot));
        let further = || (self.strays > 0).then(|| self.find_further(home, known))?;
        let (bucket, way, slot) = near.or_else(further)?;
        if let Some(ways) = self.index.get_mut(bucket).and_then(|ways| ways.get_mut(way..)) {
            // Empty places come after the others.
            ways.rotate_left(1);
            if let Some(place) = ways.last_mut() {
                *place = 0;
            }
        }
        self.free_row(slot);
        self.remove_stray(known.key, bucket);
        Some(slot)
    }

    /// Empties the whole table.
    pub(super) fn clear(&mut self) {
        self.index.fill([0; WAYS]);
        self.astray.fill(0);
        self.rows.iter_mut().take(self.begun).for_each(|row| row.assign(TargetKey::NONE));
        (self.used, self.strays, self.begun, self.free, self.hand) = (0, 0, 0, 0, 0);
    }
}
