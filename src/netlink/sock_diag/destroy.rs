//! Ends the TCP connections of blocked sources: a dump finds them, and SOCK_DESTROY ends each. The local process gets
//! ECONNABORTED, and the kernel resets the peer.
//!
//! References: the kernel's `net/ipv4/tcp_diag.c` and `tcp_abort()` in `net/ipv4/tcp.c`.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_sock_diag::SockDiagDestroy;
use netlink_packet_sock_diag::constants::{
    IPPROTO_TCP, TCP_CLOSE_WAIT, TCP_CLOSING, TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_LAST_ACK, TCP_SYN_RECV,
};
use rustix::io::Errno;

use super::reply::Record;
use super::{SockDiag, SockDiagError, request};
use crate::types::{BanTarget, Protocol};

/// The states in which a peer still holds resources of this host. Never TCP_LISTEN, which has no peer.
const CONNECTED: [u8; 7] =
    [TCP_ESTABLISHED, TCP_SYN_RECV, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING];

/// Maximum number of connections ended per call, over all targets. It exceeds the default limit of open files per
/// process; further connections end at the next call.
const MAX_CONNECTIONS: usize = 16_384;

/// Result of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DestroyedCount {
    /// Number of ended connections by target; only targets that had any.
    pub connections: HashMap<BanTarget, usize>,
    /// True if there were more than the maximum: call again.
    pub more: bool,
}

/// Ends every TCP connection of this network namespace whose remote end is one of `targets`, including IPv4 on an
/// IPv6 socket, regardless of which side opened it. Listeners and connections of other sources stay, and so do
/// those whose remote end `is_exempt`: an IPv6 /64 may contain exempt addresses and addresses of this host.
///
/// # Errors
///
/// [`SockDiagError::NoDestroy`] if this is not possible on this system; others as for [`SockDiag::listeners`], in
/// which case some connections may have been ended.
pub fn end_connections(
    diag: &mut SockDiag,
    targets: &HashSet<BanTarget>,
    is_exempt: impl Fn(IpAddr) -> bool,
) -> Result<DestroyedCount, SockDiagError> {
    let mut found = Vec::new();
    let mut ended = DestroyedCount::default();
    diag.dump_tcp(&CONNECTED, |record| {
        let peer = record.id.destination_address.to_canonical();
        let on_link = BanTarget::on(peer, record.id.interface_id);
        let wanted = [on_link, on_link.on_every_link()].into_iter().find(|one| targets.contains(one));
        let wanted = wanted.filter(|_| !is_exempt(peer));
        let Some(target) = wanted else { return };
        match found.len() < MAX_CONNECTIONS {
            true => found.push((target, record)),
            false => ended.more = true,
        }
    })?;
    for (target, record) in found {
        if end(diag, record)? {
            *ended.connections.entry(target).or_default() += 1;
        }
    }
    Ok(ended)
}

/// Ends one connection; false if it had already ended.
fn end(diag: &mut SockDiag, record: Record) -> Result<bool, SockDiagError> {
    // The cookie identifies this very socket. Without it, a connection that has just ended would be looked up
    // again, and the listener on its port would be found and destroyed.
    let message = SockDiagDestroy::new(request(IPPROTO_TCP, 0, record.id));
    match diag.exchange(Protocol::Tcp, message, NLM_F_ACK, &mut |_| {}) {
        Ok(()) => Ok(true),
        Err(SockDiagError::Refused(_, errno)) => meaning(errno, record.state),
        Err(error) => Err(error),
    }
}

/// Interprets an error number for a connection in `state`.
fn meaning(errno: Errno, state: u8) -> Result<bool, SockDiagError> {
    match errno {
        // Ended, or ended and its ports are in use by another connection.
        Errno::NOENT | Errno::STALE => Ok(false),
        // This may be a connection in its final timeout, which older kernels do not end.
        Errno::OPNOTSUPP if state == TCP_FIN_WAIT2 => Ok(false),
        Errno::OPNOTSUPP | Errno::PERM => Err(SockDiagError::NoDestroy(errno)),
        _ => Err(SockDiagError::Refused(Protocol::Tcp, errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_kernel_support_differs_from_ended_connection() {
        assert!(matches!(meaning(Errno::NOENT, TCP_ESTABLISHED), Ok(false)));
        assert!(matches!(meaning(Errno::STALE, TCP_ESTABLISHED), Ok(false)));
        assert!(matches!(meaning(Errno::OPNOTSUPP, TCP_FIN_WAIT2), Ok(false)));
        assert!(matches!(meaning(Errno::OPNOTSUPP, TCP_ESTABLISHED), Err(SockDiagError::NoDestroy(_))));
        assert!(matches!(meaning(Errno::PERM, TCP_ESTABLISHED), Err(SockDiagError::NoDestroy(_))));
        assert!(matches!(meaning(Errno::NOMEM, TCP_ESTABLISHED), Err(SockDiagError::Refused(..))));
    }
}
