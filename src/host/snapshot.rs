//! Builds the engine's [`Host`] from the kernel's lists, leases, sessions and the operator's allow-list.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::dhcp_leases::LeaseFiles;
use super::network::{HostFacts, Interface};
use super::sessions::SessionFiles;
use crate::engine::{AllowList, Host, Link, LinkId, Listeners, Local, Protection, ReversePath};
use crate::netlink::sock_diag::Listener;
use crate::types::{PortSet, Protocol};

/// An entry of the key `interfaces` that cannot be followed.
#[derive(Debug, thiserror::Error)]
#[error("{why} {name}; this host has {present}")]
pub struct NoInterface {
    why: &'static str,
    name: String,
    present: String,
}

/// The interfaces in `names` that do not exist or are loopback, and the excluded ones if all interfaces of this host
/// are excluded. Excluded interfaces need not exist.
pub fn missing_interfaces<'a>(names: &'a [String], facts: &'a HostFacts) -> impl Iterator<Item = NoInterface> + 'a {
    let (excluded, wanted): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.starts_with('!'));
    let missing = wanted.into_iter().filter_map(|name| {
        let why = match facts.interfaces.iter().find(|one| one.name == *name) {
            None => "there is no interface",
            Some(one) if one.loopback => "loopback is never monitored: leave out",
            Some(_) => return None,
        };
        Some((why, name.clone()))
    });
    // A host with only loopback gets its interfaces later.
    let excludes_all = !excluded.is_empty()
        && facts.interfaces.iter().any(|one| !one.loopback)
        && watched_indexes(names, facts).is_empty();
    let list = || excluded.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    let no_other = excludes_all.then(|| ("every interface is excluded; remove one of the entries", list()));
    missing.chain(no_other).map(|(why, name)| {
        // A container may have given an interface a name with terminal control characters.
        let present: Vec<_> = facts.interfaces.iter().map(|one| one.name.escape_debug().to_string()).collect();
        NoInterface { why, name, present: present.join(", ") }
    })
}

