//! Encodes RTM_NEWROUTE, RTM_DELROUTE and RTM_GETROUTE for a prefix, and decodes RTM_NEWROUTE. A message that cannot be
//! decoded is not a route of this program. Encodes RTM_GETNEIGH for one neighbour and for one entry of a bridge's
//! forwarding table, and decodes RTM_NEWNEIGH.
//!
//! References: `linux/neighbour.h`, and the kernel's `neigh_get` and `rtnl_fdb_get`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, Parseable};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc::{RTM_NEWNEIGH, RTM_NEWROUTE};

use crate::netlink::message::Message;
use crate::types::RouteKind;

/// The routing protocol number of routes added by portsentry. It alone determines ownership: routes with this number
/// are listed, replaced and removed, all others are never changed.
///
/// The kernel assigns no meaning to numbers above 4. Well-known numbers are avoided: 84 is OVN's, 80 Calico's, 186 to
/// 199 are those of FRR's daemons. 112 is in no list of iproute2, the kernel or FRR, and is the letter p.
pub const PROTOCOL: u8 = 112;

/// Metric of IPv6 routes: the lowest possible one, as 0 would mean 1024. IPv4 routes have no metric, which is the
/// lowest there. Therefore a route that another program adds later for the same prefix cannot silently replace a ban;
/// with the same metric the kernel refuses the second route.
const METRIC_V6: u32 = 1;

pub(super) const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// A route as reported by the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub net: IpNet,
    /// `None` if [`RouteKind`] does not contain its kind.
    pub kind: Option<RouteKind>,
    pub protocol: u8,
    table: u8,
}

impl Route {
    /// True for a route that this program may replace and remove.
    pub(super) fn is_own(&self) -> bool {
        self.protocol == PROTOCOL && self.table == RouteHeader::RT_TABLE_MAIN
    }
}

/// Reads one message of an answer.
pub(super) fn read(message: &Message<'_>) -> Option<Route> {
    // Checked first, because a socket may receive other messages, and a kernel without the family lists other routes
    // instead.
    if message.kind != RTM_NEWROUTE {
        return None;
    }
    route(message.body)
}

/// Reads the body of a message about a route.
pub(super) fn route(body: &[u8]) -> Option<Route> {
    let route = RouteMessage::parse(body).ok()?;
    let kind = match route.header.kind {
        RouteType::BlackHole => Some(RouteKind::Blackhole),
        RouteType::Unreachable => Some(RouteKind::Unreachable),
        RouteType::Prohibit => Some(RouteKind::Prohibit),
        RouteType::Unicast => route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) => Some(RouteKind::Via((*v4).into())),
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => Some(RouteKind::Via((*v6).into())),
            _ => None,
        }),
        _ => None,
    };
    let net = destination(&route)?;
    Some(Route { net, kind, protocol: route.header.protocol.into(), table: route.header.table })
}

/// The destination of a route. A default route has no attribute for it.
pub(crate) fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    let unspecified = match route.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    IpNet::new(address.unwrap_or(unspecified), route.header.destination_prefix_length).ok()
}

/// Appends the request to add a route, which fails if a route with the same metric exists.
pub(super) fn put_add(bytes: &mut Vec<u8>, net: IpNet, kind: RouteKind) {
    let mut route = own_route(net);
    route.header.kind = match kind {
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Prohibit => RouteType::Prohibit,
        RouteKind::Via(_) => RouteType::Unicast,
    };
    if net.addr().is_ipv6() {
        route.attributes.push(RouteAttribute::Priority(METRIC_V6));
    }
    if let RouteKind::Via(gateway) = kind {
        route.attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    append(bytes, RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL);
}

/// Appends the request to delete the own route to `net`, of any kind and metric.
pub(super) fn put_delete(bytes: &mut Vec<u8>, net: IpNet) {
    let mut route = own_route(net);
    // Any scope and any kind.
    route.header.scope = RouteScope::NoWhere;
    append(bytes, RouteNetlinkMessage::DelRoute(route), 0);
}

/// Appends the request to look up the route to an address in `net`.
pub(super) fn put_look_up(bytes: &mut Vec<u8>, net: IpNet) {
    let mut request = RouteMessage::default();
    let target = sample(net);
    request.header.address_family = target.into();
    request.header.destination_prefix_length = IpNet::from(target).prefix_len();
    // Returns the route itself instead of the result for this packet.
    request.header.flags = RouteFlags::FibMatch;
    request.attributes.push(RouteAttribute::Destination(target.into()));
    append(bytes, RouteNetlinkMessage::GetRoute(request), 0);
}

/// Appends the request for the list of own routes.
pub(super) fn put_list(bytes: &mut Vec<u8>, family: AddressFamily) {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    request.header.protocol = RouteProtocol::from(PROTOCOL);
    append(bytes, RouteNetlinkMessage::GetRoute(request), NLM_F_DUMP);
}

fn own_route(net: IpNet) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = net.addr().into();
    route.header.destination_prefix_length = net.prefix_len();
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::from(PROTOCOL);
    route.attributes.push(RouteAttribute::Destination(net.network().into()));
    route
}

fn append(bytes: &mut Vec<u8>, request: RouteNetlinkMessage, flags: u16) {
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len(), 0);
    if let Some(place) = bytes.get_mut(start..) {
        message.serialize(place);
    }
}

