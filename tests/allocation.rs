//! Tests with a counting allocator that no packet causes an allocation after `Engine::new`.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use allocation_counter::measure;
use portsentry::engine::{
    ActiveBan, AllowList, Class, Engine, Escalation, HashKey, Host, LastBan, Local, MaxPrefix, NoLookup, Observation,
    Protection, ProtocolSettings, Settings, StrikeHistory, Verdict,
};
use portsentry::types::{BanTarget, Expiry, Protocol, Response, Timestamp};
use portsentry::wire::{Checksum, LinkType, Packet, decode};

const HERE: [u8; 4] = [192, 0, 2, 1];

/// An IPv4 packet with the first bytes of a transport header.
fn datagram(source: u32, protocol: u8, port: u16, flags: u8) -> [u8; 40] {
    let [a, b, c, d] = Ipv4Addr::from_bits(source).octets();
    let [high, low] = port.to_be_bytes();
    let [e, f, g, h] = HERE;
    let ip = [0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0, a, b, c, d, e, f, g, h];
    let rest = [0x9c, 0x40, high, low, 0, 20, 0, 1, 0, 0, 0, 0, 0x50, flags, 4, 0, 0, 0, 0, 0];
    let mut bytes = [0; 40];
    bytes.iter_mut().zip(ip.into_iter().chain(rest)).for_each(|(place, byte)| *place = byte);
    bytes
}

fn small() -> (Engine, Host) {
    let watch = |response| ProtocolSettings { ports: (1..=1_024).collect(), response };
    let settings = Settings {
        tcp: watch(Response::Block),
        udp: watch(Response::Log),
        decoys: portsentry::types::PortSet::new(),
        sctp: true,
        icmp: true,
        ack_bans: false,
        scan_trigger: 2,
        window: Duration::from_secs(60),
        expiry: Expiry::After(Duration::from_secs(100)),
        escalate: Escalation::default(),
        widest: MaxPrefix { v4: 24, v6: 48 },
        max_sources: 1_024,
        max_judged: 1_024,
        max_new_bans_per_minute: 10,
        max_forgeable_bans: 64,
    };
    let mut host = Host::new(Local::own([IpAddr::from(HERE)]));
    host.tcp.insert([0; 4].into(), 80);
    host.allow = AllowList::new();
    host.allow.insert(ipnet::IpNet::from(ipnet::Ipv4Net::new_assert([12, 0, 0, 0].into(), 8)), Protection::Listed);
    (Engine::new(settings, HashKey(1, 2)), host)
}

/// A connection to a decoy.
fn connection(port: u16) -> Observation {
    Observation {
        source: HERE.into(),
        source_port: 40_000,
        destination: HERE.into(),
        interface: 2,
        bridge_port: 0,
        protocol: Protocol::Tcp,
        port,
        class: Class::Connect,
        fragmented: false,
        unverified: false,
        decoy: true,
    }
}

#[test]
fn packets_cause_no_allocation() {
    let (mut engine, host) = small();
    let (mut bans, mut scans, mut repeated, mut exempt) = (0_u32, 0_u32, 0_u32, 0_u32);
    let (mut notices, mut sampled, mut networks) = (0_u32, 0_u32, 0_u32);
    let info = measure(|| {
        let mut now = Timestamp::at(Duration::from_secs(1));
        for n in 0..300_000_u32 {
            now = now.after(Duration::from_millis(1));
            // Scanners, sources with one port each, exempt ones; all protocols; all kinds of flags.
            let source = match n % 4 {
                0 => 0x0b00_0000 + n,
                1 => 0x0d00_0000 + n / 40,
                2 => 0x0c00_0000 + n % 999,
                _ => 0x0e00_0000 + n % 50,
            };
            let [low, flags, ..] = (n / 4).to_le_bytes();
            let protocol = [6, 6, 6, 17, 132, 1][n as usize % 6];
            let flags = if n % 3 == 0 { flags } else { 2 };
            let bytes = datagram(source, protocol, u16::from(low) + 1, flags);
            let Ok(packet) = decode(LinkType::Raw, &bytes) else { continue };
            let packet = Packet { checksum: Checksum::Good.into(), ..packet };
            match engine.observe(now, &packet, &host, &mut NoLookup) {
                Verdict::Block(_) => bans += 1,
                Verdict::LogOnly(_) => scans += 1,
                Verdict::Repeated(_) => repeated += 1,
                Verdict::Exempt(_) => exempt += 1,
                Verdict::Ignored(_) | Verdict::Probe(_) => {}
            }
            if n % 500 == 0 {
                // Neighbours whose connections are not limited by a ceiling.
                let source = Ipv4Addr::from_bits(0x0f00_0000 + n / 500 * 16).into();
                for port in 1..=3 {
                    let observation = Observation { source, ..connection(port) };
                    if let Verdict::Block(ban) = engine.observe_decoy(now, observation, &host, &mut NoLookup) {
                        networks += u32::from(ban.probe.target.is_prefix());
                    }
                }
                while engine.notice(now).is_some() {
                    notices += 1;
                }
                let target = BanTarget::V4(Ipv4Addr::from_bits(n));
                engine.adopt(now, &ActiveBan { target, length: None, grade: None, left: Expiry::Never });
                engine.remember(
                    now,
                    &StrikeHistory { target, strikes: 3, proven: 0, last: LastBan::Lasts(Expiry::Never) },
                );
                engine.sample(now, &mut |_| sampled += 1, 16);
                engine.lift(target);
            }
        }
    });
    let counters = engine.counters();
    // Every table was full and every kind of verdict occurred, or the test would prove little.
    assert!(bans > 0 && scans > 0 && repeated > 0 && exempt > 0 && notices > 0);
    assert!(sampled > 0 && networks > 0);
    assert!(counters.evicted > 0 && counters.capped > 0 && engine.tracked().0 <= 1_024);
    assert_eq!((info.count_total, info.bytes_current), (0, 0));
}

#[test]
fn engine_memory_follows_its_settings() {
    let info = measure(|| {
        let (mut engine, host) = small();
        let bytes = datagram(0x0b00_0000, 6, 23, 2);
        let Ok(packet) = decode(LinkType::Raw, &bytes) else { return };
        let _ = engine.observe(Timestamp::default(), &packet, &host, &mut NoLookup);
    });
    assert_eq!(info.bytes_current, 0);
    assert!(info.bytes_max < 1 << 20, "{} bytes", info.bytes_max);
}
