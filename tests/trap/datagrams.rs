//! What the kernel counts of datagrams by itself, with the program's judgement beside it.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use crate::counting::{banned_at_last, frozen, is_banned, ports_in};
use crate::lab::daemon::Daemon;
use crate::lab::{Lab, PATIENCE, slowness, within};

pub(crate) const BLOCKING: &str = "[udp]\nblock = true\n[trap]\nudp = true\n";

/// Starts the program, and waits until it watches some UDP ports.
pub(crate) fn start(lab: &Lab, more: &str) -> Daemon {
    let daemon = Daemon::start_configured(lab, &format!("{more}{BLOCKING}"), &["--expire", "24h"]);
    assert!(within(PATIENCE, || (!trapped(lab).is_empty()).then_some(())).is_some());
    daemon
}

/// The UDP ports that the kernel watches.
pub(crate) fn trapped(lab: &Lab) -> BTreeSet<u16> {
    ports_in(lab, "trapped_udp")
}

/// The table as nft prints it; nothing where it is just being laid again.
fn table(lab: &Lab) -> String {
    lab.run("victim", "nft", &["list", "ruleset"])
}

/// Sends one datagram from `source` to each of `ports`.
pub(crate) fn touch(lab: &Lab, host: &str, source: IpAddr, target: IpAddr, ports: &[u16]) {
    lab.inside(host, || {
        let socket = UdpSocket::bind((source, 0)).unwrap();
        for port in ports {
            assert_eq!(socket.send_to(b"portscan", (target, *port)).unwrap(), 8);
        }
    });
}

#[test]
fn the_kernel_alone_counts_distinct_ports_and_not_datagrams() {
    let lab = Lab::new(&["other"]);
    let daemon = start(&lab, "");
    let (source, target) = (lab.v4("other").into(), lab.victim_v4("other").into());
    let mut status = lab.command("victim", env!("CARGO_BIN_EXE_portsentry"));
    let status = status.args(["status", "--socket"]).arg(lab.path("socket")).output().unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains(&format!(" TCP and {} UDP ports; 0 caught by it", trapped(&lab).len())), "{status}");
    frozen(&daemon, || {
        touch(&lab, "other", source, target, &[901, 902, 901, 902, 902, 901, 901, 902]);
        assert!(banned_at_last(&lab).is_empty(), "two are forgiven, however often");
        touch(&lab, "other", source, target, &[903]);
        assert!(is_banned(&lab, source), "at once, and without the program");
        assert_eq!(lab.expect_ban(source).timeout, Some(Duration::from_secs(86_400)));
    });
    daemon.expect_line(&format!("attackalert: Host {source} has been blocked"));
    daemon.stop();
}

#[test]
fn the_kernel_alone_blocks_an_ipv6_scanner_by_its_64() {
    let lab = Lab::new(&["other"]);
    let daemon = start(&lab, "");
    let neighbour = lab.add_neighbour("other");
    let (source, target) = (lab.v6("other").into(), lab.victim_v6("other").into());
    frozen(&daemon, || {
        touch(&lab, "other", source, target, &[901, 902]);
        assert!(banned_at_last(&lab).is_empty());
        touch(&lab, "other", neighbour.into(), target, &[903]);
        assert!(is_banned(&lab, lab.v6_network("other")));
    });
    daemon.expect_line("has been blocked");
    daemon.stop();
}

/// As the program does: both protocols block, and so they are one account.
#[test]
fn ports_of_tcp_and_udp_are_counted_together_and_the_same_number_is_two() {
    let lab = Lab::new(&["other"]);
    let daemon = start(&lab, "");
    let (source, target) = (lab.v4("other").into(), lab.victim_v4("other").into());
    frozen(&daemon, || {
        lab.touch("other", source, target, &[901]);
        touch(&lab, "other", source, target, &[901]);
        assert!(banned_at_last(&lab).is_empty());
        lab.touch("other", source, target, &[901, 902]);
        assert!(is_banned(&lab, source));
    });
    daemon.expect_line(&format!("attackalert: Host {source} has been blocked"));
    assert!(daemon.lines_with("nothing is held against them").is_empty());
    daemon.stop();
}

