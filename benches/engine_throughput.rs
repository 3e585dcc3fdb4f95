//! Measures the cost of one packet from captured bytes to verdict, for a mixed capture of a busy server under a
//! distributed scan and for each of its parts alone. With full tables, compares the most expensive packets that a
//! forger can send with the cheapest.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use portsentry::engine::{
    ActiveBan, Engine, Escalation, HashKey, Host, IgnoreReason, LastBan, Local, MaxPrefix, NoLookup, ProtocolSettings,
    Service, Settings, StrikeHistory, Verdict,
};
use portsentry::types::{BanTarget, Expiry, PortSet, Protocol, Response, Timestamp};
use portsentry::wire::{LinkType, decode};
use rustix::time::{ClockId, clock_gettime};

/// Packets of one capture: more than a cache holds, as on a live host.
const PACKETS: u32 = 200_000;
const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const HERE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);
const OPEN: u16 = 443;
const ACK: u8 = 0x10;
const SYN: u8 = 0x02;

/// A frame of Linux's cooked capture, version 2, with room for an IPv6 and a TCP header. What follows a shorter packet
/// is padding.
type Frame = [u8; 80];

/// The one's complement sum of the Internet checksum. All lengths are even.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let sum = words.fold(0_u32, |sum, word| sum + word.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)));
    let folded = (sum >> 16) + (sum & 0xffff);
    let folded = (folded >> 16) + (folded & 0xffff);
    (!u16::try_from(folded).unwrap_or(0)).to_be_bytes()
}

/// The rest of a header after its ports, and the place of its checksum in the whole header.
type Rest<'a> = (&'a [u8], usize);

/// Appends a packet from port 40000 to `port` with its checksum, after an IP header with these addresses.
fn put_packet(frame: &mut Vec<u8>, [source, here]: [&[u8]; 2], protocol: u8, port: u16, (rest, place): Rest<'_>) {
    let mut packet = [&40_000_u16.to_be_bytes()[..], &port.to_be_bytes(), rest].concat();
    let length = u16::try_from(packet.len()).unwrap_or(0).to_be_bytes();
    let sum = checksum(&[source, here, &[0, protocol], &length, &packet]);
    packet.splice(place..place + 2, sum);
    frame.extend(packet);
    frame.resize(80, 0);
}

/// A frame with an IPv4 header and a packet of twenty bytes. All checksums are correct, because the engine ignores
/// other packets.
fn frame_of(source: Ipv4Addr, protocol: u8, port: u16, rest: Rest<'_>) -> Frame {
    let mut frame = Vec::with_capacity(80);
    // EtherType, reserved, interface 2, Ethernet, to this host, length and bytes of the sender's address.
    frame.extend([8, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0]);
    let (source, here) = (source.octets(), HERE.octets());
    let start = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, protocol];
    frame.extend(start);
    frame.extend(checksum(&[&start, &source, &here]));
    frame.extend([source, here].concat());
    put_packet(&mut frame, [&source, &here], protocol, port, rest);
    frame.try_into().unwrap_or([0; 80])
}

/// The rest of a TCP header after its ports.
const fn segment(flags: u8) -> [u8; 16] {
    [0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 4, 0, 0, 0, 0, 0]
}

fn frame(source: Ipv4Addr, port: u16, flags: u8) -> Frame {
    frame_of(source, 6, port, (&segment(flags), 16))
}

/// A datagram of twelve bytes.
fn datagram(source: Ipv4Addr, port: u16) -> Frame {
    frame_of(source, 17, port, (&[0, 20, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 6))
}

/// A SYN from the /64 of this number.
fn frame6(network: u32, port: u16) -> Frame {
    let mut frame = Vec::with_capacity(80);
    frame.extend([0x86, 0xdd, 0, 0, 0, 0, 0, 2, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0]);
    frame.extend([0x60, 0, 0, 0, 0, 20, 6, 64]);
    let [a, b, c, d] = network.to_be_bytes();
    let source = [0x20, 1, 0x0d, 0xb8, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 9];
    frame.extend([source, HERE6.octets()].concat());
    put_packet(&mut frame, [&source, &HERE6.octets()], 6, port, (&segment(SYN), 16));
    frame.try_into().unwrap_or([0; 80])
}

/// The `n`th address of a network.
fn address(network: u8, n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(network) << 24 | n)
}

/// A pseudorandom number, the same in every run.
fn scatter(n: u32) -> u32 {
    let mixed = (n ^ n >> 16).wrapping_mul(0x7feb_352d);
    (mixed ^ mixed >> 15).wrapping_mul(0x846c_a68b) >> 8
}

