//! The network facts of this host, collected from the kernel's messages.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::interface::Interface;
use super::next_hops::{Gateway, NextHop, object, preference, route_gateways};
use super::tunnels;
use crate::netlink::routes::destination;
use crate::types::shared64;

/// Maximum number of routers of one preference whose advertised default routes count. The kernel lists the oldest
/// first, and a host on the link can advertise any number.
const MAX_ADVERTISED: usize = 64;

/// The network facts of this host. Every list is sorted and without duplicates, so that two readings can be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Every address of every interface, with the interface index and the prefix length of its network. Includes
    /// tentative and deprecated IPv6 addresses. A point-to-point address has a full-length prefix (/32 or /128).
    pub addresses: Vec<(u32, IpNet)>,
    /// Destinations of routes of type `local` in any table: own addresses, and whole prefixes (AnyIP). Excludes the
    /// default route of a transparent proxy, whose packets are addressed to others.
    pub local: Vec<IpNet>,
    /// Destinations of routes of type `anycast`: the first address of each network of an IPv6 router.
    pub anycast: Vec<IpNet>,
    /// The kernel's IPv4 routes for its reverse-path filter. Empty if no interface has a strict filter.
    pub reverse_routes: Vec<ReverseRoute>,
    /// Next hops of every unicast route in every table, both families, multipath, RTA_VIA and next-hop objects
    /// included. Of advertised routes, only default routes of the highest preference count: any host on the link can
    /// advertise a route that is never used, or one to a network that this host does not talk to.
    pub gateways: Vec<IpAddr>,
    /// The link-local gateways with the interfaces of their routes: on another link another host may have that address.
    pub link_gateways: Vec<(u32, IpAddr)>,
    /// Outer addresses of the remote ends of active tunnels, and of IPsec policies that send whole networks.
    pub tunnel_peers: Vec<IpAddr>,
    /// Name servers, including those behind a local stub.
    pub resolvers: Vec<IpAddr>,
    pub interfaces: Vec<Interface>,
    /// Routers that advertised a default route, with its preference, and the next-hop objects of such routes; empty
    /// once the facts are in order.
    advertised: Vec<(i8, Gateway)>,
    advertised_objects: Vec<(i8, u32)>,
}

impl HostFacts {
    /// True if a setting of an interface has changed of which the kernel sends no notification (accept_local,
    /// drop_unicast_in_l2_multicast).
    pub fn has_changed_settings(&self) -> bool {
        self.interfaces.iter().any(Interface::has_changed)
    }

    pub(super) fn add_gateways(&mut self, other: &Self) {
        self.gateways.extend_from_slice(&other.gateways);
        self.link_gateways.extend_from_slice(&other.link_gateways);
        other.advertised.iter().for_each(|(preference, router)| self.add_advertised(*preference, *router));
        self.advertised_objects.extend_from_slice(&other.advertised_objects);
    }

    pub(super) fn add(&mut self, message: RouteNetlinkMessage) {
        match message {
            RouteNetlinkMessage::NewLink(link) => {
                self.tunnel_peers.extend(tunnels::peer(&link));
                self.interfaces.push(Interface::new(&link));
            }
            RouteNetlinkMessage::NewAddress(address) => self.addresses.extend(own_address(&address)),
            RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Local => {
                self.local.extend(destination(&route).filter(|network| network.prefix_len() > 0));
            }
            RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Anycast => {
                self.anycast.extend(destination(&route));
            }
            RouteNetlinkMessage::NewRoute(route) => {
                if self.interfaces.iter().any(|interface| interface.strict) {
                    self.reverse_routes.extend(ReverseRoute::new(&route));
                }
                let mut gateways = Vec::new();
                route_gateways(&route.attributes, 0, &mut gateways);
                if route.header.protocol != RouteProtocol::Ra {
                    gateways.into_iter().for_each(|gateway| self.add_gateway(gateway));
                } else if route.header.destination_prefix_length == 0 {
                    let preference = preference(&route);
                    gateways.into_iter().for_each(|router| self.add_advertised(preference, router));
                    self.advertised_objects.extend(object(&route).map(|object| (preference, object)));
                }
            }
            // Custom rules select tables in ways that this program does not follow.
            RouteNetlinkMessage::NewRule(rule) if !is_usual(&rule) => {
                self.interfaces.iter_mut().for_each(|interface| interface.strict = false);
            }
            _ => {}
        }
    }

