//! The outer ends of IPsec tunnels, from the kernel's policies: a ban of one cuts off everything that the tunnel carries.
//!
//! The kernel shows policies to processes with CAP_NET_ADMIN. Without it, and without IPsec, there are none.
//!
//! Read with: `linux/xfrm.h` and the kernel's `net/xfrm/xfrm_user.c`.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NlasIterator};
use rtnetlink::sys::protocols::NETLINK_XFRM;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};

use super::error::HostError;
use super::tunnels::is_peer;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const XFRM_MSG_NEWPOLICY: u16 = 0x13;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRMA_TMPL: u16 = 5;
/// XFRMNLGRP_SA and XFRMNLGRP_POLICY.
pub(super) const GROUPS: [u32; 2] = [3, 4];

/// `struct xfrm_userpolicy_info`, in bytes; attributes follow.
const POLICY: usize = 168;
const PREFIX_LENGTH: usize = 42;
const DIRECTION: usize = 160;
/// XFRM_POLICY_OUT.
const OUT: u8 = 1;
/// `struct xfrm_user_tmpl`, in bytes.
const TEMPLATE: usize = 64;
/// XFRM_MODE_TUNNEL.
const TUNNEL: u8 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// The most peers that are protected: a gateway of very many remote networks lists them under `[allow]`.
const MAX_PEERS: usize = 4_096;

const LIST: &str = "IPsec policies";

/// Adds the far ends of the tunnels into which outgoing policies send whole networks; false where the list changed while it
/// was read. A policy for a single address leads to one remote host, which is not part of this host's own network.
pub(super) async fn list(peers: &mut Vec<IpAddr>) -> Result<bool, HostError> {
    let Ok(socket) = TokioSocket::new(NETLINK_XFRM) else { return Ok(true) };
    let mut request = [0; 24];
    let mut header = NetlinkBuffer::new(&mut request[..]);
    header.set_length(24);
    header.set_message_type(XFRM_MSG_GETPOLICY);
    header.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    let refused = |error| HostError::Refused { list: LIST, error };
    poll_fn(|context| socket.poll_send_to(context, &request, &SocketAddr::new(0, 0))).await.map_err(refused)?;

    let (mut consistent, mut found) = (true, Vec::new());
    let mut answer = Vec::with_capacity(64 * 1024);
    loop {
        answer.clear();
        let sender = poll_fn(|context| socket.poll_recv_from(context, &mut answer)).await.map_err(refused)?;
        if sender.port_number() == 0 && read(&answer, &mut found, &mut consistent)? {
            found.sort_unstable();
            found.dedup();
            found.truncate(MAX_PEERS);
            peers.extend(found);
            return Ok(consistent);
        }
    }
}

/// Reads one datagram; true where the list is complete.
pub(super) fn read(datagram: &[u8], peers: &mut Vec<IpAddr>, consistent: &mut bool) -> Result<bool, HostError> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).map_err(|_| HostError::Ended(LIST))?;
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
        *consistent &= message.flags() & NLM_F_DUMP_INTR == 0;
        let payload = message.payload();
        match message.message_type() {
            XFRM_MSG_NEWPOLICY => peers.extend(policy_peers(payload).into_iter().flatten()),
            NLMSG_DONE | NLMSG_ERROR => return status(payload).map(|()| true),
            _ => {}
        }
    }
    Ok(false)
}

fn status(payload: &[u8]) -> Result<(), HostError> {
    let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code)).saturating_neg();
    let none = [rustix::io::Errno::PERM, rustix::io::Errno::OPNOTSUPP, rustix::io::Errno::INVAL];
    if code == 0 || none.iter().any(|errno| errno.raw_os_error() == code) {
        return Ok(());
    }
    Err(HostError::Refused { list: LIST, error: io::Error::from_raw_os_error(code) })
}

/// The peers of an outgoing policy for more than a single address.
fn policy_peers(payload: &[u8]) -> Option<impl Iterator<Item = IpAddr>> {
    let family = u16::from_ne_bytes(*payload.get(PREFIX_LENGTH - 2..)?.first_chunk()?);
    let single = if family == AF_INET { 32 } else { 128 };
    if *payload.get(DIRECTION)? != OUT || *payload.get(PREFIX_LENGTH)? >= single {
        return None;
    }
    let attributes = NlasIterator::new(payload.get(POLICY..)?).flatten();
    let templates = attributes.filter(|attribute| attribute.kind() == XFRMA_TMPL);
    let peers = templates.flat_map(|templates| templates.value().chunks_exact(TEMPLATE).map(peer).collect::<Vec<_>>());
    Some(peers.flatten())
}

/// The far end of one tunnel.
fn peer(template: &[u8]) -> Option<IpAddr> {
    if *template.get(48)? != TUNNEL {
        return None;
    }
    let peer = match u16::from_ne_bytes(*template.get(24..)?.first_chunk()?) {
        AF_INET => IpAddr::from(*template.first_chunk::<4>()?),
        AF_INET6 => IpAddr::from(*template.first_chunk::<16>()?),
        _ => return None,
    };
    Some(peer).filter(is_peer)
}