#[test]
fn udp_can_be_counted_where_tcp_is_not() {
    let lab = Lab::new(&["other"]);
    let daemon = Daemon::start_configured(&lab, &format!("{BLOCKING}tcp = false\n"), &["--expire", "24h"]);
    assert!(within(PATIENCE, || (!trapped(&lab).is_empty()).then_some(())).is_some());
    assert!(!table(&lab).contains("tcp"));
    let (source, target) = (lab.v4("other").into(), lab.victim_v4("other").into());
    frozen(&daemon, || {
        lab.touch("other", source, target, &[901, 902, 903, 904]);
        assert!(banned_at_last(&lab).is_empty());
        touch(&lab, "other", source, target, &[901, 902, 903]);
        assert!(is_banned(&lab, source));
    });
    daemon.stop();
}

#[test]
fn the_first_datagram_blocks_where_none_is_forgiven() {
    let lab = Lab::new(&["other"]);
    let daemon = start(&lab, "[detect]\nscan_trigger = 0\n");
    let (source, target) = (lab.v4("other").into(), lab.victim_v4("other").into());
    frozen(&daemon, || {
        touch(&lab, "other", source, target, &[901]);
        assert!(is_banned(&lab, source));
    });
    daemon.stop();
}

#[test]
fn only_the_interfaces_count_that_the_settings_name() {
    let lab = Lab::new(&["other", "quiet"]);
    let daemon = start(&lab, "interfaces = [\"other\"]\n");
    frozen(&daemon, || {
        for host in ["quiet", "other"] {
            touch(&lab, host, lab.v4(host).into(), lab.victim_v4(host).into(), &[901, 902, 903, 904]);
        }
        assert!(is_banned(&lab, lab.v4("other")));
        assert_eq!(banned_at_last(&lab), [IpAddr::from(lab.v4("other"))]);
    });
    daemon.stop();
}

