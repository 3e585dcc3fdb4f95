//! Tests the reports about elements that other programs add and delete.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use portsentry::netlink::nft::monitor::Monitor;
use portsentry::netlink::nft::monitor::TableChange::{AllowedChanged, ElementAdded, ElementRemoved, RulesetChanged};
use portsentry::netlink::nft::{Batch, RulesetSpec, install, put_ban};
use portsentry::netlink::socket::Socket;
use portsentry::types::{BanTarget, Expiry};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{assert_quiet, changes_after, target, watched};
use netns_lab::{slowness, soon};

const HOUR: Expiry = Expiry::After(super::HOUR);

#[test]
fn element_is_reported_with_its_time() {
    watched(async |monitor, _| {
        for (set, address) in [("blocked", "192.0.2.7"), ("blocked6", "2001:db8:1:2::"), ("blocked6", "fe80::1")] {
            let element = |rest: &str| format!("element inet portsentry {set} {{ {address}{rest} }}");
            let add = changes_after(monitor, &format!("add {}", element(""))).await;
            assert_eq!(add, [ElementAdded(target(address), Expiry::Never)]);
            let delete = changes_after(monitor, &format!("delete {}", element(""))).await;
            assert_eq!(delete, [ElementRemoved(target(address))]);
            let add = changes_after(monitor, &format!("add {}", element(" timeout 1h"))).await;
            assert_eq!(add, [ElementAdded(target(address), HOUR)]);
            let delete = changes_after(monitor, &format!("delete {}", element(""))).await;
            assert_eq!(delete, [ElementRemoved(target(address))]);
        }
        assert_quiet(monitor).await;
    });
}

#[test]
fn element_has_remaining_time() {
    watched(async |monitor, _| {
        let add =
            changes_after(monitor, "add element inet portsentry blocked { 192.0.2.7 timeout 1d expires 1h }").await;
        assert_eq!(add, [ElementAdded(target("192.0.2.7"), HOUR)]);
    });
}

#[test]
fn transaction_is_reported_as_one() {
    watched(async |monitor, _| {
        let commands = "add element inet portsentry blocked { 192.0.2.1, 192.0.2.2 }\n\
            delete element inet portsentry blocked { 192.0.2.1 }\n\
            add element inet portsentry blocked { 192.0.2.1 timeout 1h }";
        let changes = changes_after(monitor, commands).await;
        let (one, two) = (target("192.0.2.1"), target("192.0.2.2"));
        assert_eq!(
            changes,
            [
                ElementAdded(one, Expiry::Never),
                ElementAdded(two, Expiry::Never),
                ElementRemoved(one),
                ElementAdded(one, HOUR)
            ]
        );
        assert_eq!(monitor.committer().unwrap().name, "nft");
    });
}

#[test]
fn network_is_reported_as_one() {
    watched(async |monitor, socket| {
        install(socket, &RulesetSpec { prefix_sets: true, ..RulesetSpec::default() }).unwrap();
        let network = |text: &str| BanTarget::exactly(text.parse().unwrap()).unwrap();
        for (set, one, two) in
            [("blocked_nets", "10.0.0.0/24", "10.0.1.0/24"), ("blocked_nets6", "2001:db8::/56", "2001:db8:0:100::/56")]
        {
            let set = |verb: &str, rest: &str| format!("{verb} element inet portsentry {set} {{ {rest} }}");
            let change = set("add", &format!("{one}, {two} timeout 1h"));
            assert_eq!(
                changes_after(monitor, &change).await,
                [ElementAdded(network(one), Expiry::Never), ElementAdded(network(two), HOUR)]
            );
            assert_eq!(monitor.committer().unwrap().name, "nft");
            let change = format!("{}\n{}", set("delete", one), set("add", &format!("{one} timeout 1h")));
            assert_eq!(
                changes_after(monitor, &change).await,
                [ElementRemoved(network(one)), ElementAdded(network(one), HOUR)]
            );
            let change = set("delete", two);
            assert_eq!(changes_after(monitor, &change).await, [ElementRemoved(network(two))]);
        }
        let gone = changes_after(monitor, "flush set inet portsentry blocked_nets").await;
        assert_eq!(gone, [ElementRemoved(network("10.0.0.0/24"))]);
        assert_quiet(monitor).await;
    });
}

