//! Tests the contents of the ledger: bans, strikes, history and evidence.

use std::time::{Duration, Instant, SystemTime};

use portsentry::config::Config;
use portsentry::engine::{
    Class, Engine, Grade, HashKey, Host, LastBan, Local, NoLookup, Observation, ProtocolSettings, RecentBans, Settings,
    Verdict,
};
use portsentry::ledger::{
    BanAuthor, BanRecord, EndRecord, Ending, FleetLift, KnownPeer, Ledger, LedgerChange, LedgerEntry, LiftedBy,
    LoadedState, Logged, Opened, RECOUNT_INTERVAL, Reader, Retention, decisions, logged, services,
};
use portsentry::types::{Backend, BanTarget, Expiry, Protocol, Response, Timestamp};

use netns_lab::slowness;

use super::support::{State, at, ban, by_hand, intruder, lifted, source, strikes, target};

const DAY: u64 = 86_400;

fn entry(ban: BanRecord, strikes: u32, ended: Option<EndRecord>) -> LedgerEntry {
    LedgerEntry { ban, strikes, ended }
}

#[test]
fn ban_is_complete_after_restart() {
    let state = State::new();
    let bans = [
        ban(target("192.0.2.7"), at(0), DAY),
        ban(target("2001:db8:1:2:3::4"), at(1), DAY),
        ban(target("fe80::1"), at(2), DAY),
        by_hand(target("198.51.100.9"), at(3)),
        BanRecord::wanted_by(
            BanAuthor::Import,
            target("203.0.113.1"),
            at(4),
            Expiry::After(Duration::MAX),
            Backend::Nft,
        ),
    ];
    {
        let (mut ledger, opened) = state.open();
        assert_eq!(opened, Opened::Fresh);
        ledger.record(&bans).unwrap();
    }
    let (ledger, opened) = state.open();
    assert_eq!(opened, Opened::Existing);
    let found = ledger.reader().active(at(10)).unwrap();
    assert_eq!(found.unreadable, 0);
    let [first, second, third, endless, beyond] = bans.map(|ban| entry(ban, 0, None));
    assert_eq!(beyond.ban.until, None, "an end beyond the range of the clock is permanent");
    assert_eq!(found.items, [endless, beyond, first, second, third]);
}

#[test]
fn pages_contain_every_ban_once() {
    let (state, mut ledger) = State::open_new();
    let never = |number| by_hand(source(number), at(0));
    let mut bans: Vec<BanRecord> = (0..5).map(never).collect();
    // Most bans have the same end.
    bans.extend((5..20).map(|number| ban(source(number), at(0), DAY)));
    bans.extend((20..25).map(|number| ban(source(number), at(number.into()), DAY)));
    bans.push(ban(source(25), at(0), 5));
    ledger.record(&bans).unwrap();
    ledger.ended(source(7), Ending::Expired, at(9)).unwrap();
    let all = |ledger: &Ledger, most, now| {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = ledger.reader().page(after, most, at(now)).unwrap();
            assert!(page.len() <= most);
            let Some((last, _)) = page.last() else { return found };
            after = Some(last.to_string().parse().unwrap());
            found.extend(page.into_iter().map(|(_, entry)| entry.map(|entry| entry.ban.target)));
        }
    };
    let expected: Vec<_> =
        ledger.reader().active(at(10)).unwrap().items.iter().map(|entry| Some(entry.ban.target)).collect();
    assert_eq!(expected.len(), 24, "the two that have ended are left out");
    for most in [1, 2, 3, 5, 7, 24, 100] {
        assert_eq!(all(&ledger, most, 10), expected, "{most} in a page");
    }
    let (last, _) = ledger.reader().page(None, 10, at(10)).unwrap().pop().unwrap();
    assert_eq!(
        ledger.reader().page(Some(last), 10, at(9 * DAY)).unwrap(),
        [],
        "a ban that has ended since is left out"
    );
    intruder(&state.path()).execute("UPDATE ban SET ports = 'x' WHERE subject = '10.0.0.9'", []).unwrap();
    let found = all(&ledger, 3, 10);
    assert_eq!((found.len(), found.iter().filter(|target| target.is_none()).count()), (24, 1), "an invalid row");
}

