//! Tests the kernel's own counting of TCP ports, and the program's verdict about it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netns_lab::daemon::Daemon;
use netns_lab::services::{EIGHT, Services};
use netns_lab::{Lab, TIMEOUT, eventually, raw, slowness, soon, within};
use portsentry::types::BanTarget;

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
        lab.probe_v4("other", &EIGHT);
        lab.probe_v4("other", &[113, 139]);
        lab.probe("friend", friend.into(), lab.victim_v4("friend").into(), &[901, 902, 903, 904, 905]);
        assert!(banned_at_last(&lab).is_empty());
        assert!(lab.set("suspects").is_empty(), "no probe was counted");
    });
    daemon.stop();
}

/// The program is stopped and has not noticed the services. The kernel looks up the sockets itself.
#[test]
fn new_service_is_not_counted() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let target = lab.victim_v4("other").into();
    daemon.frozen(|| {
        let ports = [901, 902, 903, 904, 905];
        let _services = Services::open(&lab, &ports);
        assert!(
            ports.iter().all(|port| Tcp.watched(&lab).contains(port)),
            "the kernel has not been told about these ports"
        );
        assert_eq!(lab.served("other", target, &ports, 3), 15);
        assert!(banned_at_last(&lab).is_empty() && lab.set("suspects").is_empty());
    });
    daemon.stop();
}

#[test]
fn stopped_service_is_not_counted() {
    let lab = Lab::new(&["other"]);
    let ports = [901, 902, 903, 904, 905];
    let services = Services::open(&lab, &ports);
    let daemon = Tcp.start(&lab, "");
    drop(services);
    let (source, target) = lab.ends_v4("other");
    for _ in 0..4 {
        lab.probe("other", source, target, &ports);
        std::thread::sleep(Duration::from_millis(500));
        assert!(ports.iter().all(|port| !Tcp.watched(&lab).contains(port)));
    }
    assert!(banned_at_last(&lab).is_empty());
    daemon.stop();
}

/// Docker and others make bridged packets pass the firewall (`br_netfilter`). The trap drops such packets at the bridge
/// port, where they are still addressed to another hardware address.
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
            // On a kernel without `br_netfilter` nothing is dropped so early, and the test must pass too.
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
            lab.probe("guest", source, target, &[901, 902, 903]);
            assert!(is_banned(&lab, banned), "{banned}");
            daemon.expect_line(&format!("attackalert: Host {banned}"));
        }
        // All bans have been reviewed, and none was lifted.
        let reviewed = || lab.set("caught").is_empty() && lab.set("caught6").is_empty();
        assert!(soon(reviewed));
        assert_eq!(lab.banned().len(), 2);
        assert!(daemon.lines_with("without valid evidence").is_empty());
        daemon.stop();
    }
}

#[test]
fn kernel_and_sensor_share_one_ceiling() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "[block]\nmax_new_bans_per_minute = 5\n");
    let sources = lab.add_addresses("other", 10..30);
    let began = Instant::now();
    // A limit of five per minute allows one more ban every twelve seconds, for the kernel and for the sensor.
    let most = || 7 + usize::try_from(began.elapsed().as_secs() / 6).unwrap();
    daemon.frozen(|| {
        for source in &sources {
            lab.probe("other", (*source).into(), lab.victim_v4("other").into(), &[901, 902, 903]);
        }
        let banned = banned_at_last(&lab).len();
        assert!((5..=most()).contains(&banned), "{banned} of 20 in {:?}", began.elapsed());
    });
    // The kernel's bans count against the sensor's ceiling, so the other sources are not banned.
    lab.probe("other", sources[0].into(), lab.victim_v4("other").into(), &[901]);
    let confirmed = || lab.set("suspects").len() <= sources.len() - 5;
    assert!(soon(confirmed), "{}", lab.set_text("suspects"));
    let banned = banned_at_last(&lab).len();
    assert!((5..=most()).contains(&banned), "{banned} of 20 in {:?}", began.elapsed());
    // A source with far more probes than a scan needs is banned nevertheless, for a short time.
    let last = *sources.last().unwrap();
    lab.probe("other", last.into(), lab.victim_v4("other").into(), &(901..=920).collect::<Vec<_>>());
    let ban = lab.expect_ban(last.into());
    assert!(ban.timeout <= Some(Duration::from_secs(300)) || began.elapsed() > Duration::from_secs(12), "{ban:?}");
    daemon.stop();
}

/// The program is stopped. The kernel bans only as many sources as the set `caught` has room for, until the sensor
/// empties it.
#[test]
fn kernel_alone_bans_few_sources() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "[block]\nmax_new_bans_per_minute = 1000000\n");
    let sources = lab.add_addresses("other", 10..40);
    daemon.frozen(|| {
        for source in &sources {
            lab.probe("other", (*source).into(), lab.victim_v4("other").into(), &[901, 902, 903]);
        }
        let banned = banned_at_last(&lab).len();
        assert!((8..=12).contains(&banned), "{banned} of 30");
    });
    lab.expect_banned(&sources.into_iter().map(IpAddr::from).collect::<Vec<_>>());
    let free = || lab.set("caught").is_empty();
    assert!(soon(free), "the set has room again");
    daemon.stop();
}

