//! Simulates neighbours on a local network: service discovery, file managers, printer drivers, and inventories, which
//! are scans.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use portsentry::types::Protocol;
use portsentry::wire::{Delivery, Packet, TcpFlags};

use crate::actors::{rare, script, steady};
use crate::chance::{Chance, days, hours, seconds};
use crate::host::LAN;
use crate::world::{Role, World};

const DISCOVERY: Role = Role::Honest("mDNS, SSDP and NetBIOS");
const FILES: Role = Role::Honest("neighbours that look for shared files");
const PRINTER: Role = Role::Honest("neighbours that add a printer");
const INVENTORY: Role = Role::Authorised("inventories of the local network");

pub(super) fn populate(world: &mut World) {
    if world.host.profile.lan {
        steady(world, "discovery", hours(1), discover);
        rare(world, "shared files", days(5), look_for_files);
        rare(world, "printer", days(20), add_printer);
        rare(world, "inventory", days(30), take_inventory);
    }
}

fn neighbour(world: &mut World, role: Role, chance: &mut Chance) -> IpAddr {
    let address = Ipv4Addr::from_bits(LAN.to_bits() | (20 + chance.below(12))).into();
    world.own(role, address);
    address
}

/// Queries are sent to groups and to the broadcast address. Replies are sent to the port of the query, even after it
/// has closed.
fn discover(world: &mut World, mut chance: Chance) {
    let source = neighbour(world, DISCOVERY, &mut chance);
    let mut packets = Vec::new();
    for (group, port) in [([224, 0, 0, 251], 5_353), ([239, 255, 255, 250], 1_900), ([192, 168, 7, 255], 137)] {
        let delivery = if port == 137 { Delivery::Broadcast } else { Delivery::Multicast };
        let to_host = world.udp_packet(SocketAddr::new(source, port), port);
        packets.push((chance.after(seconds(5)), Packet { destination: IpAddr::from(group), delivery, ..to_host }));
    }
    let own = chance.client_port();
    world.originate(Protocol::Udp, own, SocketAddr::new(source, 1_900), seconds(3));
    for port in [1_900, 49_152] {
        packets.push((chance.after(seconds(4)), world.udp_packet(SocketAddr::new(source, port), own)));
    }
    packets.push((seconds(1), world.udp_packet(SocketAddr::new(source, 5_353), 5_353)));
    script(world, DISCOVERY, packets);
}

/// A user opens this host in a file manager. Windows tries SMB, NetBIOS and then WebDAV, macOS SMB, NetBIOS and AFP.
/// Windows repeats a refused SYN twice.
fn look_for_files(world: &mut World, mut chance: Chance) {
    let address = neighbour(world, FILES, &mut chance);
    let ports = chance.pick(&[[445, 139, 80], [445, 139, 548]]);
    let packets = tries(world, &mut chance, address, &ports, 3);
    script(world, FILES, packets);
}

/// A user types the name of this host into the dialog that adds a printer. It tries raw printing, LPD and IPP, asks over
/// SNMP for the model, and opens the web page of the printer.
fn add_printer(world: &mut World, mut chance: Chance) {
    let address = neighbour(world, PRINTER, &mut chance);
    let mut packets = tries(world, &mut chance, address, &[9_100, 515, 631, 80, 443], 2);
    let snmp = world.udp_packet(SocketAddr::new(address, chance.client_port()), 161);
    packets.push((seconds(2), snmp));
    script(world, PRINTER, packets);
}

/// SYNs to these ports, half a second apart, each sent `times` times.
fn tries(
    world: &World,
    chance: &mut Chance,
    address: IpAddr,
    ports: &[u16],
    times: usize,
) -> Vec<(Duration, Packet<'static>)> {
    let repeated = ports.iter().flat_map(|port| std::iter::repeat_n(*port, times));
    let packet = |(n, port): (u32, u16)| {
        let source = SocketAddr::new(address, chance.client_port());
        (Duration::from_millis(500) * n, world.tcp_packet(source, port, TcpFlags::SYN))
    };
    (0..).zip(repeated).map(packet).collect()
}

/// A virus scanner with a network inspector, an app that lists devices, or an administrator's program probes a dozen
/// ports of every device on the network. So does an attacker on one of them.
fn take_inventory(world: &mut World, mut chance: Chance) {
    let address = neighbour(world, INVENTORY, &mut chance);
    let ports = [80, 443, 22, 445, 139, 8_080, 515, 631, 9_100, 5_000, 554, 8_009];
    let packets: Vec<_> = (0..)
        .zip(ports)
        .map(|(n, port)| {
            let source = SocketAddr::new(address, chance.client_port());
            (Duration::from_millis(200) * n, world.tcp_packet(source, port, TcpFlags::SYN))
        })
        .collect();
    script(world, INVENTORY, packets);
}
