//! Measures the costs of a fleet: several hundred real `portsentry fleet` processes on one server, each with a stub
//! daemon. It measures the time until a report reaches all others, reports per second, the start of a late joiner with
//! 100,000 reports, and processor time per report. The baselines of the same run are a bare subscriber of the same
//! server, and `redis-cli --scan`.
//!
//! `HOSTS=300` sets the number of hosts, `RUNS=1` shortens it; `-- fleet` and `-- late` run one part. Needs
//! redis-server; no root.
#![cfg(test)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use netns_lab::bench;
use netns_lab::fleet::{Engine, Member, Users, processor_time_of};

/// Reports whose propagation is measured.
const REPORTS: usize = 50;

/// Reports of each host in the burst.
const BURST: usize = 5;

/// Authors and reports on the server when the late joiner starts.
const AUTHORS: usize = 1_000;
const OF_EACH: usize = 100;

fn main() {
    if bench::is_selected("fleet") {
        fleet();
    }
    if bench::is_selected("late joiner") {
        late_joiner();
    }
}

/// Propagation and a burst in a fleet of several hundred hosts.
fn fleet() {
    let hosts = std::env::var("HOSTS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    let names: Vec<String> = (0..hosts).map(|number| format!("h{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let engine = Engine::start(Users::new(&names), &["--maxclients", "10000"]);
    let members: Vec<Member> = names.iter().map(|host| start(host, &engine)).collect();
    for member in &members {
        member.await_scan();
    }

    bench::table(
        &format!("A report of one of {hosts} hosts, until the others have it, in milliseconds"),
        "what | deliveries | median | p99 | worst | times the bare notice | server's processor time per report, ms",
    );
    let bare = bare_notices(&engine);
    let cells =
        |spans: &[f64]| [0.5, 0.99, 1.0].map(|share| format!("{:.2}", bench::quantile(spans, share))).join(" | ");
    println!("| bare notice, to one subscriber | {} | {} | 1 | |", bare.len(), cells(&bare));
    let reports = bench::runs(REPORTS);
    let before = engine_time(&engine);
    let mut spans = Vec::new();
    for number in 0..reports {
        let (author, target) = (number % members.len(), format!("203.0.{}.{}", number / 250, number % 250 + 1));
        let begun = Instant::now();
        members[author].daemon.ban(&target);
        for (place, other) in members.iter().enumerate().filter(|(place, _)| *place != author) {
            let arrived = netns_lab::within(Duration::from_secs(60), || other.daemon.arrival(&target));
            let arrived = arrived.unwrap_or_else(|| panic!("{place} never got {target}: {}", other.log()));
            spans.push(arrived.duration_since(begun).as_secs_f64() * 1e3);
        }
    }
    let each = (engine_time(&engine) - before).as_secs_f64() * 1e3 / reports as f64;
    let times = bench::quantile(&spans, 0.5) / bench::quantile(&bare, 0.5);
    println!("| report to the daemon of another host | {} | {} | {times:.0} | {each:.2} |", spans.len(), cells(&spans));

    bench::table(
        &format!("A burst: each of {hosts} hosts reports {BURST} sources at once, until one of them has all"),
        "reports | seconds | reports/s | deliveries/s | processor time of a host per 1,000 reports, ms | server's, ms",
    );
    let (own, server) = (members[0].processor_time(), engine_time(&engine));
    let begun = Instant::now();
    for (place, member) in members.iter().enumerate() {
        for number in 0..BURST {
            member.daemon.ban(&format!("198.{}.{}.{number}", 18 + place / 256, place % 256));
        }
    }
    let all = (hosts - 1) * BURST;
    let seen = |member: &Member| {
        member.daemon.received(|received| received.arrivals.keys().filter(|target| target.starts_with("198.1")).count())
    };
    let done = netns_lab::within(Duration::from_secs(600), || (seen(&members[0]) >= all).then_some(()));
    assert!(done.is_some(), "{} of {all}: {}", seen(&members[0]), members[0].log());
    let took = begun.elapsed().as_secs_f64();
    let per_thousand = |time: Duration| time.as_secs_f64() * 1e6 / all as f64;
    println!(
        "| {all} | {took:.1} | {:.0} | {:.0} | {:.1} | {:.1} |",
        all as f64 / took,
        (all * hosts) as f64 / took,
        per_thousand(members[0].processor_time() - own),
        per_thousand(engine_time(&engine) - server),
    );
}

/// The time from PUBLISH to a client that does nothing but wait for it, in milliseconds.
fn bare_notices(engine: &Engine) -> Vec<f64> {
    let connect = || {
        let mut stream = UnixStream::connect(engine.socket()).unwrap();
        stream.write_all(b"AUTH admin admin\r\n").unwrap();
        assert!(stream.read(&mut [0; 64]).unwrap() > 0);
        stream
    };
    let (mut publisher, mut subscriber) = (connect(), connect());
    subscriber.write_all(b"SUBSCRIBE bare\r\n").unwrap();
    assert!(subscriber.read(&mut [0; 256]).unwrap() > 0);
    (0..200)
        .map(|_| {
            let begun = Instant::now();
            publisher.write_all(b"PUBLISH bare x\r\n").unwrap();
            assert!(subscriber.read(&mut [0; 256]).unwrap() > 0);
            let took = begun.elapsed().as_secs_f64() * 1e3;
            assert!(publisher.read(&mut [0; 64]).unwrap() > 0);
            took
        })
        .collect()
}

fn start(host: &str, engine: &Engine) -> Member {
    let lines = format!("url = \"unix://{}\"\naccept.max_per_author_per_hour = 100000", engine.socket().display());
    Member::start_with(
        host,
        &lines,
        &engine.users().password_file(host),
        &mut Command::new(netns_lab::daemon::binary()),
    )
}

/// A host joins a fleet with 100,000 reports.
fn late_joiner() {
    bench::table(
        &format!("A late joiner that finds {} reports of {AUTHORS} authors", AUTHORS * OF_EACH),
        "run | seconds until its daemon has all | times redis-cli --scan | resident after it, MiB | its processor time, s \
         | server's, s | server's memory, MiB",
    );
    let engine = Engine::start(Users::new(&["late"]), &[]);
    let fill = format!(
        "for i = 0, {} do redis.call('SET', 'portsentry:lab:ban:h' .. i % {AUTHORS} .. ':10.' .. math.floor(i / 65536) .. '.' \
         .. math.floor(i / 256) % 256 .. '.' .. i % 256, '{{\"v\":1,\"class\":\"connect\",\"ports\":7,\"grade\":\"proven\",\"seq\":42}}', \
         'PX', 14000000) end",
        AUTHORS * OF_EACH - 1
    );
    engine.admin(&["EVAL", &fill, "0"]);
    for run in 1..=bench::runs(3) {
        let begun = Instant::now();
        let mut scan = Command::new("redis-cli");
        scan.arg("-s").arg(engine.socket()).args(["--user", "admin", "--pass", "admin", "--no-auth-warning", "--scan"]);
        assert!(scan.stdout(Stdio::null()).status().unwrap().success());
        let bare = begun.elapsed().as_secs_f64();
        let (begun, server) = (Instant::now(), engine_time(&engine));
        let late = start("late", &engine);
        let scanned = netns_lab::within(Duration::from_secs(600), || {
            late.daemon.received(|received| received.scans > 0).then_some(())
        });
        assert!(scanned.is_some(), "{}", late.log());
        let took = begun.elapsed().as_secs_f64();
        let found = late.daemon.received(|received| received.arrivals.len());
        assert_eq!(found, AUTHORS * OF_EACH, "{}", late.log());
        let memory = engine.admin(&["INFO", "memory"]);
        let memory = memory.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim().parse::<f64>();
        println!(
            "| {run} | {took:.1} | {:.0} | {:.1} | {:.2} | {:.2} | {:.0} |",
            took / bare,
            late.resident() as f64 / 1024.0,
            late.processor_time().as_secs_f64(),
            (engine_time(&engine) - server).as_secs_f64(),
            memory.unwrap() / f64::from(1 << 20),
        );
    }
}

fn engine_time(engine: &Engine) -> Duration {
    processor_time_of(engine.id())
}
