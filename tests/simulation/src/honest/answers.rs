//! Simulates the host's own client traffic and the replies: late replies of resolvers and time servers, some of them to
//! ports of services. Also simulates servers that connect back, and web servers whose last segments arrive after the
//! socket is closed.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portsentry::types::Protocol;
use portsentry::wire::TcpFlags;

use crate::actors::{script, steady};
use crate::chance::{Chance, hours, minutes, seconds};
use crate::host::RESOLVER;
use crate::world::{Role, World};

const DNS: Role = Role::Honest("answers of DNS servers");
const NTP: Role = Role::Honest("answers of time servers");
const WEB: Role = Role::Honest("servers that this host is a client of");
const MAIL: Role = Role::Honest("mail servers that ask back");
const FILES: Role = Role::Honest("file servers that this host mounts");

pub(super) fn populate(world: &mut World) {
    steady(world, "DNS question", hours(1), ask_dns);
    steady(world, "NTP question", hours(4), ask_time);
    steady(world, "download", hours(4), download);
    steady(world, "outgoing mail", hours(8), send_mail);
    steady(world, "file server", hours(8), mount);
}

/// A local resolver queries servers from ports of the whole range, as unbound does. A stub resolver queries the
/// configured server. The socket is closed after five seconds, but some replies take up to thirty.
fn ask_dns(world: &mut World, mut chance: Chance) {
    for _ in 0..4 {
        let server = if chance.is(0.5) { RESOLVER.into() } else { IpAddr::from(world.new_addresses(DNS).0) };
        let own = if chance.is(0.5) { chance.client_port() } else { 1_024 + chance.port() % 30_000 };
        let peer = SocketAddr::new(server, 53);
        world.originate(Protocol::Udp, own, peer, seconds(5));
        let late = if chance.is(0.3) { seconds(30) } else { Duration::from_millis(200) };
        let answer = world.udp_packet(peer, own);
        // A server that is reachable on two paths replies twice.
        let times = 1 + chance.below(2);
        let packets: Vec<_> = (0..times).map(|_| (chance.between(Duration::ZERO, late), answer)).collect();
        script(world, DNS, packets);
    }
}

fn ask_time(world: &mut World, mut chance: Chance) {
    for _ in 0..4 {
        let peer = SocketAddr::new(world.new_addresses(NTP).0.into(), 123);
        let own = if chance.is(0.5) { 123 } else { chance.client_port() };
        world.originate(Protocol::Udp, own, peer, seconds(2));
        let answer = (chance.after(seconds(3)), world.udp_packet(peer, own));
        script(world, NTP, [answer]);
    }
}

/// The last segments of a connection, and resets of a server that lost its state, arrive after the socket is closed.
fn download(world: &mut World, mut chance: Chance) {
    let peer = SocketAddr::new(world.new_addresses(WEB).0.into(), 443);
    let own = chance.client_port();
    world.originate(Protocol::Tcp, own, peer, minutes(1));
    let packets = [
        (Duration::from_millis(30), TcpFlags::SYN | TcpFlags::ACK),
        (seconds(2), TcpFlags::ACK | TcpFlags::PSH),
        (seconds(50), TcpFlags::ACK | TcpFlags::FIN),
        (minutes(2), TcpFlags::ACK | TcpFlags::FIN),
        (minutes(9), TcpFlags::RST | TcpFlags::ACK),
    ]
    .map(|(at, flags)| (at, world.tcp_packet(peer, own, flags)));
    script(world, WEB, packets);
}

/// A mail server connects back to identify the sender (ident) and to check that the sender's server accepts mail.
fn send_mail(world: &mut World, mut chance: Chance) {
    let peer = world.new_addresses(MAIL).0.into();
    world.originate(Protocol::Tcp, chance.client_port(), SocketAddr::new(peer, 25), minutes(1));
    let packets = [(seconds(1), 113), (seconds(2), 113), (seconds(5), 25)].map(|(at, port)| {
        let source = SocketAddr::new(peer, chance.client_port());
        (at, world.tcp_packet(source, port, TcpFlags::SYN))
    });
    script(world, MAIL, packets);
}

/// This host mounts directories of a file server, from reserved ports as NFS requires. It asks over UDP from several
/// sockets, and closes all of them after the first answer. It connects once for each directory, and unmounts them; the
/// server closes idle connections after six minutes.
fn mount(world: &mut World, mut chance: Chance) {
    let server = IpAddr::from(world.new_addresses(FILES).0);
    let reserved = 600 + u16::try_from(chance.below(400)).unwrap_or(0);
    let mut packets = Vec::new();
    for own in reserved..reserved + 4 {
        let (portmapper, files) = (SocketAddr::new(server, 111), SocketAddr::new(server, 2_049));
        world.originate(Protocol::Udp, own, portmapper, Duration::from_millis(50));
        let answer = chance.between(Duration::from_millis(60), Duration::from_millis(900));
        packets.push((answer, world.udp_packet(portmapper, own)));
        world.originate(Protocol::Tcp, own, files, seconds(30));
        packets.push((Duration::from_millis(30), world.tcp_packet(files, own, TcpFlags::SYN | TcpFlags::ACK)));
        let end = minutes(6) + chance.after(seconds(20));
        packets.push((end, world.tcp_packet(files, own, TcpFlags::ACK | TcpFlags::FIN)));
    }
    script(world, FILES, packets);
}
