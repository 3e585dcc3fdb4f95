//! Tests properties of the engine for arbitrary packets, times and changes of the host, and compares it with a simple
//! model of the threshold.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portsentry::engine::{
    Class, Engine, EngineNotice, Escalation, HashKey, Host, Local, MaxPrefix, Observation, PortLookup, PortUse,
    Protection, ProtocolSettings, Settings, Verdict,
};
use portsentry::types::{BanTarget, Expiry, Prefix, Protocol, Response, Timestamp};
use portsentry::wire::{Checksum, Delivery, Packet, TcpFlags, Transport};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

const OWN: [&str; 3] = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];
const PROTECTED: [&str; 5] = ["192.0.2.1", "127.0.0.1", "192.0.2.254", "198.18.7.7", "2001:db8::fe"];
/// Few addresses, so that thresholds are reached; the last three are one source.
const OTHERS: [&str; 8] = [
    "198.51.100.1",
    "198.51.100.10",
    "203.0.113.5",
    "0.0.0.0",
    "fe80::1",
    "2001:db8:9::1",
    "2001:db8:9::2",
    "2001:db8:9:0:ffff::3",
];
const PORTS: [u16; 12] = [0, 21, 22, 23, 25, 53, 80, 110, 443, 3389, 40_000, 65_535];
const WINDOW: Duration = Duration::from_secs(60);

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn settings(scan_trigger: u8, udp_blocks: bool) -> Settings {
    let watch = |response| ProtocolSettings { ports: "1-1024,3389,65535".parse().unwrap(), response };
    Settings {
        tcp: watch(Response::Block),
        udp: watch(if udp_blocks { Response::Block } else { Response::Log }),
        decoys: portsentry::types::PortSet::new(),
        sctp: true,
        icmp: true,
        ack_bans: false,
        scan_trigger,
        window: WINDOW,
        expiry: Expiry::After(Duration::from_secs(300)),
        escalate: Escalation::default(),
        widest: MaxPrefix::default(),
        max_sources: 1_024,
        max_judged: 1_024,
        max_new_bans_per_minute: 3,
        max_forgeable_bans: 4_096,
    }
}

fn host() -> Host {
    let mut host = Host::new(Local::own(OWN.map(address)));
    host.allow.insert("192.0.2.254/32".parse().unwrap(), Protection::Gateway);
    host.allow.insert("2001:db8::fe/128".parse().unwrap(), Protection::Resolver);
    host.allow.insert("198.18.0.0/15".parse().unwrap(), Protection::Listed);
    host.tcp.insert([0; 4].into(), 80);
    host.loopback.push(1);
    host
}

/// Ports that are in use according to the socket table, regardless of the snapshot.
struct InUse(HashSet<u16>);

impl PortLookup for InUse {
    fn port_use(&mut self, _: Protocol, _: SocketAddr, destination: SocketAddr, _: u32) -> PortUse {
        if self.0.contains(&destination.port()) { PortUse::Open } else { PortUse::Closed }
    }
}

/// An input of the engine.
#[derive(Clone, Debug)]
enum Step {
    /// A packet, this many milliseconds after the previous one; the clock may run backwards.
    Packet(i64, Packet<'static>),
    /// A service on this port starts or stops, according to the snapshot.
    Listener(u16, bool),
    /// The kernel's ban of this source is removed.
    Lift(IpAddr),
}

fn transport() -> impl Strategy<Value = Transport> {
    let tcp = |flags: BoxedStrategy<u16>| {
        (any::<u16>(), select(&PORTS), flags).prop_map(|(source_port, destination_port, flags)| Transport::Tcp {
            source_port,
            destination_port,
            flags: TcpFlags(flags),
            payload: 0,
        })
    };
    prop_oneof![
        6 => tcp(select(&[0x002, 0x0c2, 0x010, 0x011, 0x012, 0x014, 0x018]).boxed()),
        1 => tcp((0..0x1000_u16).boxed()),
        2 => (any::<u16>(), select(&PORTS))
            .prop_map(|(source_port, destination_port)| Transport::Udp { source_port, destination_port }),
        1 => (select(&PORTS), 0..3_u8)
            .prop_map(|(port, chunk)| Transport::Sctp { source_port: 9, destination_port: port, chunk }),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(kind, code)| Transport::Icmp { kind, code }),
        1 => proptest::option::of((any::<u16>(), select(&PORTS)))
            .prop_map(|ports| Transport::TinyFragment { ports }),
        1 => Just(Transport::OverlappingFragment),
        1 => Just(Transport::HiddenHeader),
        1 => any::<u8>().prop_map(|protocol| Transport::LaterFragment { protocol }),
        1 => any::<u8>().prop_map(|protocol| Transport::Other { protocol }),
    ]
}

