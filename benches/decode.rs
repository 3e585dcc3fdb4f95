//! Measures the cost of decoding one frame, compared with etherparse's general slicer on the same bytes.

#![expect(clippy::expect_used, reason = "a frame that cannot be built ends the benchmark")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use etherparse::{PacketBuilder, SlicedPacket, VlanId};
use portsentry::wire::{LinkType, decode};

const SOURCE: [u8; 4] = [192, 0, 2, 1];
const DESTINATION: [u8; 4] = [192, 0, 2, 2];

fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let link = || PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let mut six = [[0; 16]; 2];
    for (last, address) in (1..).zip(&mut six) {
        *address = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).octets();
    }
    let [from, to] = six;
    let mut frames = Vec::new();
    let mut add = |name, write: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = Vec::new();
        write(&mut frame);
        frames.push((name, frame));
    };
    let built = "a frame that fits";
    add("ipv4_tcp", &|f| {
        link().ipv4(SOURCE, DESTINATION, 64).tcp(40000, 23, 1, 1024).syn().write(f, &[]).expect(built);
    });
    add("vlan_ipv4_tcp", &|f| {
        let tagged = link().single_vlan(VlanId::try_new(7).expect("a VLAN below 4096"));
        tagged.ipv4(SOURCE, DESTINATION, 64).tcp(40000, 23, 1, 1024).syn().write(f, &[]).expect(built);
    });
    add("ipv4_udp", &|f| {
        link().ipv4(SOURCE, DESTINATION, 64).udp(40000, 161).write(f, &[0; 40]).expect(built);
    });
    add("ipv6_tcp", &|f| {
        link().ipv6(from, to, 64).tcp(40000, 23, 1, 1024).syn().write(f, &[]).expect(built);
    });
    frames
}

fn benchmark(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(1));
    for (name, frame) in frames() {
        group.bench_with_input(BenchmarkId::new("portsentry", name), frame.as_slice(), |bencher, frame| {
            bencher.iter(|| decode(LinkType::Ethernet, black_box(frame)));
        });
        group.bench_with_input(BenchmarkId::new("etherparse", name), frame.as_slice(), |bencher, frame| {
            bencher.iter(|| SlicedPacket::from_ethernet(black_box(frame)));
        });
    }
    group.finish();
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
