//! What the kernel counts of TCP ports by itself, with the program's judgement beside it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netns_lab::daemon::Daemon;
use netns_lab::services::{EIGHT, Services};
use netns_lab::{Lab, TIMEOUT, raw, slowness, within};

use crate::Protocol::Tcp;
use crate::{banned_at_last, is_banned};

const NO_TRAP: &str = "[trap]\ntcp = false\n";

#[test]
fn open_ports_and_allowed_sources_are_uncounted() {
    let lab = Lab::new(&["other", "friend"]);
    let _services = Services::open(&lab, &EIGHT);
    let friend = lab.v4("friend");
    let daemon = Tcp.start(&lab, &format!("[allow]\nnetworks = [\"{friend}\"]\n"));
    let watched = Tcp.watched(&lab);
    assert!(EIGHT.iter().all(|port| !watched.contains(port)) && watched.contains(&901), "{watched:?}");
    assert!(!watched.contains(&113), "excluded");
    daemon.frozen(|| {
        lab.touch("other", lab.v4("other").into(), lab.victim_v4("other").into(), &EIGHT);
        lab.touch("other", lab.v4("other").into(), lab.victim_v4("other").into(), &[113, 139]);
        lab.touch("friend", friend.into(), lab.victim_v4("friend").into(), &[901, 902, 903, 904, 905]);
        assert!(banned_at_last(&lab).is_empty());
        assert!(lab.set("suspects").is_empty(), "nothing was even counted");
    });
    daemon.stop();
}

/// The program has not heard of the services yet: it cannot even run. The kernel asks for the socket itself.
#[test]
fn new_service_is_no_trap() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let target = lab.victim_v4("other").into();
    daemon.frozen(|| {
        let ports = [901, 902, 903, 904, 905];
        let _services = Services::open(&lab, &ports);
        assert!(ports.iter().all(|port| Tcp.watched(&lab).contains(port)), "nobody has told the kernel");
        assert_eq!(lab.served("other", target, &ports, 3), 15);
        assert!(banned_at_last(&lab).is_empty() && lab.set("suspects").is_empty());
    });
    daemon.stop();
}

#[test]
fn stopped_service_is_no_trap() {
    let lab = Lab::new(&["other"]);
    let ports = [901, 902, 903, 904, 905];
    let services = Services::open(&lab, &ports);
    let daemon = Tcp.start(&lab, "");
    drop(services);
    let (source, target) = (lab.v4("other").into(), lab.victim_v4("other").into());
    for _ in 0..4 {
        lab.touch("other", source, target, &ports);
        std::thread::sleep(Duration::from_millis(500));
        assert!(ports.iter().all(|port| !Tcp.watched(&lab).contains(port)));
    }
    assert!(banned_at_last(&lab).is_empty());
    daemon.stop();
}

/// Docker and others have the kernel ask the firewall for bridges (`br_netfilter`). What the trap drops there comes no further
/// than the port of the bridge, and there it is for somebody else's hardware address.
#[test]
fn trap_ban_at_bridge_port_is_confirmed() {
    for settings in ["", "interfaces = [\"br0\"]\n"] {
        let lab = Lab::new(&["guest"]);
        for line in [
            "link add br0 address 02:00:00:00:00:01 type bridge",
            "addr flush dev guest",
            "link set guest master br0",
            "addr add 10.77.1.1/24 dev br0",
            "addr add fd77:0:0:1::1/64 dev br0 nodad",
            "link set br0 up",
        ] {
            lab.victim_ip(line);
        }
        for family in ["iptables", "ip6tables"] {
            // Where the kernel cannot, nothing is dropped so early, and all of this holds as well.
            let _ = lab
                .command("victim", "sysctl")
                .arg("-qw")
                .arg(format!("net.bridge.bridge-nf-call-{family}=1"))
                .output();
        }
        let daemon = Tcp.start(&lab, settings);
        let ends: [(IpAddr, IpAddr, IpAddr); 2] = [
            (lab.v4("guest").into(), lab.victim_v4("guest").into(), lab.v4("guest").into()),
            (lab.v6("guest").into(), lab.victim_v6("guest").into(), lab.v6_network("guest").into()),
        ];
        for (source, target, banned) in ends {
            lab.touch("guest", source, target, &[901, 902, 903]);
            assert!(is_banned(&lab, banned), "{banned}");
            daemon.expect_line(&format!("attackalert: Host {banned}"));
        }
        // Each has been looked at, and nobody let go.
        let reviewed = || (lab.set("caught").is_empty() && lab.set("caught6").is_empty()).then_some(());
        assert!(within(TIMEOUT, reviewed).is_some());
        assert_eq!(lab.banned().len(), 2);
        assert!(daemon.lines_with("nothing is held against them").is_empty());
        daemon.stop();
    }
}