#[test]
fn fleet_lifts_are_replaced_as_whole() {
    let state = State::new();
    let lift = |number: u32, seconds, by| FleetLift { target: source(number), until: at(seconds), by };
    let first = [lift(1, 60, LiftedBy::Host), lift(2, 90, LiftedBy::Fleet)];
    state.ledger().write(&[LedgerChange::FleetLifts(first.to_vec())]).unwrap();
    let mut ledger = state.ledger();
    assert_eq!(decisions::fleet_lifts(ledger.reader(), 9).unwrap().items, [first[1], first[0]]);
    assert_eq!(decisions::fleet_lifts(ledger.reader(), 1).unwrap().items, [first[1]], "the one that ends last");
    ledger.clock_was_set(1_000_000).unwrap();
    assert_eq!(decisions::fleet_lifts(ledger.reader(), 1).unwrap().items, [lift(2, 91, LiftedBy::Fleet)]);
    ledger.write(&[LedgerChange::FleetLifts(vec![lift(3, 60, LiftedBy::Host)])]).unwrap();
    assert_eq!(decisions::fleet_lifts(ledger.reader(), 9).unwrap().items, [lift(3, 60, LiftedBy::Host)]);
    intruder(&state.path()).execute("UPDATE fleet_lift SET author = 'x'", []).unwrap();
    let found = decisions::fleet_lifts(ledger.reader(), 9).unwrap();
    assert_eq!((found.items.len(), found.unreadable), (0, 1));
}

#[test]
fn known_peers_are_replaced_as_whole() {
    let state = State::new();
    let peer = |number: u32, last| KnownPeer { target: source(number), since: at(1), last: at(last) };
    state.ledger().write(&[LedgerChange::KnownPeers(vec![peer(1, 60), peer(2, 90)])]).unwrap();
    let mut ledger = state.ledger();
    assert_eq!(services::known_peers(ledger.reader(), 9).unwrap().items, [peer(2, 90), peer(1, 60)]);
    assert_eq!(
        services::known_peers(ledger.reader(), 1).unwrap().items,
        [peer(2, 90)],
        "the one with the latest connection"
    );
    ledger.write(&[LedgerChange::KnownPeers(vec![peer(3, 60)])]).unwrap();
    assert_eq!(services::known_peers(ledger.reader(), 9).unwrap().items, [peer(3, 60)]);
    intruder(&state.path()).execute("UPDATE known_peer SET target = '192.0.2.007'", []).unwrap();
    let found = services::known_peers(ledger.reader(), 9).unwrap();
    assert_eq!((found.items.len(), found.unreadable), (0, 1));
}

#[test]
fn ledger_without_peers_is_migrated() {
    let state = State::new();
    state.ledger().record(&[ban(source(1), at(0), 60)]).unwrap();
    downgrade_to_format_10(&state);
    let mut ledger = state.ledger();
    assert_eq!(services::known_peers(ledger.reader(), 9).unwrap().items, []);
    assert_eq!(ledger.reader().active(at(1)).unwrap().items.len(), 1, "its bans are kept");
    ledger
        .write(&[LedgerChange::KnownPeers(vec![KnownPeer { target: source(1), since: at(1), last: at(2) }])])
        .unwrap();
    assert_eq!(services::known_peers(ledger.reader(), 9).unwrap().items.len(), 1);
}

/// Converts the ledger to format 10.
fn downgrade_to_format_10(state: &State) {
    let step = "DROP TABLE known_peer; DROP INDEX ban_undo; ALTER TABLE ban DROP COLUMN undo;
        ALTER TABLE ban DROP COLUMN guest_port; PRAGMA user_version = 10";
    intruder(&state.path()).execute_batch(step).unwrap();
}

/// A ban by nft and the command.
fn commanded(number: u32, since: SystemTime, seconds: u64) -> BanRecord {
    BanRecord {
        backends: [Backend::Nft, Backend::Command].into_iter().collect(),
        ..ban(source(number), since, seconds)
    }
}

