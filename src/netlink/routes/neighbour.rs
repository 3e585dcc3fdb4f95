//! Encodes RTM_GETNEIGH for one neighbour and for one entry of a bridge's forwarding table, and decodes RTM_NEWNEIGH.
//!
//! References: `linux/neighbour.h`, and the kernel's `neigh_get` and `rtnl_fdb_get`.

use std::net::IpAddr;

use netlink_packet_core::Parseable;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc::RTM_NEWNEIGH;

use super::message::append;
use crate::netlink::message::Message;

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
pub(super) fn read(message: &Message<'_>) -> Option<(u32, Vec<u8>)> {
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
