//! Simulates scanners that know the rules, with one for each exception and each threshold.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use portsentry::types::{Protocol, Timestamp};
use portsentry::wire::{Packet, TcpFlags};

use super::scanners::POPULAR;
use crate::actors::{rare, script};
use crate::chance::{Chance, days, hours, minutes, seconds};
use crate::honest::operations::{NEW_PORTS, PUBLISHED_RANGE, SHORT_PORTS, TESTED_PORTS, USER_PORTS};
use crate::host::{Bind, Reply};
use crate::world::{Actor, Role, World};

/// The time between two scanners of one kind.
const EVERY: Duration = days(15);

pub(super) fn populate(world: &mut World) {
    // The scanner probes fewer ports within the window than are forgiven.
    evader(world, "knows the window: a port in 16 minutes", |world, chance, source| {
        in_turn(world, chance, source, minutes(16), &POPULAR[..20])
    });
    // The scanner probes one port more than is forgiven.
    evader(world, "knows the window: a port in 14 minutes", |world, chance, source| {
        in_turn(world, chance, source, minutes(14), &POPULAR[..20])
    });
    // Source ports that look like those of replies.
    evader(world, "looks like answers: from port 53", |world, _, source| {
        let source = SocketAddr::new(source, 53);
        let packet =
            |(n, port): (u32, &u16)| (Duration::from_millis(5) * n, world.tcp_packet(source, *port, TcpFlags::SYN));
        (0..).zip(&POPULAR).map(packet).collect()
    });
    // Segments that do not open a connection.
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
    // Recently open ports are forgiven, so the scanner probes those of services many times, and other ports in between.
    evader(world, "hides among retries of services", |world, chance, source| {
        let services: Vec<u16> = world.host.profile.services.iter().map(|service| service.port).collect();
        let mut ports = Vec::new();
        for port in &POPULAR[..30] {
            ports.extend([chance.pick(&services); 3]);
            ports.push(*port);
        }
        in_turn(world, chance, source, minutes(1), &ports)
    });
    // Ports that are not in the default list.
    evader(world, "knows the list: 20000 to 20100", |world, chance, source| {
        in_turn(world, chance, source, Duration::from_millis(5), &(20_000..20_100).collect::<Vec<_>>())
    });
    // Remembered services are forgiven even while they are down; so are ports that listened for a few minutes.
    evader(world, "knows services that come and go", |world, chance, source| {
        let mut ports = NEW_PORTS.to_vec();
        ports.extend(world.host.profile.services.iter().map(|service| service.port));
        ports.extend([21, 23, 3_389, 5_900]);
        in_turn(world, chance, source, minutes(1), &ports)
    });
    evader(world, "knows services of long ago", |world, chance, source| {
        in_turn(world, chance, source, minutes(1), &NEW_PORTS)
    });
    evader(world, "knows ports that listened lately", |world, chance, source| {
        in_turn(world, chance, source, seconds(20), &SHORT_PORTS)
    });
    evader(world, "knows ports of a user's program", |world, chance, source| {
        in_turn(world, chance, source, seconds(20), &USER_PORTS)
    });
    evader(world, "knows ports that were published", |world, chance, source| {
        let mut ports: Vec<u16> = PUBLISHED_RANGE.collect();
        chance.shuffle(&mut ports);
        in_turn(world, chance, source, seconds(1), &ports[..100])
    });
    evader(world, "knows ports of an old test", |world, chance, source| {
        let mut ports: Vec<u16> = TESTED_PORTS.collect();
        chance.shuffle(&mut ports);
        in_turn(world, chance, source, seconds(1), &ports[..100])
    });
    // Up to four related ports count as one, so the scanner can probe one more.
    evader(world, "knows related ports: mail", |world, chance, source| {
        in_turn(world, chance, source, seconds(2), &[110, 143, 465, 587, 993, 995, 4_190, 25, 23])
    });
    // Without a mail service, related ports count as one only while no other port is probed.
    evader(world, "knows related ports: mail alone", |world, chance, source| {
        in_turn(world, chance, source, seconds(2), &[110, 143, 465, 587, 993, 995, 4_190, 25])
    });
    // The hold ends after less than a second.
    evader(world, "knows the hold: a port in 1.1 seconds", |world, chance, source| {
        in_turn(world, chance, source, Duration::from_millis(1_100), &POPULAR[..40])
    });
    // More ports are forgiven for a peer with a connection.
    connected(world, "knows connected peers: a connection first", Plan { gap: seconds(20), ports: 30, ..PLAN });
    connected(world, "knows connected peers: 7 ports in 35 minutes", Plan { gap: minutes(5), ports: 30, ..PLAN });
    let over = Plan { gap: minutes(5), ports: 7, lasts: seconds(10), pause: hours(3), ..PLAN };
    connected(world, "knows connected peers: hours after its connection", over);
    // A connection counts only if it is older than the first probe.
    connected(world, "knows connected peers: a connection after two ports", Plan { before: 2, ports: 7, ..PLAN });
    returning(world);
    // All addresses of a /64 count as one source.
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

type Packets = Vec<(Duration, Packet<'static>)>;

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

/// SYNs to these ports, in this order.
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

/// The scan of a source with a connection.
#[derive(Clone, Copy)]
struct Plan {
    /// The time between two ports, and the number of ports.
    gap: Duration,
    ports: usize,
    /// Number of ports that it probes before it connects.
    before: usize,
    /// How long the connection lasts, and when the first port is probed.
    lasts: Duration,
    pause: Duration,
}

const PLAN: Plan = Plan { gap: seconds(20), ports: 30, before: 0, lasts: days(1), pause: seconds(10) };

/// Opens a connection to a service, keeps it, and probes one port after another.
fn connected(world: &mut World, name: &'static str, plan: Plan) {
    rare(world, name, EVERY, move |world, chance| {
        let role = Role::Dishonest(name);
        let source = SocketAddr::new(world.new_addresses(role).0.into(), 40_000);
        let scan = Connected { source, ports: closed_ports(world, plan.ports), plan, chance, is_connected: false };
        world.spawn(role, world.now, scan);
    });
}

/// The first of the popular ports that no service of the host uses, in reverse order.
fn closed_ports(world: &World, count: usize) -> Vec<u16> {
    let open = |port: &u16| world.host.profile.services.iter().any(|service| service.port == *port);
    let mut ports: Vec<u16> = POPULAR.iter().copied().filter(|port| !open(port)).take(count).collect();
    ports.reverse();
    ports
}

/// Scans, is banned, and returns after its ban, when it first connects.
fn returning(world: &mut World) {
    const FIRST: Role = Role::Dishonest("knows connected peers: before its ban");
    const SECOND: Role = Role::Dishonest("knows connected peers: after its ban");
    rare(world, "returning", EVERY, |world, mut chance| {
        let source = SocketAddr::new(world.new_addresses(FIRST).0.into(), 40_000);
        let packets = in_turn(world, &mut chance, source.ip(), seconds(20), &POPULAR[..20]);
        script(world, FIRST, packets);
        let plan = Plan { ports: 7, ..PLAN };
        let scan = Connected { source, ports: closed_ports(world, plan.ports), plan, chance, is_connected: false };
        world.spawn(SECOND, world.now.after(hours(28)), scan);
    });
}

struct Connected {
    source: SocketAddr,
    ports: Vec<u16>,
    plan: Plan,
    chance: Chance,
    is_connected: bool,
}

impl Actor for Connected {
    fn act(&mut self, world: &mut World) -> Option<Timestamp> {
        let probed = self.plan.ports - self.ports.len();
        if !self.is_connected && probed >= self.plan.before {
            let services = world.host.running();
            let own = services.filter(|one| one.protocol == Protocol::Tcp && one.bind != Bind::Published);
            let own: Vec<u16> = own.map(|service| service.port).collect();
            if own.is_empty() {
                return Some(world.now.after(minutes(5)));
            }
            let port = self.chance.pick(&own);
            self.is_connected = world.syn(self.source, port) == Reply::SynAck;
            world.connect(self.source, port, self.plan.lasts);
            return Some(world.now.after(self.plan.pause));
        }
        if world.down {
            return Some(world.now.after(minutes(5)));
        }
        let source = SocketAddr::new(self.source.ip(), self.chance.client_port());
        world.syn(source, self.ports.pop()?);
        Some(world.now.after(self.plan.gap))
    }
}
