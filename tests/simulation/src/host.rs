//! Models the host: its addresses, its services and their sockets, published ports, and the sockets of its own client
//! traffic. It models the kernel's socket table and the replies to packets.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use portsentry::engine;
use portsentry::netlink::sock_diag::{Bound, Connection, Listener};
use portsentry::types::{Protocol, Timestamp};
use portsentry::wire::{Packet, TcpFlags, Transport};

use crate::detector::Taker;

/// The addresses on which a service listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// A socket on every address.
    Everywhere,
    /// A socket on the IPv4 addresses.
    V4,
    /// No socket of this host: destination NAT forwards the port to a container.
    Published,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    pub protocol: Protocol,
    pub port: u16,
    pub bind: Bind,
    /// True if it belongs to a user and not to the system.
    pub personal: bool,
}

/// The kind of a host.
#[derive(Clone)]
pub struct Profile {
    pub name: &'static str,
    pub services: Vec<Service>,
    /// True if it has a local network with neighbours.
    pub lan: bool,
}

const fn tcp(port: u16) -> Service {
    Service { protocol: Protocol::Tcp, port, bind: Bind::Everywhere, personal: false }
}

const fn udp(port: u16) -> Service {
    Service { protocol: Protocol::Udp, port, bind: Bind::Everywhere, personal: false }
}

const fn published(port: u16) -> Service {
    Service { protocol: Protocol::Tcp, port, bind: Bind::Published, personal: false }
}

const fn personal(service: Service) -> Service {
    Service { personal: true, ..service }
}

impl Profile {
    /// The kinds of hosts, which are simulated in turn.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let profile = |name, lan, services: &[Service]| Self { name, services: services.to_vec(), lan };
        let v4_only = Service { bind: Bind::V4, ..tcp(8_080) };
        vec![
            profile("web", false, &[tcp(22), tcp(80), tcp(443), v4_only]),
            profile("mail", false, &[tcp(22), tcp(25), tcp(80), tcp(143), tcp(443), tcp(465), tcp(587), tcp(993)]),
            profile("containers", false, &[tcp(22), published(80), published(443), published(3_000), published(5_432)]),
            profile("home", true, &[tcp(22), tcp(80), tcp(445), tcp(2_049), tcp(8_096), udp(5_353), udp(1_900)]),
            profile("mail relay", false, &[tcp(22), tcp(25), tcp(80), tcp(443)]),
            profile(
                "voice and games",
                false,
                &[tcp(22), tcp(5_060), udp(5_060), personal(tcp(7_777)), personal(udp(7_777)), tcp(443)],
            ),
            profile("workstation", true, &[tcp(22), udp(5_353)]),
        ]
    }
}

/// The host's reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// No reply.
    Silence,
    /// The port is open.
    SynAck,
    /// A TCP reset: the port is closed.
    Reset,
    /// Data on an open connection, or a datagram of a service.
    Data,
    /// ICMP port unreachable.
    Unreachable,
}

/// Addresses of neighbours in the host's network.
pub const LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 0);

pub struct HostModel {
    pub profile: Profile,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// net.ipv4.ip_local_port_range.
    pub ephemeral: RangeInclusive<u16>,
    /// Temporary services in addition to those of the profile.
    extra: Vec<Service>,
    /// Services that run now.
    up: HashSet<(Protocol, u16)>,
    /// Sockets of outgoing client traffic by port, each with its peer and the time at which it closes.
    own_flows: HashMap<(Protocol, u16), (SocketAddr, Timestamp)>,
    /// Open connections to its services by the peer's address and the port, each with the time at which it closes.
    connections: BTreeMap<(SocketAddr, u16), Timestamp>,
}

