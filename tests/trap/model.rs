//! Tests the simulation's model of the trap against the kernel: the same packets must give the same set contents. The
//! daemon is stopped meanwhile, so that the kernel decides alone.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use netns_lab::daemon::Daemon;
use netns_lab::raw::{self, Wire};
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT, eventually, soon, within};
use portsentry::config::Config;
use portsentry::enforce::nft::{RulesetSpec, TRAP_BURST};
use portsentry::types::{BanTarget, PortSet, Protocol, Timestamp};
use portsentry::wire::{Delivery, LinkType, Packet, Transport, decode};
use simulation::chance::Chance;
use simulation::kernel::{HostState, Kernel, KernelRules, Passage};

use crate::{BLOCKING, banned_at_last};

/// Flags that no TCP stack sends: the kernel drops them and holds their source.
const ILLEGAL: [u16; 4] = [raw::FIN, 0, raw::SYN | raw::FIN, raw::SYN | raw::RST];

/// Sources that the trap knows to be connected.
const PEERS: [&str; 2] = ["10.77.1.103", "fd77:0:1:2::1"];

const OPEN: [u16; 3] = [22, 80, 443];

/// The victim as the model's rules see it.
struct Victim {
    addresses: [IpAddr; 2],
    /// Ports that destination NAT publishes for IPv4.
    published: &'static [u16],
}

impl HostState for Victim {
    fn has_socket(&self, packet: &Packet) -> bool {
        matches!(packet.transport, Transport::Tcp { destination_port, .. } if OPEN.contains(&destination_port))
    }

    fn is_published(&self, packet: &Packet) -> bool {
        let (Transport::Tcp { destination_port, .. } | Transport::Udp { destination_port, .. }) = packet.transport
        else {
            return false;
        };
        packet.source.is_ipv4() && self.published.contains(&destination_port)
    }

    fn is_local(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }
}

/// The kernel and the model side by side.
struct Pair<'a> {
    lab: &'a Lab,
    wire: Wire,
    victim: Victim,
    model: Kernel,
    began: Instant,
}

