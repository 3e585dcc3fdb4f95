//! Grows the index of a table in place: the entries of one bucket move to the buckets that replace it, in the same
//! order.

use super::{GROWTH_FACTOR, HashTable, Row, WAYS};

impl<R: Row> HashTable<R> {
    /// True if more than one place in `sparse` is used, in an index that can grow.
    pub(super) fn is_dense(&self, sparse: usize) -> bool {
        let buckets = self.index.len();
        buckets < self.buckets && self.used * sparse > buckets * WAYS
    }

    /// Grows the index by one step. Takes about 50 ns per entry; happens three times in the life of a table.
    #[cold]
    pub(super) fn grow(&mut self) {
        let before = self.index.len();
        self.index.resize((before * GROWTH_FACTOR).min(self.buckets), [0; WAYS]);
        self.astray.fill(0);
        self.astray.resize(self.index.len(), 0);
        let strays = std::mem::take(&mut self.strays);
        // From the end, so that entries move to buckets that are already empty.
        for old in (0..before).rev() {
            let places = self.index.get_mut(old).map(std::mem::take).unwrap_or_default();
            for place in places.into_iter().filter(|place| *place != 0) {
                let row = self.slot_at(place).and_then(|slot| self.rows.get(slot));
                let home = row.map(|row| self.bucket(self.hashed(row.key()).hash));
                if let Some(home) = home.filter(|home| home / GROWTH_FACTOR == old) {
                    self.append(home, place);
                }
            }
        }
        if strays > 0 {
            self.append_strays();
        }
    }

    /// Inserts the rows that were outside of their home bucket into the index.
    fn append_strays(&mut self) {
        for slot in 0..self.begun {
            let Some(key) = self.at(slot).map(Row::key) else { continue };
            let wanted = self.hashed(key);
            let home = self.bucket(wanted.hash);
            if self.find_in(home, wanted).is_some() {
                continue;
            }
            let place = self.tag(wanted.hash) | u32::try_from(slot + 1).unwrap_or(0);
            let mut near = std::iter::once(home).chain(self.further(home));
            match near.find(|bucket| self.append(*bucket, place)) {
                Some(bucket) if bucket == home => {}
                Some(_) => self.add_stray(home),
                // Unreachable: the index is nearly empty.
                None => self.free_row(slot),
            }
        }
    }

    /// Appends a place to a bucket; false if it is full.
    fn append(&mut self, bucket: usize, place: u32) -> bool {
        let empty = self.index.get_mut(bucket).and_then(|ways| ways.iter_mut().find(|held| **held == 0));
        empty.map(|held| *held = place).is_some()
    }
}