const CLIENTS: u8 = 11;
const BLOCKED: u8 = 12;
const PROBERS: u8 = 13;
const PEERS: u8 = 14;

/// Sources with a connection to this host.
const CONNECTED: u32 = 4_096;

/// A segment of one of 20,000 clients to the open port.
fn legitimate(n: u32) -> Frame {
    frame(address(CLIENTS, scatter(n) % 20_000), OPEN, ACK)
}

/// A probe of one of 5,000 banned sources.
fn blocked(n: u32) -> Frame {
    let port = u16::try_from(n % 1_000).unwrap_or(0) + 1;
    frame(address(BLOCKED, scatter(n) % 5_000), port, SYN)
}

/// A SYN of one of 50,000 sources with two ports each, which are forgiven.
fn probe(n: u32) -> Frame {
    let source = scatter(n) % 50_000;
    let port = u16::try_from((source + n % 2) % 400).unwrap_or(0) + 1;
    frame(address(PROBERS, source), port, SYN)
}

/// Of ten packets, six are legitimate, two from banned sources and two probes.
fn mixed(n: u32) -> Frame {
    match scatter(n ^ 0x5555) % 10 {
        0..6 => legitimate(n),
        6..8 => blocked(n),
        _ => probe(n),
    }
}

fn engine() -> (Engine, Host) {
    let ports: PortSet = (1..=1_024).collect();
    let settings = Settings {
        tcp: ProtocolSettings { ports: ports.clone(), response: Response::Block },
        udp: ProtocolSettings { ports, response: Response::Log },
        decoys: PortSet::new(),
        sctp: false,
        icmp: false,
        ack_bans: false,
        scan_trigger: 2,
        window: Duration::from_secs(1_800),
        expiry: Expiry::After(Duration::from_secs(86_400)),
        escalate: Escalation::default(),
        widest: MaxPrefix::default(),
        max_sources: SOURCES as usize,
        max_judged: BANS as usize,
        max_new_bans_per_minute: 600,
        max_forgeable_bans: 4_096,
    };
    let mut engine = Engine::new(settings, HashKey(1, 2));
    for n in 0..5_000 {
        let target = BanTarget::V4(address(BLOCKED, n));
        engine.adopt(Timestamp::default(), &ActiveBan { target, length: None, grade: None, left: Expiry::Never });
    }
    let mut host = Host::new(Local::own([IpAddr::V4(HERE), IpAddr::V6(HERE6)]));
    host.tcp.insert([0; 4].into(), OPEN);
    host.loopback.push(1);
    for n in 0..8 {
        let resolver = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 240 + n));
        host.allow.insert(resolver.into(), portsentry::engine::Protection::Resolver);
    }
    (engine, host)
}

fn benchmark(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("observe");
    group.throughput(Throughput::Elements(PACKETS.into()));
    let capture = |make: fn(u32) -> Frame| -> Vec<Frame> { (0..PACKETS).map(make).collect() };
    for (name, frames) in [
        ("mixed", capture(mixed)),
        ("legitimate", capture(legitimate)),
        ("blocked", capture(blocked)),
        ("probe", capture(probe)),
    ] {
        let (mut engine, host) = engine();
        let mut now = Timestamp::at(Duration::from_secs(1));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                for frame in &frames {
                    // At a line rate of ten million packets per second.
                    now = now.after(Duration::from_nanos(100));
                    if let Ok(packet) = &decode(LinkType::Sll2, black_box(frame)) {
                        let _ = black_box(engine.observe(now, packet, &host, &mut NoLookup));
                    }
                }
            });
        });
    }
    group.finish();

    // Every source is new and the table is full, so each evicts another.
    let mut group = criterion.benchmark_group("observe_flood");
    group.throughput(Throughput::Elements(PACKETS.into()));
    let frames: Vec<Frame> = (0..PACKETS).map(|n| frame(address(PROBERS, n), 23, SYN)).collect();
    group.bench_function("forged", |bencher| {
        let setup = || {
            let (mut engine, host) = engine();
            replay(&mut engine, &host, &frames);
            (engine, host)
        };
        bencher.iter_batched_ref(setup, |(engine, host)| replay(engine, host, &frames), BatchSize::PerIteration);
    });
    group.finish();
}