/// The targets whose commands have to be undone.
fn undo_due(ledger: &Ledger) -> Vec<BanTarget> {
    let (found, others) = ledger.reader().undo_due(99).unwrap();
    assert_eq!((found.unreadable, others), (0, 0));
    found.items.iter().map(|ban| ban.target).collect()
}

fn undone(number: u32, since: SystemTime, at: SystemTime) -> LedgerChange {
    LedgerChange::Undone { target: source(number), since, at }
}

#[test]
fn ended_command_is_due_until_undone() {
    let (state, ledger) = State::open_new();
    let mut ledger = ledger.undoing_commands(true);
    let bans = [commanded(1, at(0), 60), commanded(2, at(0), 60), commanded(3, at(0), 600), ban(source(4), at(0), 60)];
    ledger.record(&bans).unwrap();
    assert_eq!(undo_due(&ledger), [], "the bans are in force");
    // The command has begun another one.
    let moved = LedgerChange::Also(BanRecord { backends: Backend::Command.into(), ..ban(source(5), at(0), 60) });
    ledger.write(&[ban(source(5), at(0), 60).into(), moved]).unwrap();
    let _ = ledger.expire(at(60)).unwrap();
    assert!(ledger.ended(source(3), lifted("root"), at(61)).unwrap());
    assert_eq!(undo_due(&ledger), [source(1), source(2), source(3), source(5)]);
    ledger.write(&[undone(1, at(0), at(61)), undone(3, at(0), at(62))]).unwrap();
    // Banned again, without the command.
    ledger.record(&[ban(source(2), at(62), 60)]).unwrap();
    assert_eq!(undo_due(&state.ledger()), [source(5)], "a newer ban is in force");
    let _ = ledger.expire(at(122)).unwrap();
    assert_eq!(undo_due(&ledger), [source(2), source(5)]);
    let (found, others) = ledger.reader().undo_due(1).unwrap();
    assert_eq!((found.items[0].target, found.items.len(), others), (source(2), 1, 1));
    assert!(Reader::read(&state.path(), Reader::has_to_undo).unwrap());
    ledger.write(&[undone(2, at(0), at(123)), undone(5, at(0), at(123))]).unwrap();
    assert_eq!(undo_due(&ledger), []);
    assert!(!Reader::read(&state.path(), Reader::has_to_undo).unwrap());
}

#[test]
fn undone_ban_leaves_newer_one_due() {
    let (_state, ledger) = State::open_new();
    let mut ledger = ledger.undoing_commands(true);
    // The command of the first ban is undone before its end is recorded, that of the second one after a third ban began.
    ledger.write(&[commanded(1, at(0), 60).into(), undone(1, at(0), at(59))]).unwrap();
    let _ = ledger.expire(at(60)).unwrap();
    assert_eq!(undo_due(&ledger), []);
    let changes = [commanded(1, at(70), 60).into(), commanded(1, at(80), 60).into(), undone(1, at(70), at(90))];
    ledger.write(&changes).unwrap();
    let _ = ledger.expire(at(140)).unwrap();
    assert_eq!(undo_due(&ledger), [source(1)]);
    let (found, _) = ledger.reader().undo_due(99).unwrap();
    assert_eq!(found.items[0].since, at(80), "the ban that has ended last");
    ledger.write(&[undone(1, at(80), at(141))]).unwrap();
    assert_eq!(undo_due(&ledger), []);
}

#[test]
fn ledger_without_expiry_command_records_no_undo() {
    let (state, mut ledger) = State::open_new();
    ledger.record(&[commanded(1, at(0), 60), commanded(2, at(0), 600)]).unwrap();
    ledger.begin(at(1)).unwrap();
    let _ = ledger.expire(at(60)).unwrap();
    assert_eq!(undo_due(&ledger), []);
    // The operator configures one while the second ban is in force.
    let mut ledger = state.ledger().undoing_commands(true);
    ledger.begin(at(61)).unwrap();
    let _ = ledger.expire(at(600)).unwrap();
    assert_eq!(undo_due(&ledger), [source(2)]);
}