impl<'a> Pair<'a> {
    fn new(lab: &'a Lab, configuration: &str) -> Self {
        let config = Config::parse("the test", &format!("expire = \"24h\"\n{configuration}")).unwrap();
        let mut model = Kernel::new(Timestamp::ZERO, &RulesetSpec::from_config(&config), KernelRules::default());
        for (protocol, name) in [(Protocol::Tcp, "trapped"), (Protocol::Udp, "trapped_udp")] {
            model.arm(protocol, lab.ports(name).into_iter().collect::<PortSet>());
        }
        model.arm_related(lab.ports("related").into_iter().collect());
        // The model does not hold at open ports: that depends on milliseconds.
        lab.nft("flush set inet portsentry services");
        model.allow(config.allow.networks.clone());
        let addresses = [lab.victim_v4("other").into(), lab.victim_v6("other").into()];
        Self {
            lab,
            wire: lab.wire("other"),
            victim: Victim { addresses, published: &[] },
            model,
            began: Instant::now(),
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::at(self.began.elapsed())
    }

    /// Sends a packet to both.
    fn send(&mut self, packet: &[u8]) -> Passage {
        // The time is taken first, so that an element expires in the model no later than in the kernel.
        let now = self.now();
        self.wire.send(packet);
        let decoded = decode(LinkType::Raw, packet).unwrap();
        let decoded = Packet { delivery: Delivery::Host, ..decoded };
        self.model.input(now, &decoded, &self.victim)
    }

    /// Sets the connected sources of both.
    fn connect_peers(&mut self) {
        self.model.set_peers(PEERS.iter().map(|peer| BanTarget::containing(peer.parse().unwrap())));
        for element in ["peers { 10.77.1.103 }", "peers6 { fd77:0:1:2:: }"] {
            self.lab.nft(&format!("add element inet portsentry {element}"));
        }
    }

    fn tcp(&mut self, source: IpAddr, port: u16, flags: u16) -> Passage {
        let target = self.target(source);
        self.send(&raw::tcp(source, target, port, flags))
    }

    fn udp(&mut self, source: IpAddr, port: u16) -> Passage {
        let target = self.target(source);
        self.send(&raw::udp(source, target, (40_404, port)))
    }

    /// Sends a datagram of the victim to `peer` from a socket that is closed at once.
    fn ask(&mut self, peer: IpAddr, own: u16) {
        let source = self.target(peer);
        let now = self.now();
        self.lab.inside("victim", || {
            let socket = UdpSocket::bind((source, own)).unwrap();
            assert_eq!(socket.send_to(b"question", (peer, 53)).unwrap(), 8);
        });
        let datagram = raw::udp(source, peer, (own, 53));
        let decoded = decode(LinkType::Raw, &datagram).unwrap();
        self.model.output(now, &Packet { delivery: Delivery::Outgoing, ..decoded });
    }

    fn target(&self, source: IpAddr) -> IpAddr {
        self.victim.addresses[usize::from(source.is_ipv6())]
    }

    /// Waits until the kernel has processed all packets. Packets of one link stay in order.
    fn settle(&mut self, last: Ipv4Addr) {
        for port in [901, 902, 903] {
            self.tcp(last.into(), port, raw::SYN);
        }
        // Each new port is recorded, regardless of the ceiling.
        let noted = format!("{last} . 903");
        eventually("the last packet was processed", || self.lab.set_text("held_ports").contains(&noted));
    }

    fn expect_same_sets(&self) {
        let holds = ["held_ports", "hold_counts", "hold_recent", "peer_suspects"];
        for name in ["touched", "touched_udp", "suspects", "caught", "blocked"].into_iter().chain(holds) {
            for name in [name.to_owned(), format!("{name}6")] {
                let model: BTreeSet<_> = self.model.set(self.now(), &name).into_iter().collect();
                assert_eq!(elements(self.lab, &name), model, "{name}: the kernel, then the model");
            }
        }
        let asked: BTreeSet<u16> = self.model.asked(self.now()).into_iter().collect();
        assert_eq!(crate::innocents::asked(self.lab), asked, "asked: the kernel, then the model");
    }
}

/// The elements of a set: an address each and, in some sets, a port.
fn elements(lab: &Lab, name: &str) -> BTreeSet<(IpAddr, Option<u16>)> {
    let text = lab.set_text(name);
    let (_, list) = text.split_once("elements = {").unwrap_or_default();
    let list = list.split('}').next().unwrap_or_default().split(',').map(str::trim);
    let element = |text: &str| {
        let mut words = text.split_whitespace();
        let address = words.next().unwrap().parse().unwrap();
        let port = text.split_once(" . ").map(|(_, rest)| rest.split_whitespace().next().unwrap().parse().unwrap());
        (address, port)
    };
    // The text after the element of a limit is its options.
    list.filter(|text| !text.is_empty()).map(element).collect()
}

fn side_by_side(configuration: &str, work: impl FnOnce(&mut Pair<'_>)) {
    side_by_side_with(&[], configuration, work);
}

/// Lets the daemon create the table, runs `work` while the daemon is stopped, and compares the sets.
fn side_by_side_with(hosts: &[&str], configuration: &str, work: impl FnOnce(&mut Pair<'_>)) {
    let lab = Lab::new(&[&["other"], hosts].concat());
    // The rules require a route to the source (`fib saddr type unicast`); the model's host has one to every source.
    lab.victim_ip("route add fd77:0:1::/48 dev other");
    let _services = Services::open(&lab, &OPEN);
    let daemon = Daemon::start_armed(&lab, configuration);
    daemon.frozen(|| {
        let mut pair = Pair::new(&lab, configuration);
        work(&mut pair);
        pair.settle(Ipv4Addr::new(10, 77, 1, 250));
        pair.expect_same_sets();
    });
    daemon.kill();
}

/// The lab's own host, which can receive a question.
fn server(lab: &Lab, v6: bool) -> IpAddr {
    if v6 { lab.v6("other").into() } else { lab.v4("other").into() }
}

#[test]
fn model_agrees_on_answers_to_questions() {
    side_by_side(BLOCKING, |pair| {
        let mut chance = Chance::new(6, "answers", 0);
        let mut asked = Vec::new();
        for round in 0..120_u16 {
            if round % 10 == 0 {
                let own = 601 + round;
                pair.ask(server(pair.lab, chance.is(0.5)), own);
                asked.push(own);
            }
            // Answers, and probes of other ports by the same sources. An answer may come from any source.
            let port =
                if chance.is(0.7) { chance.pick(&asked) } else { 300 + u16::try_from(chance.below(200)).unwrap() };
            let source = source(&mut chance);
            pair.udp(source, port);
        }
        assert_eq!(asked.len(), 12);
        let counted = pair.model.set(pair.now(), "touched_udp");
        assert!(
            !counted.is_empty() && counted.iter().all(|(_, port)| port.is_some_and(|port| port < 600)),
            "{counted:?}"
        );
    });
}

#[test]
fn model_agrees_behind_destination_nat() {
    const PUBLISHED: [u16; 3] = [905, 906, 8_088];
    side_by_side_with(&["container"], BLOCKING, |pair| {
        let (target, container) = (pair.lab.victim_v4("other"), pair.lab.v4("container"));
        pair.lab.sysctl("net.ipv4.ip_forward=1");
        let rule = |protocol| format!("ip daddr {target} {protocol} dport {{ 905, 906, 8088 }} dnat to {container};");
        let rules = format!(
            "table ip publish {{ chain before {{ type nat hook prerouting priority dstnat; {} {} }}; }}",
            rule("tcp"),
            rule("udp")
        );
        pair.lab.nft(&rules);
        pair.victim.published = &PUBLISHED;
        let mut chance = Chance::new(7, "published", 0);
        for _ in 0..300 {
            let source = source(&mut chance);
            let port = match chance.below(3) {
                0 => chance.pick(&PUBLISHED),
                1 => chance.pick(&[901, 902, 903, 904]),
                _ => chance.pick(&OPEN),
            };
            if chance.is(0.3) {
                pair.udp(source, port);
            } else {
                let flags = if chance.is(0.7) { raw::SYN } else { chance.pick(&ILLEGAL) };
                pair.tcp(source, port, flags);
            }
        }
        let touched = pair.model.set(pair.now(), "touched");
        assert!(touched.iter().all(|(_, port)| port.is_none_or(|port| !PUBLISHED.contains(&port))), "{touched:?}");
    });
}

#[test]
fn model_agrees_where_caught_is_full() {
    // Ten bans at once and ten a second, so that the set and not the ceiling stops the trap.
    side_by_side("[block]\nmax_new_bans_per_minute = 600\n", |pair| {
        for v6 in [false, true] {
            let source = |number: u16| match v6 {
                false => IpAddr::from(Ipv4Addr::new(10, 77, 1, 100 + u8::try_from(number).unwrap())),
                true => Ipv6Addr::new(0xfd77, 0, 1, number, 0, 0, 0, 9).into(),
            };
            let mut trapped = 0;
            for number in 0..14 {
                for port in [901, 902, 903] {
                    trapped += u32::from(pair.tcp(source(number), port, raw::SYN) == Passage::Trapped);
                }
                std::thread::sleep(Duration::from_millis(250));
            }
            assert_eq!(trapped, TRAP_BURST, "the model: the set has room for ten");
        }
    });
}

#[test]
fn model_agrees_where_touched_is_full() {
    const SIZE: u16 = 32_768;
    side_by_side(BLOCKING, |pair| {
        let source = |number| IpAddr::from(Ipv6Addr::new(0xfd77, 0, 1, number, 0, 0, 0, 9));
        for number in 0..SIZE {
            pair.udp(source(number), 901);
        }
        eventually("the set is full", || elements(pair.lab, "touched_udp6").len() == usize::from(SIZE));
        for number in SIZE..SIZE + 5 {
            for port in [902, 903, 904] {
                assert_eq!(
                    pair.udp(source(number), port),
                    Passage::Passed,
                    "the model: a source that cannot be counted"
                );
            }
        }
        // A source of which a port is known cannot be counted further either.
        for port in [902, 903, 904] {
            assert_eq!(pair.udp(source(1), port), Passage::Passed);
        }
    });
}

fn source(chance: &mut Chance) -> IpAddr {
    let number = u8::try_from(chance.below(12)).unwrap();
    if chance.is(0.6) {
        Ipv4Addr::new(10, 77, 1, 100 + number).into()
    } else {
        // Several addresses share a /64.
        Ipv6Addr::new(0xfd77, 0, 1, u16::from(number / 3), 0, 0, 0, u16::from(number) + 1).into()
    }
}

#[test]
fn model_agrees_on_random_packets() {
    for seed in 1..=4 {
        let allowed = "[allow]\nnetworks = [\"10.77.1.101\", \"fd77:0:1:1::/64\"]\n";
        side_by_side(&format!("{allowed}{BLOCKING}"), |pair| {
            let mut chance = Chance::new(seed, "random packets", 0);
            pair.connect_peers();
            for _ in 0..400 {
                let source = source(&mut chance);
                let port = match chance.below(4) {
                    0 => chance.pick(&OPEN),
                    1 => chance.pick(&[901, 902]),
                    // 47113 and 113 are not monitored.
                    2 => chance.pick(&[113, 47_113, 25, 110, 8_080]),
                    _ => 1 + u16::try_from(chance.below(1_000)).unwrap(),
                };
                if chance.is(0.3) {
                    pair.udp(source, port);
                } else {
                    let legal = [raw::SYN, raw::SYN, raw::SYN, raw::SYN, raw::ACK, raw::SYN | raw::ACK];
                    let flags = chance.pick(&[&legal[..], &ILLEGAL].concat());
                    pair.tcp(source, port, flags);
                }
            }
        });
    }
}

#[test]
fn model_agrees_where_one_probe_is_enough() {
    side_by_side("[detect]\nscan_trigger = 0\n", |pair| {
        let mut chance = Chance::new(5, "first probe", 0);
        for _ in 0..60 {
            let source = source(&mut chance);
            let port = chance.pick(&[22, 80, 113, 901, 902]);
            pair.tcp(source, port, raw::SYN);
        }
    });
}

#[test]
fn model_agrees_after_window_has_passed() {
    side_by_side("[detect]\nwindow = \"2s\"\n", |pair| {
        let source: IpAddr = Ipv4Addr::new(10, 77, 1, 100).into();
        for round in 0..3 {
            for port in [911, 912] {
                let passage = pair.tcp(source, port + round, raw::SYN);
                assert_ne!(passage, Passage::Trapped, "two ports are forgiven per window");
            }
            let gone = || pair.lab.set("suspects").is_empty().then_some(());
            assert!(within(TIMEOUT, gone).is_some(), "the kernel forgets after two seconds");
            // The kernel's clock has ticks of a few milliseconds.
            let gone = || pair.model.set(pair.now(), "suspects").is_empty();
            assert!(soon(gone), "the model forgets too");
        }
        assert!(banned_at_last(pair.lab).is_empty());
    });
}

#[test]
fn model_agrees_above_ceiling_of_bans() {
    const CEILING: usize = 5;
    let lab = Lab::new(&["other"]);
    let settings = "[block]\nmax_new_bans_per_minute = 5\n";
    let daemon = Daemon::start_armed(&lab, settings);
    daemon.frozen(|| {
        let mut pair = Pair::new(&lab, settings);
        for number in 0..20 {
            for port in [901, 902, 903] {
                pair.tcp(Ipv4Addr::new(10, 77, 1, 100 + number).into(), port, raw::SYN);
            }
        }
        let counted = || elements(&lab, "suspects").len() == 20;
        assert!(soon(counted));
        let (kernel, model) = (banned_at_last(&lab).len(), pair.model.set(pair.now(), "blocked").len());
        // The ceiling allows one more ban every twelve seconds.
        let most = CEILING + 1 + usize::try_from(pair.began.elapsed().as_secs() / 12).unwrap();
        assert!((CEILING..=most).contains(&kernel) && (CEILING..=most).contains(&model), "{kernel} {model} {most}");
    });
    daemon.kill();
}

/// Probes that hold their source without counting. Each is followed by a SYN to an open port, which must not get
/// through.
#[test]
fn model_agrees_on_limit_of_holds() {
    let lab = Lab::new(&["other"]);
    lab.victim_ip("route add fd77:0:1::/48 dev other");
    let _services = Services::open(&lab, &OPEN);
    let configuration = "[trap]\nhold = \"300ms\"\n";
    let daemon = Daemon::start_armed(&lab, configuration);
    daemon.frozen(|| {
        let mut pair = Pair::new(&lab, configuration);
        let sources: [IpAddr; 2] = [Ipv4Addr::new(10, 77, 1, 100).into(), "fd77:0:1:5::9".parse().unwrap()];
        let mut held = 0;
        for port in 901..921 {
            for source in sources {
                assert_eq!(pair.tcp(source, port, 0), Passage::Illegal);
                // A repeated probe does not extend the hold, and an open port is unreachable as well.
                for next in [port, OPEN[0]] {
                    held += u64::from(pair.tcp(source, next, raw::SYN) == Passage::Held);
                }
            }
            std::thread::sleep(Duration::from_millis(350));
            for set in ["suspects", "suspects6"] {
                lab.nft(&format!("flush set inet portsentry {set}"));
            }
            pair.model.forget(&sources.map(BanTarget::containing));
        }
        assert_eq!(held, 2 * 2 * 16, "the model: sixteen holds per source");
        eventually("the kernel dropped as many", || lab.packets("trap_held") == held);
        pair.settle(Ipv4Addr::new(10, 77, 1, 250));
        pair.expect_same_sets();
    });
    daemon.kill();
}
