//! The kernel side of blocking against the kernel itself. Each test has a network namespace of its own, so it needs root;
//! `nft` serves as the second opinion.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail by panicking, as tests do")]

use std::collections::HashMap;
use std::fs::File;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use portsentry::enforce::nft::{BlockError, Failure, Installed, Nft, RulesetError, RulesetSpec};
use portsentry::engine::subject::{Expiry, Subject};
use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace that lives as long as this.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("psnft{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &name]);
        let namespace = Self(name);
        run("ip", &["-n", &namespace.0, "link", "set", "lo", "up"]);
        namespace
    }

    /// Runs `test` on a thread inside; the processes that it starts are inside as well.
    fn within<T: Send>(&self, test: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let file = File::open(format!("/run/netns/{}", self.0)).unwrap();
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                test()
            });
            thread.join().unwrap_or_else(|failure| std::panic::resume_unwind(failure))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn nft(command: &str) -> String {
    run("nft", &[command])
}

fn load_file() {
    run("nft", &["-f", concat!(env!("CARGO_MANIFEST_DIR"), "/nft/portsentry.nft")]);
}

/// What `nft` prints of the ruleset, every counter as zero.
fn listing() -> String {
    let text = nft("list ruleset");
    let mut words: Vec<&str> = text.split_inclusive(char::is_whitespace).collect();
    for index in 1..words.len() {
        if matches!(words[index - 1].trim(), "packets" | "bytes") {
            words[index] = "0 ";
        }
    }
    words.concat()
}

/// Runs `test` in a fresh namespace with the table installed.
fn installed(test: impl FnOnce(&mut Nft) + Send) {
    installed_with(RulesetSpec::default(), test);
}

fn installed_with(spec: RulesetSpec, test: impl FnOnce(&mut Nft) + Send) {
    Namespace::new().within(|| {
        let mut nft = Nft::open().unwrap();
        assert_eq!(nft.install(&spec).unwrap(), Installed::Created);
        test(&mut nft);
    });
}

fn subject(text: &str) -> Subject {
    Subject::of(text.parse().unwrap())
}

fn seconds(seconds: u64) -> Expiry {
    Expiry::After(Duration::from_secs(seconds))
}

/// True where `remaining` is a little less than `seconds`.
fn nearly(remaining: Option<Option<Duration>>, seconds: u64) -> bool {
    remaining.flatten().is_some_and(|left| (seconds - 5..=seconds).contains(&left.as_secs()))
}