impl HostModel {
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        let up = profile.services.iter().map(|service| (service.protocol, service.port)).collect();
        let v4 = if profile.lan { Ipv4Addr::new(192, 168, 7, 10) } else { Ipv4Addr::new(192, 0, 2, 1) };
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        Self {
            profile,
            v4,
            v6,
            ephemeral: 32_768..=60_999,
            extra: Vec::new(),
            up,
            own_flows: HashMap::new(),
            connections: BTreeMap::new(),
        }
    }

    /// The host's address of the same family as `peer`.
    #[must_use]
    pub fn address_for(&self, peer: IpAddr) -> IpAddr {
        if peer.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }

    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// The networks that the program protects by default: those of the gateway and the resolver.
    #[must_use]
    pub fn protected(&self) -> Vec<IpNet> {
        [self.gateway(), RESOLVER.into()].map(IpNet::from).to_vec()
    }

    /// The local network with the neighbours of some kinds of hosts.
    #[must_use]
    pub fn lan(&self) -> IpNet {
        IpNet::new_assert(LAN.into(), 24)
    }

    #[must_use]
    pub fn gateway(&self) -> IpAddr {
        let [a, b, c, _] = self.v4.octets();
        Ipv4Addr::new(a, b, c, 254).into()
    }

    /// Starts or stops a service of the profile.
    pub fn set_up(&mut self, service: Service, up: bool) {
        let key = (service.protocol, service.port);
        if up {
            self.up.insert(key);
        } else {
            self.up.remove(&key);
            self.connections.retain(|(_, port), _| service.protocol != Protocol::Tcp || *port != service.port);
        }
    }

    /// Opens a connection of a peer to a service of this host until the given time.
    pub fn connect(&mut self, peer: SocketAddr, port: u16, until: Timestamp) {
        if self.service(Protocol::Tcp, peer.ip(), port).is_some() {
            self.connections.insert((peer, port), until);
        }
    }

    pub fn close_ended(&mut self, now: Timestamp) {
        self.connections.retain(|_, until| *until > now);
    }

    /// The time at which the next connection closes.
    #[must_use]
    pub fn next_connection_end(&self) -> Option<Timestamp> {
        self.connections.values().min().copied()
    }

    /// The connections as the kernel lists them, including those through destination NAT.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        let connection = |(peer, port): &(SocketAddr, u16)| Connection {
            address: self.address_for(peer.ip()),
            port: *port,
            peer: peer.ip(),
            interface: 0,
            is_published: self.is_published(Protocol::Tcp, peer.ip(), *port),
        };
        self.connections.keys().map(connection).collect()
    }

    /// The listeners as the kernel lists them.
    #[must_use]
    pub fn listeners(&self) -> Vec<Listener> {
        let listener = |service: Service| Listener {
            protocol: service.protocol,
            port: service.port,
            bound: if service.bind == Bind::V4 { Bound::AnyV4 } else { Bound::Any },
            interface: 0,
            user: if service.personal { 1_000 } else { 0 },
        };
        self.running().filter(|service| service.bind != Bind::Published).map(listener).collect()
    }

    /// The ports that destination NAT publishes now.
    pub fn published_ports(&self) -> impl Iterator<Item = engine::Service> + '_ {
        let published = self.running().filter(|service| service.bind == Bind::Published);
        published.map(|service| engine::Service {
            protocol: service.protocol,
            port: service.port,
            address: Ipv4Addr::UNSPECIFIED.into(),
        })
    }

    /// Adds a service that is not in the profile and does not run yet.
    pub fn add(&mut self, service: Service) {
        if !self.services().any(|known| known == service) {
            self.extra.push(service);
        }
    }

    #[must_use]
    pub fn is_up(&self, protocol: Protocol, port: u16) -> bool {
        self.up.contains(&(protocol, port))
    }

    fn services(&self) -> impl Iterator<Item = Service> + '_ {
        self.profile.services.iter().chain(&self.extra).copied()
    }

    /// Stops all services.
    pub fn stop_all(&mut self) {
        self.up.clear();
        self.own_flows.clear();
        self.connections.clear();
    }

    /// The services that run now.
    pub fn running(&self) -> impl Iterator<Item = Service> + '_ {
        self.services().filter(|service| self.is_up(service.protocol, service.port))
    }

    fn service(&self, protocol: Protocol, address: IpAddr, port: u16) -> Option<Service> {
        if !self.is_up(protocol, port) {
            return None;
        }
        let service = self.services().find(|service| (service.protocol, service.port) == (protocol, port))?;
        (address.is_ipv4() || service.bind != Bind::V4).then_some(service)
    }

    /// True if destination NAT forwards the packet to another host.
    #[must_use]
    pub fn is_published(&self, protocol: Protocol, address: IpAddr, port: u16) -> bool {
        self.service(protocol, address, port).is_some_and(|service| service.bind == Bind::Published)
    }

    /// Opens a socket of outgoing client traffic at `port` until the given time.
    pub fn open_flow(&mut self, protocol: Protocol, port: u16, peer: SocketAddr, until: Timestamp) {
        self.own_flows.insert((protocol, port), (peer, until));
    }

    /// True if a socket of this host's own client traffic receives the packet.
    fn has_own_flow(&self, now: Timestamp, protocol: Protocol, source: SocketAddr, to: SocketAddr) -> bool {
        let flow = self.own_flows.get(&(protocol, to.port()));
        flow.is_some_and(|(peer, until)| *until > now && (*peer == source || protocol == Protocol::Udp))
    }

    fn listens(&self, protocol: Protocol, to: SocketAddr) -> bool {
        self.service(protocol, to.ip(), to.port()).is_some_and(|found| found.bind != Bind::Published)
    }

    /// True if the kernel's socket table has a listener or a connection for the packet.
    #[must_use]
    pub fn has_socket(&self, now: Timestamp, protocol: Protocol, source: SocketAddr, to: SocketAddr) -> bool {
        self.listens(protocol, to) || self.has_own_flow(now, protocol, source, to)
    }

    /// The receiver of the packet in the kernel: its socket tables are searched before NAT.
    #[must_use]
    pub fn taker(&self, now: Timestamp, protocol: Protocol, source: SocketAddr, to: SocketAddr) -> Taker {
        if self.listens(protocol, to) {
            Taker::Socket
        } else if self.has_own_flow(now, protocol, source, to) {
            // A UDP socket receives packets from any source.
            if protocol == Protocol::Udp { Taker::Socket } else { Taker::Flow }
        } else if self.is_published(protocol, to.ip(), to.port()) {
            Taker::Published
        } else {
            Taker::Nothing
        }
    }

    /// The host's reply to a packet that its firewall accepts.
    #[must_use]
    pub fn answer(&self, now: Timestamp, packet: &Packet) -> Reply {
        match packet.transport {
            Transport::Tcp { source_port, destination_port, flags, .. } => {
                if self.service(Protocol::Tcp, packet.destination, destination_port).is_some() {
                    return match flags.0 & (TcpFlags::SYN | TcpFlags::ACK | TcpFlags::RST) {
                        TcpFlags::SYN => Reply::SynAck,
                        TcpFlags::ACK => Reply::Data,
                        _ => Reply::Silence,
                    };
                }
                let from = SocketAddr::new(packet.source, source_port);
                let to = SocketAddr::new(packet.destination, destination_port);
                let answers_us = self.has_socket(now, Protocol::Tcp, from, to);
                if answers_us || flags.has(TcpFlags::RST) { Reply::Silence } else { Reply::Reset }
            }
            Transport::Udp { source_port, destination_port } => {
                if self.service(Protocol::Udp, packet.destination, destination_port).is_some() {
                    return if SILENT.contains(&destination_port) { Reply::Silence } else { Reply::Data };
                }
                let from = SocketAddr::new(packet.source, source_port);
                let to = SocketAddr::new(packet.destination, destination_port);
                if self.has_socket(now, Protocol::Udp, from, to) { Reply::Silence } else { Reply::Unreachable }
            }
            _ => Reply::Silence,
        }
    }
}

/// UDP services that never reply: SNMP traps and syslog, and TFTP, which replies from another port.
pub const SILENT: [u16; 3] = [69, 162, 514];

/// The host's resolver.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 53);

/// The interval at which the daemon checks the listeners and the trap.
pub const TICK: Duration = Duration::from_secs(1);