#[test]
fn older_ledger_undoes_only_open_bans() {
    let (state, ledger) = State::open_new();
    let mut ledger = ledger.undoing_commands(true);
    ledger.record(&[commanded(1, at(0), 60), commanded(2, at(0), 600), ban(source(3), at(0), 600)]).unwrap();
    let _ = ledger.expire(at(60)).unwrap();
    drop(ledger);
    downgrade_to_format_10(&state);
    assert!(!Reader::read(&state.path(), Reader::has_to_undo).unwrap(), "a reader changes nothing");
    let mut ledger = state.ledger().undoing_commands(true);
    ledger.begin(at(600)).unwrap();
    assert_eq!(undo_due(&ledger), [], "a ban that has ended counts as undone");
    // The second ban has ended during the upgrade.
    let _ = ledger.expire(at(600)).unwrap();
    assert_eq!(undo_due(&ledger), [source(2)]);
}

#[test]
fn ban_expires_exactly_at_its_time() {
    let (_state, mut ledger) = State::open_new();
    ledger.record(&[ban(source(1), at(0), 60)]).unwrap();
    let microsecond = Duration::from_micros(1);
    assert_eq!(ledger.reader().active(at(60) - microsecond).unwrap().items.len(), 1);
    assert_eq!(ledger.reader().active(at(60)).unwrap().items.len(), 0);
    assert!(ledger.expire(at(60) - microsecond).unwrap().items.is_empty());
    assert_eq!(ledger.expire(at(90)).unwrap().items, [source(1)]);
    assert!(ledger.expire(at(90)).unwrap().items.is_empty(), "an expiry is reported once");
    let ended = EndRecord { how: Ending::Expired, at: at(60) };
    assert_eq!(
        ledger.reader().bans_of(source(1)).unwrap().items[0].ended,
        Some(ended),
        "the time of the expiry counts, not the time when it was noticed"
    );
}

#[test]
fn lifted_ban_names_its_author() {
    let (_state, mut ledger) = State::open_new();
    let by = || lifted("alice'; DROP TABLE ban; --");
    ledger.record(&[ban(source(1), at(0), DAY), ban(source(2), at(0), DAY)]).unwrap();
    assert!(ledger.ended(source(1), by(), at(5)).unwrap());
    assert!(!ledger.ended(source(1), by(), at(6)).unwrap(), "the ban had already ended");
    assert!(!ledger.ended(source(3), by(), at(6)).unwrap(), "there was no ban");
    let active = ledger.reader().active(at(7)).unwrap().items;
    assert_eq!(active.iter().map(|entry| entry.ban.target).collect::<Vec<_>>(), [source(2)]);
    assert_eq!(ledger.reader().bans_of(source(1)).unwrap().items[0].ended, Some(EndRecord { how: by(), at: at(5) }));
}

#[test]
fn new_ban_replaces_old_and_counts_strike() {
    let (state, mut ledger) = State::open_new();
    let banned = target("2001:db8::1");
    ledger.record(&[ban(banned, at(0), 60)]).unwrap();
    ledger.record(&[ban(banned, at(30), 60), ban(banned, at(100), 60)]).unwrap();
    let history = ledger.reader().bans_of(target("2001:db8::ffff")).unwrap().items;
    let ended: Vec<_> = history.iter().map(|entry| (entry.strikes, entry.ended.clone())).collect();
    let end = |how, when| Some(EndRecord { how, at: at(when) });
    assert_eq!(ended, [(0, end(Ending::Replaced, 30)), (1, end(Ending::Expired, 90)), (2, None)]);
    assert_eq!(ledger.reader().active(at(101)).unwrap().items.len(), 1);
    assert_eq!(state.counts(), (1, 3));
    assert!(ledger.ended(banned, lifted("root"), at(110)).unwrap());
    ledger.record(&[ban(banned, at(120), 60)]).unwrap();
    let strikes: Vec<_> = ledger.reader().bans_of(banned).unwrap().items.iter().map(|entry| entry.strikes).collect();
    assert_eq!(strikes, [0, 1, 2, 2], "the lifted ban is no strike");
}

