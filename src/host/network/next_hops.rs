//! Reads the kernel's next-hop objects (`ip nexthop`) that point to gateways. A list of routes shows such gateways
//! only while the sysctl net.ipv4.nexthop_compat_mode is 1, so the objects are listed as well. netlink-packet-route
//! does not support them yet.
//!
//! References: `linux/nexthop.h` and the kernel's `net/ipv4/nexthop.c`.

use std::net::IpAddr;

use netlink_packet_core::NlasIterator;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;

use super::Gateway;
use super::dump::Dump;
use super::error::HostError;

const RTM_NEWNEXTHOP: u16 = 104;
const RTM_GETNEXTHOP: u16 = 106;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;

/// `struct nhmsg`, in bytes; attributes follow.
const NHMSG: usize = 8;

const OBJECTS: Dump = Dump {
    name: "next-hop objects",
    protocol: NETLINK_ROUTE,
    request: RTM_GETNEXTHOP,
    entry: RTM_NEWNEXTHOP,
    unsupported: &[Errno::OPNOTSUPP],
};

/// Adds the gateways of every next-hop object; false where the list changed while it was read. A kernel before 5.3 has
/// none.
pub(super) async fn list(gateways: &mut Vec<Gateway>) -> Result<bool, HostError> {
    OBJECTS.list(|object| gateways.extend(gateway(object))).await
}

/// Reads one datagram; true where the list is complete. For the fuzzer.
#[cfg(any(test, fuzzing))]
pub(super) fn read(datagram: &[u8], gateways: &mut Vec<Gateway>) -> Result<bool, HostError> {
    OBJECTS.read(datagram, &mut |object| gateways.extend(gateway(object)), &mut true)
}

fn gateway(payload: &[u8]) -> Option<Gateway> {
    let (mut address, mut interface) = (None, 0);
    for attribute in NlasIterator::new(payload.get(NHMSG..)?).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            NHA_OIF => interface = value.first_chunk().map_or(0, |index| u32::from_ne_bytes(*index)),
            NHA_GATEWAY => {
                let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
                address = v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok();
            }
            _ => {}
        }
    }
    Some(Gateway { address: address?, interface })
}
