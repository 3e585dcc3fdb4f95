//! Reads the kernel's next-hop objects (`ip nexthop`) that point to gateways. A list of routes shows such gateways
//! only while the sysctl net.ipv4.nexthop_compat_mode is 1, so the objects are listed as well. netlink-packet-route
//! does not support them yet.
//!
//! References: `linux/nexthop.h` and the kernel's `net/ipv4/nexthop.c`.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NlasIterator};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};

use super::Gateway;
use super::error::HostError;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_GETNEXTHOP: u16 = 106;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;

/// `struct nhmsg`, in bytes; attributes follow.
const NHMSG: usize = 8;

const LIST: &str = "next-hop objects";

/// Adds the gateways of every next-hop object; false where the list changed while it was read. A kernel before 5.3 has
/// none.
pub(super) async fn list(gateways: &mut Vec<Gateway>) -> Result<bool, HostError> {
    let socket = TokioSocket::new(NETLINK_ROUTE).map_err(HostError::Open)?;
    let mut request = [0; 16 + NHMSG];
    let mut header = NetlinkBuffer::new(&mut request[..]);
    header.set_length(24);
    header.set_message_type(RTM_GETNEXTHOP);
    header.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    let refused = |error| HostError::Refused { list: LIST, error };
    poll_fn(|context| socket.poll_send_to(context, &request, &SocketAddr::new(0, 0))).await.map_err(refused)?;

    let mut consistent = true;
    let mut answer = Vec::with_capacity(64 * 1024);
    loop {
        answer.clear();
        let sender = poll_fn(|context| socket.poll_recv_from(context, &mut answer)).await.map_err(refused)?;
        if sender.port_number() == 0 && read(&answer, gateways, &mut consistent)? {
            return Ok(consistent);
        }
    }
}

/// Reads one datagram; true where the list is complete.
pub(super) fn read(datagram: &[u8], gateways: &mut Vec<Gateway>, consistent: &mut bool) -> Result<bool, HostError> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).map_err(|_| HostError::Ended(LIST))?;
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
        *consistent &= message.flags() & NLM_F_DUMP_INTR == 0;
        let payload = message.payload();
        match message.message_type() {
            RTM_NEWNEXTHOP => gateways.extend(gateway(payload)),
            NLMSG_DONE | NLMSG_ERROR => return status(payload).map(|()| true),
            _ => {}
        }
    }
    Ok(false)
}

fn status(payload: &[u8]) -> Result<(), HostError> {
    let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code)).saturating_neg();
    if code == 0 || code == rustix::io::Errno::OPNOTSUPP.raw_os_error() {
        return Ok(());
    }
    Err(HostError::Refused { list: LIST, error: io::Error::from_raw_os_error(code) })
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
