//! Reads the gateways of routes, and the kernel's next-hop objects (`ip nexthop`) that point to gateways. A route list
//! contains such gateways only while the sysctl net.ipv4.nexthop_compat_mode is 1, so the objects are listed as well.
//! netlink-packet-route does not support them yet.
//!
//! References: `linux/nexthop.h` and the kernel's `net/ipv4/nexthop.c`.

use std::net::IpAddr;

use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RoutePreference, RouteProtocol, RouteVia,
};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;

use super::dump::Dump;
use super::error::HostError;
use crate::netlink::message::{attributes, ip};

const RTM_NEWNEXTHOP: u16 = 104;
const RTM_GETNEXTHOP: u16 = 106;
const NHA_ID: u16 = 1;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;

/// `struct nhmsg`, in bytes; attributes follow. Its third byte is the protocol, as of a route.
const NHMSG: usize = 8;
const PROTOCOL: usize = 2;

/// A next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gateway {
    pub(super) address: IpAddr,
    /// Index of the interface, or 0.
    pub(super) interface: u32,
}

/// The preference of a route that a router advertised (RFC 4191).
pub(super) fn preference(route: &RouteMessage) -> i8 {
    let preference = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Preference(preference) => Some(*preference),
        _ => None,
    });
    match preference {
        Some(RoutePreference::High) => 1,
        Some(RoutePreference::Low) => -1,
        _ => 0,
    }
}

/// The number of the next-hop object that a route uses, if it uses one.
pub(super) fn object(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::NhId(object) => Some(*object),
        _ => None,
    })
}

/// Collects the gateways of a route or of one of its paths. Their interface is `interface`, unless the attributes
/// contain another one.
pub(super) fn route_gateways(attributes: &[RouteAttribute], interface: u32, gateways: &mut Vec<Gateway>) {
    let named = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    let interface = named.unwrap_or(interface);
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) | RouteAttribute::Via(RouteVia::Inet(ip)) => {
                gateways.push(Gateway { address: (*ip).into(), interface });
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) | RouteAttribute::Via(RouteVia::Inet6(ip)) => {
                gateways.push(Gateway { address: (*ip).into(), interface });
            }
            // The kernel nests one level; the decoder has already limited the input to the datagram.
            RouteAttribute::MultiPath(paths) => {
                for path in paths {
                    route_gateways(&path.attributes, path.interface_index, gateways);
                }
            }
            _ => {}
        }
    }
}

/// A next-hop object that points to a gateway.
pub(super) struct NextHop {
    pub(super) id: u32,
    /// True if a router advertised it. systemd-networkd makes objects for such next hops.
    pub(super) advertised: bool,
    pub(super) gateway: Gateway,
}

const OBJECTS: Dump = Dump {
    name: "next-hop objects",
    protocol: NETLINK_ROUTE,
    request: RTM_GETNEXTHOP,
    entry: RTM_NEWNEXTHOP,
    unsupported: &[Errno::OPNOTSUPP],
};

/// Adds the gateways of every next-hop object; false if the list changed while it was read. Kernels before 5.3 have
/// none.
pub(super) async fn list(next_hops: &mut Vec<NextHop>) -> Result<bool, HostError> {
    OBJECTS.list(|object| next_hops.extend(next_hop(object))).await
}

/// Reads one datagram; true if the list is complete. For the fuzzer.
#[cfg(any(test, fuzzing))]
pub(super) fn read(datagram: &[u8], next_hops: &mut Vec<NextHop>) -> Result<bool, HostError> {
    OBJECTS.read(datagram, &mut |object| next_hops.extend(next_hop(object)), &mut true)
}

fn next_hop(payload: &[u8]) -> Option<NextHop> {
    let (mut address, mut interface, mut id) = (None, 0, 0);
    let number = |value: &[u8]| value.first_chunk().map_or(0, |number| u32::from_ne_bytes(*number));
    for (kind, value) in attributes(payload.get(NHMSG..)?) {
        match kind {
            NHA_ID => id = number(value),
            NHA_OIF => interface = number(value),
            NHA_GATEWAY => address = ip(value),
            _ => {}
        }
    }
    let advertised = payload.get(PROTOCOL).is_some_and(|protocol| RouteProtocol::from(*protocol) == RouteProtocol::Ra);
    Some(NextHop { id, advertised, gateway: Gateway { address: address?, interface } })
}