/// A ban is lifted only for a reason: a source whose packets the sensor lost stays banned for a short time.
#[test]
fn unexplained_trap_ban_is_shortened() {
    let lab = Lab::new(&["other", "noise"]);
    let daemon = Tcp.start(&lab, "");
    let source = IpAddr::from(lab.v4("other"));
    daemon.frozen(|| {
        // Repeats of one probe, more than the capture's ring buffer can hold.
        let packet = raw::tcp(lab.v4("noise").into(), lab.victim_v4("noise").into(), 905, raw::SYN);
        lab.wire("noise").pace(1_000_000, std::iter::repeat_n(packet, 150_000));
        lab.probe("other", source, lab.victim_v4("other").into(), &[901, 902, 903]);
        assert!(is_banned(&lab, source), "banned by the kernel alone");
    });
    daemon.expect_line("without a verdict of the sensor");
    // The log line may be written slightly before the kernel's set changes.
    let shortened = || Some(lab.expect_ban(source)).filter(|ban| ban.timeout <= Some(Duration::from_secs(300)));
    assert!(within(TIMEOUT, shortened).is_some(), "{:?}", lab.set("blocked"));
    let known = lab.ask(&["explain", &source.to_string()]);
    assert_eq!(known["blocked"]["evidence"], "forgeable", "{known}");
    assert_eq!(known["strikes"], 0, "it makes no later ban longer: {known}");
    assert!(soon(|| lab.set("caught").is_empty()));
    let recorded = || {
        let known = lab.ask(&["explain", &source.to_string()]);
        known["history"].as_array().filter(|history| history.len() == 1).map(|history| history[0].clone())
    };
    let row = within(TIMEOUT, recorded).expect("the ledger has a row of the ban");
    assert_eq!((&row["author"], &row["evidence"]), (&"detector".into(), &"forgeable".into()), "{row}");
    assert_eq!((&row["class"], &row["method"]), (&serde_json::Value::Null, &"nft".into()), "{row}");
    assert!(row["note"].as_str().is_some_and(|note| note.contains("without a verdict of the sensor")), "{row}");
    let time = |key: &str| humantime::parse_rfc3339(row[key].as_str().unwrap()).unwrap();
    assert_eq!(time("expires").duration_since(time("since")).unwrap(), Duration::from_secs(300), "{row}");
    let told = lab.operate(&["explain", &source.to_string()]).out;
    assert!(told.contains("  trap ") && told.contains("forgeable evidence"), "{told}");
    let listed = lab.operate(&["list"]).out;
    assert!(listed.contains("  trap ") && listed.contains("detector"), "{listed}");
    let history = std::fs::read_to_string(lab.path("state").join("portsentry.history")).unwrap();
    assert!(history.contains(&format!("Host: {source}/{source} Port: ")), "{history}");
    daemon.stop();
    // The row must be the same after the kernel has lost its sets.
    lab.nft("flush ruleset");
    let daemon = Tcp.start(&lab, "");
    let ban = lab.expect_ban(source);
    assert!(ban.expires <= Some(Duration::from_secs(300)), "{ban:?}");
    daemon.stop();
}

/// On a link without a wire, the kernel also drops segments with a wrong checksum, unless their sender has left the
/// checksum to the network card.
#[test]
fn damaged_segments_on_veth_excuse_trap_ban() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let ends = lab.ends("other");
    let mut wire = lab.wire("other");
    for (source, target) in ends {
        for flags in [raw::SYN, 0] {
            for port in 901..=906 {
                let mut packet = raw::tcp(source, target, port, flags);
                // The last bytes are the checksum of TCP and its urgent pointer.
                let checksum = packet.len() - 4;
                packet[checksum] ^= 0x55;
                wire.send(&packet);
            }
        }
        let name = BanTarget::containing(source).to_string();
        daemon.expect_line(&format!("the kernel's trap blocked {name} without valid evidence: unblocked"));
    }
    assert!(banned_at_last(&lab).is_empty(), "{:?}", lab.banned());
    assert!(daemon.lines_with("has been blocked").is_empty());
    daemon.stop();
}

/// The program has recorded that the ports were open a moment ago; the kernel's sets do not contain that.
#[test]
fn unfounded_trap_ban_is_lifted() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let (source, target) = lab.ends_v4("other");
    let ports = [901, 902, 903];
    daemon.frozen(|| {
        let services = Services::open(&lab, &ports);
        assert_eq!(lab.served("other", target, &ports, 1), 3);
        drop(services);
        // A child process of another test may hold the listeners briefly.
        let touched = || {
            lab.probe("other", source, target, &ports);
            lab.banned().contains(&source).then_some(())
        };
        assert!(within(TIMEOUT, touched).is_some(), "banned by the kernel alone");
    });
    daemon.expect_line(&format!("the kernel's trap blocked {source} without valid evidence: unblocked"));
    assert!(banned_at_last(&lab).is_empty() && lab.set("caught").is_empty() && lab.set("suspects").is_empty());
    assert!(daemon.lines_with("attackalert").is_empty());
    assert!(ports.iter().all(|port| Tcp.watched(&lab).contains(port)), "answers excuse their own peer only");
    daemon.stop();
}

