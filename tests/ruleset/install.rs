//! Tests which tables are created, adopted, repaired or refused at start.

use portsentry::enforce::nft::{BlockError, Installed, Nft, RulesetError, RulesetSpec};
use std::net::UdpSocket;

use netns_lab::Namespace;

use super::{FILE, installed, listing, load, nearly, nft, seconds, target};

#[test]
fn created_table_equals_file() {
    let from_file = Namespace::with_loopback().inside(|| {
        load(FILE);
        listing()
    });
    installed(|_| assert_eq!(listing(), from_file));
    assert!(from_file.contains("hook prerouting priority raw - 10"));
}

#[test]
fn elements_print_the_same_in_both() {
    let add = || {
        nft("add element inet portsentry blocked { 192.0.2.1, 192.0.2.2 timeout 1h expires 1h }");
        nft("add element inet portsentry blocked6 { 2001:db8:1:: }");
        nft("add element inet portsentry allowed { 10.0.0.0/8, 192.0.2.0/25 }");
        nft("add element inet portsentry allowed6 { 2001:db8::/32 }");
        let text = listing();
        text.split_inclusive('\n').filter(|line| !line.contains("expires")).collect::<String>()
    };
    let from_file = Namespace::with_loopback().inside(|| {
        load(FILE);
        add()
    });
    installed(|_| assert_eq!(add(), from_file));
    assert!(from_file.contains("elements = { 10.0.0.0/8, 192.0.2.0/25 }"), "{from_file}");
}

#[test]
fn own_table_is_adopted_with_bans() {
    installed(|first| {
        first.block(&[(target("192.0.2.1"), seconds(60))]).unwrap();
        let mut second = Nft::open().unwrap();
        let adopted = Installed::Adopted((131_072, 131_072));
        assert_eq!(second.install(&RulesetSpec::default()).unwrap(), adopted);
        assert!(nearly(second.table.time_left(target("192.0.2.1")).unwrap(), 60));
    });
}

#[test]
fn table_loaded_from_file_is_adopted() {
    Namespace::with_loopback().inside(|| {
        load(FILE);
        let installed = Nft::open().unwrap().install(&RulesetSpec { size: 10, ..RulesetSpec::default() }).unwrap();
        assert_eq!(installed, Installed::Adopted((131_072, 131_072)));
    });
}

#[test]
fn used_table_is_adopted() {
    installed(|sets| {
        sets.block(&[(target("127.0.0.1"), seconds(60))]).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        assert!(nft("list ruleset").contains("counter packets 1 bytes 29"));
        assert!(matches!(sets.install(&RulesetSpec::default()), Ok(Installed::Adopted(_))));
    });
}

#[test]
fn altered_table_is_repaired_at_start() {
    let repairable = [
        ("add rule inet portsentry prerouting accept", "7 rules"),
        ("insert rule inet portsentry prerouting tcp dport 22 accept", "another rule than `"),
        ("flush chain inet portsentry prerouting", "no rule `"),
        ("add chain inet portsentry prerouting { policy drop; }", "another type, hook, priority or policy"),
        ("add table inet portsentry { flags dormant; }", "dormant"),
    ];
    for (change, part) in repairable {
        installed(|sets| {
            let source = target("192.0.2.7");
            sets.block(&[(source, seconds(60))]).unwrap();
            nft(change);
            let done = sets.install(&RulesetSpec::default()).unwrap();
            assert!(matches!(&done, Installed::Repaired { difference, .. } if difference.contains(part)), "{done:?}");
            assert!(nearly(sets.table.time_left(source).unwrap(), 60), "bans stay: {change}");
            assert!(matches!(sets.install(&RulesetSpec::default()), Ok(Installed::Adopted(_))), "{change}");
        });
    }
}

#[test]
fn foreign_objects_stay_and_are_named() {
    let foreign = [
        ("add set inet portsentry mine { type ipv4_addr; }", "another set \"mine\""),
        ("add map inet portsentry mine { type ipv4_addr : verdict; }", "another set \"mine\""),
        ("add chain inet portsentry input", "another chain \"input\""),
        (
            "add chain inet portsentry evil { type filter hook input priority 0; policy drop; }",
            "another chain \"evil\" (hook input, policy drop)",
        ),
    ];
    for (change, name) in foreign {
        installed(|sets| {
            nft(change);
            let before = listing();
            assert!(matches!(sets.install(&RulesetSpec::default()), Ok(Installed::Adopted(_))), "{change}");
            assert_eq!(listing(), before, "objects of other programs in the table stay");
            assert_eq!(sets.foreign_objects().unwrap(), [name], "{change}");
            nft("flush chain inet portsentry prerouting");
            assert!(matches!(sets.install(&RulesetSpec::default()), Ok(Installed::Repaired { .. })), "{change}");
            assert_eq!(listing(), before, "only our own part is repaired: {change}");
        });
    }
}

