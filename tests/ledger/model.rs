//! Compares the ledger with a list in memory over random sequences of bans and their ends.

use std::time::{Duration, SystemTime};

use portsentry::ledger::{BanAuthor, BanRecord, EndRecord, Ending, Ledger, LedgerEntry, LoadedState};
use portsentry::types::BanTarget;
use proptest::prelude::*;

use super::support::{State, at, ban, by_hand, lifted, source, summary};

#[derive(Clone, Debug)]
enum Step {
    Ban(u32, u64, Option<u64>, bool),
    Lift(u32, u64),
    Expire(u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let seconds = 0..200_u64;
    prop_oneof![
        4 => (0..4_u32, seconds.clone(), prop::option::weighted(0.8, 0..60_u64), prop::bool::weighted(0.2))
            .prop_map(|(number, when, span, capped)| Step::Ban(number, when, span, capped)),
        2 => (0..4_u32, seconds.clone()).prop_map(|(number, when)| Step::Lift(number, when)),
        2 => seconds.prop_map(Step::Expire),
        1 => Just(Step::Restart),
    ]
}

/// A ban on evidence below the ceiling that was not lifted.
fn is_strike(entry: &LedgerEntry) -> bool {
    let lifted = entry.ended.as_ref().is_some_and(|ended| matches!(ended.how, Ending::Lifted { .. }));
    entry.ban.author == BanAuthor::Detector && !entry.ban.capped && !lifted
}

/// The ledger as a list.
#[derive(Default)]
struct Model(Vec<LedgerEntry>);

impl Model {
    fn end(&mut self, target: BanTarget, how: Ending, when: SystemTime) -> bool {
        let open = self.0.iter_mut().find(|entry| entry.ban.target == target && entry.ended.is_none());
        let Some(open) = open else { return false };
        open.ended = Some(match open.ban.until {
            Some(until) if until <= when => EndRecord { how: Ending::Expired, at: until },
            _ => EndRecord { how, at: when },
        });
        true
    }

    fn record(&mut self, ban: BanRecord) {
        self.end(ban.target, Ending::Replaced, ban.since);
        let strikes = self.0.iter().filter(|entry| entry.ban.target == ban.target && is_strike(entry)).count();
        self.0.push(LedgerEntry { ban, strikes: strikes.try_into().unwrap(), ended: None });
    }

    fn expire(&mut self, now: SystemTime) -> Vec<BanTarget> {
        let is_over = |entry: &LedgerEntry| entry.ended.is_none() && entry.ban.until.is_some_and(|until| until <= now);
        let over: Vec<_> = self.0.iter().filter(|entry| is_over(entry)).map(|entry| entry.ban.target).collect();
        over.iter().for_each(|target| assert!(self.end(*target, Ending::Expired, now)));
        over
    }

    fn active(&self, now: SystemTime) -> Vec<LedgerEntry> {
        let lasts = |entry: &&LedgerEntry| entry.ended.is_none() && entry.ban.until.is_none_or(|until| until > now);
        self.0.iter().filter(lasts).cloned().collect()
    }

    fn strikes(&self, target: BanTarget, forget: Duration, now: SystemTime) -> usize {
        let end = |entry: &LedgerEntry| entry.ended.as_ref().map(|ended| ended.at).or(entry.ban.until);
        let counts = |entry: &&LedgerEntry| {
            let recent = end(entry).is_none_or(|end| end > now - forget);
            entry.ban.target == target && recent && is_strike(entry)
        };
        self.0.iter().filter(counts).count()
    }
}

fn sorted<T>(mut items: Vec<T>, key: impl Fn(&T) -> BanTarget) -> Vec<T> {
    items.sort_by_key(key);
    items
}

fn agree(state: &State, ledger: &Ledger, model: &Model, now: SystemTime) {
    let active = ledger.reader().active(now).unwrap();
    assert_eq!(active.unreadable, 0);
    let key = |entry: &LedgerEntry| entry.ban.target;
    let restored = LoadedState::read(ledger.reader(), Duration::from_secs(50), now, 4).unwrap().active;
    let as_restored = |entry: &LedgerEntry| summary(&entry.ban);
    assert_eq!(restored, active.items.iter().map(as_restored).collect::<Vec<_>>());
    assert_eq!(sorted(active.items, key), sorted(model.active(now), key));
    for number in (0..4).map(source) {
        let history: Vec<_> = model.0.iter().filter(|entry| entry.ban.target == number).cloned().collect();
        assert_eq!(ledger.reader().bans_of(number).unwrap().items, history);
        let forget = Duration::from_secs(50);
        let strikes = model.strikes(number, forget, now);
        let all = LoadedState::read(ledger.reader(), forget, now, 4).unwrap();
        let history = all.histories.iter().find(|history| history.target == number);
        assert_eq!((history.map_or(0, |history| history.strikes) as usize, all.unreadable), (strikes, 0));
    }
    let open = model.0.iter().filter(|entry| entry.ended.is_none()).count() as u64;
    assert_eq!(state.counts(), (open, model.0.len() as u64));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ledger_agrees_with_model(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        let (state, mut ledger) = State::open_new();
        let mut model = Model::default();
        for step in steps {
            let now = match step {
                Step::Ban(number, when, span, capped) => {
                    let new = match span {
                        Some(span) => BanRecord { capped, ..ban(source(number), at(when), span) },
                        None => by_hand(source(number), at(when)),
                    };
                    ledger.record(std::slice::from_ref(&new)).unwrap();
                    model.record(new);
                    at(when)
                }
                Step::Lift(number, when) => {
                    let how = lifted("alice");
                    let ended = ledger.ended(source(number), how.clone(), at(when)).unwrap();
                    prop_assert_eq!(ended, model.end(source(number), how, at(when)));
                    at(when)
                }
                Step::Expire(when) => {
                    let over = sorted(ledger.expire(at(when)).unwrap().items, |target| *target);
                    prop_assert_eq!(over, sorted(model.expire(at(when)), |target| *target));
                    at(when)
                }
                Step::Restart => {
                    drop(ledger);
                    ledger = state.ledger();
                    at(0)
                }
            };
            agree(&state, &ledger, &model, now);
        }
    }
}