fn replay(engine: &mut Engine, host: &Host, frames: &[Frame]) {
    let mut now = Timestamp::at(Duration::from_secs(1));
    for frame in frames {
        now = now.after(Duration::from_nanos(100));
        if let Ok(packet) = &decode(LinkType::Sll2, frame) {
            let _ = black_box(engine.observe(now, packet, host, &mut NoLookup));
        }
    }
}

/// Sizes of the tables of [`engine`].
const SOURCES: u32 = 65_536;
const BANS: u32 = 131_072;

/// An engine with all tables full: bans of a day, 5,000 of them permanent, as many strikes, and sources with one probe.
fn full_engine() -> (Engine, Host) {
    let (mut engine, host) = engine();
    let now = Timestamp::at(Duration::from_secs(1));
    let day = Expiry::After(Duration::from_secs(86_400));
    for n in 5_000..BANS {
        let target = BanTarget::V4(address(BLOCKED, n));
        engine.adopt(now, &ActiveBan { target, length: None, grade: None, left: day });
        engine.remember(now, &StrikeHistory { target, strikes: 1, proven: 0, last: LastBan::Lasts(day) });
    }
    let probes: Vec<Frame> = (0..2 * SOURCES).map(|n| frame(address(PROBERS, n), 23, SYN)).collect();
    replay(&mut engine, &host, &probes);
    (engine, host)
}

/// A source that has not been seen before: four thousand million of them, from 64 networks.
fn forged(n: u32) -> Ipv4Addr {
    let mixed = n.wrapping_mul(0x9e37_79b1);
    Ipv4Addr::from_bits((20 + (mixed >> 26)) << 24 | mixed & 0xff_ffff)
}

const FIN: u8 = 0x01;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const URG: u8 = 0x20;

/// Flags that no TCP stack sends: a single packet leads to a ban.
const ILLEGAL: [u8; 6] = [0, FIN, FIN | PSH | URG, SYN | FIN, SYN | RST, 0x3f];

/// The CPU time of this thread, which does not include other programs.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// A monitored port.
fn port(n: u32) -> u16 {
    u16::try_from(n % 400).unwrap_or(0) + 1
}

fn illegal(n: u32) -> Frame {
    frame(forged(n), 23, ILLEGAL.get(n as usize % ILLEGAL.len()).copied().unwrap_or(0))
}

/// An answer to a packet that this host has not sent.
fn answer(n: u32) -> Frame {
    frame(forged(n), 40_000, SYN | ACK)
}

fn syn(n: u32) -> Frame {
    frame(forged(n), 23, SYN)
}

fn syn6(n: u32) -> Frame {
    frame6(n.wrapping_mul(0x9e37_79b1), 23)
}

/// Three ports of each source: a scan, whose ban the ceilings withhold.
fn syn_scan(n: u32) -> Frame {
    frame(forged(n / 3), port(n), SYN)
}

/// More ports of each of 60,000 sources than their entries have room for.
fn many_ports(n: u32) -> Frame {
    frame(address(PROBERS, n % 60_000), port(n / 60_000 * 7), SYN)
}

fn udp(n: u32) -> Frame {
    datagram(forged(n), 161)
}

/// Three ports of each source: a scan, which is only logged, and takes the place of another source.
fn udp_scan(n: u32) -> Frame {
    datagram(forged(n / 3), port(n))
}

/// As [`udp_scan`], with segments that honest peers send late.
fn ack_scan(n: u32) -> Frame {
    frame(forged(n / 3), port(n), if n.is_multiple_of(2) { ACK } else { FIN | ACK })
}

/// Ports of connected sources, fewer than lead to a ban of such a source.
fn peer_scan(n: u32) -> Frame {
    frame(address(PEERS, n / 7 % CONNECTED), port(100 + n % 7), SYN)
}

/// All kinds in turn, in an order without a pattern.
fn every_kind(n: u32) -> Frame {
    KINDS.get(scatter(n) as usize % KINDS.len()).map_or_else(|| syn(n), |(_, make)| make(n))
}