#[test]
fn ban_counts_as_strike_until_forgotten() {
    let (_state, mut ledger) = State::open_new();
    let recent = |ledger: &Ledger, now| strikes(ledger, source(1), Duration::from_secs(100), at(now));
    ledger.record(&[ban(source(1), at(0), 1000)]).unwrap();
    assert_eq!(recent(&ledger, 999), 1, "a ban in force counts even if it is longer than strikes are remembered");
    assert_eq!(recent(&ledger, 1099), 1);
    assert_eq!(recent(&ledger, 1100), 0, "an expired ban does not count, whether or not it is marked as expired");
    let _ = ledger.expire(at(1050)).unwrap();
    assert_eq!((recent(&ledger, 1099), recent(&ledger, 1100)), (1, 0));
    ledger.record(&[ban(source(1), at(1050), 10), ban(source(1), at(1070), 10)]).unwrap();
    assert_eq!(recent(&ledger, 1080), 3);
    assert_eq!(strikes(&ledger, source(1), Duration::MAX, at(9_999_999)), 3);
    assert_eq!(strikes(&ledger, source(2), Duration::MAX, at(0)), 0);
}

#[test]
fn only_standing_evidence_bans_are_strikes() {
    let (_state, mut ledger) = State::open_new();
    let by_hand = |number| by_hand(source(number), at(0));
    let imported = BanRecord::wanted_by(BanAuthor::Import, source(2), at(0), Expiry::Never, Backend::Nft);
    let capped = BanRecord { capped: true, ..ban(source(3), at(0), 60) };
    ledger
        .record(&[by_hand(1), imported, capped.clone(), ban(source(4), at(0), 60), ban(source(5), at(0), 60)])
        .unwrap();
    assert_eq!(ledger.reader().bans_of(source(3)).unwrap().items[0].ban, capped);
    let lifted = lifted("alice");
    for number in 1..=4 {
        assert!(ledger.ended(source(number), lifted.clone(), at(5)).unwrap());
    }
    // This removal came too late: the ban had already expired.
    assert!(ledger.ended(source(5), lifted, at(60)).unwrap());
    let strikes = [1, 2, 3, 4, 5].map(|number| strikes(&ledger, source(number), Duration::MAX, at(61)));
    assert_eq!(strikes, [0, 0, 0, 0, 1]);
}

#[test]
fn adopted_ban_has_one_ledger_row() {
    let (_state, mut ledger) = State::open_new();
    let evidence = |number| ban(source(number), at(10), 60);
    let found = |number| {
        let left = Expiry::After(Duration::from_secs(59));
        BanRecord::wanted_by(BanAuthor::Import, source(number), at(11), left, Backend::Nft)
    };
    ledger.record(&[evidence(1), found(1), found(2), evidence(2)]).unwrap();
    for number in [1, 2] {
        let [only] = &ledger.reader().bans_of(source(number)).unwrap().items[..] else { panic!("{number}") };
        assert_eq!((&only.ban, only.strikes, &only.ended), (&evidence(number), 0, &None));
    }
    // An adopted ban is listed like any other.
    ledger.record(&[found(3), ban(source(3), at(20), 60)]).unwrap();
    assert_eq!(ledger.reader().bans_of(source(3)).unwrap().items.len(), 2);
}

#[test]
fn recent_bans_count_towards_ceilings() {
    let (_state, mut ledger) = State::open_new();
    let short = |number, since| BanRecord { capped: true, ..ban(source(number), at(since), 300) };
    let proven = BanRecord { grade: Some(Grade::Proven), ..ban(source(5), at(100_050), 60) };
    let by_trap = |number, since| BanRecord { class: None, ..short(number, since) };
    let wanted = BanRecord { author: BanAuthor::Operator, ..ban(source(8), at(100_050), 60) };
    let bans = [
        ban(source(1), at(99_000), 600),
        ban(source(2), at(100_050), 600),
        short(3, 13_000),
        short(4, 14_000),
        short(4, 100_060),
        proven,
        by_trap(6, 50_000),
        by_trap(7, 100_055),
        wanted,
        ban(source(9), at(200_000), 60),
    ];
    ledger.record(&bans).unwrap();
    assert!(ledger.ended(source(2), lifted("root"), at(100_070)).unwrap());
    let _ = ledger.expire(at(100_100)).unwrap();
    let recent = LoadedState::read(ledger.reader(), Duration::from_secs(60), at(100_100), 100).unwrap().recent;
    assert_eq!(recent, RecentBans { forgeable: 2, proven: 1, short: 1, short_daily: 4 });
}

