//! The gateways of routes.

use std::net::IpAddr;

use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RoutePreference, RouteVia};

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
