//! Tests failures on the kernel's side: lost notifications, a stopped program, a table that is deleted at any time.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::support::{forge, recorded, scan};
use netns_lab::daemon::Daemon;
use netns_lab::raw;
use netns_lab::{Lab, TIMEOUT, eventually, slowness, within};

/// The program's netlink sockets with notifications: inode and number of lost messages.
fn notification_sockets(lab: &Lab, daemon: &Daemon) -> Vec<(u64, u64)> {
    let table = lab.run("victim", "cat", &["/proc/net/netlink"]);
    let own = inodes(daemon);
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
    let subscribed =
        rows.filter(|row| row[3] != "00000000").map(|row| (row[9].parse().unwrap(), row[8].parse().unwrap()));
    subscribed.filter(|(inode, _)| own.iter().any(|(_, known)| known == inode)).collect()
}

/// The program's sockets: descriptor and inode.
fn inodes(daemon: &Daemon) -> Vec<(i32, u64)> {
    let entries = std::fs::read_dir(format!("/proc/{}/fd", daemon.id())).unwrap().flatten();
    let socket = |entry: std::fs::DirEntry| {
        let link = std::fs::read_link(entry.path()).ok()?;
        let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, inode))
    };
    entries.filter_map(socket).collect()
}

/// Copies of the program's netlink sockets with notifications.
fn copied_sockets(lab: &Lab, daemon: &Daemon) -> Vec<OwnedFd> {
    let subscribed = notification_sockets(lab, daemon);
    let program = pidfd_open(daemon.pid(), PidfdFlags::empty()).unwrap();
    let own = inodes(daemon).into_iter().filter(|(_, inode)| subscribed.iter().any(|(one, _)| one == inode));
    own.map(|(number, _)| pidfd_getfd(&program, number, PidfdGetfdFlags::empty()).unwrap()).collect()
}

/// Every notification socket gets ENOBUFS, while host and table change considerably.
#[test]
fn lost_notifications_weaken_no_protection() {
    let mut lab = Lab::new(&["attacker", "other"]);
    let daemon = Daemon::start_armed(&lab, "");
    let before = lab.ports("trapped");
    let attacker = lab.provoke_ban("attacker");
    let sockets = copied_sockets(&lab, &daemon);
    assert!(sockets.len() >= 2, "one for the table and one for the host: {}", sockets.len());
    for socket in &sockets {
        // The kernel's minimum, about 2 KiB.
        sockopt::set_socket_recv_buffer_size(socket, 1).unwrap();
    }
    daemon.frozen(|| {
        lab.nft("add table inet noise; add chain inet noise one; add chain inet noise two");
        for third in 0..40 {
            lab.victim_ip(&format!("route add 172.16.{third}.0/24 via 10.77.2.2"));
            lab.victim_ip(&format!("xfrm policy add src 172.16.{third}.0/24 dst 172.17.0.0/16 dir out"));
        }
        lab.nft("flush ruleset");
        lab.victim_ip("route add default via 10.77.2.66");
        let lost = notification_sockets(&lab, &daemon);
        assert!(lost.iter().all(|(_, drops)| *drops > 0), "every socket has lost notifications: {lost:?}");
    });
    daemon.expect_line(
        "some changes of the ruleset were missed, because they arrived too fast; the table is checked as a whole",
    );
    assert_eq!(lab.expect_ban(attacker).timeout, Some(Duration::from_secs(86_400)), "the ban is restored");
    eventually("the trap watches the same ports as before", || lab.ports("trapped") == before);
    eventually("the new gateways are known", || {
        let allowed = lab.set_text("allowed");
        allowed.contains("10.77.2.66") && allowed.contains("10.77.2.2")
    });
    assert_eq!(scan(&lab, "other"), IpAddr::from(lab.v4("other")));
    lab.join("late");
    let late = IpAddr::from(lab.v4("late"));
    // Until the program knows its new address, the kernel's trap bans alone, and the ban is lifted two seconds later.
    eventually("a scanner on a new link is banned permanently", || {
        lab.probe_until_banned("late", lab.victim_v4("late").into());
        recorded(&lab).contains(&late)
    });
    assert_eq!(lab.banned(), [attacker, late], "a gateway is never banned");
    eventually("the ledger has both", || recorded(&lab) == lab.banned());
    daemon.stop();
}

