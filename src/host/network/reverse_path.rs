//! Reads the input of the kernel's IPv4 reverse-path filter: the interfaces with a strict filter, and the routes.
//!
//! References: `net/ipv4/fib_frontend.c` (`__fib_validate_source`), Documentation/networking/ip-sysctl.rst (rp_filter).

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteHeader, RouteMessage};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use crate::netlink::routes::destination;

/// An IPv4 route of the main or the default table. In sorted order, the preferred route comes first.
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
    pub(super) fn new(route: &RouteMessage) -> Option<Self> {
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
pub(super) fn is_usual(rule: &RuleMessage) -> bool {
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
