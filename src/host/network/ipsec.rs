//! Reads the outer addresses of IPsec tunnels from the kernel's policies: a ban of one would cut off the whole tunnel.
//!
//! The kernel shows policies to processes with CAP_NET_ADMIN. Without it, or without IPsec, the list is empty.
//!
//! References: `linux/xfrm.h` and the kernel's `net/xfrm/xfrm_user.c`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rtnetlink::sys::protocols::NETLINK_XFRM;
use rustix::io::Errno;

use super::dump::Dump;
use super::error::HostError;
use crate::netlink::message::attributes;
use crate::types::is_host_address;

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

/// Maximum number of protected peers: a gateway with more remote networks lists them under `[allow]`.
const MAX_PEERS: usize = 4_096;

const POLICIES: Dump = Dump {
    name: "IPsec policies",
    protocol: NETLINK_XFRM,
    request: XFRM_MSG_GETPOLICY,
    entry: XFRM_MSG_NEWPOLICY,
    unsupported: &[Errno::PERM, Errno::OPNOTSUPP, Errno::INVAL],
};

/// Adds the remote ends of the tunnels into which outgoing policies send whole networks; false if the list changed
/// while it was read. A policy for a single address leads to one remote host, which is not part of this host's own
/// network.
pub(super) async fn list(peers: &mut Vec<IpAddr>) -> Result<bool, HostError> {
    let mut found = BTreeSet::new();
    let consistent = match POLICIES.list(|policy| found.extend(policy_peers(policy).into_iter().flatten())).await {
        Err(HostError::Open(_)) => return Ok(true),
        result => result?,
    };
    peers.extend(found.into_iter().take(MAX_PEERS));
    Ok(consistent)
}

/// Reads one datagram; true if the list is complete. For the fuzzer.
#[cfg(any(test, fuzzing))]
pub(super) fn read(datagram: &[u8], peers: &mut Vec<IpAddr>) -> Result<bool, HostError> {
    POLICIES.read(datagram, &mut |policy| peers.extend(policy_peers(policy).into_iter().flatten()), &mut true)
}

/// The peers of an outgoing policy for more than one address.
fn policy_peers(payload: &[u8]) -> Option<impl Iterator<Item = IpAddr>> {
    let family = u16::from_ne_bytes(*payload.get(PREFIX_LENGTH - 2..)?.first_chunk()?);
    let single = if family == AF_INET { 32 } else { 128 };
    if *payload.get(DIRECTION)? != OUT || *payload.get(PREFIX_LENGTH)? >= single {
        return None;
    }
    let templates = attributes(payload.get(POLICY..)?).filter(|(kind, _)| *kind == XFRMA_TMPL);
    Some(templates.flat_map(|(_, templates)| templates.chunks_exact(TEMPLATE).filter_map(peer)))
}

/// The remote end of one tunnel.
fn peer(template: &[u8]) -> Option<IpAddr> {
    if *template.get(48)? != TUNNEL {
        return None;
    }
    let peer = match u16::from_ne_bytes(*template.get(24..)?.first_chunk()?) {
        AF_INET => IpAddr::from(*template.first_chunk::<4>()?),
        AF_INET6 => IpAddr::from(*template.first_chunk::<16>()?),
        _ => return None,
    };
    Some(peer).filter(is_host_address)
}