#[test]
fn kernel_and_sensor_share_one_ceiling() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "[block]\nmax_new_bans_per_minute = 5\n");
    let sources = lab.add_addresses("other", 10..30);
    let began = Instant::now();
    // One more for each twelve seconds, which is what five a minute means, of each of the two.
    let most = || 7 + usize::try_from(began.elapsed().as_secs() / 6).unwrap();
    daemon.frozen(|| {
        for source in &sources {
            lab.touch("other", (*source).into(), lab.victim_v4("other").into(), &[901, 902, 903]);
        }
        let banned = banned_at_last(&lab).len();
        assert!((5..=most()).contains(&banned), "{banned} of 20 in {:?}", began.elapsed());
    });
    // What the kernel has banned is charged to the sensor, which bans no more than that; the others go on unbanned.
    lab.touch("other", sources[0].into(), lab.victim_v4("other").into(), &[901]);
    let confirmed = || lab.set("suspects").len() <= sources.len() - 5;
    assert!(within(TIMEOUT, || confirmed().then_some(())).is_some(), "{}", lab.set_text("suspects"));
    let banned = banned_at_last(&lab).len();
    assert!((5..=most()).contains(&banned), "{banned} of 20 in {:?}", began.elapsed());
    // One that does far more than a scan needs is banned all the same, for a short time.
    let last = *sources.last().unwrap();
    lab.touch("other", last.into(), lab.victim_v4("other").into(), &(901..=920).collect::<Vec<_>>());
    let ban = lab.expect_ban(last.into());
    assert!(ban.timeout <= Some(Duration::from_secs(300)) || began.elapsed() > Duration::from_secs(12), "{ban:?}");
    daemon.stop();
}

/// The sensor is too late for the kernel's packets: it finds the places that the kernel has filled, and the kernel waits.
#[test]
fn kernel_bans_few_sources_without_the_sensor() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "[block]\nmax_new_bans_per_minute = 1000000\n");
    let sources = lab.add_addresses("other", 10..40);
    daemon.frozen(|| {
        for source in &sources {
            lab.touch("other", (*source).into(), lab.victim_v4("other").into(), &[901, 902, 903]);
        }
        let banned = banned_at_last(&lab).len();
        assert!((8..=12).contains(&banned), "{banned} of 30");
    });
    lab.expect_banned(&sources.into_iter().map(IpAddr::from).collect::<Vec<_>>());
    let free = || lab.set("caught").is_empty().then_some(());
    assert!(within(TIMEOUT, free).is_some(), "and has room again");
    daemon.stop();
}

/// A source is let go for a reason only: one whose packets the sensor has lost stays blocked for a while.
#[test]
fn catch_without_reason_is_made_short() {
    let lab = Lab::new(&["other", "noise"]);
    let daemon = Tcp.start(&lab, "");
    let source = IpAddr::from(lab.v4("other"));
    daemon.frozen(|| {
        // More than the capture's ring holds, all of them one probe.
        let packet = raw::tcp(lab.v4("noise").into(), lab.victim_v4("noise").into(), 905, raw::SYN);
        lab.wire("noise").pace(1_000_000, std::iter::repeat_n(packet, 150_000));
        lab.touch("other", source, lab.victim_v4("other").into(), &[901, 902, 903]);
        assert!(is_banned(&lab, source), "by the kernel alone");
    });
    daemon.expect_line("without a verdict of the sensor");
    let ban = lab.expect_ban(source);
    assert!(ban.timeout <= Some(Duration::from_secs(300)), "{ban:?}");
    let known = lab.ask(&["explain", &source.to_string()]);
    assert_eq!(known["blocked"]["evidence"], "forgeable", "{known}");
    assert!(within(TIMEOUT, || lab.set("caught").is_empty().then_some(())).is_some());
    daemon.stop();
}