#[test]
fn strikes_come_newest_first() {
    let (_state, mut ledger) = State::open_new();
    let endless = BanRecord { until: None, ..ban(source(5), at(100), 0) };
    let short = BanRecord { capped: true, ..ban(source(1), at(900), 300) };
    ledger
        .record(&[
            ban(source(1), at(0), 60),
            ban(source(2), at(100), 60),
            ban(source(3), at(800), 1_000),
            ban(source(2), at(200), 60),
            ban(source(4), at(0), 10),
            endless,
            short,
        ])
        .unwrap();
    let _ = ledger.expire(at(1_000)).unwrap();
    let seconds = Duration::from_secs;
    let all = |limit| {
        let found = LoadedState::read(ledger.reader(), seconds(950), at(1_000), limit).unwrap();
        assert_eq!(found.unreadable, 0);
        found.histories.into_iter().map(|history| (history.target, history.strikes, history.last)).collect::<Vec<_>>()
    };
    let expected = [
        (source(5), 1, LastBan::Lasts(Expiry::Never)),
        (source(3), 1, LastBan::Lasts(Expiry::After(seconds(800)))),
        (source(2), 2, LastBan::Over(seconds(740))),
        (source(1), 1, LastBan::Over(seconds(940))),
    ];
    assert_eq!(all(100), expected, "the fourth ended too long ago, and the first one's short ban does not count");
    assert_eq!(all(2), expected[..2]);
}

#[test]
fn remaining_time_never_exceeds_whole() {
    let timed = ban(source(1), at(100), 60);
    let after = |seconds| Some(Expiry::After(Duration::from_secs(seconds)));
    assert_eq!(timed.left(at(100)), after(60));
    assert_eq!(timed.left(at(159)), after(1));
    assert_eq!(timed.left(at(160) - Duration::from_millis(3)), after(1), "an expiry is never shorter than its minimum");
    assert_eq!(timed.left(at(160)), None);
    assert_eq!(timed.left(at(0)), after(60), "the clock was set back");
    let endless = by_hand(source(1), at(100));
    assert_eq!(endless.left(at(999_999)), Some(Expiry::Never));
}

#[test]
fn changes_are_written_in_order() {
    let (_state, mut ledger) = State::open_new();
    let lifted = EndRecord { how: lifted("bob"), at: at(2) };
    let changes = [
        LedgerChange::Banned(ban(source(1), at(0), DAY)),
        LedgerChange::Ended { target: source(1), ended: lifted.clone() },
        LedgerChange::Ended { target: source(2), ended: lifted },
        LedgerChange::Banned(ban(source(2), at(3), DAY)),
    ];
    ledger.write(&changes).unwrap();
    let active: Vec<BanTarget> =
        ledger.reader().active(at(4)).unwrap().items.iter().map(|entry| entry.ban.target).collect();
    assert_eq!(active, [source(2)]);
}

#[test]
fn history_is_bounded_and_keeps_open_bans() {
    let state = State::new();
    let mut ledger = state.ledger().with_retention(Retention { rows: 100, age: Duration::from_secs(DAY) });
    let open = ban(source(0), at(0), 100 * DAY);
    let many = u32::try_from(RECOUNT_INTERVAL).unwrap() + 500;
    let short: Vec<_> = (1..=many).map(|number| ban(source(number), at(u64::from(number)), 1)).collect();
    ledger.record(std::slice::from_ref(&open)).unwrap();
    let (early, late) = short.split_at(500);
    ledger.record(early).unwrap();
    assert_eq!(ledger.expire(at(u64::from(many) + 1)).unwrap().items.len(), 500);
    ledger.record(late).unwrap();
    assert!(ledger.reader().bans_of(source(500)).unwrap().items.is_empty(), "the oldest ended ban is removed first");
    let _ = ledger.expire(at(u64::from(many) + 1)).unwrap();
    ledger.record(&late[..usize::try_from(RECOUNT_INTERVAL).unwrap()]).unwrap();
    let _ = ledger.expire(at(u64::from(many) + 1)).unwrap();
    assert!(state.counts().1 <= RECOUNT_INTERVAL + 100 + 1, "{:?}", state.counts());

    let _ = ledger.expire(at(u64::from(many) + 3 * DAY)).unwrap();
    assert_eq!(state.counts(), (1, 1), "only bans that ended more than a day ago are removed");
    assert_eq!(ledger.reader().active(at(10)).unwrap().items[0].ban, open);
}

