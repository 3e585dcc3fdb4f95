//! Tests the numbers of the report with ledgers of known contents.

use std::time::{Duration, Instant, SystemTime};

use portsentry::engine::Class;
use portsentry::ledger::{BanAuthor, BanRecord, LedgerError};
use portsentry::report::{Ends, Network, Offender, RecentBan, ReportStats, html, json};
use portsentry::types::{Backend, Expiry, Protocol};
use serde_json::{Value, json};

use super::{DAY, NOW, ago, ban, now};
use crate::support::{State, by_hand, intruder, source, target};

const MONTH: Duration = Duration::from_secs(30 * DAY);

fn stats(state: &State, since: Duration) -> ReportStats {
    ReportStats::read(&state.path(), since, now()).unwrap()
}

/// Eight bans of five sources: three in force, one by hand, one imported, and one before the period.
fn scene() -> State {
    let (state, mut ledger) = State::open_new();
    let network = ["198.51.100.1", "198.51.100.200", "2001:db8:1:2::9", "2001:db8:1:3::9"].map(target);
    let [often, lifted, v6, neighbour] = network;
    let udp =
        |ban: BanRecord| BanRecord { class: Some(Class::Udp), ports: vec![(Protocol::Udp, 161)], probes: 3, ..ban };
    ledger.record(&[ban(often, ago(100 * DAY), DAY)]).unwrap();
    ledger.record(&[ban(often, ago(20 * DAY), DAY), udp(ban(often, ago(10 * DAY), 5 * DAY))]).unwrap();
    ledger.record(&[ban(often, ago(8 * DAY), DAY)]).unwrap();
    ledger.record(&[ban(lifted, ago(2 * DAY), 7 * DAY)]).unwrap();
    assert!(ledger.ended(lifted, crate::support::lifted("alice"), ago(DAY)).unwrap());
    ledger.record(&[ban(v6, ago(3_600), DAY)]).unwrap();
    let expiry = Expiry::After(Duration::from_secs(DAY));
    let by_hand = by_hand(neighbour, ago(1_800));
    let imported = BanRecord::wanted_by(BanAuthor::Import, source(1), ago(900), expiry, Backend::Nft);
    ledger.record(&[by_hand, imported]).unwrap();
    drop(ledger);
    state
}

#[test]
fn every_ban_of_period_is_counted_once() {
    let stats = stats(&scene(), MONTH);
    assert_eq!((stats.kept, stats.bans, stats.sources), (8, 7, 5));
    assert_eq!((stats.in_force, stats.repeaters, stats.probes), (3, 1, 4 * 7 + 3));
    assert_eq!((stats.ahead, stats.unreadable), (0, 0));
    let classes = [(Some(Class::Syn), 4), (None, 2), (Some(Class::Udp), 1)];
    assert_eq!(stats.classes, classes);
    let ports = [((Protocol::Tcp, 23), 4), ((Protocol::Tcp, 8080), 4), ((Protocol::Udp, 161), 1)];
    assert_eq!((stats.ports.items.as_slice(), stats.ports.more), (&ports[..], 0));
    assert_eq!(stats.ends, Ends { in_force: 3, expired: 2, lifted: 1, replaced: 1 });
    assert_eq!(stats.authors, [(BanAuthor::Detector, 5), (BanAuthor::Import, 1), (BanAuthor::Operator, 1)]);
    assert_eq!(stats.methods, [(Backend::Nft, 7)]);
}

#[test]
fn networks_are_grouped_by_prefix() {
    let stats = stats(&scene(), MONTH);
    let network = |prefix: &str, bans, sources| Network { prefix: prefix.parse().unwrap(), bans, sources };
    let expected = [network("198.51.100.0/24", 4, 2), network("2001:db8:1::/48", 2, 2), network("10.0.0.0/24", 1, 1)];
    assert_eq!(stats.networks.items, expected);
}

#[test]
fn repeat_offender_is_reported_with_history() {
    let stats = stats(&scene(), MONTH);
    let days = |days| Duration::from_secs(days * DAY);
    let expected = Offender {
        target: target("198.51.100.1"),
        strikes: 4,
        first: ago(100 * DAY),
        last: ago(8 * DAY),
        // The third of the bans lasted two days instead of five, because the fourth replaced it.
        blocked: days(1) + days(1) + days(2) + days(1),
    };
    assert_eq!(stats.offenders.items, [expected]);
    let last_day = self::stats(&scene(), days(1));
    assert_eq!((last_day.bans, last_day.sources, last_day.repeaters), (3, 3, 0), "the period has no repeated bans");
}

