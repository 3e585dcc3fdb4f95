//! Simulates scanners with one address: nmap with each of its timings, popular ports first, and masscan in random
//! order.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portsentry::types::Timestamp;

use crate::actors::rare;
use crate::chance::{Chance, days};
use crate::host::Reply;
use crate::world::{Actor, Role, World};

/// The hundred TCP ports that nmap probes first, by the frequency in nmap's own survey.
pub(super) const POPULAR: [u16; 100] = [
    80, 23, 443, 21, 22, 25, 3_389, 110, 445, 139, 143, 53, 135, 3_306, 8_080, 1_723, 111, 995, 993, 5_900, 1_025, 587,
    8_888, 199, 1_720, 465, 548, 113, 81, 6_001, 10_000, 514, 5_060, 179, 1_026, 2_000, 8_443, 8_000, 32_768, 554, 26,
    1_433, 49_152, 2_001, 515, 8_008, 49_154, 1_027, 5_666, 646, 5_000, 5_631, 631, 49_153, 8_081, 2_049, 88, 79,
    5_800, 106, 2_121, 1_110, 49_155, 6_000, 513, 990, 5_357, 427, 49_156, 543, 544, 5_101, 144, 7, 389, 8_009, 3_128,
    444, 9_999, 5_009, 7_070, 5_190, 3_000, 5_432, 1_900, 3_986, 13, 1_029, 9, 5_051, 6_646, 49_157, 1_028, 873, 1_755,
    2_717, 4_899, 9_100, 119, 37,
];

/// The parameters of a kind of scanner.
#[derive(Clone, Copy)]
struct Profile {
    role: &'static str,
    /// The time between two probes.
    gap: Duration,
    ports: usize,
    popular_first: bool,
    /// Number of probes in a row without a reply after which the scan ends.
    max_unanswered: u32,
    /// The time between two such scans of one host.
    every: Duration,
}

const fn nmap(role: &'static str, gap_micros: u64, ports: usize, every: Duration) -> Profile {
    Profile { role, gap: Duration::from_micros(gap_micros), ports, popular_first: true, max_unanswered: 60, every }
}

/// nmap's reference guide defines the gaps of T0 to T2. Those of T3 to T5 depend on the replies, and typical values are
/// used.
const MANNERS: [Profile; 7] = [
    nmap("nmap -T5", 300, 1_000, days(6)),
    nmap("nmap -T4", 1_000, 1_000, days(6)),
    nmap("nmap -T3", 3_000, 1_000, days(6)),
    nmap("nmap -T2", 400_000, 300, days(12)),
    nmap("nmap -T1", 15_000_000, 100, days(20)),
    nmap("nmap -T0", 300_000_000, 60, days(20)),
    Profile {
        role: "masscan",
        gap: Duration::from_millis(10),
        ports: 3_000,
        popular_first: false,
        max_unanswered: 3_000,
        every: days(6),
    },
];

pub(super) fn populate(world: &mut World) {
    for profile in MANNERS {
        rare(world, profile.role, profile.every, move |world, mut chance| {
            let role = Role::Dishonest(profile.role);
            let (v4, v6) = world.new_addresses(role);
            let source = if chance.is(0.2) { IpAddr::from(v6) } else { v4.into() };
            let ports = port_order(&mut chance, profile.ports, profile.popular_first);
            world.spawn(role, world.now, Scanner { profile, source, ports, chance, unanswered: 0 });
        });
    }
}

/// The ports of a scan, in reverse order.
fn port_order(chance: &mut Chance, count: usize, popular_first: bool) -> Vec<u16> {
    let mut first = if popular_first { POPULAR.to_vec() } else { Vec::new() };
    // nmap moves the most popular ports to the front of a random order.
    let front = first.len().min(25);
    chance.shuffle(&mut first[..front]);
    first.truncate(count);
    while first.len() < count {
        first.push(chance.port());
    }
    first.reverse();
    first
}

struct Scanner {
    profile: Profile,
    source: IpAddr,
    ports: Vec<u16>,
    chance: Chance,
    unanswered: u32,
}

impl Actor for Scanner {
    fn act(&mut self, world: &mut World) -> Option<Timestamp> {
        let port = self.ports.pop()?;
        let source = SocketAddr::new(self.source, self.chance.client_port());
        self.unanswered = if world.syn(source, port) == Reply::Silence { self.unanswered + 1 } else { 0 };
        let more = !self.ports.is_empty() && self.unanswered < self.profile.max_unanswered;
        more.then(|| world.now.after(self.profile.gap))
    }
}

const BOOT: Role = Role::Dishonest("knows settling: right after a boot");

/// A scanner that waits for the host to boot, and probes before its services are up.
pub(crate) fn meet_boot(world: &mut World) {
    let (v4, _) = world.new_addresses(BOOT);
    let mut chance = world.chance("scanner at boot", world.now.since_origin().as_secs());
    let began = chance.between(Duration::from_secs(2), Duration::from_secs(100));
    let source = SocketAddr::new(v4.into(), 40_000);
    let probe = |(n, port): (u32, &u16)| {
        (began + Duration::from_millis(50) * n, world.tcp_packet(source, *port, portsentry::wire::TcpFlags::SYN))
    };
    let packets: Vec<_> = (0..).zip(&POPULAR).map(probe).collect();
    crate::actors::script(world, BOOT, packets);
}
