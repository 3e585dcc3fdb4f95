//! Simulates clients of the host's services: regular clients that return all day and use several services, with the
//! retries of their TCP stacks and programs; connection pools; and monitoring.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portsentry::types::{Protocol, Timestamp};
use portsentry::wire::TcpFlags;

use crate::chance::{Chance, hours, minutes, seconds};
use crate::host::{Reply, Service};
use crate::world::{Actor, Role, World};

const REGULAR: Role = Role::Honest("regular clients");

/// Number of regular clients of each host.
const CLIENTS: u64 = 12;

/// The time between two visits of a regular client.
const VISIT_EVERY: Duration = minutes(45);

pub(super) fn populate(world: &mut World) {
    let count = |name, most| if world.has(name) { most } else { 0 };
    let (clients, pools, monitors) = (count("regular client", CLIENTS), count("pool", 2), count("monitor", 1));
    for index in 0..clients {
        let mut chance = world.chance("regular client", index);
        let (v4, v6) = world.new_addresses(REGULAR);
        let address = if chance.is(0.3) { IpAddr::from(v6) } else { v4.into() };
        // The services in the client's configuration.
        let mut services = world.host.profile.services.clone();
        services.retain(|service| address.is_ipv4() || service.bind != crate::host::Bind::V4);
        chance.shuffle(&mut services);
        services.truncate(1 + usize::try_from(chance.below(5)).unwrap_or(0));
        let first = world.now.after(chance.after(VISIT_EVERY));
        world.spawn(REGULAR, first, Client { address, services, chance, attempt: None, next_port: 0, once: false });
    }
    let tcp: Vec<Service> =
        world.host.profile.services.iter().copied().filter(|service| service.protocol == Protocol::Tcp).collect();
    for index in 0..pools {
        let mut chance = world.chance("pool", index);
        let (v4, _) = world.new_addresses(POOLS);
        let port = chance.pick(&tcp).port;
        world.spawn(POOLS, world.now, Pool { source: v4.into(), port, chance, failures: Some(0) });
    }
    for index in 0..monitors {
        let (v4, _) = world.new_addresses(MONITORS);
        let services = world.host.profile.services.clone();
        let chance = world.chance("monitor", index);
        world.spawn(MONITORS, world.now, Monitor { source: v4.into(), chance, services });
    }
}

const CONNECTED: Role = Role::Honest("clients that lost their connections");
const POOLS: Role = Role::Honest("connection pools");
const MONITORS: Role = Role::Honest("monitoring");

/// An application with several connections to one service. When they break, it reopens all of them, initially every few
/// seconds.
struct Pool {
    source: IpAddr,
    port: u16,
    chance: Chance,
    /// Number of failed attempts since the last success; `None` while it is connected.
    failures: Option<u32>,
}

const CONNECTIONS: u32 = 8;

impl Actor for Pool {
    fn act(&mut self, world: &mut World) -> Option<Timestamp> {
        let mut open = 0;
        for _ in 0..CONNECTIONS {
            let source = SocketAddr::new(self.source, self.chance.client_port());
            let flags = if self.failures.is_none() { TcpFlags::ACK } else { TcpFlags::SYN };
            open += u32::from(matches!(world.tcp(source, self.port, flags), Reply::SynAck | Reply::Data));
        }
        let failures = self.failures.map_or(0, |failures| failures + 1);
        self.failures = (open < CONNECTIONS).then_some(failures);
        if self.failures.is_none() {
            world.connect(SocketAddr::new(self.source, 40_000), self.port, hours(4));
        }
        Some(world.now.after(if open == CONNECTIONS { hours(3) } else { seconds(5 << failures.min(8)) }))
    }
}

/// A monitor that checks every service, whether or not it is up.
struct Monitor {
    source: IpAddr,
    chance: Chance,
    services: Vec<Service>,
}

/// The time between two checks of all services.
const CHECK_EVERY: Duration = minutes(30);