    /// Adds the gateway of a next-hop object, after all routes. An advertised one counts with the default route that
    /// uses it.
    pub(super) fn add_next_hop(&mut self, NextHop { id, advertised, gateway }: NextHop) {
        if !advertised {
            return self.add_gateway(gateway);
        }
        let of_object = |(preference, object): &(i8, u32)| (*object == id).then_some(*preference);
        let preferences: Vec<i8> = self.advertised_objects.iter().filter_map(of_object).collect();
        preferences.into_iter().for_each(|preference| self.add_advertised(preference, gateway));
    }

    fn add_advertised(&mut self, preference: i8, router: Gateway) {
        let mut of_preference = self.advertised.iter().filter(|(one, _)| *one == preference);
        // A list that changes while it is read may contain a route several times.
        let is_known = of_preference.clone().any(|(_, known)| *known == router);
        if !is_known && of_preference.nth(MAX_ADVERTISED - 1).is_none() {
            self.advertised.push((preference, router));
        }
    }

    fn add_gateway(&mut self, Gateway { address, interface }: Gateway) {
        match address {
            IpAddr::V6(v6) if interface != 0 && shared64::is_link_local(v6) => {
                self.link_gateways.push((interface, address));
            }
            _ => self.gateways.push(address),
        }
    }

    pub(super) fn in_order(mut self) -> Self {
        let advertised = std::mem::take(&mut self.advertised);
        self.advertised_objects.clear();
        let best = advertised.iter().map(|(preference, _)| *preference).max();
        let in_use = advertised.into_iter().filter(|(preference, _)| Some(*preference) == best);
        in_use.for_each(|(_, router)| self.add_gateway(router));
        sort(&mut self.link_gateways);
        sort(&mut self.tunnel_peers);
        sort(&mut self.addresses);
        sort(&mut self.local);
        sort(&mut self.anycast);
        sort(&mut self.reverse_routes);
        sort(&mut self.gateways);
        sort(&mut self.interfaces);
        self
    }
}

/// Sorts `list` and removes duplicates.
fn sort<T: Ord>(list: &mut Vec<T>) {
    list.sort_unstable();
    list.dedup();
}

/// The host's own end of an address. On a point-to-point link IFA_ADDRESS and the prefix length belong to the peer.
fn own_address(message: &AddressMessage) -> Option<(u32, IpNet)> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    let own = local.or(address)?;
    let net = if address.is_none_or(|address| address == own) {
        IpNet::new(own, message.header.prefix_len).ok()?
    } else {
        IpNet::from(own)
    };
    Some((message.header.index, net))
}

/// An IPv4 route of the main or the default table, for the kernel's reverse-path filter. In sorted order, the preferred
/// route comes first.
///
/// References: `net/ipv4/fib_frontend.c` (`__fib_validate_source`), Documentation/networking/ip-sysctl.rst (rp_filter).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReverseRoute {
    pub network: Ipv4Net,
    /// The table (main first) and the metric.
    pub preference: (bool, u32),
    /// Indexes of its outgoing interfaces. Empty if a next-hop object does not contain them.
    pub interfaces: Vec<u32>,
}

const DEFAULT_TABLE: u32 = 253;
const MAIN_TABLE: u32 = 254;
const LOCAL_TABLE: u32 = 255;

impl ReverseRoute {
    /// `None` for a route that the filter ignores: IPv6, another table, or dead.
    fn new(route: &RouteMessage) -> Option<Self> {
        let RouteHeader { table, flags, tos, .. } = route.header;
        let (mut table, mut metric, mut interfaces) = (u32::from(table), 0, Vec::new());
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Priority(number) => metric = *number,
                RouteAttribute::Oif(index) => interfaces.push(*index),
                RouteAttribute::MultiPath(paths) => interfaces.extend(paths.iter().map(|path| path.interface_index)),
                _ => {}
            }
        }
        let IpNet::V4(network) = destination(route)? else { return None };
        let is_used = matches!(table, MAIN_TABLE | DEFAULT_TABLE) && tos == 0 && !flags.contains(RouteFlags::Dead);
        is_used.then_some(Self { network, preference: (table == DEFAULT_TABLE, metric), interfaces })
    }
}

/// True for the three default rules of every network namespace: local, main and default table, for all packets.
fn is_usual(rule: &RuleMessage) -> bool {
    let mut table = u32::from(rule.header.table);
    let narrows = rule.attributes.iter().any(|attribute| match attribute {
        RuleAttribute::Table(number) => {
            table = *number;
            false
        }
        RuleAttribute::Priority(_) | RuleAttribute::Protocol(_) => false,
        // -1 disables the check.
        RuleAttribute::SuppressPrefixLen(length) => *length != u32::MAX,
        _ => true,
    });
    !narrows && rule.header.action == RuleAction::ToTable && (DEFAULT_TABLE..=LOCAL_TABLE).contains(&table)
}