/// The host drops these packets after the trap has counted them.
#[test]
fn damaged_segments_lift_trap_ban() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let (source, target) = (IpAddr::from(lab.v4("other")), lab.victim_v4("other").into());
    let mut wire = lab.wire("other");
    for port in [901, 902, 903] {
        let mut packet = raw::tcp(source, target, port, raw::SYN);
        // The checksum of TCP.
        packet[36] ^= 0x55;
        wire.send(&packet);
    }
    daemon.expect_line(&format!("the kernel's trap had blocked {source}, and nothing is held against them: let go"));
    assert!(!banned_at_last(&lab).contains(&source));
    daemon.stop();
}

/// The program sees that the ports had been open; the kernel, which was told nothing for so long, does not.
#[test]
fn unfounded_trap_ban_is_lifted() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let (source, target) = (lab.v4("other").into(), lab.victim_v4("other").into());
    let ports = [901, 902, 903];
    daemon.frozen(|| {
        let services = Services::open(&lab, &ports);
        assert_eq!(lab.served("other", target, &ports, 1), 3);
        drop(services);
        // A child of another test may hold the listeners for a moment.
        let touched = || {
            lab.touch("other", source, target, &ports);
            lab.banned().contains(&source).then_some(())
        };
        assert!(within(TIMEOUT, touched).is_some(), "by the kernel alone");
    });
    daemon.expect_line(&format!("the kernel's trap had blocked {source}, and nothing is held against them: let go"));
    assert!(banned_at_last(&lab).is_empty() && lab.set("caught").is_empty() && lab.set("suspects").is_empty());
    assert!(daemon.lines_with("attackalert").is_empty());
    assert!(ports.iter().all(|port| Tcp.watched(&lab).contains(port)), "the answers excuse their peer alone");
    daemon.stop();
}

/// What it counted before the program knows nothing of.
#[test]
fn kernel_and_program_begin_together() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let (source, target) = (lab.v4("other").into(), lab.victim_v4("other").into());
    lab.touch("other", source, target, &[901, 902]);
    daemon.kill();
    assert!(!Tcp.watched(&lab).is_empty(), "a crash leaves it as it is");
    let daemon = Tcp.start(&lab, "");
    daemon.frozen(|| {
        lab.touch("other", source, target, &[903, 904]);
        assert!(banned_at_last(&lab).is_empty());
        lab.touch("other", source, target, &[905]);
        assert!(is_banned(&lab, source));
    });
    daemon.stop();
}

#[test]
fn lifted_ban_needs_new_evidence() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let (source, target) = (lab.v4("other").into(), lab.victim_v4("other").into());
    lab.provoke_ban("other");
    lab.succeed(&["unblock", &format!("{source}")]);
    daemon.frozen(|| {
        lab.touch("other", source, target, &[911, 912]);
        assert!(banned_at_last(&lab).is_empty(), "two are forgiven anew");
        lab.touch("other", source, target, &[913]);
        assert!(is_banned(&lab, source));
    });
    daemon.stop();
}

/// Later fragments have no header, and a frame for everybody is no connection to one host. For TCP both come of nobody but
/// who forges them, and the sensor passes them over.
#[test]
fn later_fragments_and_broadcasts_are_not_counted() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let (source, target) = (lab.v4("other"), lab.victim_v4("other"));
    let mut wire = lab.wire("other");
    daemon.frozen(|| {
        for port in 901_u16..=905 {
            let header =
                [&40_404_u16.to_be_bytes()[..], &port.to_be_bytes(), &[0; 8], &[0x50, 0x02], &[0; 10]].concat();
            wire.send(&raw::ipv4(source, target, raw::TCP, 3, false, &header));
            wire.broadcast(&raw::tcp(source.into(), target.into(), port, raw::SYN));
        }
        assert!(banned_at_last(&lab).is_empty() && lab.set("suspects").is_empty(), "{}", lab.set_text("touched"));
        for port in 901..=903 {
            wire.send(&raw::tcp(source.into(), target.into(), port, raw::SYN));
        }
        assert!(is_banned(&lab, source), "this is how they would have counted");
    });
    daemon.stop();
}

