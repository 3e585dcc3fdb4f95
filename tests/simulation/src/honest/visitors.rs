//! Simulates sources that visit once or rarely: browsers, phones, many users behind one address, crawlers, and mail
//! programs that guess ports.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use portsentry::types::{Protocol, Timestamp};
use portsentry::wire::TcpFlags;

use crate::actors::{rare, script, steady};
use crate::chance::{Chance, days, hours, minutes, seconds};
use crate::host::{Bind, Reply};
use crate::world::{Actor, Role, World};

const BROWSERS: Role = Role::Honest("browsers with happy eyeballs");
const PHONES: Role = Role::Honest("phones that change their address");
const CARRIER: Role = Role::Honest("people behind a carrier's NAT");
const CRAWLERS: Role = Role::Honest("crawlers");
const MAIL: Role = Role::Honest("mail programs that guess ports");

pub(super) fn populate(world: &mut World) {
    steady(world, "browser", hours(1), browse);
    steady(world, "phone", hours(8), phone);
    steady(world, "carrier NAT", hours(8), carrier);
    steady(world, "crawler", hours(12), crawl);
    rare(world, "user at work", days(3), work);
    // Users of a mail server add an account. Without a mail service, users mistype the name of another server.
    let mail = world.host.profile.services.iter().any(|service| service.port == 993);
    rare(world, "mail program", if mail { days(3) } else { days(60) }, guess);
}

/// A browser connects by HTTPS over IPv6 and shortly afterwards over IPv4 (RFC 8305), then by HTTP. It also tries QUIC
/// if the server has offered it in an earlier reply (RFC 7838).
fn browse(world: &mut World, mut chance: Chance) {
    let (v4, v6) = world.new_addresses(BROWSERS);
    let delay = Duration::from_millis(250);
    let has_quic = world.host.profile.services.iter().any(|service| service.port == 443);
    let mut packets = Vec::new();
    for (round, port) in [443, 80].into_iter().enumerate() {
        let began = seconds(round as u64);
        for (after, address) in [(Duration::ZERO, IpAddr::from(v6)), (delay, v4.into())] {
            let source = SocketAddr::new(address, chance.client_port());
            packets.push((began + after, world.tcp_packet(source, port, TcpFlags::SYN)));
            if port == 443 && has_quic {
                packets.push((began + after, world.udp_packet(source, port)));
            }
        }
    }
    script(world, BROWSERS, packets);
}

/// A phone synchronises mail, calendar and chat, from a different address each time (Wi-Fi and mobile networks).
fn phone(world: &mut World, mut chance: Chance) {
    let ports = tcp_ports(world);
    let mut packets = Vec::new();
    let mut at = Duration::ZERO;
    for _ in 0..6 {
        let (v4, _) = world.new_addresses(PHONES);
        for _ in 0..3 {
            let source = SocketAddr::new(v4.into(), chance.client_port());
            let port = chance.pick(&ports);
            for flags in [TcpFlags::SYN, TcpFlags::ACK | TcpFlags::PSH, TcpFlags::ACK | TcpFlags::FIN] {
                at += chance.after(seconds(2));
                packets.push((at, world.tcp_packet(source, port, flags)));
            }
        }
        at += chance.after(minutes(20));
    }
    script(world, PHONES, packets);
}

/// The ports that users visit.
fn tcp_ports(world: &World) -> Vec<u16> {
    let services = world.host.profile.services.iter();
    services.filter(|service| service.protocol == Protocol::Tcp).map(|service| service.port).collect()
}

/// Ports that users try without success: alternative web ports, remote desktops, mail, FTP.
const MISTAKES: [u16; 8] = [8_080, 8_443, 21, 3_389, 110, 995, 5_900, 2_222];

/// Several hundred users of one address during one day. Their connections last until the server closes them, at most 75
/// seconds. Occasionally a user tries a wrong port.
struct Carrier {
    address: IpAddr,
    /// Time and port of each attempt, in reverse order.
    visits: Vec<(Timestamp, u16)>,
    chance: Chance,
}