#[test]
fn recent_and_operator_bans_are_separate() {
    let stats = stats(&scene(), MONTH);
    let targets = |bans: &[RecentBan]| bans.iter().map(|ban| ban.target.to_string()).collect::<Vec<_>>();
    let newest = ["2001:db8:1:2::/64", "198.51.100.200", "198.51.100.1", "198.51.100.1", "198.51.100.1"];
    assert_eq!(targets(&stats.recent), newest, "newest first");
    assert_eq!(targets(&stats.by_hand), ["10.0.0.1", "2001:db8:1:3::/64"]);
    assert_eq!((stats.recent[0].in_force, stats.recent[1].in_force), (true, false));
    let busiest = &stats.top_sources.items[0];
    assert_eq!((busiest.target, busiest.bans, busiest.probes), (target("198.51.100.1"), 3, 7 + 3 + 7));
    assert_eq!((stats.top_sources.items.len(), stats.top_sources.more), (3, 0));
    let page = html(&stats, None);
    for title in ["Recent bans", "Manual and imported", ">Sources<"] {
        assert!(page.contains(title), "{title}");
    }
    assert!(!page.contains("none: manual or imported"), "{page}");
}

#[test]
fn bans_are_grouped_by_start_time() {
    let stats = stats(&scene(), MONTH);
    // Saturday, 06:32: the bans began an hour, half an hour and a quarter of an hour before.
    assert_eq!((stats.hours[5][5], stats.hours[5][6]), (1, 2));
    assert_eq!(stats.hours.iter().flatten().sum::<u64>(), 7);
    assert_eq!((stats.over_time.bucket, stats.over_time.bans.len()), (Duration::from_secs(DAY), 31));
    let midnight = |days: u64| SystemTime::UNIX_EPOCH + Duration::from_secs((NOW / DAY - days) * DAY);
    let filled: Vec<_> = stats.over_time.bans.iter().filter(|(_, bans)| *bans > 0).copied().collect();
    let expected = [(midnight(20), 1), (midnight(10), 1), (midnight(8), 1), (midnight(2), 1), (midnight(0), 3)];
    assert_eq!(filled, expected);
    assert_eq!(stats.over_time.bans[0].0, midnight(30));
}

#[test]
fn unmarked_ban_past_its_time_has_expired() {
    let state = State::with(&[ban(source(1), ago(2 * DAY), DAY), ban(source(2), ago(DAY), DAY)]);
    let stats = stats(&state, MONTH);
    assert_eq!((stats.in_force, stats.ends.expired), (0, 2), "at exactly this time");
}

#[test]
fn period_includes_both_ends() {
    let microsecond = Duration::from_micros(1);
    let state = State::with(&[
        ban(source(1), ago(DAY), DAY),
        ban(source(2), ago(DAY) - microsecond, DAY),
        ban(source(3), now(), DAY),
        ban(source(4), now() + microsecond, DAY),
    ]);
    let stats = stats(&state, Duration::from_secs(DAY));
    assert_eq!((stats.kept, stats.bans, stats.ahead, stats.in_force), (4, 2, 1, 2));
    assert!(html(&stats, None).contains("Not counted: 1 ban begins after the time of this page"));
}

#[test]
fn empty_ledger_differs_from_quiet_period() {
    let page = |state: &State| html(&stats(state, MONTH), None);
    let empty = page(&State::with(&[]));
    assert!(empty.contains("<h2>No source has been blocked yet</h2>") && !empty.contains("<table"), "{empty}");
    let endless = by_hand(source(1), ago(90 * DAY));
    let quiet = page(&State::with(&[endless]));
    assert!(quiet.contains("<h2>All quiet</h2>"), "{quiet}");
    assert!(quiet.contains("<dt>In force now</dt><dd>1</dd>"), "{quiet}");
}

#[test]
fn page_and_json_have_same_numbers() {
    let stats = stats(&scene(), MONTH);
    let page = html(&stats, Some("web1"));
    for tile in [
        "Bans</dt><dd>7<",
        "Sources</dt><dd>5<",
        "In force now</dt><dd>3<",
        "Repeat offenders</dt><dd>1<",
        "Probes</dt><dd>31<",
    ] {
        assert!(page.contains(tile), "{tile}");
    }
    assert!(page.contains("From <time datetime=\"2026-10-22T06:32:13Z\">2026-10-22 06:32</time>"));
    let object: Value = serde_json::from_str(&json(&stats, Some("web1"))).unwrap();
    assert_eq!(object["from"], "2026-10-22T06:32:13Z");
    assert_eq!(object["host"], "web1");
    for (key, value) in
        [("bans", 7), ("sources", 5), ("in_force", 3), ("repeat_offenders", 1), ("probes", 31), ("kept", 8)]
    {
        assert_eq!(object[key], value, "{key}");
    }
    assert_eq!(object["over_time"]["bucket_s"], DAY);
    assert_eq!(object["classes"], json!({"syn": 4, "none": 2, "udp": 1}));
    assert_eq!(object["ports"]["most"][0], json!({"proto": "tcp", "port": 23, "service": "telnet", "bans": 4}));
    assert_eq!(object["networks"]["most"][1], json!({"network": "2001:db8:1::/48", "bans": 2, "sources": 2}));
    let offender = json!({"subject": "198.51.100.1", "strikes": 4, "first": "2026-08-13T06:32:13Z",
                          "last": "2026-11-13T06:32:13Z", "blocked_s": 5 * DAY});
    assert_eq!(object["offenders"], json!({"most": [offender], "more": 0}));
    assert_eq!(object["hours"]["saturday"][6], 2);
    assert_eq!(object["ends"], json!({"in_force": 3, "expired": 2, "lifted": 1, "replaced": 1}));
    assert_eq!(object["authors"], json!({"detector": 5, "import": 1, "operator": 1}));
}

