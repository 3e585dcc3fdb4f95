//! Tests the bounded hash table: evictions, ranks, growth of the index, and the number of inspected slots.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn key(n: u32) -> Hashed {
    Hashed::nth(n)
}

/// A row that holds a number.
#[derive(Clone)]
struct Noted(TargetKey, u32);

impl Row for Noted {
    const EMPTY: Self = Self(TargetKey::NONE, 0);

    fn key(&self) -> TargetKey {
        self.0
    }

    fn assign(&mut self, key: TargetKey) {
        *self = Self(key, 0);
    }
}

fn table(entries: usize) -> HashTable<Noted> {
    HashTable::new(entries, Hashed::SECRET)
}

/// All numbers below `end` that are in the table.
fn found(table: &HashTable<Noted>, end: u32) -> Vec<u32> {
    (0..end).filter(|n| table.find(key(*n)).is_some()).collect()
}

#[test]
fn full_table_evicts_least_valuable_entry() {
    let mut table = table(8);
    for n in 1..=8 {
        let Err(claim) = table.claim(key(n), |occupant| occupant.row.1.into()) else { panic!("{n} is new") };
        assert!(!claim.evicted);
        table.get_mut(claim.slot).unwrap().1 = n;
    }
    let Err(claim) = table.claim(key(9), |occupant| occupant.row.1.into()) else { panic!("9 is new") };
    assert!(claim.evicted);
    assert_eq!(found(&table, 12), (2..=9).collect::<Vec<_>>(), "1 was the least valuable");
    assert_eq!((table.used(), table.begun(), table.slots), (8, 8, 8));
    assert_eq!(table.get(claim.slot).unwrap().1, 0, "a new entry does not inherit the data of another");
}