/// Ten seconds of SIGSTOP: the kernel's bans stay in force meanwhile, and pending packets are judged afterwards.
#[test]
fn ten_seconds_of_sigstop_lose_nothing() {
    let mut lab = Lab::new(&["lifted", "trapped", "judged", "after"]);
    let daemon = Daemon::start_armed(&lab, "");
    let lifted = lab.provoke_ban("lifted");
    daemon.expect_line(&format!("attackalert: Host {lifted} has been blocked"));
    let begin = Instant::now();
    let (trapped, judged) = daemon.frozen(|| {
        let trapped = scan(&lab, "trapped");
        lab.expect_ban(trapped);
        // No flags: the trap ignores it, and the program bans its source.
        let judged = IpAddr::from(lab.v4("judged"));
        lab.wire("judged").send(&raw::tcp(judged, lab.victim_v4("judged").into(), 79, 0));
        lab.nft(&format!("delete element inet portsentry blocked {{ {lifted} }}"));
        lab.victim_ip("route add default via 10.77.4.66");
        lab.join("late");
        std::thread::sleep(Duration::from_secs(10).saturating_sub(begin.elapsed()));
        assert_eq!(lab.banned(), [trapped], "the kernel's own ban was in force all the time");
        (trapped, judged)
    });
    let now = Instant::now();
    lab.expect_ban(judged);
    daemon.expect_line(&format!("attackalert: Host {judged} has been blocked"));
    daemon.expect_line(&format!("attackalert: Host {trapped} has been blocked"));
    daemon.expect_line(&format!("adminalert: Host {lifted} has been unblocked by nft (process "));
    assert!(now.elapsed() < TIMEOUT / 2 * slowness(), "it took {:?} to catch up", now.elapsed());
    assert_eq!(lab.ask(&["status"])["running"], true);
    eventually("the new gateway is known", || lab.set_text("allowed").contains("10.77.4.66"));
    lab.probe_until_banned("late", lab.victim_v4("late").into());
    let after = scan(&lab, "after");
    lab.expect_ban(after);
    assert!(daemon.lines_with("without valid evidence").is_empty());
    let mut all = vec![trapped, judged, after, lab.v4("late").into()];
    all.sort();
    assert_eq!(lab.banned(), all);
    eventually("the ledger has all bans", || recorded(&lab) == all);
    daemon.stop();
}

/// More than a hundred deletions at irregular intervals, also during start, scans and restores.
#[test]
fn table_deleted_anytime_loses_no_ban() {
    let lab = Lab::new(&["attacker", "before"]);
    lab.default_route("attacker");
    let sources = lab.add_addresses("attacker", 100..130);
    let daemon = Daemon::start_armed(&lab, "");
    let before = lab.provoke_ban("before");
    eventually("the ledger has the ban", || recorded(&lab) == [before]);
    daemon.stop();
    let stop = AtomicBool::new(false);
    let daemon = std::thread::scope(|scope| {
        scope.spawn(|| {
            for pause in (0..).map(|number| 3 + number * 7 % 41) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // The table may be gone already.
                let _ = lab.command("victim", "nft").args(["delete table inet portsentry"]).output();
                std::thread::sleep(Duration::from_millis(pause) * slowness());
            }
        });
        // The other thread must end even after a panic here.
        let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let daemon = Daemon::start_configured(&lab, "", &["--expire", "24h"]);
            for source in &sources {
                lab.probe("attacker", (*source).into(), lab.victim_v4("attacker").into(), &[901, 902, 903]);
                // Bans work between deletions too.
                daemon.expect_line(&format!("attackalert: Host {source} has been blocked"));
            }
            daemon
        }));
        stop.store(true, Ordering::Relaxed);
        started.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let mut all: Vec<IpAddr> = sources.iter().map(|source| (*source).into()).chain([before]).collect();
    all.sort();
    let whole = within(TIMEOUT, || (lab.banned() == all).then_some(()));
    let log = || daemon.lines_with("adminalert").join("\n");
    assert!(whole.is_some(), "{:?} of {all:?}\n{}", lab.banned(), log());
    lab.trapped_ports();
    eventually("the ledger has all bans", || recorded(&lab) == all);
    let late = Ipv4Addr::new(10, 99, 0, 1).into();
    daemon.frozen(|| {
        let mut wire = lab.wire("attacker");
        forge(&mut wire, late, lab.victim_v4("attacker").into());
        lab.expect_ban(late);
    });
    daemon.stop();
}

/// The first packet after a reboot may come from a banned scanner. That its ban is missing must not end the other bans.
#[test]
fn first_scanner_after_reboot_lifts_nothing() {
    let lab = Lab::new(&["eager", "other"]);
    let daemon = Daemon::start_armed(&lab, "");
    let mut both = vec![lab.provoke_ban("eager"), lab.provoke_ban("other")];
    both.sort();
    eventually("the ledger has both bans", || recorded(&lab) == both);
    daemon.stop();
    let (eager, target) = lab.ends_v4("eager");
    for _ in 0..3 {
        lab.nft("delete table inet portsentry");
        let stop = AtomicBool::new(false);
        let daemon = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut wire = lab.wire("eager");
                while !stop.load(Ordering::Relaxed) {
                    forge(&mut wire, eager, target);
                    std::thread::sleep(Duration::from_micros(200) * slowness());
                }
            });
            let daemon = Daemon::spawn(&lab, &[], &["--expire", "24h"]);
            let whole = within(TIMEOUT, || (lab.banned() == both).then_some(()));
            stop.store(true, Ordering::Relaxed);
            assert!(whole.is_some(), "{:?} of {both:?}\n{}", lab.banned(), daemon.lines_with("adminalert").join("\n"));
            daemon
        });
        eventually("the ledger still has both bans", || recorded(&lab) == both);
        daemon.stop();
    }
}