fn packet() -> impl Strategy<Value = Packet<'static>> {
    let addresses: Vec<&str> = [&OTHERS[..], &OTHERS, &OTHERS, &PROTECTED, &["255.255.255.255", "ff02::1"]].concat();
    let to: Vec<&str> = [&OWN[..], &OWN, &OWN, &["192.0.2.255", "203.0.113.5", "ff02::1"]].concat();
    let delivery = prop_oneof![
        8 => Just(Delivery::Host),
        2 => Just(Delivery::Unknown),
        2 => Just(Delivery::Outgoing),
        1 => select(&[Delivery::Broadcast, Delivery::Multicast, Delivery::OtherHost]),
    ];
    (select(addresses), select(to), delivery, 0..4_u32, any::<bool>(), transport()).prop_map(
        |(source, destination, delivery, interface, fragmented, transport)| {
            let (source, destination) = (address(source), address(destination));
            // Packets sent by this host have its own address as source.
            let (source, destination) =
                if delivery == Delivery::Outgoing { (destination, source) } else { (source, destination) };
            Packet { source, destination, delivery, interface, checksum: Checksum::Good.into(), fragmented, transport }
        },
    )
}

fn packets() -> impl Strategy<Value = Vec<(i64, Packet<'static>)>> {
    vec((prop_oneof![5 => 0..2_000_i64, 1 => -5_000..120_000_i64], packet()), 0..300)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let wait = prop_oneof![5 => 0..2_000_i64, 1 => -5_000..120_000_i64];
    let step = prop_oneof![
        20 => (wait, packet()).prop_map(|(wait, packet)| Step::Packet(wait, packet)),
        1 => (select(&PORTS), any::<bool>()).prop_map(|(port, open)| Step::Listener(port, open)),
        1 => select(&OTHERS).prop_map(|text| Step::Lift(address(text))),
    ];
    vec(step, 0..300)
}

/// Moves the clock, possibly backwards.
fn turn(clock: &mut Timestamp, millis: i64) {
    let span = Duration::from_millis(millis.unsigned_abs());
    let at = clock.since_origin();
    *clock = Timestamp::at(if millis < 0 { at.saturating_sub(span) } else { at.saturating_add(span) });
}

struct Run {
    engine: Engine,
    host: Host,
    clock: Timestamp,
}

impl Run {
    fn new(settings: Settings, key: HashKey) -> Self {
        Self { engine: Engine::new(settings, key), host: host(), clock: Timestamp::at(Duration::from_secs(10)) }
    }

    fn step(&mut self, step: &Step) -> Option<Verdict> {
        match step {
            Step::Packet(wait, packet) => {
                turn(&mut self.clock, *wait);
                let mut truth = InUse([110].into());
                Some(self.engine.observe(self.clock, packet, &self.host, &mut truth))
            }
            Step::Listener(port, open) => {
                let mut new = host();
                if *open {
                    new.tcp.insert([0; 4].into(), *port);
                    new.udp.insert([0; 16].into(), *port);
                }
                self.engine.host_changed(self.clock, &self.host, &new);
                self.host = new;
                None
            }
            Step::Lift(address) => {
                self.engine.lift(BanTarget::containing(*address));
                None
            }
        }
    }

    fn packets(&mut self, notices: &mut u32) {
        while let Some(notice) = self.engine.notice(self.clock) {
            if let EngineNotice::Repeated { packets, .. } = notice {
                *notices += packets;
            }
        }
    }
}