/// For many patterns of touches: whom the kernel alone blocks the program blocks as well, and the other way round.
#[test]
fn kernel_and_program_agree_on_the_evidence() {
    let lab = Lab::new(&["other"]);
    let daemon = start(&lab, "");
    let patterns: [(&[u16], &[u16]); 12] = [
        (&[], &[901]),
        (&[], &[901, 901, 901, 901, 901]),
        (&[901, 902], &[]),
        (&[901], &[901]),
        (&[901, 901], &[902, 902]),
        (&[901], &[901, 902]),
        (&[901, 902], &[901]),
        (&[], &[901, 902, 901, 902, 903]),
        (&[113, 139], &[67, 68, 137, 901, 902]),
        (&[113, 139], &[67, 68, 137, 901, 902, 903]),
        (&[20_001, 20_002], &[20_001, 20_002, 20_003]),
        (&[1, 2, 3, 4], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ];
    let sources = lab.add_addresses("other", 100..100 + u8::try_from(patterns.len()).unwrap());
    let target = lab.victim_v4("other").into();
    let by_kernel = frozen(&daemon, || {
        for (source, (tcp, udp)) in sources.iter().zip(patterns) {
            lab.touch("other", (*source).into(), target, tcp);
            touch(&lab, "other", (*source).into(), target, udp);
        }
        let last = *sources.last().unwrap();
        assert!(is_banned(&lab, last), "and so all have been counted");
        lab.banned()
    });
    lab.provoke_ban("other");
    // Whom the kernel alone had blocked is let go after two seconds.
    std::thread::sleep(Duration::from_secs(4) * slowness());
    let mut by_both = lab.banned();
    by_both.retain(|address| *address != IpAddr::from(lab.v4("other")));
    assert_eq!(by_both, by_kernel);
    assert_eq!(by_kernel.len(), 5, "{by_kernel:?}");
    for source in &by_both {
        assert_eq!(daemon.lines_with(&format!("attackalert: Host {source} has been blocked")).len(), 1, "{source}");
    }
    assert!(daemon.lines_with("nothing is held against them").is_empty());
    daemon.stop();
}

/// In order, so that what it learns is no matter of luck: closed ports answer with an ICMP error, and only what is forgiven
/// answers at all.
#[test]
fn nmap_learns_of_no_more_closed_ports_than_are_forgiven() {
    let lab = Lab::new(&["other"]);
    let daemon = start(&lab, "");
    let target = lab.victim_v4("other").into();
    let arguments = [
        "-sU",
        "-r",
        "-T5",
        "-p901-930",
        "--max-retries",
        "0",
        "--min-parallelism",
        "30",
        "--max-rtt-timeout",
        "200ms",
    ];
    // Else the kernel itself would tell of few, whatever blocks.
    lab.run("victim", "sysctl", &["-qw", "net.ipv4.icmp_ratelimit=0"]);
    let scan = frozen(&daemon, || lab.nmap("other", target, &arguments));
    assert!(scan.count("closed") <= 2, "of 30, and by the kernel alone: {scan:?}");
    lab.expect_ban(lab.v4("other").into());
    daemon.stop();
}

#[test]
fn datagrams_are_in_no_table_where_they_are_not_counted_or_block_nobody() {
    let lab = Lab::new(&["other"]);
    for text in [
        "[udp]\nblock = true\n",
        "[trap]\nudp = true\n",
        "[udp]\nblock = true\nmode = \"connect\"\n[trap]\nudp = true\n",
    ] {
        let daemon = Daemon::start_configured(&lab, text, &[]);
        assert!(within(PATIENCE, || (!ports_in(&lab, "trapped").is_empty()).then_some(())).is_some());
        assert!(!table(&lab).contains("udp") && !table(&lab).contains("asked"), "{text}");
        daemon.stop();
    }
}

#[test]
fn new_settings_a_crash_and_the_end_are_followed() {
    let lab = Lab::new(&["other"]);
    let daemon = start(&lab, "");
    let reload = |text: &str, wanted: &dyn Fn() -> bool| {
        lab.write("portsentry.toml", text);
        let mut reload = lab.command("victim", env!("CARGO_BIN_EXE_portsentry"));
        assert!(reload.args(["reload", "--socket"]).arg(lab.path("socket")).status().unwrap().success());
        assert!(within(PATIENCE, || wanted().then_some(())).is_some(), "{text}: {}", table(&lab));
    };
    let lists = |udp: &str| table(&lab).contains(&format!("elements = {{ {udp} }}"));
    reload("[udp]\nblock = true\n", &|| !table(&lab).contains("udp"));
    reload(&BLOCKING.replace("[udp]\n", "[udp]\nadvanced_ports = \"901-903\"\n"), &|| lists("901-903"));
    reload(BLOCKING, &|| trapped(&lab).contains(&904));
    let before = trapped(&lab);
    for harm in [
        "flush ruleset",
        "flush set inet portsentry trapped_udp",
        "flush chain inet portsentry trap_asked",
        "flush chain inet portsentry trap; flush chain inet portsentry trap_asked; delete set inet portsentry trapped_udp",
    ] {
        lab.run("victim", "nft", &[harm]);
        let whole = || table(&lab).contains("update @asked") && trapped(&lab) == before;
        assert!(within(PATIENCE, || whole().then_some(())).is_some(), "{harm}");
    }
    daemon.kill();
    assert!(!trapped(&lab).is_empty(), "a crash leaves it as it is");
    let daemon = Daemon::start(&lab, &["--log-only"]);
    assert!(trapped(&lab).is_empty() && ports_in(&lab, "trapped").is_empty());
    daemon.stop();
    let daemon = start(&lab, "");
    daemon.stop();
    assert!(trapped(&lab).is_empty(), "nobody would look at what it catches");
}
