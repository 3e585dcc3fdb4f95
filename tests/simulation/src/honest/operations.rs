//! Simulates actions of the host's operators and programs: restarts, maintenance, reboots, crashes, services that move
//! to another port, and containers that start and stop.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portsentry::types::{Protocol, Timestamp};
use portsentry::wire::TcpFlags;

use super::clients;
use crate::actors::script;
use crate::chance::{Chance, days, hours, minutes, seconds};
use crate::dishonest::scanners;
use crate::host::{Bind, Reply, SILENT, Service};
use crate::world::{Actor, Role, World};

pub(super) fn populate(world: &mut World) {
    let pace = world.pace();
    let plans = [
        // A certificate is renewed or a package upgraded: one service restarts.
        (Kind::Restart, days(2)),
        // A library is upgraded: all services restart.
        (Kind::RestartAll, days(14)),
        // A service is stopped on purpose, for longer than clients retry.
        (Kind::Maintenance, days(45)),
        (Kind::Reboot, days(30)),
        (Kind::CrashLoop, days(30)),
        (Kind::PortChange, days(120)),
        (Kind::NewContainer, days(10)),
        (Kind::NewServices, days(20)),
        (Kind::Reinstall, days(100)),
        (Kind::BrokenBoot, days(60)),
        (Kind::ProgramRestart, days(30)),
        (Kind::ShortService, days(10)),
        (Kind::PortTest, days(60)),
        (Kind::UserProgram, days(20)),
        (Kind::Upgrade, days(60)),
        (Kind::PublishedRange, days(60)),
    ];
    let containers = world.host.profile.services.iter().any(|service| service.bind == Bind::Published);
    let needs_containers = [Kind::NewContainer, Kind::PublishedRange];
    for (kind, mean) in plans.into_iter().filter(|(kind, _)| containers || !needs_containers.contains(kind)) {
        if !world.has(kind.name()) {
            continue;
        }
        let mut chance = world.chance(kind.name(), 0);
        let first = world.now.after(chance.after(mean / pace));
        let operation = Operation { kind, mean: mean / pace, chance, plan: Vec::new() };
        world.spawn(Role::Backstage, first, operation);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Restart,
    RestartAll,
    Maintenance,
    Reboot,
    /// A service crashes repeatedly, and is restarted each time.
    CrashLoop,
    /// A service moves to another port, and its clients learn of it over the next days. Later it moves back, so that
    /// the host does not change permanently.
    PortChange,
    /// A container with a previously unpublished port runs for a while.
    NewContainer,
    /// Several new services start simultaneously.
    NewServices,
    /// The host gets a new disk: the program has lost its ledger, but the clients are the same.
    Reinstall,
    /// After a reboot two services do not start until an operator repairs them.
    BrokenBoot,
    /// The program is upgraded.
    ProgramRestart,
    /// A transfer or a debugging tool of the system listens for a few minutes.
    ShortService,
    /// An operator's test listens on three hundred ports for an hour.
    PortTest,
    /// A program of an ordinary user listens on some ports for an hour.
    UserProgram,
    /// A release upgrade: its installer listens on some ports, then the program and all services restart.
    Upgrade,
    /// A container publishes a hundred and fifty ports for an hour, as a server for passive FTP or for voice does.
    PublishedRange,
}

impl Kind {
    /// True if it ends services that no regular client uses.
    fn is_temporary(self) -> bool {
        let services = [Self::NewContainer, Self::NewServices, Self::ShortService, Self::PortTest];
        services.contains(&self) || [Self::UserProgram, Self::PublishedRange].contains(&self)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::RestartAll => "restart of all",
            Self::Maintenance => "maintenance",
            Self::Reboot => "reboot",
            Self::CrashLoop => "crash loop",
            Self::PortChange => "port change",
            Self::NewContainer => "new container",
            Self::NewServices => "new services",
            Self::Reinstall => "reinstallation",
            Self::BrokenBoot => "broken boot",
            Self::ProgramRestart => "upgrade of the program",
            Self::ShortService => "short services",
            Self::PortTest => "test of ports",
            Self::UserProgram => "program of a user",
            Self::Upgrade => "upgrade of everything",
            Self::PublishedRange => "published range",
        }
    }
}