#[test]
fn invalid_rows_are_left_out_and_counted() {
    let state =
        State::with(&[ban(source(1), ago(60), DAY), ban(source(2), ago(60), DAY), ban(source(3), ago(60), DAY)]);
    let hostile = intruder(&state.path());
    hostile.execute("UPDATE ban SET subject = '<script>alert(1)</script>' WHERE id = 1", []).unwrap();
    hostile.execute("UPDATE ban SET method = '<b>' WHERE id = 2", []).unwrap();
    hostile.execute("UPDATE ban SET interface = '</style><script>', lifted_by = '<i>'", []).unwrap();
    drop(hostile);
    let stats = stats(&state, MONTH);
    assert_eq!((stats.bans, stats.unreadable), (1, 2));
    let page = html(&stats, None);
    assert!(page.contains("Not counted: 2 rows of the ledger are unreadable."), "{page}");
    assert!(!page.contains("<script") && !page.contains("<b>") && !page.contains("<i>"), "{page}");
}

#[test]
fn extreme_times_and_counts_are_safe() {
    let state =
        State::with(&[ban(source(1), ago(60), DAY), ban(source(2), ago(60), DAY), ban(source(3), ago(60), DAY)]);
    let hostile = intruder(&state.path());
    hostile.execute("UPDATE ban SET since = ?1, until = ?2 WHERE id = 1", [i64::MIN, i64::MAX]).unwrap();
    hostile.execute("UPDATE ban SET until = ?1, ended = ?1, ending = 'expired' WHERE id = 2", [i64::MIN]).unwrap();
    hostile.execute("UPDATE ban SET probes = ?1, strikes = ?1, since = 0", [i64::from(u32::MAX)]).unwrap();
    drop(hostile);
    let stats = stats(&state, Duration::from_secs(100 * 365 * DAY));
    assert_eq!((stats.bans, stats.probes), (3, 3 * u64::from(u32::MAX)));
    assert!(stats.over_time.bans.len() <= 62);
    assert!(html(&stats, None).contains("12,884,901,885"));
}

#[test]
fn hundred_thousand_bans_are_summarised() {
    let state = State::with(&[]);
    // 50,000 sources in 196 networks, each banned twice. The database generates them, which is quicker than single
    // inserts.
    let fill = "
        WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 99999)
        INSERT INTO ban (subject, source, since, until, class, ports, probes, strikes, method, author, ended, ending)
        SELECT '10.' || (i / 2 >> 16) || '.' || (i / 2 >> 8 & 255) || '.' || (i / 2 & 255), '10.0.0.1',
               :now - CASE i % 2 WHEN 0 THEN 20 ELSE 10 END * :day, :now - 9 * :day, 'syn', 'tcp/23 tcp/8080', 7, i % 2,
               'nft', 'detector', :now - 9 * :day, 'expired'
        FROM n";
    let micros = |seconds| i64::try_from(seconds * 1_000_000).unwrap();
    intruder(&state.path()).execute(fill, rusqlite::named_params! {":now": micros(NOW), ":day": micros(DAY)}).unwrap();
    let start = Instant::now();
    let stats = stats(&state, MONTH);
    let read = start.elapsed();
    let page = html(&stats, None);
    println!("read in {read:?}, written in {:?}, {} bytes", start.elapsed() - read, page.len());
    assert_eq!((stats.bans, stats.sources, stats.repeaters), (100_000, 50_000, 50_000));
    assert_eq!((stats.probes, stats.ends.expired), (700_000, 100_000));
    assert_eq!((stats.offenders.items.len(), stats.offenders.more), (20, 49_980));
    let first = Network { prefix: "10.0.0.0/24".parse().unwrap(), bans: 512, sources: 256 };
    assert_eq!((stats.networks.items[0], stats.networks.more), (first, 196 - 15));
    assert!(stats.over_time.bans.iter().map(|(_, bans)| *bans).filter(|bans| *bans > 0).eq([50_000, 50_000]));
    assert!(page.len() < 100_000, "the page is small enough for a phone");
}

#[test]
fn report_without_ledger_is_an_error() {
    let error = ReportStats::read(&State::new().path(), MONTH, now()).unwrap_err();
    assert!(matches!(error, LedgerError::Absent(_)), "{error:?}");
}
