//! The kernel's side failing: notifications that are lost, a program that stands still, a table that goes at any moment.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::support::{forge, process, recorded, scan, start};
use netns_lab::daemon::Daemon;
use netns_lab::raw;
use netns_lab::{Lab, TIMEOUT, eventually, slowness, within};

/// A netlink socket of the program's that hears notifications: its inode, and how many it has lost.
fn listening(lab: &Lab, daemon: &Daemon) -> Vec<(u64, u64)> {
    let table = lab.run("victim", "cat", &["/proc/net/netlink"]);
    let own = inodes(daemon);
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
    let heard = rows.filter(|row| row[3] != "00000000").map(|row| (row[9].parse().unwrap(), row[8].parse().unwrap()));
    heard.filter(|(inode, _)| own.iter().any(|(_, known)| known == inode)).collect()
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

/// The program's own sockets that hear notifications, in the hands of this process.
fn taken(lab: &Lab, daemon: &Daemon) -> Vec<OwnedFd> {
    let heard = listening(lab, daemon);
    let program = pidfd_open(process(daemon), PidfdFlags::empty()).unwrap();
    let own = inodes(daemon).into_iter().filter(|(_, inode)| heard.iter().any(|(one, _)| one == inode));
    own.map(|(number, _)| pidfd_getfd(&program, number, PidfdGetfdFlags::empty()).unwrap()).collect()
}

/// ENOBUFS on every socket that hears of the host or the table, while the one and the other are turned upside down.
#[test]
fn lost_notifications_cost_no_protection() {
    let mut lab = Lab::new(&["attacker", "other"]);
    let daemon = start(&lab, "");
    let before = lab.ports("trapped");
    let attacker = lab.provoke_ban("attacker");
    let sockets = taken(&lab, &daemon);
    assert!(sockets.len() >= 2, "that of the table and that of the host: {}", sockets.len());
    for socket in &sockets {
        // The kernel makes it as small as it gets: some 2 KiB.
        sockopt::set_socket_recv_buffer_size(socket, 1).unwrap();
    }
    daemon.frozen(|| {
        lab.run("victim", "nft", &["add table inet noise; add chain inet noise one; add chain inet noise two"]);
        for third in 0..40 {
            lab.victim_ip(&format!("route add 172.16.{third}.0/24 via 10.77.2.2"));
            lab.victim_ip(&format!("xfrm policy add src 172.16.{third}.0/24 dst 172.17.0.0/16 dir out"));
        }
        lab.run("victim", "nft", &["flush ruleset"]);
        lab.victim_ip("route add default via 10.77.2.66");
        let lost = listening(&lab, &daemon);
        assert!(lost.iter().all(|(_, drops)| *drops > 0), "each has lost something: {lost:?}");
    });
    daemon.expect_line("changes of the ruleset came faster than they could be followed");
    assert_eq!(lab.expect_ban(attacker).timeout, Some(Duration::from_secs(86_400)), "the ban is back");
    eventually("the trap watches what it did", || lab.ports("trapped") == before);
    eventually("the new gateways are known", || {
        let allowed = lab.set_text("allowed");
        allowed.contains("10.77.2.66") && allowed.contains("10.77.2.2")
    });
    assert_eq!(scan(&lab, "other"), IpAddr::from(lab.v4("other")));
    lab.join("late");
    let late = IpAddr::from(lab.v4("late"));
    // Before the program knows its new address, the kernel's trap blocks alone, and is overruled two seconds later.
    eventually("who comes by a new link is blocked for good", || {
        lab.touch_until_banned("late", lab.victim_v4("late").into());
        recorded(&lab).contains(&late)
    });
    assert_eq!(lab.banned(), [attacker, late], "a gateway is never blocked");
    eventually("the ledger has both", || recorded(&lab) == lab.banned());
    daemon.stop();
}

/// Ten seconds of SIGSTOP: what the kernel has is enforced meanwhile, and what came is judged afterwards.
#[test]
fn ten_seconds_of_standing_still_lose_nothing() {
    let mut lab = Lab::new(&["lifted", "trapped", "judged", "after"]);
    let daemon = start(&lab, "");
    let lifted = lab.provoke_ban("lifted");
    daemon.expect_line(&format!("attackalert: Host {lifted} has been blocked"));
    let begin = Instant::now();
    let (trapped, judged) = daemon.frozen(|| {
        let trapped = scan(&lab, "trapped");
        lab.expect_ban(trapped);
        // No flag at all: nothing for the trap, and enough for the program.
        let judged = IpAddr::from(lab.v4("judged"));
        lab.wire("judged").send(&raw::tcp(judged, lab.victim_v4("judged").into(), 79, 0));
        lab.run("victim", "nft", &[&format!("delete element inet portsentry blocked {{ {lifted} }}")]);
        lab.victim_ip("route add default via 10.77.4.66");
        lab.join("late");
        std::thread::sleep(Duration::from_secs(10).saturating_sub(begin.elapsed()));
        assert_eq!(lab.banned(), [trapped], "the kernel alone has held it all the time");
        (trapped, judged)
    });
    let now = Instant::now();
    lab.expect_ban(judged);
    daemon.expect_line(&format!("attackalert: Host {judged} has been blocked"));
    daemon.expect_line(&format!("attackalert: Host {trapped} has been blocked"));
    daemon.expect_line(&format!("adminalert: Host {lifted} has been unblocked by nft (process "));
    assert!(now.elapsed() < TIMEOUT / 2 * slowness(), "it took {:?} to catch up", now.elapsed());
    assert_eq!(lab.ask(&["status"])["running"], true);
    eventually("the gateway that came is known", || lab.set_text("allowed").contains("10.77.4.66"));
    lab.touch_until_banned("late", lab.victim_v4("late").into());
    let after = scan(&lab, "after");
    lab.expect_ban(after);
    assert!(daemon.lines_with("nothing is held against them").is_empty());
    let mut all = vec![trapped, judged, after, lab.v4("late").into()];
    all.sort();
    assert_eq!(lab.banned(), all);
    eventually("the ledger has them all", || recorded(&lab) == all);
    daemon.stop();
}

/// A hundred times and more, at intervals that fit to nothing, also while it starts, catches and restores.
#[test]
fn table_deleted_anytime_loses_no_ban() {
    let lab = Lab::new(&["attacker", "before"]);
    lab.victim_ip("route add default dev attacker");
    let sources = lab.add_addresses("attacker", 100..130);
    let daemon = start(&lab, "");
    let before = lab.provoke_ban("before");
    eventually("the ledger has it", || recorded(&lab) == [before]);
    daemon.stop();
    let stop = AtomicBool::new(false);
    let daemon = std::thread::scope(|scope| {
        scope.spawn(|| {
            for pause in (0..).map(|number| 3 + number * 7 % 41) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // It may be gone already.
                let _ = lab.command("victim", "nft").args(["delete table inet portsentry"]).output();
                std::thread::sleep(Duration::from_millis(pause) * slowness());
            }
        });
        // Whatever happens to it, the other thread has to end.
        let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let daemon = Daemon::start_configured(&lab, "", &["--expire", "24h"]);
            for source in &sources {
                lab.touch("attacker", (*source).into(), lab.victim_v4("attacker").into(), &[901, 902, 903]);
                // Also while it goes on: there is time enough between two deletions.
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
    eventually("the trap is armed again", || lab.ports("trapped").contains(&901));
    eventually("the ledger has them all", || recorded(&lab) == all);
    let late = Ipv4Addr::new(10, 99, 0, 1).into();
    daemon.frozen(|| {
        let mut wire = lab.wire("attacker");
        forge(&mut wire, late, lab.victim_v4("attacker").into());
        lab.expect_ban(late);
    });
    daemon.stop();
}

/// After a reboot the first packet may be a scanner's: that one is blocked already says nothing against the others' bans.
#[test]
fn first_scanner_after_reboot_frees_nothing() {
    let lab = Lab::new(&["eager", "other"]);
    let daemon = start(&lab, "");
    let mut both = vec![lab.provoke_ban("eager"), lab.provoke_ban("other")];
    both.sort();
    eventually("the ledger has both", || recorded(&lab) == both);
    daemon.stop();
    let (eager, target) = (lab.v4("eager").into(), lab.victim_v4("eager").into());
    for _ in 0..3 {
        lab.run("victim", "nft", &["delete table inet portsentry"]);
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
        eventually("the ledger still has both", || recorded(&lab) == both);
        daemon.stop();
    }
}