#[test]
fn table_of_another_program_is_refused() {
    for contents in [
        "add table inet portsentry",
        "add table inet portsentry; add set inet portsentry blocked { type inet_service; }",
        "add table inet portsentry; add set inet portsentry blocked { type ipv4_addr; size 100; flags dynamic,timeout; }",
        "add table inet portsentry; add chain inet portsentry input { type filter hook input priority 0; }",
    ] {
        Namespace::with_loopback().inside(|| {
            nft(contents);
            let before = listing();
            let refused = Nft::open().unwrap().install(&RulesetSpec::default()).unwrap_err();
            assert!(matches!(&refused, RulesetError::Foreign { .. }), "{contents}: {refused:?}");
            assert!(refused.to_string().contains("nft delete table inet portsentry"), "{contents}: {refused}");
            assert_eq!(listing(), before, "the table is left alone: {contents}");
        });
    }
}

/// Installs the ruleset over that of the file with `to` instead of the first `from`.
fn install_altered(from: &str, to: &str) -> Result<Installed, RulesetError> {
    Namespace::with_loopback().inside(|| {
        assert!(FILE.contains(from), "{from}");
        load(&FILE.replacen(from, to, 1));
        Nft::open().unwrap().install(&RulesetSpec::default())
    })
}

#[test]
fn file_with_altered_rules_is_repaired() {
    let changes = [
        ("ip saddr @blocked counter drop", "ip saddr @blocked counter accept"),
        ("ip saddr @blocked counter drop", "ip saddr @blocked drop"),
        ("ip saddr @blocked counter drop", "ip saddr != @blocked counter drop"),
        ("ip saddr @blocked counter drop", "ip daddr @blocked counter drop"),
        ("& ffff:ffff:ffff:ffff:: @blocked6", "& ffff:ffff:ffff:: @blocked6"),
        ("raw - 10", "raw"),
        ("hook prerouting", "hook input"),
        ("        ip6 saddr @blocked6 counter drop\n", ""),
    ];
    for (from, to) in changes {
        let result = install_altered(from, to);
        assert!(matches!(result, Ok(Installed::Repaired { .. })), "{from} -> {to}: {result:?}");
    }
}

#[test]
fn file_with_altered_sets_is_refused() {
    let changes = [
        ("flags dynamic,timeout", "flags timeout"),
        ("flags dynamic,timeout", "flags dynamic,timeout; timeout 1h"),
        ("        size 131072\n", ""),
    ];
    for (from, to) in changes {
        let result = install_altered(from, to);
        assert!(matches!(result, Err(RulesetError::Foreign { .. })), "{from} -> {to}: {result:?}");
    }
}

#[test]
fn concurrent_installs_leave_one_table() {
    let namespace = Namespace::with_loopback();
    let results: Vec<Installed> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| namespace.inside(|| Nft::open().unwrap().install(&RulesetSpec::default()).unwrap()))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|result| **result == Installed::Created).count(), 1, "{results:?}");
    assert_eq!(namespace.inside(listing).matches("table inet portsentry").count(), 1);
}

#[test]
fn deleted_table_is_reported_and_reinstalled() {
    installed(|sets| {
        nft("delete table inet portsentry");
        let source = target("192.0.2.7");
        assert!(matches!(sets.block(&[(source, seconds(60))]), Err(BlockError::Gone)));
        assert!(matches!(sets.block(&[(source, seconds(60)); 3]), Err(BlockError::Gone)));
        assert!(matches!(sets.lift(&[source]), Err(BlockError::Gone)));
        assert!(matches!(sets.table.time_left(source), Err(BlockError::Gone)));
        assert!(matches!(sets.table.elements(), Err(BlockError::Gone)));
        assert!(matches!(sets.replace_allow_list(&["10.0.0.0/8".parse().unwrap()]), Err(BlockError::Gone)));
        assert_eq!(sets.install(&RulesetSpec::default()).unwrap(), Installed::Created);
        sets.block(&[(source, seconds(60))]).unwrap();
    });
}

#[test]
fn missing_capability_is_named() {
    Namespace::with_loopback().inside(|| {
        // The capability is dropped from this thread alone.
        let none = rustix::thread::CapabilitySet::empty();
        let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
        rustix::thread::set_capabilities(None, sets).unwrap();
        let error = Nft::open().unwrap().install(&RulesetSpec::default()).unwrap_err().to_string();
        assert!(error.contains("CAP_NET_ADMIN") && error.contains("AmbientCapabilities"), "{error}");
    });
}