fn carrier(world: &mut World, mut chance: Chance) {
    let (v4, _) = world.new_addresses(CARRIER);
    let ports = tcp_ports(world);
    let mut visits = Vec::new();
    let mut at = Duration::ZERO;
    while at < days(1) {
        visits.push((world.now.after(at), chance.pick(&ports)));
        at += chance.after(minutes(15));
    }
    let mut at = chance.after(hours(12));
    while at < days(1) {
        let port = chance.pick(&MISTAKES);
        // Each attempt is repeated, because the user reloads the page.
        visits.extend([0, 3].map(|later| (world.now.after(at + seconds(later)), port)));
        at += chance.after(hours(12));
    }
    visits.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    world.spawn(CARRIER, world.now, Carrier { address: v4.into(), visits, chance });
}

impl Actor for Carrier {
    fn act(&mut self, world: &mut World) -> Option<Timestamp> {
        let (_, port) = self.visits.pop()?;
        let source = SocketAddr::new(self.address, self.chance.client_port());
        if world.syn(source, port) == Reply::SynAck {
            world.connect(source, port, self.chance.between(seconds(3), seconds(75)));
        }
        self.visits.last().map(|(at, _)| *at)
    }
}

/// A crawler with many addresses of one network visits the two web ports.
fn crawl(world: &mut World, mut chance: Chance) {
    let network = 11 << 24 | 0xc0_0000 | chance.below(64) << 8;
    let packets: Vec<_> = (0..8)
        .flat_map(|_| {
            let address = IpAddr::from(Ipv4Addr::from_bits(network | chance.below(256)));
            world.own(CRAWLERS, address);
            let source = SocketAddr::new(address, chance.client_port());
            let at = chance.after(minutes(10));
            [443, 80].map(|port| (at, world.tcp_packet(source, port, TcpFlags::SYN)))
        })
        .collect();
    script(world, CRAWLERS, packets);
}

/// A mail program that knows only a domain tries the usual ports of IMAP, POP3 and submission, several at a time.
fn guess(world: &mut World, mut chance: Chance) {
    let (v4, v6) = world.new_addresses(MAIL);
    let address = if chance.is(0.4) { IpAddr::from(v6) } else { v4.into() };
    let mut at = Duration::ZERO;
    let packets: Vec<_> = [443, 80, 993, 143, 995, 110, 465, 587, 25]
        .into_iter()
        .map(|port| {
            at += chance.after(Duration::from_millis(300));
            let source = SocketAddr::new(address, chance.client_port());
            (at, world.tcp_packet(source, port, TcpFlags::SYN))
        })
        .collect();
    script(world, MAIL, packets);
}

const WORKERS: Role = Role::Honest("connected users that try ports");

/// A user with a session or a mailbox on the host. The user tries up to five likely ports: 8080 as on another host, a
/// database, a printer.
struct Worker {
    source: IpAddr,
    /// The service of the session.
    session: Option<u16>,
    ports: Vec<u16>,
    chance: Chance,
}

fn work(world: &mut World, mut chance: Chance) {
    let (v4, _) = world.new_addresses(WORKERS);
    let services = world.host.profile.services.iter();
    let own = services.filter(|service| service.protocol == Protocol::Tcp && service.bind != Bind::Published);
    let session = chance.pick(&own.map(|service| service.port).collect::<Vec<_>>());
    let mut ports = MISTAKES.to_vec();
    chance.shuffle(&mut ports);
    // At most five ports. Together with a recent mistake, they are still fewer than a scan by a connected peer.
    ports.truncate(1 + usize::try_from(chance.below(5)).unwrap_or(0));
    world.spawn(WORKERS, world.now, Worker { source: v4.into(), session: Some(session), ports, chance });
}

impl Actor for Worker {
    fn act(&mut self, world: &mut World) -> Option<Timestamp> {
        let source = SocketAddr::new(self.source, self.chance.client_port());
        if let Some(session) = self.session.take() {
            if world.syn(source, session) != Reply::SynAck {
                return None;
            }
            world.connect(source, session, hours(2));
            return Some(world.now.after(self.chance.between(seconds(20), minutes(20))));
        }
        let port = *self.ports.last()?;
        // An unanswered SYN is retransmitted.
        if world.syn(source, port) == Reply::Silence {
            return Some(world.now.after(seconds(1)));
        }
        self.ports.pop();
        Some(world.now.after(self.chance.between(seconds(10), minutes(2))))
    }
}