#[derive(Clone, Copy)]
enum Step {
    Stop(Service),
    Start(Service),
    PowerOff,
    /// Boots the host: true with the ledger, false without it.
    Boot(bool),
    RestartProgram,
}

/// Ports of services that start together.
pub(crate) const NEW_PORTS: [u16; 4] = [3_306, 6_379, 8_088, 9_200];

/// Ports in the built-in list on which a program listens for a few minutes.
pub(crate) const SHORT_PORTS: [u16; 4] = [111, 873, 2_049, 8_000];

/// Ports on which an operator's test listens.
pub(crate) const TESTED_PORTS: std::ops::Range<u16> = 200..500;

/// Ports that a container publishes together.
pub(crate) const PUBLISHED_RANGE: std::ops::Range<u16> = 600..750;

/// Ports on which a program of an ordinary user listens.
pub(crate) const USER_PORTS: [u16; 4] = [5_000, 8_008, 8_888, 9_000];

const fn system(port: u16) -> Service {
    Service { protocol: Protocol::Tcp, port, bind: Bind::Everywhere, personal: false }
}

struct Operation {
    kind: Kind,
    mean: Duration,
    chance: Chance,
    /// The remaining steps, in reverse order.
    plan: Vec<(Timestamp, Step)>,
}

impl Operation {
    fn make_plan(&mut self, world: &World) {
        let chance = &mut self.chance;
        let mut services = world.host.profile.services.clone();
        chance.shuffle(&mut services);
        let mut at = world.now;
        let plan = &mut self.plan;
        match self.kind {
            Kind::Restart | Kind::RestartAll => {
                services.truncate(if self.kind == Kind::Restart { 1 } else { usize::MAX });
                for service in services {
                    plan.push((at, Step::Stop(service)));
                    plan.push((at.after(chance.between(seconds(1), seconds(45))), Step::Start(service)));
                }
            }
            Kind::Maintenance => {
                services.truncate(1 + usize::try_from(chance.below(3)).unwrap_or(0));
                let end = at.after(chance.between(minutes(10), hours(4)));
                plan.extend(services.iter().map(|service| (at, Step::Stop(*service))));
                plan.extend(services.iter().map(|service| (end, Step::Start(*service))));
            }
            Kind::CrashLoop => {
                for _ in 0..12 {
                    plan.push((at, Step::Stop(services[0])));
                    at = at.after(chance.between(seconds(5), seconds(60)));
                    plan.push((at, Step::Start(services[0])));
                    at = at.after(chance.between(seconds(1), seconds(10)));
                }
            }
            Kind::PortChange => {
                let moved = Service { port: services[0].port % 1_000 + 2_000, ..services[0] };
                let end = at.after(chance.between(days(3), days(10)) / world.pace());
                plan.extend([(at, Step::Stop(services[0])), (at, Step::Start(moved))]);
                plan.extend([(end, Step::Stop(moved)), (end, Step::Start(services[0]))]);
            }
            Kind::NewContainer => {
                let port = chance.pick(&[8_000, 8_081, 8_088, 8_443, 8_888, 9_000, 9_200]);
                let container = Service { protocol: Protocol::Tcp, port, bind: Bind::Published, personal: false };
                let end = at.after(chance.between(hours(1), days(5)) / world.pace());
                plan.extend([(at, Step::Start(container)), (end, Step::Stop(container))]);
            }
            Kind::NewServices => {
                let end = at.after(chance.between(hours(1), days(5)) / world.pace());
                let tcp = NEW_PORTS.map(|port| (Protocol::Tcp, port));
                for (protocol, port) in tcp.into_iter().chain(SILENT.map(|port| (Protocol::Udp, port))) {
                    let service = Service { protocol, port, bind: Bind::Everywhere, personal: false };
                    plan.extend([(at, Step::Start(service)), (end, Step::Stop(service))]);
                }
            }
            Kind::Reboot | Kind::Reinstall | Kind::BrokenBoot => {
                plan.push((at, Step::PowerOff));
                let reinstalled = self.kind == Kind::Reinstall;
                let off = if reinstalled { (minutes(30), hours(6)) } else { (seconds(20), minutes(5)) };
                let up = at.after(chance.between(off.0, off.1));
                plan.push((up, Step::Boot(!reinstalled)));
                let broken = if self.kind == Kind::BrokenBoot { 2 } else { 0 };
                for (number, service) in services.into_iter().enumerate() {
                    let takes = if number < broken {
                        chance.between(minutes(20), hours(8))
                    } else {
                        // Databases and Java start slowly, but not on a new disk.
                        let slow = if chance.is(0.2) && !reinstalled { minutes(6) } else { seconds(20) };
                        chance.between(seconds(1), slow)
                    };
                    plan.push((up.after(takes), Step::Start(service)));
                }
            }
            Kind::ProgramRestart => plan.push((at, Step::RestartProgram)),
            Kind::ShortService => {
                for port in SHORT_PORTS.into_iter().filter(|port| !services.iter().any(|known| known.port == *port)) {
                    plan.push((at, Step::Start(system(port))));
                    plan.push((at.after(chance.between(minutes(2), minutes(6))), Step::Stop(system(port))));
                }
            }
            Kind::UserProgram => {
                for port in USER_PORTS {
                    let service = Service { personal: true, ..system(port) };
                    plan.extend([(at, Step::Start(service)), (at.after(hours(1)), Step::Stop(service))]);
                }
            }
            Kind::Upgrade => {
                let installer =
                    SHORT_PORTS.into_iter().filter(|port| !services.iter().any(|known| known.port == *port));
                let restart = at.after(minutes(4));
                for port in installer {
                    plan.extend([(at, Step::Start(system(port))), (restart, Step::Stop(system(port)))]);
                }
                for service in &services {
                    plan.push((restart, Step::Stop(*service)));
                    let up = restart.after(chance.between(seconds(3), seconds(60)));
                    plan.push((up, Step::Start(*service)));
                }
                plan.push((restart.after(seconds(1)), Step::RestartProgram));
            }
            Kind::PublishedRange => {
                let published = |port| Service { bind: Bind::Published, ..system(port) };
                plan.extend(PUBLISHED_RANGE.map(|port| (at, Step::Start(published(port)))));
                plan.extend(PUBLISHED_RANGE.map(|port| (at.after(hours(1)), Step::Stop(published(port)))));
            }
            Kind::PortTest => {
                let free = |port: &u16| !services.iter().any(|known| known.port == *port);
                for port in TESTED_PORTS.filter(free) {
                    plan.extend([(at, Step::Start(system(port))), (at.after(hours(1)), Step::Stop(system(port)))]);
                }
            }
        }
        plan.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    }
}