/// In order, so that what it learns is no matter of luck: nothing is open below 21.
#[test]
fn nmap_learns_no_open_port() {
    let lab = Lab::new(&["first", "second"]);
    let _services = Services::open(&lab, &EIGHT);
    let daemon = Tcp.start(&lab, "");
    for (host, how) in [("first", "-sS"), ("second", "-sT")] {
        let scan = lab.nmap(
            host,
            lab.victim_v4(host).into(),
            &[
                how,
                "-r",
                "-T5",
                "-p1-1024",
                "--max-retries",
                "0",
                "--min-parallelism",
                "100",
                "--max-rtt-timeout",
                "100ms",
            ],
        );
        assert!(scan.open.is_empty(), "{how}: {:?}", scan.open);
        lab.expect_ban(lab.v4(host).into());
    }
    daemon.stop();
}

#[test]
fn trap_is_emptied_at_end() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let attacker = lab.provoke_ban("other");
    daemon.stop();
    assert!(Tcp.watched(&lab).is_empty(), "nobody would look at what it catches");
    let daemon = Daemon::start_configured(&lab, NO_TRAP, &["--expire", "24h"]);
    let text = lab.run("victim", "nft", &["list", "table", "inet", "portsentry"]);
    assert!(!text.contains("trap") && !text.contains("touched"), "{text}");
    assert!(is_banned(&lab, attacker), "bans stay");
    daemon.stop();
}

#[test]
fn armed_trap_is_emptied_without_blocking() {
    let lab = Lab::new(&["other"]);
    Tcp.start(&lab, "").kill();
    assert!(!Tcp.watched(&lab).is_empty());
    let daemon = Daemon::start(&lab, &["--log-only"]);
    assert!(Tcp.watched(&lab).is_empty());
    lab.touch("other", lab.v4("other").into(), lab.victim_v4("other").into(), &[901, 902, 903, 904]);
    daemon.expect_line("903");
    assert!(banned_at_last(&lab).is_empty());
    daemon.stop();
}

#[test]
fn reload_applies_to_kernel_trap() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let (source, target) = (lab.v4("other").into(), lab.victim_v4("other").into());
    lab.touch("other", source, target, &[901, 902]);
    let reload = |text: &str, wanted: &dyn Fn(&str) -> bool| {
        lab.reload(text);
        let table = || lab.run("victim", "nft", &["list", "table", "inet", "portsentry"]);
        assert!(within(TIMEOUT, || wanted(&table()).then_some(())).is_some(), "{text}: {}", table());
    };
    reload("[detect]\nscan_trigger = 4\n", &|table| table.contains("burst 4 packets"));
    daemon.frozen(|| {
        lab.touch("other", source, target, &[903, 904, 905, 906]);
        assert!(banned_at_last(&lab).is_empty(), "four are forgiven from now on");
    });
    reload("[tcp]\nadvanced_ports = \"901-903\"\n", &|table| table.contains("elements = { 901-903 }"));
    reload(NO_TRAP, &|table| !table.contains("trap"));
    reload("", &|table| table.contains("tcp dport @trapped") && table.contains("burst 2 packets"));
    daemon.stop();
}

#[test]
fn trap_is_rearmed_after_flush() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let before = Tcp.watched(&lab);
    for harm in [
        "flush ruleset",
        "flush set inet portsentry trapped",
        "flush set inet portsentry trapped; add element inet portsentry trapped { 60000-65535 }",
        "flush chain inet portsentry trap",
        "flush chain inet portsentry prerouting; flush chain inet portsentry trap; flush chain inet portsentry trap_asked; \
         delete set inet portsentry trapped",
    ] {
        lab.run("victim", "nft", &[harm]);
        let began = Instant::now();
        let whole =
            || lab.run("victim", "nft", &["list", "ruleset"]).contains("@trapped") && Tcp.watched(&lab) == before;
        assert!(within(TIMEOUT, || whole().then_some(())).is_some(), "{harm}");
        assert!(began.elapsed() < Duration::from_secs(20) * slowness(), "{harm}");
    }
    let (source, target) = (lab.v4("other").into(), lab.victim_v4("other").into());
    daemon.frozen(|| {
        lab.touch("other", source, target, &[901, 902, 903]);
        assert!(is_banned(&lab, source));
    });
    daemon.stop();
}