#[test]
fn hundred_thousand_bans_read_back() {
    let (state, mut ledger) = State::open_new();
    // In the order of a hash, because sources arrive in no order.
    let many = 100_000 / slowness();
    let sources = (0..many).map(|number| source(number.wrapping_mul(0x9e37_79b1) & 0x00ff_ffff));
    let many = usize::try_from(many).unwrap();
    let bans: Vec<_> = sources.map(|source| ban(source, at(0), DAY)).collect();
    let start = Instant::now();
    ledger.record(&bans).unwrap();
    let (written, start) = (start.elapsed(), Instant::now());
    let active = ledger.reader().active(at(1)).unwrap();
    let (read, start) = (start.elapsed(), Instant::now());
    assert_eq!(active.items.len(), many);
    let again = Instant::now();
    let restored = LoadedState::read(ledger.reader(), Duration::from_secs(90 * DAY), at(1), many).unwrap();
    let counted = again.elapsed();
    assert_eq!((restored.active.len(), restored.histories.len()), (many, many));
    assert_eq!(ledger.expire(at(DAY)).unwrap().items.len(), many);
    let expired = start.elapsed();
    drop(ledger);
    let bytes = std::fs::metadata(state.file("ledger.sqlite")).unwrap().len();
    let start = Instant::now();
    drop(state.ledger());
    println!(
        "written {written:?}, read {read:?}, strikes {counted:?}, expired {expired:?}, opened {:?}, {bytes} bytes",
        start.elapsed()
    );
    assert_eq!(state.counts(), (0, u64::try_from(many).unwrap()));
    // Far more than a build without optimization needs; a query that misses its index takes hours.
    assert!(written + read + expired < Duration::from_secs(600));
}

#[test]
fn ban_keeps_evidence_with_deciding_port_first() {
    let watch = ProtocolSettings { ports: "1-65535".parse().unwrap(), response: Response::Block };
    let builtin = Settings::from_config(&Config::parse("", "").unwrap());
    let mut engine = Engine::new(Settings { tcp: watch.clone(), udp: watch, ..builtin }, HashKey(1, 2));
    let host = Host::new(Local::own(["2001:db8::80".parse().unwrap()]));
    let mut touch = |port| {
        let observation = Observation {
            interface: 0,
            bridge_port: 0,
            source: "2001:db8:1:2:3::4".parse().unwrap(),
            source_port: 40_000,
            destination: "2001:db8::80".parse().unwrap(),
            protocol: Protocol::Tcp,
            port,
            class: Class::Connect,
            fragmented: false,
            unverified: false,
            decoy: true,
        };
        engine.observe_decoy(Timestamp::at(Duration::from_secs(60)), observation, &host, &mut NoLookup)
    };
    let _ = (touch(23), touch(23), touch(2323));
    let Verdict::Block(verdict) = touch(8080) else { panic!("three ports are enough") };
    let banned = BanRecord::from_ban(&verdict, at(0), Some("eth0"), Backend::Nft);
    assert_eq!(banned.ports[0], (Protocol::Tcp, 8080));
    let mut ports: Vec<u16> = banned.ports.iter().map(|(_, port)| *port).collect();
    ports.sort_unstable();
    assert_eq!(ports, [23, 2323, 8080]);
    let (_state, mut ledger) = State::open_new();
    ledger.record(std::slice::from_ref(&banned)).unwrap();
    let stored = ledger.reader().bans_of(target("2001:db8:1:2::")).unwrap().items.remove(0).ban;
    assert_eq!(stored, banned);
    assert_eq!((stored.source.to_string().as_str(), stored.probes), ("2001:db8:1:2:3::4", 4));
    assert_eq!((stored.class, stored.until), (Some(Class::Connect), Some(at(DAY))));
}

