//! Measures the cost of one packet from captured bytes to verdict: a mixed capture of a busy server under a distributed
//! scan, each of its parts alone, and, with full tables, the most expensive packets that a forger can send against the
//! cheapest.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use portsentry::engine::{
    ActiveBan, Engine, Escalation, HashKey, Host, LastBan, Local, MaxPrefix, NoLookup, Response, Settings,
    StrikeHistory, Watch,
};
use portsentry::types::{BanTarget, Expiry, PortSet, Timestamp};
use portsentry::wire::{LinkType, decode};
use rustix::time::{ClockId, clock_gettime};

/// Packets of one capture: more than a cache holds, as on a live host.
const PACKETS: u32 = 200_000;
const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OPEN: u16 = 443;
const ACK: u8 = 0x10;
const SYN: u8 = 0x02;

/// A frame of Linux's cooked capture, version 2, with an IPv4 and a TCP header.
type Frame = [u8; 60];

fn frame(source: Ipv4Addr, port: u16, flags: u8) -> Frame {
    let mut frame = Vec::with_capacity(60);
    // EtherType, reserved, interface 2, Ethernet, to this host, length and bytes of the sender's address.
    frame.extend([8, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0]);
    frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(source.octets());
    frame.extend(HERE.octets());
    frame.extend(40_000_u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 4, 0, 0, 0, 0, 0]);
    frame.try_into().unwrap_or([0; 60])
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
        tcp: Watch { ports: ports.clone(), response: Response::Block },
        udp: Watch { ports, response: Response::Log },
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
    let mut host = Host::new(Local::Addresses([IpAddr::V4(HERE)].into()));
    host.tcp.insert_any_v4(OPEN);
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
                    if let Ok(packet) = decode(LinkType::Sll2, black_box(frame)) {
                        let _ = black_box(engine.observe(now, &packet, &host, &mut NoLookup));
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
        if let Ok(packet) = decode(LinkType::Sll2, frame) {
            let _ = black_box(engine.observe(now, &packet, host, &mut NoLookup));
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

/// Compares the CPU time of packets of each kind with full tables: the cost must not depend on the traffic.
#[expect(clippy::print_stdout, reason = "the ratios are what this benchmark is for")]
fn extremes(criterion: &mut Criterion) {
    let illegal = |n: u32| ILLEGAL.get(n as usize % ILLEGAL.len()).copied().unwrap_or(0);
    let kinds: [(&str, &dyn Fn(u32) -> Frame); 4] = [
        ("answer", &|n| frame(forged(n), 40_000, SYN | ACK)),
        ("blocked", &blocked),
        ("syn", &|n| frame(forged(n), 23, SYN)),
        ("illegal", &|n| frame(forged(n), 23, illegal(n))),
    ];
    let mut costs = Vec::new();
    let mut group = criterion.benchmark_group("observe_full");
    group.throughput(Throughput::Elements(1));
    for (name, make) in kinds {
        let (mut engine, host) = full_engine();
        let mut now = Timestamp::at(Duration::from_secs(2));
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
                        if let Ok(packet) = decode(LinkType::Sll2, black_box(frame)) {
                            let _ = black_box(engine.observe(now, &packet, &host, &mut NoLookup));
                        }
                    }
                    spent += cpu_time().saturating_sub(start);
                }
                total += spent;
                spent
            });
        });
        costs.push((name, total.as_secs_f64() * 1e9 / f64::from(sent.max(1))));
    }
    group.finish();
    let cheapest = costs.iter().map(|(_, cost)| *cost).fold(f64::INFINITY, f64::min);
    for (name, cost) in costs {
        println!("{name}: {cost:.0} ns per packet, {:.1} times the cheapest", cost / cheapest);
    }
}

criterion_group!(benches, benchmark, extremes);
criterion_main!(benches);