#[test]
fn full_table_evicts_oldest_of_lowest_rank() {
    let mut table = table(8);
    let claim = |table: &mut HashTable<Noted>, n| {
        let worth = |occupant: Occupant<'_, Noted>| u64::from(occupant.rank) << 8 | (OLDEST - occupant.age) as u64;
        let (Ok(slot) | Err(Claim { slot, .. })) = table.claim(key(n), worth);
        slot
    };
    for n in 0..8 {
        let slot = claim(&mut table, n);
        // The odd ones have the higher of two ranks.
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
fn removed_entry_frees_its_slot() {
    let mut table = table(8);
    let Err(Claim { slot, .. }) = table.claim(key(1), |_| 0) else { panic!("1 is new") };
    assert_eq!(table.remove(key(1)), Some(slot));
    assert!(table.remove(key(1)).is_none() && table.at(slot).is_none() && table.iter().next().is_none());
    assert_eq!(table.used(), 0);
    let Err(claim) = table.claim(key(2), |_| 0) else { panic!("2 is new") };
    assert_eq!((claim.slot, claim.evicted, table.begun()), (slot, false, 1));
}

#[test]
fn new_entries_use_prefaulted_memory() {
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
    assert_eq!(small.rows.len(), 8, "never more than the table's size");
}

#[test]
fn growing_index_loses_no_entry() {
    for prepared in [false, true] {
        let mut table = table(100_000);
        let (start, room) = (table.index.len(), table.index.capacity());
        assert!(start * WAYS * 4 < 8_192, "{start}");
        // More keys of one bucket than it holds, so that some are in other buckets when the index grows.
        let same_bucket: Vec<u32> = (0..).filter(|n| table.bucket(key(*n).hash) == 7).take(20).collect();
        let others: Vec<u32> = (1_000_000..1_040_000).collect();
        for (count, n) in same_bucket.iter().chain(&others).enumerate() {
            let Err(claim) = table.claim_beside(key(*n), |_| 0, |_| true) else { panic!("{n} is new") };
            assert!(!claim.evicted, "{n}");
            table.get_mut(claim.slot).unwrap().1 = *n;
            if count == 19 {
                assert_eq!(table.strays, 12);
            }
            if prepared && count % 64 == 0 {
                table.prepare();
                assert!(!table.is_dense(MAX_FILL_DIVISOR + 1));
            }
        }
        let all = || same_bucket.iter().chain(&others);
        assert!(all().all(|n| table.row(key(*n)).is_some_and(|row| row.1 == *n)));
        assert_eq!((table.index.len(), table.index.capacity()), (start * 64, room));
        assert_eq!((table.used(), table.slots), (40_020, start * 64 * WAYS));
        all().for_each(|n| assert!(table.remove(key(*n)).is_some()));
        assert_eq!((table.used(), table.strays), (0, 0));
    }
}

#[test]
fn ranks_survive_index_growth() {
    let mut table = table(100_000);
    let same_bucket: Vec<u32> = (0..).filter(|n| table.bucket(key(*n).hash) == 7).take(8).collect();
    for (rank, n) in (0..).zip(&same_bucket) {
        let (Ok(slot) | Err(Claim { slot, .. })) = table.claim(key(*n), |_| 0);
        table.rank(key(*n), slot, rank);
    }
    table.grow();
    for bucket in 7 * GROWTH_FACTOR..8 * GROWTH_FACTOR {
        let places = table.index[bucket].iter().filter(|place| **place != 0);
        let ranks: Vec<u32> = places.map(|place| place >> table.number_bits & 15).collect();
        assert!(ranks.is_sorted_by(|a, b| a > b), "the latest first: {ranks:?}");
    }
    assert!(same_bucket.iter().all(|n| table.find(key(*n)).is_some()));
}

#[test]
fn permanent_entries_survive_evictions() {
    let mut table = table(512);
    // Three of four slots are used: one bucket in four is too small for its keys.
    for n in 0..384 {
        let Err(claim) = table.claim_beside(key(n), |_| 0, |_| true) else { panic!("{n} is new") };
        assert!(!claim.evicted, "{n}");
    }
    assert!(table.strays > 10, "{} of them are in another bucket", table.strays);
    assert_eq!(table.used(), 384);
    assert_eq!(found(&table, 384).len(), 384);
    assert!(table.claim_beside(key(3), |_| 0, |_| true).is_ok(), "a present key is not inserted twice");
    (0..384).step_by(2).for_each(|n| assert!(table.remove(key(n)).is_some()));
    assert_eq!((found(&table, 384).len(), table.used()), (192, 192));
    (0..384).step_by(2).for_each(|n| assert!(table.claim_beside(key(n), |_| 0, |_| true).is_err()));
    assert_eq!(found(&table, 384).len(), 384);
    (0..384).for_each(|n| assert!(table.remove(key(n)).is_some()));
    assert_eq!((table.used(), table.strays), (0, 0));
    assert!(table.astray.iter().all(|astray| *astray == 0));
}

#[test]
fn full_table_of_keepers_evicts_least_valuable() {
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

/// Fills a table that evicts only when it is full; `worth` gives the value of each number.
fn filled(entries: u32, worth: impl Fn(u32) -> u32) -> HashTable<Noted> {
    let mut table = HashTable::with_spare_index(entries as usize, Hashed::SECRET);
    for n in 0..entries {
        let Err(claim) = table.claim_beside(key(n), |row: &Noted| row.1, |_| true) else { panic!("{n} is new") };
        assert!(!claim.evicted, "{n}");
        table.get_mut(claim.slot).unwrap().1 = worth(n);
    }
    assert_eq!((table.used(), table.slots), (entries as usize, entries as usize));
    table
}

#[test]
fn full_table_keeps_adjacent_valuable_rows() {
    let mut table = filled(4_096, |n| if n < 3_072 { 100 } else { 1 });
    for n in 4_096..50_000 {
        let Err(claim) = table.claim_beside(key(n), |row| row.1, |_| true) else { panic!("{n} is new") };
        assert!(claim.evicted && claim.slot >= 3_072, "{n}");
        table.get_mut(claim.slot).unwrap().1 = 2;
    }
    assert_eq!((found(&table, 3_072).len(), table.used()), (3_072, 4_096));
}

#[test]
fn full_table_inspects_few_slots_per_newcomer() {
    let mut table = filled(8_192, |_| 1);
    table.inspected.set(0);
    let newcomers = 8_192..40_000;
    let count = newcomers.len();
    for n in newcomers {
        assert!(table.find(key(n)).is_none());
        assert!(table.claim_beside(key(n), |row| row.1, |_| true).is_err());
    }
    let each = table.inspected.get() / count;
    assert!((EVICTION_RUNS * RUN_LEN..EVICTION_RUNS * RUN_LEN + 12).contains(&each), "{each}");
    assert_eq!(found(&table, 40_000).len(), 8_192);
}

#[test]
fn largest_table_distinguishes_its_rows() {
    // Only the index: most of the rows are never touched.
    let table = table(1 << 24);
    assert_eq!((table.number_bits, table.tag(u64::MAX)), (25, 0xe000_0000));
    assert_eq!((table.slots, table.begun()), (1 << 24, 0));
    assert_eq!(table.slot_at(u32::try_from(table.slots).unwrap() | 0xfe00_0000), Some(table.slots - 1));
    assert_eq!(table.slot_at(0xfe00_0000), None);
}

#[derive(Clone, Debug)]
enum TableStep {
    Claim(u32),
    Beside(u32),
    Remove(u32),
    Clear,
    Prepare,
}

fn steps() -> impl Strategy<Value = Vec<TableStep>> {
    let step = prop_oneof![
        40 => (0..150_u32).prop_map(TableStep::Claim),
        30 => (0..150_u32).prop_map(TableStep::Remove),
        1 => Just(TableStep::Clear),
        2 => Just(TableStep::Prepare),
    ];
    let beside = prop_oneof![
        40 => (0..150_u32).prop_map(TableStep::Beside),
        20 => (0..150_u32).prop_map(TableStep::Remove),
        1 => Just(TableStep::Clear),
    ];
    prop_oneof![prop::collection::vec(step, 0..600), prop::collection::vec(beside, 0..600)]
}

proptest! {
    /// After any sequence of operations, the table holds the entries of a plain map, except evicted ones.
    #[test]
    fn table_agrees_with_map_except_evictions(entries in 1_usize..130, steps in steps()) {
        let mut table = table(entries);
        let mut model: HashMap<u32, u32> = HashMap::new();
        for (at, step) in (1..).zip(steps) {
            match step {
                TableStep::Claim(n) | TableStep::Beside(n) => {
                    let claim = match step {
                        TableStep::Beside(_) => table.claim_beside(key(n), |row| row.1, |row| row.1 % 2 == 0),
                        _ => table.claim(key(n), |occupant| occupant.row.1.into()),
                    };
                    let slot = match claim {
                        Ok(slot) => {
                            prop_assert_eq!(Some(&table.get(slot).unwrap().1), model.get(&n));
                            slot
                        }
                        Err(Claim { slot, evicted }) => {
                            prop_assert!(!model.contains_key(&n));
                            prop_assert_eq!(table.get(slot).unwrap().1, 0, "a new row is empty");
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
                TableStep::Remove(n) => prop_assert_eq!(table.remove(key(n)).is_some(), model.remove(&n).is_some()),
                TableStep::Clear => {
                    table.clear();
                    model.clear();
                }
                TableStep::Prepare => table.prepare(),
            }
            prop_assert_eq!(table.used(), model.len());
            prop_assert_eq!(table.iter().count(), model.len());
            for n in 0..150 {
                prop_assert_eq!(table.row(key(n)).map(|row| row.1), model.get(&n).copied());
            }
        }
        for n in 0..150 {
            table.remove(key(n));
        }
        prop_assert_eq!((table.used(), table.strays), (0, 0));
    }
}

/// Numbers whose keys have the same home bucket in every table of these tests.
static ONE_BUCKET: std::sync::LazyLock<Vec<u32>> =
    std::sync::LazyLock::new(|| (0..).filter(|n| key(*n).hash >> 55 == 7).take(300).collect());

proptest! {
    /// Also with keys of a single bucket, as an attacker who knows the secret would choose them.
    #[test]
    fn call_inspects_bounded_number_of_slots(
        entries in 1_usize..500,
        spare in any::<bool>(),
        steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0_usize..300), 0..2_000),
    ) {
        let mut table = if spare { HashTable::with_spare_index(entries, Hashed::SECRET) } else { table(entries) };
        for (one_bucket, remove, n) in steps {
            let key = key(if one_bucket { ONE_BUCKET[n] } else { u32::try_from(n).unwrap() });
            table.inspected.set(0);
            let _ = match (remove, spare) {
                (true, _) => table.remove(key).is_some(),
                (false, true) => table.claim_beside(key, |row| row.1, |row| row.1 % 2 == 0).is_ok(),
                (false, false) => table.claim(key, |occupant| occupant.row.1.into()).is_ok(),
            };
            prop_assert!(table.inspected.get() <= MAX_INSPECTED, "{}", table.inspected.get());
            table.inspected.set(0);
            let _ = table.find(key);
            prop_assert!(table.inspected.get() <= MAX_INSPECTED, "{}", table.inspected.get());
            prop_assert!(table.used() <= table.slots);
        }
    }
}
