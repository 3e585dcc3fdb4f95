//! Feeds any bytes to decoder and engine, as a sequence of frames, waiting times and changes of the host.
//!
//!     cargo +nightly fuzz run observe
//!
//! Input: records of one byte for the kind of record, one byte of waiting time in steps of 50 ms, one byte of length,
//! and that many bytes of a frame. No input causes a panic, a verdict on a protected source, or a ban for fewer ports
//! than the threshold. Tables keep their size, and two runs return the same verdicts.
#![no_main]

use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use portsentry::engine::{
    ActiveBan, Engine, Escalation, HashKey, Host, Local, MAX_EVIDENCE, MaxPrefix, PortLookup, PortUse, Protection,
    ProtocolSettings, Settings, Verdict,
};
use portsentry::types::{BanTarget, Expiry, PortSet, Protocol, Response, Timestamp};
use portsentry::wire::{LinkType, decode};

const LINKS: [LinkType; 5] = [LinkType::Ethernet, LinkType::Sll, LinkType::Sll2, LinkType::Raw, LinkType::Null];
const TRIGGER: u8 = 2;
const SOURCES: usize = 64;

/// Odd ports above 40000 are in use, regardless of the snapshot.
struct Odd;

impl PortLookup for Odd {
    fn port_use(&mut self, _: Protocol, _: SocketAddr, destination: SocketAddr, _: u32) -> PortUse {
        if destination.port() % 2 == 1 && destination.port() > 40_000 { PortUse::Open } else { PortUse::Closed }
    }
}

fn host(open: u16) -> Host {
    // The frames in the corpus go from 192.0.2.1 to 192.0.2.2, and from 2001:db8::1 to 2001:db8::2.
    let own = ["192.0.2.2", "2001:db8::2"].map(|text| text.parse().unwrap());
    let mut host = Host::new(Local::own(own));
    host.allow.insert("192.0.2.254/32".parse().unwrap(), Protection::Gateway);
    host.tcp.insert([0; 4].into(), open);
    host.udp.insert([0; 16].into(), open);
    host
}

/// Every port. Built once, because that takes as long as a thousand packets.
static PORTS: LazyLock<PortSet> = LazyLock::new(|| (1..=u16::MAX).collect());

fn engine() -> Engine {
    let watch = |response| ProtocolSettings { ports: PORTS.clone(), response };
    let settings = Settings {
        tcp: watch(Response::Block),
        udp: watch(Response::Log),
        decoys: PortSet::new(),
        sctp: true,
        icmp: true,
        ack_bans: false,
        scan_trigger: TRIGGER,
        window: Duration::from_secs(10),
        expiry: Expiry::After(Duration::from_secs(20)),
        escalate: Escalation::default(),
        widest: MaxPrefix::default(),
        max_sources: SOURCES,
        max_judged: SOURCES,
        max_new_bans_per_minute: 2,
        max_forgeable_bans: 4_096,
    };
    Engine::new(settings, HashKey(1, 2))
}

fn run(mut input: &[u8]) -> Vec<Verdict> {
    let mut engine = engine();
    let mut host = host(80);
    let mut now = Timestamp::default();
    let mut verdicts = Vec::new();
    while let [what, wait, length, rest @ ..] = input {
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        input = rest;
        now = now.after(Duration::from_millis(50) * u32::from(*wait));
        match what {
            0..=4 => {
                let Ok(packet) = decode(LINKS[usize::from(*what)], bytes) else { continue };
                let verdict = engine.observe(now, &packet, &host, &mut Odd);
                check(packet.source, &verdict, &host);
                verdicts.push(verdict);
            }
            5 => while engine.notice(now).is_some() {},
            6 => {
                let new = self::host(u16::from(*length));
                engine.host_changed(now, &host, &new);
                host = new;
            }
            7 => {
                if let Some(bytes) = bytes.first_chunk::<4>() {
                    engine.lift(BanTarget::containing(IpAddr::from(*bytes)));
                }
            }
            8 => {
                let target = BanTarget::containing(IpAddr::from([192, 0, 2, *length]));
                engine.adopt(now, &ActiveBan { target, length: None, grade: None, left: Expiry::Never });
            }
            9 => engine.lift_all(),
            _ => return verdicts,
        }
        let (suspects, judged) = engine.tracked();
        assert!(suspects <= SOURCES && judged <= SOURCES);
    }
    verdicts
}

fn check(source: IpAddr, verdict: &Verdict, host: &Host) {
    if host.local.contains(source) || host.allow.protects(source).is_some() {
        assert!(matches!(verdict, Verdict::Ignored(_) | Verdict::Exempt(_)), "{source}: {verdict:?}");
    }
    if let Verdict::Block(ban) | Verdict::LogOnly(ban) = verdict {
        let held: Vec<_> = ban.ports.iter().collect();
        assert_eq!(held.len(), usize::from(ban.probe.distinct));
        assert!(held.len() <= MAX_EVIDENCE);
        let conclusive = held.iter().any(|(_, _, class)| class.is_conclusive());
        assert!(conclusive || ban.probe.distinct > TRIGGER, "{ban:?}");
        assert_eq!(ban.probe.target, BanTarget::containing(source));
    }
    if let Verdict::Probe(probe) = verdict {
        assert!((1..=TRIGGER).contains(&probe.distinct), "{probe:?}");
    }
}

fuzz_target!(|input: &[u8]| {
    assert_eq!(run(input), run(input));
});
