//! Simulates games and telephony: datagrams to many ports, some of which have just closed.

use std::net::SocketAddr;
use std::time::Duration;

use portsentry::types::Protocol;
use portsentry::wire::TcpFlags;

use crate::actors::{script, steady};
use crate::chance::{Chance, days, hours, seconds};
use crate::world::{Role, World};

const GAMES: Role = Role::Honest("players of games");
const VOICE: Role = Role::Honest("telephones");

pub(super) fn populate(world: &mut World) {
    let plays = world.host.profile.services.iter().any(|service| service.port == 5_060);
    let every = if plays { hours(2) } else { days(5) };
    steady(world, "player", every, play);
    steady(world, "call", every, call);
}

/// A server browser probes the port of a game and neighbouring ports, on which other servers of the same machine would
/// listen.
fn play(world: &mut World, mut chance: Chance) {
    let (v4, _) = world.new_addresses(GAMES);
    let mut at = Duration::ZERO;
    let mut packets = Vec::new();
    for port in [7_777, 7_778, 7_779, 27_015, 27_016] {
        let source = SocketAddr::new(v4.into(), chance.client_port());
        packets.push((at, world.udp_packet(source, port)));
        at += Duration::from_millis(100);
    }
    let source = SocketAddr::new(v4.into(), chance.client_port());
    packets.push((at, world.tcp_packet(source, 7_777, TcpFlags::SYN)));
    packets.extend((0..10).map(|n| (at + seconds(n), world.udp_packet(source, 7_777))));
    script(world, GAMES, packets);
}

/// A call: signalling, then voice to a pair of ports that the host opens for it, and late packets after the end.
fn call(world: &mut World, mut chance: Chance) {
    let (v4, _) = world.new_addresses(VOICE);
    let signalling = SocketAddr::new(v4.into(), 5_060);
    let voice = SocketAddr::new(v4.into(), 16_384 + 2 * (chance.port() % 8_000));
    let own = 16_384 + 2 * (chance.port() % 8_000);
    let lasts = chance.after(seconds(180));
    let mut packets = vec![(Duration::ZERO, world.udp_packet(signalling, 5_060))];
    for (port, peer) in [(own, voice), (own + 1, SocketAddr::new(voice.ip(), voice.port() + 1))] {
        world.originate(Protocol::Udp, port, peer, lasts);
        // The host's own packets are omitted, because they do not matter here. Late packets arrive for a second.
        let times = [Duration::from_millis(200), lasts / 2, lasts, lasts + Duration::from_millis(700)];
        packets.extend(times.map(|at| (at, world.udp_packet(peer, port))));
    }
    packets.push((lasts, world.udp_packet(signalling, 5_060)));
    script(world, VOICE, packets);
}