impl Actor for Operation {
    fn act(&mut self, world: &mut World) -> Option<Timestamp> {
        if self.plan.is_empty() {
            self.make_plan(world);
        }
        let mut lost = false;
        while let Some((_, step)) = self.plan.pop_if(|(at, _)| *at <= world.now) {
            match step {
                Step::Stop(service) => {
                    world.set_up(service, false);
                    lost |= !self.kind.is_temporary();
                }
                Step::Start(service) => {
                    world.host.add(service);
                    world.set_up(service, true);
                    if self.kind == Kind::NewContainer {
                        visitors(world, service.port);
                    }
                }
                Step::PowerOff => world.power_off(),
                Step::Boot(keeps_ledger) => {
                    world.boot(keeps_ledger);
                    lost = true;
                    scanners::meet_boot(world);
                }
                Step::RestartProgram => world.restart_program(),
            }
        }
        if lost {
            let chance = world.chance(self.kind.name(), u64::from(self.chance.below(u32::MAX)));
            clients::reconnect(world, chance);
        }
        if self.kind == Kind::NewServices && NEW_PORTS.iter().all(|port| world.host.is_up(Protocol::Tcp, *port)) {
            health_checks(world);
        }
        if self.kind == Kind::ShortService && world.host.is_up(Protocol::Tcp, SHORT_PORTS[0]) {
            transfers(world, self.chance.below(u32::MAX));
        }
        if self.kind == Kind::PublishedRange && world.host.is_up(Protocol::Tcp, PUBLISHED_RANGE.start) {
            visit_range(world);
        }
        let next = self.plan.last().map(|(at, _)| *at);
        Some(next.unwrap_or_else(|| world.now.after(self.chance.after(self.mean))))
    }
}