/// An address in `net` that is unlikely to have a separate route: not the first one, which is the routers' anycast
/// address in IPv6, and none that an administrator would assign to a host.
fn sample(net: IpNet) -> IpAddr {
    const UNLIKELY_HOST: u64 = 0x9e5a_c36d_71b8_2ef4;
    match net {
        IpNet::V4(net) => {
            let host = u32::try_from(UNLIKELY_HOST & u64::from(net.hostmask().to_bits())).unwrap_or_default();
            Ipv4Addr::from_bits(net.network().to_bits() | host).into()
        }
        IpNet::V6(net) => {
            Ipv6Addr::from_bits(net.network().to_bits() | (u128::from(UNLIKELY_HOST) & net.hostmask().to_bits())).into()
        }
    }
}

/// The VLANs in which the host's own packets cross a bridge: none, or that of a bridge that filters VLANs
/// (`vlan_default_pvid`).
pub(super) const VLANS: [Option<u16>; 2] = [None, Some(1)];

/// Appends the request for the neighbour with this address on `interface`.
pub(super) fn put_neighbour(bytes: &mut Vec<u8>, interface: u32, address: IpAddr) {
    let mut request = NeighbourMessage::default();
    (request.header.family, request.header.ifindex) = (address.into(), interface);
    request.attributes.push(NeighbourAttribute::Destination(address.into()));
    append(bytes, RouteNetlinkMessage::GetNeighbour(request), 0);
}

/// Appends the request for the entry of a hardware address in the forwarding table of `bridge`.
pub(super) fn put_forwarding(bytes: &mut Vec<u8>, bridge: u32, hardware: &[u8], vlan: Option<u16>) {
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Bridge;
    request.attributes.push(NeighbourAttribute::LinkLayerAddress(hardware.to_vec()));
    request.attributes.push(NeighbourAttribute::Controller(bridge));
    request.attributes.extend(vlan.map(NeighbourAttribute::Vlan));
    append(bytes, RouteNetlinkMessage::GetNeighbour(request), 0);
}

/// The interface and the hardware address in an answer.
pub(super) fn read_neighbour(message: &Message<'_>) -> Option<(u32, Vec<u8>)> {
    if message.kind != RTM_NEWNEIGH {
        return None;
    }
    let NeighbourMessage { header, attributes, .. } = NeighbourMessage::parse(message.body).ok()?;
    let hardware = attributes.into_iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(hardware) => Some(hardware),
        _ => None,
    });
    Some((header.ifindex, hardware?))
}

#[cfg(test)]
mod tests {
    use super::super::is_closed;
    use super::*;
    use crate::netlink::message::Messages;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn blackhole_route_has_exact_bytes() {
        let mut bytes = Vec::new();
        put_add(&mut bytes, net("192.0.2.7/32"), RouteKind::Blackhole);
        #[rustfmt::skip]
        let expected = [
            36, 0, 0, 0, 24, 0, 0x01, 0x06, 0, 0, 0, 0, 0, 0, 0, 0, // NEWROUTE: REQUEST, EXCL, CREATE
            2, 32, 0, 0, 254, 112, 0, 6, 0, 0, 0, 0,                // AF_INET /32, table main, RTN_BLACKHOLE
            8, 0, 1, 0, 192, 0, 2, 7,                               // RTA_DST
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn route_reads_back_unchanged() {
        let gateways = ["192.0.2.254", "2001:db8::fe"].map(|text| RouteKind::Via(text.parse().unwrap()));
        for net in [net("198.51.100.7/32"), net("2001:db8:1:2::/64")] {
            for kind in [RouteKind::Blackhole, RouteKind::Unreachable, RouteKind::Prohibit].into_iter().chain(gateways)
            {
                let kind = kind.toward(net);
                let mut bytes = Vec::new();
                put_add(&mut bytes, net, kind);
                let message = Messages(&bytes).next().unwrap();
                let route = read(&message).unwrap();
                assert_eq!((route.net, route.kind, route.is_own()), (net, Some(kind), true));
                assert!(is_closed(&Ok(route), net, kind));
                for end in 0..message.body.len() {
                    // Truncated it is not a route, or one without the missing parts; it never panics.
                    let _ = read(&Message { body: &message.body[..end], ..message });
                }
            }
        }
    }

    #[test]
    fn gateway_of_other_family_makes_blackhole() {
        let via = |text: &str| RouteKind::Via(text.parse().unwrap());
        assert_eq!(via("192.0.2.254").toward(net("2001:db8::/64")), RouteKind::Blackhole);
        assert_eq!(via("2001:db8::fe").toward(net("192.0.2.7/32")), RouteKind::Blackhole);
        assert_eq!(via("192.0.2.254").toward(net("192.0.2.7/32")), via("192.0.2.254"));
    }

    #[test]
    fn lookup_uses_inner_address() {
        for text in ["198.51.100.0/24", "2001:db8:1:2::/64", "2001:db8:1::/48"] {
            let net = net(text);
            assert!(net.contains(&sample(net)) && sample(net) != net.network(), "{net}: {}", sample(net));
        }
        assert_eq!(sample(net("192.0.2.7/32")), net("192.0.2.7/32").addr());
    }
}
