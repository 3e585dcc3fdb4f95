//! Determines the remote ends of tunnels from the attributes of their links: a ban of one would cut off the whole
//! tunnel.
//!
//! The kernel's links contain the peers of VXLAN, Geneve, GRE, IPIP, SIT and VTI. WireGuard peers are only available
//! through generic netlink, together with the private key, and the daemon does not open it.

use std::net::IpAddr;

use netlink_packet_route::link::{
    InfoData, InfoGeneve, InfoGre, InfoGre6, InfoIpTunnel, InfoVti, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};

use crate::types::is_host_address;

/// The outer address of the remote end, if the tunnel is up and the address is unicast.
pub(super) fn peer(link: &LinkMessage) -> Option<IpAddr> {
    if !link.header.flags.contains(LinkFlags::Up) {
        return None;
    }
    let infos = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let data = infos?.iter().find_map(|info| if let LinkInfo::Data(data) = info { Some(data) } else { None });
    outer(data?).filter(is_host_address)
}

fn outer(data: &InfoData) -> Option<IpAddr> {
    match data {
        InfoData::Vxlan(infos) => infos.iter().find_map(|info| match info {
            InfoVxlan::Group(peer) => Some((*peer).into()),
            InfoVxlan::Group6(peer) => Some((*peer).into()),
            _ => None,
        }),
        InfoData::GreTap(infos) | InfoData::GreTun(infos) | InfoData::ErSpan(infos) => {
            infos.iter().find_map(|info| if let InfoGre::Remote(peer) = info { Some((*peer).into()) } else { None })
        }
        InfoData::GreTap6(infos) | InfoData::GreTun6(infos) | InfoData::Ip6ErSpan(infos) => {
            infos.iter().find_map(|info| if let InfoGre6::Remote(peer) = info { Some((*peer).into()) } else { None })
        }
        InfoData::IpTunnel(infos) => {
            infos.iter().find_map(|info| if let InfoIpTunnel::Remote(peer) = info { Some(*peer) } else { None })
        }
        InfoData::Vti(infos) => {
            infos.iter().find_map(|info| if let InfoVti::Remote(peer) = info { Some(*peer) } else { None })
        }
        InfoData::Geneve(infos) => infos.iter().find_map(|info| match info {
            InfoGeneve::Remote(peer) => Some((*peer).into()),
            InfoGeneve::Remote6(peer) => Some((*peer).into()),
            _ => None,
        }),
        _ => None,
    }
}