#[test]
fn flushed_set_is_reported_by_element() {
    watched(async |monitor, _| {
        let add = "add element inet portsentry blocked { 192.0.2.1, 192.0.2.2 timeout 1h }";
        assert_eq!(changes_after(monitor, add).await.len(), 2);
        let mut gone = changes_after(monitor, "flush set inet portsentry blocked").await;
        gone.sort_by_key(|change| if let ElementRemoved(target) = change { Some(*target) } else { None });
        assert_eq!(gone, [ElementRemoved(target("192.0.2.1")), ElementRemoved(target("192.0.2.2"))]);
        assert_quiet(monitor).await;
    });
}

#[test]
fn protected_prefix_is_reported_unnamed() {
    watched(async |monitor, _| {
        for command in ["add", "delete"] {
            let element = "element inet portsentry allowed { 10.0.0.0/8, 192.0.2.0/25 }";
            assert_eq!(changes_after(monitor, &format!("{command} {element}")).await, [AllowedChanged]);
            let element = "element inet portsentry allowed6 { 2001:db8::/32 }";
            assert_eq!(changes_after(monitor, &format!("{command} {element}")).await, [AllowedChanged]);
        }
        assert_quiet(monitor).await;
    });
}

#[test]
fn own_bans_are_not_reported() {
    watched(async |monitor, socket| {
        let mut batch = Batch::new();
        for address in ["192.0.2.1", "2001:db8::", "fe80::1"] {
            put_ban(&mut batch, target(address), Expiry::After(Duration::from_secs(3600)));
        }
        socket.transact(&mut batch).unwrap();
        assert_quiet(monitor).await;

        batch.clear();
        put_ban(&mut batch, target("192.0.2.1"), Expiry::Never);
        Socket::open().unwrap().transact(&mut batch).unwrap();
        let changes = super::next(monitor).await;
        assert_eq!(changes.last(), Some(&ElementAdded(target("192.0.2.1"), Expiry::Never)));
        let here = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        assert_eq!(monitor.committer().unwrap().process, here);
    });
}

/// True if the kernel has put a notification into the monitor's queue.
fn has_pending(monitor: &Monitor) -> bool {
    let mut fds = [PollFd::new(monitor, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
}

#[test]
fn kernel_filters_own_notifications() {
    watched(async |monitor, socket| {
        let ban = |socket: &mut Socket, address| {
            let mut batch = Batch::new();
            put_ban(&mut batch, target(address), Expiry::Never);
            // The kernel delivers notifications before it acknowledges the transaction.
            socket.transact(&mut batch).unwrap();
        };
        ban(socket, "192.0.2.1");
        assert!(!has_pending(monitor));
        ban(&mut Socket::open().unwrap(), "192.0.2.2");
        assert!(has_pending(monitor), "changes from a socket that is not ignored are reported");
        assert_eq!(super::next(monitor).await.last(), Some(&ElementAdded(target("192.0.2.2"), Expiry::Never)));
        ban(socket, "2001:db8::");
        assert!(!has_pending(monitor));
    });
}

/// The elements of `blocked` in the kernel.
fn blocked() -> String {
    let output = Command::new("nft").args(["list", "set", "inet", "portsentry", "blocked"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn packet_path_element_is_not_reported() {
    watched(async |monitor, _| {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        // Long enough to see the element before it expires.
        let timeout = 2 * slowness();
        let rule = format!(
            "insert rule inet portsentry prerouting udp dport 9 add @blocked {{ ip saddr timeout {timeout}s }}"
        );
        assert_eq!(changes_after(monitor, &rule).await, [RulesetChanged]);
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", "127.0.0.1:9").unwrap();
        assert!(blocked().contains("127.0.0.1"));
        assert!(soon(|| !blocked().contains("127.0.0.1")), "the element did not expire");
        assert_quiet(monitor).await;
    });
}