/// Converts the ledger to the format before the columns for the grade of evidence and the bridge port.
fn downgrade(state: &State) {
    let intruder = intruder(&state.path());
    let tables =
        ["service", "boot", "logged", "trial", "allowance", "listener", "kernel_table", "fleet_lift", "known_peer"];
    let later: String = tables.iter().map(|table| format!("DROP TABLE {table};")).collect();
    let step = "DROP INDEX ban_undo; ALTER TABLE ban DROP COLUMN undo;
        ALTER TABLE ban DROP COLUMN evidence; ALTER TABLE ban DROP COLUMN guest_port; PRAGMA user_version = 3";
    intruder.execute_batch(&format!("{later}{step}")).unwrap();
}

#[test]
fn older_ledger_gets_grades_of_evidence() {
    let state = State::new();
    let handshakes = vec![(Protocol::Tcp, 23), (Protocol::Tcp, 25), (Protocol::Tcp, 79)];
    let mixed = [&handshakes[..], &[(Protocol::Sctp, 7)]].concat();
    let connect = |n, ports: &[_], grade| BanRecord {
        class: Some(Class::Connect),
        ports: ports.to_vec(),
        grade: Some(grade),
        ..ban(source(n), at(0), 60)
    };
    let by_hand = by_hand(source(4), at(0));
    let bans = [
        ban(source(1), at(0), 60),
        connect(2, &handshakes, Grade::Proven),
        connect(3, &mixed, Grade::Forgeable),
        by_hand,
    ];
    state.ledger().record(&bans).unwrap();
    downgrade(&state);
    let grades = bans.iter().map(|ban| ban.grade).collect::<Vec<_>>();
    let mut read = Vec::new();
    let each = Reader::read(&state.path(), |reader| {
        read.clear();
        reader.each(|entry| read.push(entry.ban.grade))
    });
    assert_eq!((each.unwrap(), &read), (0, &grades), "a reader changes nothing");
    let ledger = state.ledger();
    let stored: Vec<_> = (1..5).map(|n| ledger.reader().bans_of(source(n)).unwrap().items[0].ban.clone()).collect();
    let bans: Vec<_> = bans.into_iter().map(|ban| BanRecord { guest_port: None, ..ban }).collect();
    assert_eq!(stored, bans, "the daemon migrates the ledger");
    let restored = LoadedState::read(ledger.reader(), Duration::from_secs(50), at(1), 9).unwrap();
    assert_eq!(restored.active.iter().filter(|ban| ban.grade == Some(Grade::Proven)).count(), 1);
}

#[test]
fn logged_sources_are_one_row_each() {
    let state = State::new();
    let scan = |number, seconds| {
        let scanned = ban(source(number), at(seconds), DAY);
        LedgerChange::Logged(Logged {
            target: scanned.target,
            source: scanned.source,
            first: at(seconds),
            last: at(seconds),
            times: 1,
            class: Class::Syn,
            ports: scanned.ports,
            probes: scanned.probes,
            reason: "a reason".to_owned(),
        })
    };
    let mut ledger = state.ledger();
    ledger.write(&[scan(1, 0), scan(2, 10), scan(1, 20)]).unwrap();
    let read = || Reader::read(&state.path(), logged::all).unwrap().items;
    let found: Vec<_> = read().iter().map(|one| (one.target, one.first, one.last, one.times)).collect();
    assert_eq!(found, [(source(1), at(0), at(20), 2), (source(2), at(10), at(10), 1)], "the newest first");
    assert!(ledger.reader().active(at(30)).unwrap().items.is_empty(), "logged sources are not bans");
    let _ = ledger.expire(at(10) + Duration::from_secs(90 * DAY + 1)).unwrap();
    assert_eq!(read().len(), 1, "records older than 90 days are removed");
}
