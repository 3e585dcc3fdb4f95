//! Tests exhausted resources: file descriptors, threads, a database that another program has locked, a log without a reader, and
//! the time to list sockets.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Stdio};
use std::time::Duration;

use portsentry::ledger::DATABASE;
use rusqlite::Connection;
use rustix::process::{Resource, Signal, getrlimit};

use crate::support::{recorded, scan};
use netns_lab::daemon::{Daemon, binary};
use netns_lab::services::Services;
use netns_lab::{Lab, eventually, soon};

/// Limits the program to this many descriptors, even if more are already open.
fn limit(daemon: &Daemon, descriptors: Option<u64>) {
    let soft = descriptors.or(getrlimit(Resource::Nofile).current).expect("a number");
    set_limit(daemon, &format!("--nofile={soft}:"));
}

/// Changes a limit of the program with this option of `prlimit`.
fn set_limit(daemon: &Daemon, option: &str) {
    // The program is not root, and root may change limits of other users only with CAP_SYS_RESOURCE.
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    let id = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()).unwrap();
    let mut command = std::process::Command::new("setpriv");
    command.arg(format!("--reuid={}", id("Uid:"))).arg(format!("--regid={}", id("Gid:"))).arg("--clear-groups");
    let done = command.args(["prlimit", "--pid", &daemon.id().to_string(), option]).status();
    assert!(done.unwrap().success());
}

/// A local user may start so many processes that the kernel refuses further threads.
#[test]
fn thread_shortage_delays_neither_operator_nor_capture() {
    let lab = Lab::new(&["scanner"]);
    let daemon = Daemon::start_armed(&lab, "");
    // Longer than tokio keeps an idle thread by default.
    std::thread::sleep(Duration::from_secs(11));
    set_limit(&daemon, "--nproc=1:");
    // Listeners on every address change the filter of the capture, before the trap leaves their ports alone.
    let _services = Services::open(&lab, &[921, 922, 923]);
    eventually("the services are known", || !lab.ports("trapped").contains(&922));
    lab.provoke_ban("scanner");
    lab.succeed(&["status"]);
    assert_eq!(daemon.lines_with("internal error"), [""; 0]);
    daemon.stop();
}

#[test]
fn daemon_survives_descriptor_shortage() {
    let mut lab = Lab::new(&["before", "during"]);
    let daemon = Daemon::start_armed(&lab, "[metrics]\nlisten = \"127.0.0.1:9777\"\n");
    let before = lab.provoke_ban("before");
    eventually("the ledger has the ban", || recorded(&lab) == [before]);
    limit(&daemon, Some(3));
    // Services on other ports than those of the scan, a new host and a new gateway cannot be read now.
    let services = Services::open(&lab, &[921, 922, 923]);
    lab.join("late");
    lab.victim_ip("route add default via 10.77.2.66");
    daemon.expect_line("Too many open files");
    let during = {
        lab.probe_v4("during", &[904, 905, 906]);
        lab.expect_ban(lab.v4("during").into()).address
    };
    daemon.expect_line(&format!("attackalert: Host {during} has been blocked"));
    assert_eq!(lab.served("late", lab.victim_v4("late").into(), &[921, 922, 923], 2), 6, "a client is not banned");
    std::thread::sleep(Duration::from_secs(4));
    let lines = daemon.lines_with("Too many open files");
    // One line for the host, and one for each file that could not be written.
    assert!(lines.len() <= 3, "the failure is not reported every second: {lines:#?}");

    limit(&daemon, None);
    daemon.expect_line("this host's addresses, routes and services can be read again");
    eventually("the service is known", || !lab.ports("trapped").contains(&921));
    eventually("the gateway is known", || lab.set_text("allowed").contains("10.77.2.66"));
    eventually("operators are answered", || lab.operate(&["status"]).code == Some(0));
    // More ports than are forgiven to a client of a service, because the program may know its connections by now.
    let mut all = vec![before, during, lab.provoke_ban("late")];
    all.sort();
    assert_eq!(lab.banned(), all);
    assert!(soon(|| recorded(&lab) == all), "{:?} of {all:?}\n{}", recorded(&lab), daemon.log());
    drop(services);
    daemon.stop();
}