#[test]
fn what_the_daemon_creates_is_what_the_file_creates() {
    let from_file = Namespace::new().within(|| {
        load_file();
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
    let from_file = Namespace::new().within(|| {
        load_file();
        add()
    });
    installed(|_| assert_eq!(add(), from_file));
    assert!(from_file.contains("elements = { 10.0.0.0/8, 192.0.2.0/25 }"), "{from_file}");
}

#[test]
fn a_table_of_its_own_is_adopted_with_its_bans() {
    installed(|first| {
        first.block(&[(subject("192.0.2.1"), seconds(60))]).unwrap();
        let mut second = Nft::open().unwrap();
        let adopted = Installed::Adopted { blocked: 131_072, blocked6: 131_072 };
        assert_eq!(second.install(&RulesetSpec::default()).unwrap(), adopted);
        assert!(nearly(second.holds(subject("192.0.2.1")).unwrap(), 60));
    });
}

#[test]
fn a_table_loaded_from_the_file_is_adopted_whatever_size_is_asked_for() {
    Namespace::new().within(|| {
        load_file();
        let installed = Nft::open().unwrap().install(&RulesetSpec { size: 10 }).unwrap();
        assert_eq!(installed, Installed::Adopted { blocked: 131_072, blocked6: 131_072 });
    });
}

#[test]
fn a_table_whose_rules_have_counted_is_adopted() {
    installed(|sets| {
        sets.block(&[(subject("127.0.0.1"), seconds(60))]).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        assert!(nft("list ruleset").contains("counter packets 1 bytes 29"));
        assert!(matches!(sets.install(&RulesetSpec::default()), Ok(Installed::Adopted { .. })));
    });
}

#[test]
fn a_table_with_other_contents_is_refused_with_the_first_difference_and_left_alone() {
    let foreign = [
        ("add set inet portsentry mine { type ipv4_addr; }", "has another set \"mine\""),
        ("add chain inet portsentry input", "has another chain \"input\""),
        ("add rule inet portsentry prerouting accept", "has 6 rules"),
        ("insert rule inet portsentry prerouting tcp dport 22 accept", "has another rule 1 in chain"),
        ("flush chain inet portsentry prerouting", "has no rule 1 in chain"),
        ("add chain inet portsentry prerouting { policy drop; }", "another type, hook, priority or policy"),
        ("add table inet portsentry { flags dormant; }", "dormant"),
    ];
    for (change, difference) in foreign {
        installed(|sets| {
            nft(change);
            let before = listing();
            let refused = sets.install(&RulesetSpec::default()).unwrap_err();
            assert!(matches!(&refused, RulesetError::Foreign { .. }), "{refused:?}");
            let text = refused.to_string();
            assert!(text.contains(difference) && text.contains("nft delete table inet portsentry"), "{change}: {text}");
            assert_eq!(listing(), before);
        });
    }
}

#[test]
fn a_file_with_one_thing_changed_is_refused() {
    let file = include_str!("../nft/portsentry.nft");
    let changes = [
        ("ip saddr @blocked counter drop", "ip saddr @blocked counter accept"),
        ("ip saddr @blocked counter drop", "ip saddr @blocked drop"),
        ("ip saddr @blocked counter drop", "ip saddr != @blocked counter drop"),
        ("ip saddr @blocked counter drop", "ip daddr @blocked counter drop"),
        ("& ffff:ffff:ffff:ffff:: @blocked6", "& ffff:ffff:ffff:: @blocked6"),
        ("raw - 10", "raw"),
        ("hook prerouting", "hook input"),
        ("flags dynamic,timeout", "flags timeout"),
        ("flags dynamic,timeout", "flags dynamic,timeout; timeout 1h"),
        ("        size 131072\n", ""),
        ("        ip6 saddr @blocked6 counter drop\n", ""),
    ];
    for (from, to) in changes {
        Namespace::new().within(|| {
            assert!(file.contains(from), "{from}");
            let mut changed = tempfile::NamedTempFile::new().unwrap();
            std::io::Write::write_all(&mut changed, file.replacen(from, to, 1).as_bytes()).unwrap();
            run("nft", &["-f", changed.path().to_str().unwrap()]);
            let result = Nft::open().unwrap().install(&RulesetSpec::default());
            assert!(matches!(result, Err(RulesetError::Foreign { .. })), "{from} -> {to}: {result:?}");
        });
    }
}

#[test]
fn many_that_install_at_once_end_with_one_table() {
    let namespace = Namespace::new();
    let results: Vec<Installed> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| namespace.within(|| Nft::open().unwrap().install(&RulesetSpec::default()).unwrap()))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|result| **result == Installed::Created).count(), 1, "{results:?}");
    assert_eq!(namespace.within(listing).matches("table inet portsentry").count(), 1);
}

#[test]
fn a_ban_has_the_timeout_that_was_asked_for() {
    installed(|sets| {
        let bans = [
            (subject("192.0.2.7"), seconds(86_400)),
            (subject("2001:db8:1:2:3:4:5:6"), seconds(3_600)),
            (subject("fe80::17"), seconds(60)),
            (subject("192.0.2.8"), Expiry::Never),
        ];
        sets.block(&bans).unwrap();
        assert!(nearly(sets.holds(bans[0].0).unwrap(), 86_400));
        assert!(nearly(sets.holds(bans[1].0).unwrap(), 3_600));
        assert!(nearly(sets.holds(bans[2].0).unwrap(), 60));
        assert_eq!(sets.holds(bans[3].0).unwrap(), Some(None));
        assert_eq!(sets.holds(subject("192.0.2.9")).unwrap(), None);
        let blocked = nft("list set inet portsentry blocked");
        assert!(blocked.contains("192.0.2.7 timeout 1d expires") && blocked.contains("192.0.2.8"), "{blocked}");
        let blocked6 = nft("list set inet portsentry blocked6");
        assert!(
            blocked6.contains("2001:db8:1:2:: timeout 1h") && blocked6.contains("fe80::17 timeout 1m"),
            "{blocked6}"
        );
    });
}

