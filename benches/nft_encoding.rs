//! Measures the cost of one ban: encoded by hand and by the general encoder, and from the call to the kernel's
//! acknowledgement. Needs root for its network namespace.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use criterion::Criterion;
use netlink_packet_core::NetlinkMessage;
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList, SetElementMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use portsentry::enforce::nft::{Nft, RulesetSpec};
use portsentry::netlink::nft::{Batch, put_ban};
use portsentry::types::{BanTarget, Expiry};

type Failure = Box<dyn std::error::Error>;

const DAY: Duration = Duration::from_secs(86_400);

/// The same three messages with the types of netlink-packet-netfilter.
fn encode_with_the_crate(bytes: &mut Vec<u8>, address: Ipv4Addr) {
    bytes.clear();
    for timeout in [Some(86_400_000), None, Some(86_400_000)] {
        let key = SetElementAttribute::Key(DataAttribute::Value(address.octets().to_vec()));
        let element = std::iter::once(key).chain(timeout.map(SetElementAttribute::Timeout)).collect();
        let attributes = vec![
            SetElementList::Table("portsentry".to_owned()),
            SetElementList::Set("blocked".to_owned()),
            SetElementList::Elements(vec![ListAttribute::Element(element)]),
        ];
        let message = SetElementMessage { attributes };
        let message = match timeout {
            Some(_) => NfTablesMessage::NewSetElement(message),
            None => NfTablesMessage::DeleteSetElement(message),
        };
        let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
        let mut message = NetlinkMessage::from(NetfilterMessage::new(header, message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len(), 0);
        message.serialize(bytes.get_mut(start..).unwrap_or_default());
    }
}

fn encoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode one ban");
    let address = Ipv4Addr::new(192, 0, 2, 7);
    let mut batch = Batch::new();
    group.bench_function("by hand", |bencher| {
        bencher.iter(|| {
            batch.clear();
            put_ban(&mut batch, BanTarget::V4(black_box(address)), Expiry::After(DAY));
        });
    });
    let mut bytes = Vec::new();
    group.bench_function("netlink-packet-netfilter", |bencher| {
        bencher.iter(|| encode_with_the_crate(&mut bytes, black_box(address)));
    });
    group.finish();
}

fn blocking(criterion: &mut Criterion) -> Result<(), Failure> {
    let mut nft = Nft::open()?;
    nft.install(&RulesetSpec { size: 1 << 20, ..RulesetSpec::default() })?;
    let mut group = criterion.benchmark_group("kernel");
    let mut next = 0_u32;
    group.bench_function("block one new source", |bencher| {
        bencher.iter(|| {
            next = (next + 1) % 500_000;
            nft.block(&[(BanTarget::V4((0x0a00_0000 + next).into()), Expiry::After(DAY))])
        });
    });
    let known = BanTarget::V4(Ipv4Addr::new(10, 0, 0, 1));
    group.bench_function("block one again", |bencher| bencher.iter(|| nft.block(&[(known, Expiry::After(DAY))])));
    group.bench_function("holds", |bencher| bencher.iter(|| nft.table.time_left(known)));
    group.sample_size(10);
    let thousand: Vec<_> = (0..1_000).map(|n| (BanTarget::V4((0x0b00_0000 + n).into()), Expiry::After(DAY))).collect();
    group.bench_function("block a thousand", |bencher| bencher.iter(|| nft.block(&thousand)));
    group.finish();
    Ok(())
}

fn main() -> Result<(), Failure> {
    let mut criterion = Criterion::default().configure_from_args();
    encoding(&mut criterion);
    let namespace = netns_lab::Namespace::new();
    netns_lab::enter(namespace.name());
    let result = blocking(&mut criterion);
    criterion.final_summary();
    result
}