/// Another program holds the database's lock, as a hanging backup would.
#[test]
fn locked_ledger_delays_no_ban() {
    let lab = Lab::new(&["first", "second"]);
    let daemon = Daemon::start_armed(&lab, "");
    let first = lab.provoke_ban("first");
    eventually("the ledger has the ban", || recorded(&lab) == [first]);
    let other = Connection::open(lab.path("state").join(DATABASE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let second = scan(&lab, "second");
    lab.expect_ban(second);
    daemon.expect_line(&format!("attackalert: Host {second} has been blocked"));
    // If the check that is due every second finds the lock first, no change is pending yet.
    daemon.expect_line("database is locked; retrying, ");
    assert_eq!(lab.ask(&["status"])["running"], true);
    assert_eq!(recorded(&lab), [first]);
    other.execute_batch("ROLLBACK").unwrap();
    daemon.expect_line("the ledger can be written again");
    eventually("the ledger has both bans", || recorded(&lab) == [first, second]);
    daemon.stop();
}

/// Sixty bans by hand, each with a line; the log's socket holds a few of these.
fn log_sixty_lines(lab: &Lab) -> Vec<String> {
    eventually("it watches", || lab.operate(&["status"]).code == Some(0));
    let addresses: Vec<String> = (1..=60).map(|end| format!("198.51.100.{end}")).collect();
    addresses.iter().for_each(|address| drop(lab.succeed(&["block", address])));
    addresses
}

#[test]
fn unread_log_delays_neither_operator_nor_end() {
    let lab = Lab::new(&["scanner"]);
    let (daemon, _reader) = Daemon::spawn_unread(&lab, &["--expire", "24h"]);
    log_sixty_lines(&lab);
    lab.succeed(&["status"]);
    lab.provoke_ban("scanner");
    lab.victim_ip("route add 172.31.0.0/16 via 10.77.1.66");
    eventually("a new gateway is known", || lab.set_text("allowed").contains("10.77.1.66"));
    let (ended, took) = daemon.end_by(Signal::TERM);
    assert!(ended.status.success() && took < Duration::from_secs(5) * netns_lab::slowness(), "{ended:?}, {took:?}");
}

#[test]
fn late_reader_gets_all_log_lines() {
    let lab = Lab::new(&["scanner"]);
    let (daemon, reader) = Daemon::spawn_unread(&lab, &["--expire", "24h"]);
    let addresses = log_sixty_lines(&lab);
    let reading = std::thread::spawn(|| BufReader::new(reader).lines().map_while(Result::ok).collect::<Vec<_>>());
    let (ended, _) = daemon.end_by(Signal::TERM);
    assert!(ended.status.success());
    let lines = reading.join().unwrap();
    let of = |address: &String| {
        let line = lines.iter().position(|line| line.split([' ', '/', ':']).any(|word| word == address));
        line.unwrap_or_else(|| panic!("no line has {address}: {lines:#?}"))
    };
    assert!(addresses.iter().map(of).is_sorted(), "{lines:#?}");
    assert!(lines.last().unwrap().starts_with("securityalert: "), "the end is the last line: {lines:#?}");
}

/// Opens sockets on one port, each at its own address in 127.0.0.0/8, in as many processes as the limit of descriptors
/// requires. Each process writes one byte per open socket, and waits for the end of its standard input.
const OPEN_SOCKETS: &str = r#"
import os, resource, socket, sys
begin, count = int(sys.argv[1]), int(sys.argv[2])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
try:
    os.setuid(65534)
except OSError:
    pass  # in a user namespace without this user
each = min(hard - 100, count)
first = 0
while first + each < count and os.fork():
    first += each
sockets = []
for number in range(first, min(first + each, count)):
    sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sockets[-1].bind((socket.inet_ntoa((0x7f010000 + begin + number).to_bytes(4, "big")), 2000))
os.write(1, b"x" * len(sockets))
sys.stdin.read()
"#;

/// Number of sockets that are opened together.
const BATCH: usize = 100_000;

/// Opens `count` sockets as an unprivileged user, at addresses from number `begin` on. They stay open until the child's
/// standard input is closed.
fn open_sockets(lab: &Lab, begin: usize, count: usize) -> Child {
    let mut command = lab.command("victim", "python3");
    command.args(["-c", OPEN_SOCKETS, &begin.to_string(), &count.to_string()]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut vec![0; count]).unwrap();
    child
}

/// True if the kernel needs at least four times the daemon's limit for a list of UDP sockets. The time grows with the
/// square of their number.
fn is_listed_slowly(lab: &Lab) -> bool {
    let mut list = lab.command("victim", "timeout");
    list.args(["8", "ss", "-Huan"]).stdout(Stdio::null());
    list.status().unwrap().code() == Some(124)
}

#[test]
fn socket_storm_delays_neither_operator_nor_start() {
    let lab = Lab::new(&["before", "after"]);
    let daemon = Daemon::start_armed(&lab, "");
    const LATE: &str = "listing UDP sockets takes longer than 2 s";
    // The daemon is stopped while the number of sockets grows: a list that is almost late would delay the next one by
    // up to 100 s.
    let storm = daemon.frozen(|| {
        let mut storm = Vec::new();
        while !is_listed_slowly(&lab) {
            assert!(storm.len() < 8, "the kernel lists {} sockets on one port fast", storm.len() * BATCH);
            storm.push(open_sockets(&lab, storm.len() * BATCH, BATCH));
        }
        storm
    });
    daemon.expect_line(LATE);
    for _ in 0..5 {
        lab.succeed(&["status"]);
    }
    lab.victim_ip("route add 172.31.0.0/16 via 10.77.2.66");
    eventually("a new gateway is known", || lab.set_text("allowed").contains("10.77.2.66"));
    let services = Services::open(&lab, &[921, 922, 923]);
    assert_eq!(lab.served("after", lab.victim_v4("after").into(), &[921, 922, 923], 2), 6, "no client is a scanner");
    let mut check = lab.command("victim", "timeout");
    let check = check.arg("30").arg(binary()).arg("check").arg(lab.path("portsentry.toml")).output().unwrap();
    assert!(check.status.code().is_some_and(|code| code < 2), "the check has a limit as well: {check:?}");
    let notes = String::from_utf8(check.stderr).unwrap();
    assert!(notes.contains(&format!("not all ports in use are known: {LATE}")), "{notes}");
    let before = lab.provoke_ban("before");
    assert_eq!(daemon.lines_with("takes longer").len(), 1, "it is reported once");
    daemon.stop();

    let daemon = Daemon::start_armed(&lab, "");
    daemon.expect_line(LATE);
    assert!(!lab.ports("trapped").contains(&921), "the list of TCP sockets is complete");
    lab.succeed(&["status"]);
    let after = lab.provoke_ban("after");
    lab.expect_banned(&[before, after]);
    daemon.stop();
    drop(services);
    for mut sockets in storm {
        drop(sockets.stdin.take());
        assert!(sockets.wait().unwrap().success());
    }
}
