//! Tests what applies to TCP and UDP ports alike: the kernel's own counting, and the program's verdict about it.

use std::net::IpAddr;
use std::time::Duration;

use netns_lab::{Lab, slowness};

use crate::Protocol::{self, Tcp, Udp};
use crate::{banned_at_last, is_banned};

#[test]
fn kernel_counts_distinct_ports() {
    for protocol in [Tcp, Udp] {
        let lab = Lab::new(&["other"]);
        let daemon = protocol.start(&lab, "");
        let (source, target) = lab.ends_v4("other");
        if protocol == Udp {
            let status = lab.succeed(&["status"]);
            let count = protocol.watched(&lab).len();
            assert!(status.contains(&format!(" TCP ports and {count} UDP ports; its bans: 0 confirmed")), "{status}");
        }
        daemon.frozen(|| {
            protocol.probe(&lab, "other", source, target, &[901, 902, 901, 902, 902, 901, 901, 902]);
            assert!(banned_at_last(&lab).is_empty(), "two ports are forgiven, however often they are probed");
            protocol.probe(&lab, "other", source, target, &[903]);
            assert!(is_banned(&lab, source), "the kernel bans at once, without the program");
            assert_eq!(lab.expect_ban(source).timeout, Some(Duration::from_secs(86_400)));
        });
        daemon.expect_line(&format!("attackalert: Host {source} has been blocked"));
        daemon.stop();
    }
}

#[test]
fn kernel_alone_bans_ipv6_by_64() {
    for protocol in [Tcp, Udp] {
        let lab = Lab::new(&["other"]);
        let daemon = protocol.start(&lab, "");
        let neighbour = lab.add_neighbour("other");
        let (source, target) = (lab.v6("other").into(), lab.victim_v6("other").into());
        daemon.frozen(|| {
            protocol.probe(&lab, "other", source, target, &[901, 902]);
            assert!(banned_at_last(&lab).is_empty());
            protocol.probe(&lab, "other", neighbour.into(), target, &[903]);
            let network = IpAddr::from(lab.v6_network("other"));
            assert!(is_banned(&lab, network), "two addresses of one /64 are one source");
            assert_eq!(lab.banned(), [network]);
        });
        daemon.expect_line("has been blocked");
        daemon.stop();
    }
}

#[test]
fn first_probe_bans_if_none_is_forgiven() {
    for protocol in [Tcp, Udp] {
        let lab = Lab::new(&["other"]);
        let daemon = protocol.start(&lab, "[detect]\nscan_trigger = 0\n");
        let (source, target) = lab.ends_v4("other");
        daemon.frozen(|| {
            protocol.probe(&lab, "other", source, target, &[901]);
            assert!(is_banned(&lab, source));
        });
        daemon.stop();
    }
}

/// Published ports as with Docker without its proxy: no socket on the host listens there.
#[test]
fn dnat_published_port_is_not_counted() {
    for (protocol, name) in [(Tcp, "tcp"), (Udp, "udp")] {
        let lab = Lab::new(&["other", "container"]);
        let daemon = protocol.start(&lab, "[detect]\nscan_trigger = 0\n");
        lab.publish(&format!("iif other {name} dport 901-905"), format_args!("{}:8080", lab.v4("container")));
        let (source, target) = lab.ends_v4("other");
        assert!(protocol.watched(&lab).contains(&901));
        daemon.frozen(|| {
            protocol.probe(&lab, "other", source, target, &[901, 902, 903]);
            assert!(banned_at_last(&lab).is_empty(), "the packets are forwarded to an address of another host");
            protocol.probe(&lab, "other", source, target, &[906]);
            assert!(is_banned(&lab, source));
        });
        daemon.stop();
    }
}

#[test]
fn only_named_interfaces_count() {
    for protocol in [Tcp, Udp] {
        let lab = Lab::new(&["other", "quiet"]);
        let daemon = protocol.start(&lab, "interfaces = [\"other\"]\n");
        daemon.frozen(|| {
            for host in ["quiet", "other"] {
                let (source, target) = lab.ends_v4(host);
                protocol.probe(&lab, host, source, target, &[901, 902, 903, 904]);
            }
            assert!(is_banned(&lab, lab.v4("other")));
            assert_eq!(banned_at_last(&lab), [IpAddr::from(lab.v4("other"))]);
        });
        daemon.stop();
    }
}

/// Ports that one source probes: of TCP, and of UDP.
type Pattern = (&'static [u16], &'static [u16]);

/// Of every twelve patterns the kernel blocks five.
const PATTERNS: [(Protocol, [Pattern; 12]); 2] = [
    (
        Tcp,
        [
            (&[901], &[]),
            (&[901, 901, 901, 901, 901], &[]),
            (&[901, 902], &[]),
            (&[901, 902, 901, 902], &[]),
            (&[901, 902, 903], &[]),
            (&[901, 901, 902, 902, 903], &[]),
            (&[113, 139, 901, 902], &[]),
            (&[113, 139, 901, 902, 903], &[]),
            (&[20_001, 20_002, 20_003, 20_004], &[]),
            (&[1, 2, 20_001, 20_002], &[]),
            (&[1024, 1023, 1022], &[]),
            (&[901, 902, 903, 904, 905, 906, 907, 908, 909, 910], &[]),
        ],
    ),
    (
        Udp,
        [
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
        ],
    ),
];

/// For many patterns of probes the kernel alone and the program block the same sources.
#[test]
fn kernel_and_program_ban_same_sources() {
    for (protocol, patterns) in PATTERNS {
        let lab = Lab::new(&["other"]);
        let daemon = protocol.start(&lab, "");
        let sources = lab.add_addresses("other", 100..100 + u8::try_from(patterns.len()).unwrap());
        let target = lab.victim_v4("other").into();
        let by_kernel = daemon.frozen(|| {
            for (source, (tcp, udp)) in sources.iter().zip(patterns) {
                Tcp.probe(&lab, "other", (*source).into(), target, tcp);
                Udp.probe(&lab, "other", (*source).into(), target, udp);
            }
            let last = *sources.last().unwrap();
            assert!(is_banned(&lab, last), "the last source is banned, so all have been counted");
            banned_at_last(&lab)
        });
        lab.provoke_ban("other");
        // All have been judged by now; an unfounded ban by the kernel would be lifted after two seconds.
        std::thread::sleep(Duration::from_secs(4) * slowness());
        let mut by_both = lab.banned();
        by_both.retain(|address| *address != IpAddr::from(lab.v4("other")));
        assert_eq!(by_both, by_kernel);
        assert_eq!(by_kernel.len(), 5, "{by_kernel:?}");
        for source in &by_both {
            let blocked = format!("attackalert: Host {source} has been blocked");
            daemon.expect_line(&blocked);
            assert_eq!(daemon.lines_with(&blocked).len(), 1, "{source}");
        }
        assert!(daemon.lines_with("without valid evidence").is_empty());
        assert!(lab.set("caught").len() <= 1 && lab.set("suspects").iter().all(|one| !by_both.contains(&one.address)));
        daemon.stop();
    }
}