/// After a restart the kernel forgets earlier probes, as the program does.
#[test]
fn restart_resets_kernel_counts() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let (source, target) = lab.ends_v4("other");
    lab.probe("other", source, target, &[901, 902]);
    daemon.kill();
    assert!(!Tcp.watched(&lab).is_empty(), "a crash leaves the trap armed");
    let daemon = Tcp.start(&lab, "");
    daemon.frozen(|| {
        lab.probe("other", source, target, &[903, 904]);
        assert!(banned_at_last(&lab).is_empty());
        lab.probe("other", source, target, &[905]);
        assert!(is_banned(&lab, source));
    });
    daemon.stop();
}

#[test]
fn lifted_ban_needs_new_evidence() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let (source, target) = lab.ends_v4("other");
    lab.provoke_ban("other");
    lab.succeed(&["unblock", &format!("{source}")]);
    daemon.frozen(|| {
        lab.probe("other", source, target, &[911, 912]);
        assert!(banned_at_last(&lab).is_empty(), "two ports are forgiven again");
        lab.probe("other", source, target, &[913]);
        assert!(is_banned(&lab, source));
    });
    daemon.stop();
}

/// Later fragments have no header, and a broadcast frame is not a connection to one host. With TCP both are always
/// forged, and the sensor ignores them.
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
        assert!(is_banned(&lab, source), "as ordinary probes they count");
    });
    daemon.stop();
}

/// The ports are scanned in order, so that the result does not depend on luck: none below 21 is open.
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
    assert!(Tcp.watched(&lab).is_empty(), "an armed trap would ban without review");
    let daemon = Daemon::start_configured(&lab, NO_TRAP, &["--expire", "24h"]);
    let text = lab.nft("list table inet portsentry");
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
    lab.probe_v4("other", &[901, 902, 903, 904]);
    daemon.expect_line("903");
    assert!(banned_at_last(&lab).is_empty());
    daemon.stop();
}

#[test]
fn reload_applies_to_kernel_trap() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let (source, target) = lab.ends_v4("other");
    lab.probe("other", source, target, &[901, 902]);
    let reload = |text: &str, is_applied: &dyn Fn(&str) -> bool| {
        lab.reload(text);
        let table = || lab.nft("list table inet portsentry");
        assert!(soon(|| is_applied(&table())), "{text}: {}", table());
    };
    reload("[detect]\nscan_trigger = 4\n", &|table| table.contains("burst 4 packets"));
    daemon.frozen(|| {
        lab.probe("other", source, target, &[903, 904, 905, 906]);
        assert!(banned_at_last(&lab).is_empty(), "four ports are forgiven after the reload");
    });
    reload("[tcp]\nadvanced_ports = \"901-903\"\n", &|table| table.contains("elements = { 901-903 }"));
    reload(NO_TRAP, &|table| !table.contains("trap"));
    reload("", &|table| table.contains("tcp dport @trapped") && table.contains("burst 2 packets"));
    daemon.stop();
}

#[test]
fn trap_is_rearmed_after_flush() {
    let lab = Lab::new(&["other"]);
    let _services = Services::open(&lab, &[80]);
    let daemon = Tcp.start(&lab, "");
    let state = || (Tcp.watched(&lab), ["services", "ceiling_reached"].map(|set| elements_of(&lab.set_text(set))));
    eventually("the service is known", || state().1[0] == "80");
    let before = state();
    for harm in [
        "flush ruleset",
        "flush set inet portsentry trapped",
        "flush set inet portsentry trapped; add element inet portsentry trapped { 60000-65535 }",
        "flush set inet portsentry services",
        "add element inet portsentry ceiling_reached { tcp }",
        "flush chain inet portsentry trap",
        "flush chain inet portsentry prerouting; flush chain inet portsentry trap; flush chain inet portsentry trap_asked; \
         delete set inet portsentry trapped",
    ] {
        lab.nft(harm);
        let began = Instant::now();
        let whole = || lab.nft("list ruleset").contains("@trapped") && state() == before;
        assert!(soon(whole), "{harm}");
        assert!(began.elapsed() < Duration::from_secs(20) * slowness(), "{harm}");
    }
    let (source, target) = lab.ends_v4("other");
    daemon.frozen(|| {
        lab.probe("other", source, target, &[901, 902, 903]);
        assert!(is_banned(&lab, source));
    });
    daemon.stop();
}

/// The elements of a set as nft lists them; empty if there are none.
fn elements_of(text: &str) -> String {
    let listed = text.split_once("elements = {").and_then(|(_, rest)| rest.split_once('}'));
    listed.map_or_else(String::new, |(elements, _)| elements.trim().to_owned())
}
