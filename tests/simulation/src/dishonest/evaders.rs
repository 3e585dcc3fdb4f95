//! Scanners that know the rules, one for each excuse and each threshold.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use portsentry::wire::{Packet, TcpFlags};

use super::scanners::POPULAR;
use crate::actors::{rare, script};
use crate::chance::{Chance, days, minutes};
use crate::world::{Role, World};

/// The time between two of each kind.
const EVERY: Duration = days(15);

pub(super) fn populate(world: &mut World) {
    // Fewer ports within the window than are forgiven.
    evader(world, "knows the window: a port in 16 minutes", |world, chance, source| {
        in_turn(world, chance, source, minutes(16), &POPULAR[..20])
    });
    // One port more than that.
    evader(world, "knows the window: a port in 14 minutes", |world, chance, source| {
        in_turn(world, chance, source, minutes(14), &POPULAR[..20])
    });
    // Ports that look like those of answers.
    evader(world, "looks like answers: from port 53", |world, _, source| {
        let source = SocketAddr::new(source, 53);
        let packet =
            |(n, port): (u32, &u16)| (Duration::from_millis(5) * n, world.tcp_packet(source, *port, TcpFlags::SYN));
        (0..).zip(&POPULAR).map(packet).collect()
    });
    // Segments that are no connections.
    evader(world, "looks like connections: ACK", |world, chance, source| {
        with_flags(world, chance, source, TcpFlags::ACK)
    });
    evader(world, "looks like connections: FIN/ACK", |world, chance, source| {
        with_flags(world, chance, source, TcpFlags::ACK | TcpFlags::FIN)
    });
    evader(world, "FIN", |world, chance, source| with_flags(world, chance, source, TcpFlags::FIN));
    evader(world, "NULL", |world, chance, source| with_flags(world, chance, source, 0));
    evader(world, "XMAS", |world, chance, source| {
        with_flags(world, chance, source, TcpFlags::FIN | TcpFlags::PSH | TcpFlags::URG)
    });
    // Ports that were open a moment ago are excused, so it asks after those of services, many times, and others now and then.
    evader(world, "hides among retries of services", |world, chance, source| {
        let services: Vec<u16> = world.host.profile.services.iter().map(|service| service.port).collect();
        let mut ports = Vec::new();
        for port in &POPULAR[..30] {
            ports.extend([chance.pick(&services); 3]);
            ports.push(*port);
        }
        in_turn(world, chance, source, minutes(1), &ports)
    });
    // Ports that no default list watches.
    evader(world, "knows the list: 20000 to 20100", |world, chance, source| {
        in_turn(world, chance, source, Duration::from_millis(5), &(20_000..20_100).collect::<Vec<_>>())
    });
    // A source counts as one by its /64.
    evader(world, "one /64, an address a port", |world, _, source| {
        let IpAddr::V6(v6) = source else { return Vec::new() };
        let probe = |(n, port): (u32, &u16)| {
            let address = Ipv6Addr::from_bits(v6.to_bits() + u128::from(n));
            let source = SocketAddr::new(address.into(), 40_000);
            (Duration::from_millis(5) * n, world.tcp_packet(source, *port, TcpFlags::SYN))
        };
        (0..).zip(&POPULAR).map(probe).collect()
    });
}

type Packets = Vec<(Duration, Packet)>;

fn evader(
    world: &mut World,
    name: &'static str,
    packets: impl Fn(&mut World, &mut Chance, IpAddr) -> Packets + 'static,
) {
    rare(world, name, EVERY, move |world, mut chance| {
        let role = Role::Dishonest(name);
        let (v4, v6) = world.new_addresses(role);
        let source = if name.contains("/64") { IpAddr::from(v6) } else { v4.into() };
        let packets = packets(world, &mut chance, source);
        script(world, role, packets);
    });
}

/// SYNs to these ports, one after the other.
fn in_turn(world: &World, chance: &mut Chance, source: IpAddr, gap: Duration, ports: &[u16]) -> Packets {
    let probe = |(n, port): (u32, &u16)| {
        let source = SocketAddr::new(source, chance.client_port());
        (gap * n, world.tcp_packet(source, *port, TcpFlags::SYN))
    };
    (0..).zip(ports).map(probe).collect()
}

fn with_flags(world: &World, chance: &mut Chance, source: IpAddr, flags: u16) -> Packets {
    let probe = |(n, port): (u32, &u16)| {
        let source = SocketAddr::new(source, chance.client_port());
        (Duration::from_millis(5) * n, world.tcp_packet(source, *port, flags))
    };
    (0..).zip(&POPULAR).map(probe).collect()
}
