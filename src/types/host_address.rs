//! Tells addresses of hosts from those with a special meaning.

use std::net::IpAddr;

/// True for an address that a single host can have: not unspecified, loopback, multicast or broadcast.
pub fn is_host_address(address: &IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_broadcast)
}