/// Builds the engine's view of the host. The interfaces in `names` are monitored; all of them if it is empty.
pub fn snapshot(names: &[String], allowed: &[(IpNet, Protection)], facts: &HostFacts, listeners: &[Listener]) -> Host {
    let mut allow = AllowList::new();
    facts.addresses.iter().for_each(|(on, address)| allow.insert_on(address.addr(), *on, Protection::OwnAddress));
    facts.link_gateways.iter().for_each(|(on, gateway)| allow.insert_on(*gateway, *on, Protection::Gateway));
    let mut protect = |addresses: &mut dyn Iterator<Item = IpAddr>, protection| {
        addresses.for_each(|address| allow.insert(IpNet::from(address), protection));
    };
    protect(&mut facts.gateways.iter().copied(), Protection::Gateway);
    protect(&mut facts.tunnel_peers.iter().copied(), Protection::TunnelPeer);
    protect(&mut facts.resolvers.iter().copied(), Protection::Resolver);
    protect(&mut LeaseFiles::default().read().into_iter(), Protection::DhcpServer);
    protect(&mut SessionFiles::default().read().into_iter(), Protection::Session);
    allowed.iter().for_each(|(network, why)| allow.insert(*network, *why));

    let routed = facts.local.iter().copied().filter(|network| !network.addr().is_loopback());
    let (single, prefixes): (Vec<_>, Vec<_>) = routed.partition(|one| one.prefix_len() == one.max_prefix_len());
    // A link-local address is protected above, on its link only.
    let everywhere = single.iter().filter(|one| !is_link_local(one.addr())).chain(&prefixes);
    everywhere.for_each(|network: &IpNet| allow.insert(*network, Protection::OwnAddress));
    let addresses = single.iter().chain(facts.addresses.iter().map(|(_, address)| address)).map(IpNet::addr).collect();
    let mut host = Host::new(Local::Own { addresses, prefixes });
    host.allow = allow;
    host.networks = facts.addresses.iter().map(|(_, address)| address.trunc()).collect();
    host.loopback = facts.interfaces.iter().filter(|one| one.loopback).map(|one| one.index).collect();
    host.interfaces = watched_interfaces(names, facts);
    // Every bridge may have a link-local address, which is only used for packets to the bridge itself.
    let has_address =
        |bridge: &u32| facts.addresses.iter().any(|(on, address)| on == bridge && !is_link_local(address.addr()));
    let ports = facts.interfaces.iter().filter_map(|one| Some((one.index, one.bridge.filter(has_address)?)));
    host.bridge_ports = ports.collect();
    host.links = links(facts);
    let guarded = facts
        .interfaces
        .iter()
        .filter(|one| !one.loopback && !one.accepts_own && one.vrf.is_none() && is_watched(names, &one.name));
    // A container may have given an interface a name with terminal control characters.
    host.guarded = guarded.map(|one| (one.index, one.name.escape_debug().to_string())).collect();
    host.broadcasts = broadcasts(&host.networks);
    host.reverse_path = reverse_path(facts);
    host.virtual_links = virtual_links(facts);
    host.frame_filters = [0, 1].map(|family| {
        let filters = facts.interfaces.iter().filter(|one| one.filters_frames.get(family) == Some(&true));
        filters.map(|one| one.index).collect()
    });
    host.anycast.clone_from(&facts.anycast);
    host.ephemeral = ephemeral_ports();
    // The link-local addresses of a VRF are those of its ports.
    let is_vrf = |index: &u32| facts.interfaces.iter().any(|one| one.index == *index && one.vrf == Some(*index));
    let masters = || facts.interfaces.iter().filter_map(|one| Some((one.index, one.master?)));
    host.ports = masters().filter(|(_, master)| !is_vrf(master)).collect();
    let lower = facts.interfaces.iter().filter_map(|one| Some((one.lower?, one.index)));
    host.uppers = masters().chain(lower).collect();
    // A listener bound to loopback is not reachable from outside.
    for listener in listeners.iter().filter(|one| !host.loopback.contains(&one.interface)) {
        insert(if listener.protocol == Protocol::Tcp { &mut host.tcp } else { &mut host.udp }, listener);
    }
    host.find_related();
    host
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// The addresses for which the kernel has a route of type `broadcast`. A network of one or two addresses has none.
fn broadcasts(networks: &[IpNet]) -> Vec<Ipv4Addr> {
    let all = networks.iter().filter_map(|network| match network {
        IpNet::V4(v4) if v4.prefix_len() < 31 => Some(v4.broadcast()),
        _ => None,
    });
    all.collect::<BTreeSet<_>>().into_iter().collect()
}

/// All interfaces.
fn links(facts: &HostFacts) -> Vec<Link> {
    let networks = |bridge: Option<u32>| {
        let own = facts.addresses.iter().filter(move |(on, _)| Some(*on) == bridge);
        own.map(|(_, address)| address.trunc()).collect()
    };
    let link = |one: &Interface| Link { id: LinkId::new(one.index, &one.name), guests: networks(one.bridge) };
    facts.interfaces.iter().map(link).collect()
}

/// Indexes of the virtual links, and of the interfaces that have frames from one: bridges and bonds with such a port,
/// VLANs.
fn virtual_links(facts: &HostFacts) -> Vec<u32> {
    let mut found: BTreeSet<u32> =
        facts.interfaces.iter().filter(|one| one.virtual_link).map(|one| one.index).collect();
    loop {
        let before = found.len();
        let masters = facts.interfaces.iter().filter(|one| found.contains(&one.index)).filter_map(|one| one.master);
        let upper = |one: &&Interface| matches!(one.lower, Some(lower) if found.contains(&lower));
        let uppers = facts.interfaces.iter().filter(upper).map(|one| one.index);
        let above: Vec<u32> = masters.chain(uppers).collect();
        found.extend(above);
        if found.len() == before {
            return found.into_iter().collect();
        }
    }
}

/// The routes and interfaces of the kernel's reverse-path filter.
fn reverse_path(facts: &HostFacts) -> ReversePath {
    // The last route inserted for a network is kept, and the preferred one comes first.
    let routes = facts.reverse_routes.iter().rev().map(|route| (route.network, route.interfaces.clone()));
    let strict = facts.interfaces.iter().filter(|one| one.strict).map(|one| one.index);
    ReversePath { strict: strict.collect(), routes: routes.collect() }
}

fn insert(listeners: &mut Listeners, Listener { bound, port, interface, .. }: &Listener) {
    for address in bound.addresses() {
        match interface {
            0 => listeners.insert(address, *port),
            _ => listeners.insert_on(*interface, address, *port),
        }
    }
}

/// True if an interface with this name is monitored: `names` contains it, is empty, or only excludes others.
pub fn is_watched(names: &[String], name: &str) -> bool {
    let leaves_out = |entry: &String| entry.strip_prefix('!').is_some_and(|left_out| left_out == name);
    match names.iter().any(|entry| entry.starts_with('!')) {
        true => !names.iter().any(leaves_out),
        false => names.is_empty() || names.iter().any(|entry| entry == name),
    }
}

/// Indexes of the interfaces monitored according to `names`; empty: all. A missing interface has no index, and is
/// monitored again when it returns under its name; if all are missing, an unused index excludes the others.
pub fn watched_interfaces(names: &[String], facts: &HostFacts) -> Vec<u32> {
    if names.is_empty() {
        return Vec::new();
    }
    let indexes = watched_indexes(names, facts);
    if indexes.is_empty() { vec![u32::MAX >> 1] } else { indexes }
}

/// Indexes of the interfaces that `names` selects, without loopback.
fn watched_indexes(names: &[String], facts: &HostFacts) -> Vec<u32> {
    // Packets on a port of an excluded bridge are for that bridge.
    let left_out =
        |index: &u32| facts.interfaces.iter().any(|one| one.index == *index && !is_watched(names, &one.name));
    let excludes = names.iter().any(|name| name.starts_with('!'));
    let known = facts.interfaces.iter().filter(|one| !one.loopback && is_watched(names, &one.name));
    let known = known.filter(|one| !excludes || !one.bridge.is_some_and(|bridge| left_out(&bridge)));
    let mut indexes: Vec<u32> = known.map(|one| one.index).collect();
    // Packets to a bridge arrive on one of its ports, and may be dropped there.
    let ports = facts.interfaces.iter().filter(|one| one.bridge.is_some_and(|bridge| indexes.contains(&bridge)));
    let ports: Vec<u32> = ports.map(|one| one.index).filter(|index| !indexes.contains(index)).collect();
    indexes.extend(ports);
    indexes
}

/// The ephemeral port range of this host; Linux's default if it cannot be read.
pub fn ephemeral_ports() -> PortSet {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_whitespace().map(str::parse::<u16>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => (first..=last).collect(),
        _ => (32_768..=60_999).collect(),
    }
}

/// `net.ipv4.ip_unprivileged_port_start`: the first port that every user may listen on.
pub fn first_unprivileged_port() -> u16 {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    // 65536 is valid: no port is open to every user.
    text.trim().parse::<u32>().map_or(1_024, |port| u16::try_from(port).unwrap_or(u16::MAX))
}