/// Clients of a new container, the first one right after its start.
fn visitors(world: &mut World, port: u16) {
    const ROLE: Role = Role::Honest("clients of new containers");
    let mut chance = world.chance("visitor of a container", u64::from(port));
    for _ in 0..4 {
        let (v4, _) = world.new_addresses(ROLE);
        let mut at = chance.between(seconds(0), seconds(2));
        let packets: Vec<_> = (0..5)
            .map(|_| {
                let source = SocketAddr::new(v4.into(), chance.client_port());
                at += chance.after(minutes(1));
                (at, world.tcp_packet(source, port, TcpFlags::SYN))
            })
            .collect();
        script(world, ROLE, packets);
    }
}

/// A client that uses each port of a published range.
fn visit_range(world: &mut World) {
    const ROLE: Role = Role::Honest("clients of a published range");
    let mut chance = world.chance("client of a range", 0);
    let source = world.new_addresses(ROLE).0.into();
    let packets: Vec<_> = (0..)
        .zip(PUBLISHED_RANGE)
        .map(|(n, port)| {
            let source = SocketAddr::new(source, chance.client_port());
            (seconds(10) * n, world.tcp_packet(source, port, TcpFlags::SYN))
        })
        .collect();
    script(world, ROLE, packets);
}

/// Deployment tools check each new service within a second, and send datagrams to services that do not reply.
fn health_checks(world: &mut World) {
    const ROLE: Role = Role::Honest("health checks of new services");
    let mut chance = world.chance("health check", 0);
    let (v4, _) = world.new_addresses(ROLE);
    let mut source = || SocketAddr::new(v4.into(), chance.client_port());
    let tcp = NEW_PORTS.map(|port| world.tcp_packet(source(), port, TcpFlags::SYN));
    let udp = SILENT.map(|port| world.udp_packet(source(), port));
    let packets = tcp.into_iter().chain(udp);
    let checks: Vec<_> = (0..).zip(packets).map(|(n, packet)| (Duration::from_millis(40) * n, packet)).collect();
    script(world, ROLE, checks);
}

/// Partners of a transfer connect while its ports listen, and retry each for another minute.
fn transfers(world: &mut World, number: u32) {
    const ROLE: Role = Role::Honest("partners of short transfers");
    let mut chance = world.chance("transfer", number.into());
    let source = world.new_addresses(ROLE).0.into();
    let lasting: Vec<u16> = world.host.profile.services.iter().map(|service| service.port).collect();
    for port in SHORT_PORTS.into_iter().filter(|port| !lasting.contains(port)) {
        let first = world.now.after(chance.between(seconds(0), seconds(20)));
        let chance = world.chance("partner", u64::from(port) << 32 | u64::from(number));
        world.spawn(ROLE, first, Partner { source, port, chance, failures: 0 });
    }
}

struct Partner {
    source: IpAddr,
    port: u16,
    chance: Chance,
    failures: u32,
}

impl Actor for Partner {
    fn act(&mut self, world: &mut World) -> Option<Timestamp> {
        let source = SocketAddr::new(self.source, self.chance.client_port());
        let answered = world.syn(source, self.port) == Reply::SynAck;
        self.failures = if answered { 0 } else { self.failures + 1 };
        let pause = if answered { (seconds(20), seconds(50)) } else { (seconds(10), seconds(20)) };
        (self.failures < 5).then(|| world.now.after(self.chance.between(pause.0, pause.1)))
    }
}
