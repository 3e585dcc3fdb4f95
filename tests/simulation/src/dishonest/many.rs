//! Simulates scans from many sources or from many forged ones: zmap, the background noise of the Internet, botnets,
//! decoys and floods.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use portsentry::types::Timestamp;
use portsentry::wire::TcpFlags;

use super::scanners::POPULAR;
use crate::actors::{rare, script, steady};
use crate::chance::{Chance, days, minutes, seconds};
use crate::world::{Actor, Role, World};

const NOISE: Role = Role::Dishonest("one port of the whole Internet (zmap)");
const ZMAP: Role = Role::Dishonest("zmap, twenty ports within hours");
const BOTNET: Role = Role::Dishonest("botnet, two ports each");
const DECOYS: Role = Role::Dishonest("nmap with decoys (-D)");
const FLOOD: Role = Role::Dishonest("flood from forged sources");

pub(super) fn populate(world: &mut World) {
    steady(world, "noise", minutes(30), |world, mut chance| {
        let source = SocketAddr::new(world.new_addresses(NOISE).0.into(), chance.client_port());
        let port = chance.pick(&[23, 22, 445, 3_389, 80, 443, 8_080, 6_379, 5_555, 2_323]);
        script(world, NOISE, [(Duration::ZERO, world.tcp_packet(source, port, TcpFlags::SYN))]);
    });
    rare(world, "zmap", days(10), |world, mut chance| {
        let source = SocketAddr::new(world.new_addresses(ZMAP).0.into(), chance.client_port());
        let mut ports = POPULAR[..20].to_vec();
        chance.shuffle(&mut ports);
        let mut at = Duration::ZERO;
        let packets: Vec<_> = ports
            .into_iter()
            .map(|port| {
                at += chance.after(minutes(6));
                (at, world.tcp_packet(source, port, TcpFlags::SYN))
            })
            .collect();
        script(world, ZMAP, packets);
    });
    rare(world, "botnet", days(30), |world, chance| {
        world.spawn(BOTNET, world.now, Botnet { chance, left: 300 });
    });
    rare(world, "decoys", days(15), |world, mut chance| {
        let mut sources: Vec<IpAddr> = (0..5).filter_map(|_| world.some_honest_address(&mut chance)).collect();
        sources.push(world.new_addresses(DECOYS).0.into());
        let packets: Vec<_> = (0..)
            .zip(POPULAR)
            .flat_map(|(n, port)| {
                let at = Duration::from_millis(5) * n;
                let packet = |source: &IpAddr| world.tcp_packet(SocketAddr::new(*source, 40_000), port, TcpFlags::SYN);
                sources.iter().map(packet).map(move |packet| (at, packet)).collect::<Vec<_>>()
            })
            .collect();
        script(world, DECOYS, packets);
    });
    rare(world, "flood", days(20), |world, mut chance| {
        let packets: Vec<_> = (0..1_000_u32)
            .flat_map(|n| {
                let at = seconds(1) * n / 50;
                let honest = if n % 20 == 0 { world.some_honest_address(&mut chance) } else { None };
                let source = honest.unwrap_or_else(|| Ipv4Addr::from_bits(13 << 24 | chance.below(1 << 24)).into());
                let probe = |port| (at, world.tcp_packet(SocketAddr::new(source, 40_000), port, TcpFlags::SYN));
                [0; 4].map(|_| 1 + u16::try_from(chance.below(1_023)).unwrap_or(0)).map(probe)
            })
            .collect();
        script(world, FLOOD, packets);
    });
}

/// A botnet whose members probe two ports each, which are forgiven; together they probe hundreds. It counts as detected
/// if the distributed scan is reported.
struct Botnet {
    chance: Chance,
    left: u32,
}

impl Actor for Botnet {
    fn act(&mut self, world: &mut World) -> Option<Timestamp> {
        let source = SocketAddr::new(world.new_addresses(BOTNET).0.into(), self.chance.client_port());
        for _ in 0..2 {
            world.syn(source, 1 + u16::try_from(self.chance.below(1_023)).unwrap_or(0));
        }
        self.left -= 1;
        (self.left > 0).then(|| world.now.after(Duration::from_millis(500)))
    }
}