impl Actor for Monitor {
    fn act(&mut self, world: &mut World) -> Option<Timestamp> {
        let mut failed = false;
        for service in &self.services {
            let source = SocketAddr::new(self.source, self.chance.client_port());
            let reply = match service.protocol {
                Protocol::Udp => world.udp(source, service.port),
                _ => world.syn(source, service.port),
            };
            failed |= !matches!(reply, Reply::SynAck | Reply::Data);
        }
        // A failed check is repeated soon.
        Some(world.now.after(if failed { minutes(5) } else { CHECK_EVERY }))
    }
}

/// Clients that lose all their connections to several services at once. Each tries to reconnect to all services at the
/// same time until it succeeds.
pub(super) fn reconnect(world: &mut World, mut chance: Chance) {
    for _ in 0..4 {
        let (v4, _) = world.new_addresses(CONNECTED);
        let mut services = world.host.profile.services.clone();
        services.retain(|service| service.protocol == Protocol::Tcp);
        chance.shuffle(&mut services);
        services.truncate(5);
        for (number, service) in (0..).zip(services) {
            let chance = world.chance("reconnecting client", u64::from(chance.below(u32::MAX)));
            let at = world.now.after(Duration::from_millis(500 + 100 * u64::from(number)));
            let (services, next_port) = (vec![service], number * 1_000);
            let client = Client { address: v4.into(), services, chance, attempt: None, next_port, once: true };
            world.spawn(CONNECTED, at, client);
        }
    }
}

/// One attempt to reach one service.
#[derive(Clone, Copy)]
struct Attempt {
    /// The index of the service in the client's list.
    service: usize,
    port: u16,
    /// Number of retransmissions of the SYN so far.
    sent: u32,
    /// Number of attempts of the program so far.
    tries: u32,
}

/// Maximum number of retransmissions of an unanswered SYN (net.ipv4.tcp_syn_retries is 6; most programs give up
/// earlier).
const RETRANSMISSIONS: u32 = 4;

/// A client that visits its services in turn. If it is refused, it tries again, as programs do.
struct Client {
    address: IpAddr,
    services: Vec<Service>,
    chance: Chance,
    attempt: Option<Attempt>,
    next_port: u16,
    /// True if it ends after one visit.
    once: bool,
}

impl Client {
    fn begin(&mut self, service: usize, tries: u32) -> Attempt {
        self.next_port = self.next_port.wrapping_add(1) % 28_000;
        Attempt { service, port: 32_768 + self.next_port, sent: 0, tries }
    }

    /// Continues with the next service, or ends the visit.
    fn next(&mut self, world: &World, service: usize) -> Option<Timestamp> {
        if service + 1 < self.services.len() {
            self.attempt = Some(self.begin(service + 1, 0));
            return Some(world.now.after(self.chance.between(Duration::ZERO, seconds(3))));
        }
        self.attempt = None;
        (!self.once).then(|| world.now.after(self.chance.after(VISIT_EVERY)))
    }
}

impl Actor for Client {
    fn act(&mut self, world: &mut World) -> Option<Timestamp> {
        let attempt = self.attempt.unwrap_or_else(|| self.begin(0, 0));
        let Service { protocol, port, .. } = self.services[attempt.service];
        let source = SocketAddr::new(self.address, attempt.port);
        let reply = match protocol {
            Protocol::Udp => world.udp(source, port),
            _ => world.syn(source, port),
        };
        match reply {
            Reply::SynAck => {
                for _ in 0..2 {
                    world.tcp(source, port, TcpFlags::ACK | TcpFlags::PSH);
                }
                world.tcp(source, port, TcpFlags::FIN | TcpFlags::ACK);
            }
            Reply::Data => {}
            // The delays between retransmissions are 1, 2, 4 and 8 seconds (RFC 6298).
            Reply::Silence if attempt.sent < RETRANSMISSIONS => {
                self.attempt = Some(Attempt { sent: attempt.sent + 1, ..attempt });
                return Some(world.now.after(seconds(1 << attempt.sent)));
            }
            // Programs retry with a growing delay.
            Reply::Silence | Reply::Reset | Reply::Unreachable if attempt.tries < 6 => {
                self.attempt = Some(self.begin(attempt.service, attempt.tries + 1));
                return Some(world.now.after(seconds(5 << attempt.tries)));
            }
            _ => {}
        }
        self.next(world, attempt.service)
    }
}