/// The verdict without the part that depends on when notices are requested.
fn without_report(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Repeated(repeated) => Verdict::Repeated(portsentry::engine::Repeated { report: None, ..repeated }),
        other => other,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn same_input_gives_same_output(steps in steps(), trigger in 0..16_u8, key in any::<(u64, u64)>()) {
        let key = HashKey(key.0, key.1);
        let (mut one, mut two) = (Run::new(settings(trigger, true), key), Run::new(settings(trigger, true), key));
        for step in &steps {
            prop_assert_eq!(one.step(step), two.step(step));
            prop_assert_eq!(one.engine.wake(), two.engine.wake());
        }
        prop_assert_eq!(one.engine.counters(), two.engine.counters());
    }

    #[test]
    fn hash_key_changes_no_verdict(steps in steps(), keys in any::<[(u64, u64); 2]>()) {
        let [mut one, mut two] = keys.map(|(a, b)| Run::new(settings(2, false), HashKey(a, b)));
        for step in &steps {
            prop_assert_eq!(one.step(step), two.step(step));
        }
    }

    /// Verdicts do not depend on how the sensor batches packets or when it requests notices, and every repeated packet
    /// is reported.
    #[test]
    fn verdicts_do_not_depend_on_batches(packets in packets(), batch in 1..40_usize) {
        let forever = Settings { expiry: Expiry::Never, max_new_bans_per_minute: 10_000, ..settings(2, true) };
        let [mut whole, mut cut] = [0; 2].map(|_| Run::new(forever.clone(), HashKey(1, 2)));
        let (mut reported_whole, mut reported_cut) = (0, 0);
        for (index, (wait, packet)) in packets.iter().enumerate() {
            let step = Step::Packet(*wait, *packet);
            let (a, b) = (whole.step(&step).unwrap(), cut.step(&step).unwrap());
            prop_assert_eq!(without_report(a), without_report(b));
            for (verdict, count) in [(a, &mut reported_whole), (b, &mut reported_cut)] {
                if let Verdict::Repeated(repeated) = verdict {
                    *count += repeated.report.unwrap_or(0);
                }
            }
            if index % batch == 0 {
                cut.packets(&mut reported_cut);
            }
        }
        for run in [&mut whole, &mut cut] {
            turn(&mut run.clock, 3_600_000);
        }
        whole.packets(&mut reported_whole);
        cut.packets(&mut reported_cut);
        prop_assert_eq!(reported_whole, reported_cut);
        prop_assert_eq!(u64::from(reported_whole), whole.engine.counters().repeated);
    }

    #[test]
    fn protected_source_is_never_judged(steps in steps(), trigger in 0..3_u8) {
        let mut run = Run::new(settings(trigger, true), HashKey(5, 6));
        let protected: Vec<IpAddr> = PROTECTED.into_iter().chain(OWN).map(address).collect();
        for step in &steps {
            let verdict = run.step(step);
            if let Step::Packet(_, packet) = step
                && protected.contains(&packet.source)
            {
                let exempt = matches!(verdict, Some(Verdict::Ignored(_) | Verdict::Exempt(_)));
                prop_assert!(exempt, "{:?}", verdict);
            }
        }
    }

    /// A source is banned only if it sent a packet that no TCP stack sends, or probed more distinct ports than are
    /// forgiven.
    #[test]
    fn source_below_threshold_is_not_banned(steps in steps(), trigger in 0..8_u8, udp in any::<bool>()) {
        let mut run = Run::new(settings(trigger, udp), HashKey(7, 8));
        let mut touched: HashMap<BanTarget, HashSet<(u8, IpAddr, u16)>> = HashMap::new();
        // A ceiling may withhold the ban for such a packet until a later packet.
        let mut sent_conclusive = HashSet::new();
        for step in &steps {
            let verdict = run.step(step);
            let Step::Packet(_, packet) = step else { continue };
            let target = BanTarget::on(packet.source, packet.interface);
            let at = packet.destination;
            let (port, conclusive) = match packet.transport {
                // ICMP has no ports; the address counts instead.
                Transport::Icmp { .. } => ((1, at, 0), false),
                Transport::Udp { destination_port, .. } => ((2, address(OWN[0]), destination_port), false),
                Transport::Sctp { destination_port, .. } => ((3, address(OWN[0]), destination_port), false),
                Transport::Tcp { destination_port, flags, .. } => {
                    ((4, address(OWN[0]), destination_port), Class::of_tcp(flags).is_some_and(Class::is_conclusive))
                }
                Transport::TinyFragment { .. } | Transport::OverlappingFragment | Transport::HiddenHeader => ((5, at, 0), true),
                Transport::LaterFragment { .. } | Transport::Other { .. } => continue,
            };
            touched.entry(target).or_default().insert(port);
            if conclusive {
                sent_conclusive.insert(target);
            }
            let conclusive = sent_conclusive.contains(&target);
            let (Some(Verdict::Block(ban)) | Some(Verdict::LogOnly(ban))) = verdict else { continue };
            prop_assert_eq!(ban.probe.target, target);
            prop_assert!(conclusive || touched[&target].len() > usize::from(trigger), "{:?}", ban);
            prop_assert!(ban.probe.distinct > trigger || conclusive);
        }
    }

    /// The model lists until when each source is banned, and when its neighbours were banned.
    #[test]
    fn prefix_bans_follow_members_only(
        steps in vec((prop_oneof![30 => 0..30_u32, 1 => 0..9_000_u32], 0..2_u8, 0..3_u8, 0..5_u8, prop::bool::weighted(0.05)), 1..400),
        widest in (select(&[24, 29, 30, 32]), select(&[48, 56, 64])),
        protected in subsequence(vec!["198.51.100.2", "2001:db8:9:202::7"], 0..=2),
    ) {
        let span = |ticks: u32| Duration::from_millis(50) * ticks;
        let widest = MaxPrefix { v4: widest.0, v6: widest.1 };
        let once = Escalation { factor: 1, ..Escalation::default() };
        let settings = Settings { widest, escalate: once, ..settings(0, false) };
        let mut engine = Engine::new(settings, HashKey(11, 12));
        let mut host = Host::new(Local::own(OWN.map(address)));
        let protected: Vec<IpAddr> = protected.into_iter().map(address).collect();
        protected.iter().for_each(|address| host.allow.insert((*address).into(), Protection::Session));
        let mut standing: HashMap<BanTarget, Duration> = HashMap::new();
        let mut banned: HashMap<BanTarget, Duration> = HashMap::new();
        let mut now = span(20);
        for (wait, family, block, number, lift) in steps {
            now += span(wait);
            let source = match family {
                0 => IpAddr::from([198, 51, 100, 8 * block + number]),
                _ => IpAddr::from([0x2001, 0xdb8, 9, u16::from(block) << 8 | u16::from(number), 0, 0, 0, 9]),
            };
            let narrow = BanTarget::containing(source);
            if lift {
                // Advances the clock by a second, so that the engine knows the time.
                let _ = engine.notice(Timestamp::at(now));
                engine.lift(narrow);
                standing.remove(&narrow);
                banned.remove(&narrow);
                continue;
            }
            let handshake = Observation {
                source,
                source_port: 9,
                destination: address(if family == 0 { OWN[0] } else { OWN[2] }),
                interface: 0,
                bridge_port: 0,
                protocol: Protocol::Tcp,
                port: 21,
                class: Class::Connect,
                fragmented: false,
                unverified: false,
                decoy: true,
            };
            let verdict = engine.observe_decoy(Timestamp::at(now), handshake, &host, &mut InUse(HashSet::new()));
            standing.retain(|_, until| now < *until);
            banned.retain(|_, at| now - *at <= WINDOW);
            if protected.contains(&source) {
                prop_assert!(matches!(verdict, Verdict::Exempt(_)), "{:?}", verdict);
                continue;
            }
            let around = standing.keys().any(|target| target.covers(source));
            prop_assert_eq!(matches!(verdict, Verdict::Repeated(_)), around, "{:?}", verdict);
            let Verdict::Block(ban) = verdict else { continue };
            let inside = |length: u8| {
                let network = BanTarget::Prefix(Prefix::containing(source, length)?);
                let members = banned.keys().filter(|target| network.covers(target.element())).count();
                Some((network, members)).filter(|_| !protected.iter().any(|address| network.covers(*address)))
            };
            let wide = |length: u8, members: usize| inside(length).filter(|(_, found)| *found >= members);
            let expected = match (family, widest.v6) {
                (0, _) if widest.v4 <= 30 => wide(widest.v4, 4),
                (1, 56) => wide(56, 4),
                (1, 48) => {
                    let blocks: HashSet<Option<Prefix>> =
                        banned.keys().filter(|target| target.prefix_len() == 64).map(|target| Prefix::containing(target.element(), 56)).collect();
                    wide(48, 8).filter(|_| blocks.len() > 1).or_else(|| wide(56, 4))
                }
                _ => None,
            };
            let expected = expected.map(|(network, _)| network);
            prop_assert_eq!(ban.probe.target, expected.unwrap_or(narrow), "{:?}", banned);
            let Expiry::After(lasts) = ban.expiry else { panic!("the ban expires") };
            standing.insert(ban.probe.target, now + lasts);
            match expected {
                // A ban of the widest network resets the counts of all networks inside it.
                Some(_) => banned.retain(|target, _| {
                    let length = if family == 0 { widest.v4 } else { widest.v6 };
                    !Prefix::containing(source, length).is_some_and(|wide| BanTarget::Prefix(wide).covers(target.element()))
                }),
                None => drop(banned.insert(narrow, now)),
            }
        }
    }

    /// The model lists for each source when each port was last probed.
    #[test]
    fn closed_ports_count_as_in_plain_table(
        probes in vec((0..400_u32, 0..5_u8, 1..30_u16), 1..400),
        trigger in 0..16_u8,
    ) {
        let span = |ticks: u32| Duration::from_millis(50) * ticks;
        let (window, ban) = (span(1_200), span(6_000));
        let settings = Settings { max_new_bans_per_minute: 60_000, ..settings(trigger, false) };
        let mut engine = Engine::new(settings, HashKey(9, 10));
        let host = Host::new(Local::own(OWN.map(address)));
        let mut touched: HashMap<u8, HashMap<u16, Duration>> = HashMap::new();
        let mut banned: HashMap<u8, Duration> = HashMap::new();
        let mut strikes: HashMap<u8, u32> = HashMap::new();
        let mut now = span(20);
        for (wait, source, port) in probes {
            now += span(wait);
            let flags = TcpFlags(TcpFlags::SYN);
            let packet = Packet {
                source: IpAddr::from([198, 51, 100, source]),
                destination: address(OWN[0]),
                delivery: Delivery::Host,
                interface: 0,
                checksum: Checksum::Good.into(),
                fragmented: false,
                transport: Transport::Tcp { source_port: 9, destination_port: port, flags, payload: 0 },
            };
            let verdict = engine.observe(Timestamp::at(now), &packet, &host, &mut InUse(HashSet::new()));
            if banned.get(&source).is_some_and(|until| now < *until) {
                prop_assert!(matches!(verdict, Verdict::Repeated(_)), "{:?}", verdict);
                continue;
            }
            let ports = touched.entry(source).or_default();
            ports.retain(|_, at| now - *at <= window);
            let fresh = ports.insert(port, now).is_none();
            let distinct = ports.len();
            match verdict {
                Verdict::Probe(probe) => {
                    prop_assert!(distinct <= usize::from(trigger));
                    prop_assert_eq!((usize::from(probe.distinct), probe.fresh), (distinct, fresh));
                }
                Verdict::Block(verdict) => {
                    prop_assert_eq!(distinct, usize::from(trigger) + 1);
                    let held: HashSet<u16> = verdict.ports.iter().map(|(_, port, _)| port).collect();
                    prop_assert_eq!(held, ports.keys().copied().collect::<HashSet<u16>>());
                    // Each ban is twice as long as the previous one, except for short ones above the ceiling.
                    let struck = strikes.entry(source).or_default();
                    prop_assert_eq!(verdict.strikes, *struck);
                    let Expiry::After(span) = verdict.expiry else { panic!("the ban expires") };
                    prop_assert_eq!(span, if verdict.capped { ban } else { ban * 2_u32.pow(*struck) });
                    *struck += u32::from(!verdict.capped);
                    banned.insert(source, now + span);
                    touched.remove(&source);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