/// A kind of packets: its name, and the `n`th of them.
type Kind = (&'static str, fn(u32) -> Frame);

/// What a forger can send.
const KINDS: [Kind; 10] = [
    ("answer", answer),
    ("blocked", blocked),
    ("syn", syn),
    ("syn over IPv6", syn6),
    ("syn scan", syn_scan),
    ("many ports", many_ports),
    ("illegal", illegal),
    ("udp", udp),
    ("udp scan", udp_scan),
    ("ack scan", ack_scan),
];

/// The same with all excuses of [`excuse`].
const EXCUSED: [Kind; 3] = [("syn, excused", syn), ("syn scan, excused", syn_scan), ("peer scan, excused", peer_scan)];

/// Fills what excuses a source: remembered services, listeners that have just stopped, related ports and connected
/// peers.
fn excuse(engine: &mut Engine, host: &mut Host, now: Timestamp) {
    let services = (600..856).map(|port| Service { protocol: Protocol::Tcp, port, address: HERE.into() });
    host.services = services.collect();
    [22, 25, 80].into_iter().for_each(|port| host.tcp.insert([0; 4].into(), port));
    host.find_related();
    let stopped = |port| Service { protocol: Protocol::Tcp, port, address: HERE.into() };
    let listeners: Vec<_> = (600..=1_024).map(|port| (stopped(port), Duration::from_secs(120))).collect();
    engine.restore_listeners(now, &listeners);
    let peers: Vec<_> = (0..CONNECTED).map(|n| (BanTarget::V4(address(PEERS, n)), Duration::from_secs(60))).collect();
    engine.set_peers(now, &peers);
}

/// Maximum ratio of the cost of the most expensive kind of packets that count against their source to that of the
/// cheapest such kind. Packets that the engine need not count (answers, banned sources) cost less.
const MAX_RATIO: f64 = 3.0;

/// With fewer packets, a ratio says nothing (`cargo test --benches` runs each once).
const ENOUGH: u32 = 1_000_000;

/// Compares the CPU time of packets of each kind with full tables: the cost must not depend on what strangers send, nor
/// on what excuses them.
#[expect(clippy::print_stdout, reason = "the ratios are what this benchmark is for")]
fn extremes(criterion: &mut Criterion) {
    let mut costs = Vec::new();
    let mut group = criterion.benchmark_group("observe_full");
    group.throughput(Throughput::Elements(1));
    let mixed: Kind = ("every kind", every_kind);
    let excused = EXCUSED.map(|kind| (kind, true));
    for ((name, make), is_excused) in KINDS.into_iter().chain([mixed]).map(|kind| (kind, false)).chain(excused) {
        let (mut engine, mut host) = full_engine();
        let mut now = Timestamp::at(Duration::from_secs(2));
        if is_excused {
            excuse(&mut engine, &mut host, now);
        }
        let first = decode(LinkType::Sll2, &make(1)).map(|packet| engine.observe(now, &packet, &host, &mut NoLookup));
        let is_read = first.is_ok_and(|verdict| verdict != Verdict::Ignored(IgnoreReason::Damaged));
        assert!(is_read, "{name}: the engine judges no such packet");
        let is_counted = first.is_ok_and(|verdict| !matches!(verdict, Verdict::Ignored(_) | Verdict::Repeated(_)));
        let (mut sent, mut total) = (0_u32, Duration::ZERO);
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let (mut left, mut spent) = (iterations, Duration::ZERO);
                while left > 0 {
                    // Frames are built outside the measured time, and few enough to stay in the cache.
                    let count = left.min(4_096);
                    left -= count;
                    let next = (0..count).map(|_| {
                        sent = sent.wrapping_add(1);
                        make(sent)
                    });
                    let frames: Vec<Frame> = next.collect();
                    let start = cpu_time();
                    for frame in &frames {
                        now = now.after(Duration::from_nanos(100));
                        if let Ok(packet) = &decode(LinkType::Sll2, black_box(frame)) {
                            let _ = black_box(engine.observe(now, packet, &host, &mut NoLookup));
                        }
                    }
                    spent += cpu_time().saturating_sub(start);
                }
                total += spent;
                spent
            });
        });
        if sent >= ENOUGH {
            costs.push((name, is_counted, total.as_secs_f64() * 1e9 / f64::from(sent)));
        }
    }
    group.finish();
    let counted = || costs.iter().filter(|(_, is_counted, _)| *is_counted);
    let cheapest = counted().map(|(_, _, cost)| *cost).fold(f64::INFINITY, f64::min);
    for (name, _, cost) in &costs {
        println!("{name}: {cost:.0} ns per packet, {:.1} times the cheapest probe", cost / cheapest);
    }
    let expensive: Vec<&str> =
        counted().filter(|(_, _, cost)| *cost > MAX_RATIO * cheapest).map(|(name, ..)| *name).collect();
    assert!(expensive.is_empty(), "more than {MAX_RATIO} times the cheapest probe: {expensive:?}");
}

criterion_group!(benches, benchmark, extremes);
criterion_main!(benches);