#[test]
fn blocking_again_sets_the_time_anew_both_ways() {
    installed(|sets| {
        let who = subject("192.0.2.7");
        for expiry in [60, 3_600, 120, 120] {
            sets.block(&[(who, seconds(expiry))]).unwrap();
            assert!(nearly(sets.holds(who).unwrap(), expiry), "{expiry}");
        }
        sets.block(&[(who, Expiry::Never)]).unwrap();
        assert_eq!(sets.holds(who).unwrap(), Some(None));
        sets.block(&[(who, seconds(60))]).unwrap();
        assert!(nearly(sets.holds(who).unwrap(), 60));
    });
}

#[test]
fn a_ban_that_runs_out_is_gone_and_can_come_back() {
    installed(|sets| {
        let who = subject("192.0.2.7");
        sets.block(&[(who, seconds(1))]).unwrap();
        let start = std::time::Instant::now();
        while sets.holds(who).unwrap().is_some() {
            assert!(start.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(start.elapsed() > Duration::from_millis(800));
        sets.lift(&[who]).unwrap();
        sets.block(&[(who, seconds(60))]).unwrap();
        assert!(nearly(sets.holds(who).unwrap(), 60));
    });
}

#[test]
fn the_same_subject_twice_in_one_call_gets_the_last_expiry() {
    installed(|sets| {
        let who = subject("192.0.2.7");
        sets.block(&[(who, seconds(60)), (who, seconds(3_600))]).unwrap();
        assert!(nearly(sets.holds(who).unwrap(), 3_600));
    });
}

#[test]
fn a_full_set_takes_what_fits_names_the_rest_and_still_extends() {
    installed_with(RulesetSpec { size: 4 }, |sets| {
        let bans: Vec<_> = (1..=6).map(|n| (subject(&format!("192.0.2.{n}")), seconds(60))).collect();
        let Err(BlockError::Failed { asked: 6, failed }) = sets.block(&bans) else { panic!() };
        assert_eq!(failed.len(), 2);
        for failure in &failed {
            assert!(matches!(failure.reason, Failure::Full { set: "blocked", size: 4 }), "{failure:?}");
            assert_eq!(sets.holds(failure.subject).unwrap(), None);
        }
        let alone = sets.block(&bans[5..]).unwrap_err().to_string();
        assert!(alone.contains("set inet portsentry blocked is full (4)"), "{alone}");
        sets.block(&[(bans[0].0, seconds(3_600)), (subject("2001:db8::1"), seconds(60))]).unwrap();
        assert!(nearly(sets.holds(bans[0].0).unwrap(), 3_600));
        assert_eq!(sets.elements().unwrap().len(), 5);
    });
}

#[test]
fn lifting_frees_who_was_blocked_and_passes_over_who_was_not() {
    installed(|sets| {
        let all = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "fe80::1"].map(subject);
        sets.lift(&all).unwrap();
        sets.block(&[(all[0], seconds(60)), (all[2], seconds(60)), (all[3], Expiry::Never)]).unwrap();
        sets.lift(&all).unwrap();
        assert_eq!(sets.elements().unwrap(), []);
    });
}

#[test]
fn ten_thousand_in_one_call_are_all_there() {
    installed(|sets| {
        let bans: Vec<_> = (0..10_000_u32)
            .map(|n| {
                if n % 2 == 0 {
                    IpAddr::from((0x0a00_0000 + n).to_be_bytes())
                } else {
                    IpAddr::from((u128::from(n) << 64).to_be_bytes())
                }
            })
            .map(|address| (Subject::of(address), seconds(3_600)))
            .collect();
        sets.block(&bans).unwrap();
        let found: HashMap<_, _> = sets.elements().unwrap().into_iter().collect();
        assert_eq!(found.len(), bans.len());
        assert!(bans.iter().all(|(who, _)| nearly(found.get(who).copied(), 3_600)));
        sets.lift(&bans.iter().map(|(who, _)| *who).collect::<Vec<_>>()).unwrap();
        assert_eq!(sets.elements().unwrap(), []);
    });
}

#[test]
fn elements_that_an_administrator_added_are_seen() {
    installed(|sets| {
        nft("add element inet portsentry blocked { 192.0.2.1 timeout 2h comment \"by hand\" }");
        nft("add element inet portsentry blocked6 { 2001:db8:: }");
        let found: HashMap<_, _> = sets.elements().unwrap().into_iter().collect();
        assert!(nearly(found.get(&subject("192.0.2.1")).copied(), 7_200));
        assert_eq!(found.get(&subject("2001:db8::")), Some(&None));
        assert_eq!(found.len(), 2);
    });
}

#[test]
fn protecting_replaces_the_prefixes_and_merges_those_that_overlap() {
    installed(|sets| {
        let prefixes = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        sets.protect(&prefixes(&["10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32", "2001:db8::/32", "2001:db8:1::/48"]))
            .unwrap();
        assert!(nft("list set inet portsentry allowed").contains("elements = { 10.0.0.0/8, 192.0.2.1 }"));
        assert!(nft("list set inet portsentry allowed6").contains("elements = { 2001:db8::/32 }"));
        // The same again, overlapping what is there, neighbours, and both ends of the address space.
        let next = ["10.0.0.0/8", "10.0.0.0/24", "11.0.0.0/25", "0.0.0.0/8", "255.255.255.255/32", "::/1", "ff00::/8"];
        sets.protect(&prefixes(&next)).unwrap();
        let allowed = nft("list set inet portsentry allowed");
        assert!(allowed.contains("0.0.0.0/8, 10.0.0.0/8") && allowed.contains("11.0.0.0/25"), "{allowed}");
        assert!(allowed.contains("255.255.255.255") && !allowed.contains("192.0.2.1"), "{allowed}");
        let allowed6 = nft("list set inet portsentry allowed6");
        assert!(allowed6.contains("::/1") && allowed6.contains("ff00::/8"), "{allowed6}");
        nft("add element inet portsentry allowed { 172.16.0.0/12 }");
        sets.protect(&[]).unwrap();
        assert!(!listing().contains("elements"));
    });
}

#[test]
fn nobody_loses_protection_while_the_prefixes_are_replaced() {
    installed(|sets| {
        let own: ipnet::IpNet = "127.0.0.0/8".parse().unwrap();
        sets.protect(&[own]).unwrap();
        sets.block(&[(subject("127.0.0.1"), seconds(600))]).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (sent, done) = (AtomicU32::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            // A new thread begins in the namespace of the one that starts it.
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
            let mut other = 0_u8;
            while sent.load(Ordering::Relaxed) < 20_000 {
                other = other.wrapping_add(1);
                sets.protect(&[own, ipnet::Ipv4Net::new_assert([10, other, 0, 0].into(), 16).into()]).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        let rules = nft("list chain inet portsentry prerouting");
        assert!(rules.contains("ip saddr @blocked counter packets 0 bytes 0 drop"), "{rules}");
    });
}

#[test]
fn thousands_of_prefixes_are_protected_in_one_transaction() {
    installed(|sets| {
        let prefixes: Vec<_> = (0..5_000_u32)
            .map(|n| ipnet::Ipv4Net::new_assert((0x0a00_0000 + n * 512).into(), 24).into())
            .chain((0..2_000_u128).map(|n| ipnet::Ipv6Net::new_assert((n << 81).into(), 48).trunc().into()))
            .collect();
        for _ in 0..2 {
            sets.protect(&prefixes).unwrap();
        }
        let count = |set| nft(&format!("list set inet portsentry {set}")).matches('/').count();
        assert_eq!(count("allowed"), 5_000);
        assert!(count("allowed6") > 0);
    });
}

#[test]
fn a_deleted_table_is_told_and_can_be_installed_again() {
    installed(|sets| {
        nft("delete table inet portsentry");
        let who = subject("192.0.2.7");
        assert!(matches!(sets.block(&[(who, seconds(60))]), Err(BlockError::Gone)));
        assert!(matches!(sets.block(&[(who, seconds(60)); 3]), Err(BlockError::Gone)));
        assert!(matches!(sets.lift(&[who]), Err(BlockError::Gone)));
        assert!(matches!(sets.holds(who), Err(BlockError::Gone)));
        assert!(matches!(sets.elements(), Err(BlockError::Gone)));
        assert!(matches!(sets.protect(&["10.0.0.0/8".parse().unwrap()]), Err(BlockError::Gone)));
        assert_eq!(sets.install(&RulesetSpec::default()).unwrap(), Installed::Created);
        sets.block(&[(who, seconds(60))]).unwrap();
    });
}

/// Two namespaces joined by a cable: the host, with the table installed, and a stranger.
fn cabled(test: impl FnOnce(&mut Nft, &Namespace) + Send) {
    let (host, stranger) = (Namespace::new(), Namespace::new());
    run("ip", &["-n", &host.0, "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", &stranger.0]);
    for (namespace, link, addresses) in [
        (&host, "v0", ["192.0.2.1/24", "2001:db8:0:1::1/32", "fe80::a/64"]),
        (&stranger, "v1", ["192.0.2.2/24", "2001:db8:0:2::2/32", "fe80::b/64"]),
    ] {
        run("ip", &["-n", &namespace.0, "link", "set", link, "addrgenmode", "none"]);
        run("ip", &["-n", &namespace.0, "link", "set", link, "up"]);
        for address in addresses {
            let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
            run("ip", &[&["-n", &namespace.0, "addr", "add", address, "dev", link], nodad].concat());
        }
    }
    host.within(|| {
        let mut nft = Nft::open().unwrap();
        nft.install(&RulesetSpec::default()).unwrap();
        test(&mut nft, &stranger);
    });
}

/// True where a datagram from the stranger's `from` reaches the host's `to`.
fn arrives(stranger: &Namespace, from: &str, to: &str) -> bool {
    let local = |address: &str, link: &str, port| match address.parse().unwrap() {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            let index = run("cat", &["/proc/net/dev_mcast"]);
            let index = index.lines().find(|line| line.split_whitespace().nth(1) == Some(link)).unwrap();
            let index = index.split_whitespace().next().unwrap().parse().unwrap();
            SocketAddr::V6(SocketAddrV6::new(v6, port, 0, index))
        }
        address => SocketAddr::new(address, port),
    };
    let receiver = UdpSocket::bind(local(to, "v0", 0)).unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let port = receiver.local_addr().unwrap().port();
    stranger.within(|| {
        UdpSocket::bind(local(from, "v1", 0)).unwrap().send_to(b"probe", local(to, "v1", port)).unwrap();
    });
    receiver.recv(&mut [0; 16]).is_ok()
}

#[test]
fn packets_of_a_blocked_source_are_dropped_and_those_of_an_allowed_one_are_not() {
    cabled(|sets, stranger| {
        let ways = [("192.0.2.2", "192.0.2.1"), ("2001:db8:0:2::2", "2001:db8:0:1::1"), ("fe80::b", "fe80::a")];
        for (from, to) in ways {
            let who = subject(from);
            assert!(arrives(stranger, from, to), "{from} before");
            sets.block(&[(who, seconds(60))]).unwrap();
            assert!(!arrives(stranger, from, to), "{from} blocked");
            let allowed = format!("{from}/{}", who.prefix_len()).parse().unwrap();
            sets.protect(&[allowed]).unwrap();
            assert!(arrives(stranger, from, to), "{from} allowed");
            sets.protect(&[]).unwrap();
            assert!(!arrives(stranger, from, to), "{from} blocked again");
            sets.lift(&[who]).unwrap();
            assert!(arrives(stranger, from, to), "{from} lifted");
        }
    });
}

#[test]
fn a_link_local_neighbour_is_blocked_without_its_neighbours() {
    cabled(|sets, stranger| {
        sets.block(&[(subject("fe80::c"), seconds(60))]).unwrap();
        assert!(arrives(stranger, "fe80::b", "fe80::a"));
    });
}

#[test]
fn whoever_lacks_the_capability_is_told_which_one() {
    Namespace::new().within(|| {
        // The capability is dropped from this thread alone.
        let none = rustix::thread::CapabilitySet::empty();
        let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
        rustix::thread::set_capabilities(None, sets).unwrap();
        let error = Nft::open().unwrap().install(&RulesetSpec::default()).unwrap_err().to_string();
        assert!(error.contains("CAP_NET_ADMIN") && error.contains("AmbientCapabilities"), "{error}");
    });
}
