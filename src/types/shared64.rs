//! Lists the IPv6 /64s that many unrelated hosts share, so that a ban must name one address. These are link-local
//! neighbours (RFC 4291), and IPv4 hosts behind a NAT64 translator, each of which has one IPv6 address (RFC 6052).
//!
//! The well-known prefixes always apply. The configured prefixes are set once at the start, because a remembered ban
//! must keep its meaning until the end of the process.

use std::net::Ipv6Addr;
use std::sync::OnceLock;

use ipnet::Ipv6Net;

/// Maximum number of prefixes of translators in the configuration.
pub const MAX_NAT64: usize = 8;

/// fe80::/64, the only part of fe80::/10 that RFC 4291 assigns, and the /64 of 64:ff9b::/96.
const WELL_KNOWN: [u64; 2] = [LINK_LOCAL, 0x0064_ff9b << 32];

/// The upper 64 bits of fe80::/64.
pub const LINK_LOCAL: u64 = 0xfe80 << 48;

/// The upper 64 bits of the configured prefixes.
static NAT64: OnceLock<Vec<u64>> = OnceLock::new();

/// Sets the prefixes of the translators through which clients reach this host. Only the first call has an effect.
pub fn set_nat64(prefixes: &[Ipv6Net]) {
    let _ = NAT64.set(prefixes.iter().map(|prefix| upper(prefix.addr())).take(MAX_NAT64).collect());
}

/// True for an address of fe80::/64.
pub fn is_link_local(address: Ipv6Addr) -> bool {
    upper(address) == LINK_LOCAL
}

/// The number of the shared /64 that contains `address`.
pub fn prefix_number(address: Ipv6Addr) -> Option<u8> {
    let wanted = upper(address);
    all().position(|upper| upper == wanted).and_then(|number| u8::try_from(number).ok())
}

/// The upper 64 bits of the addresses in the shared /64 with this number.
pub fn upper_half(number: u8) -> Option<u64> {
    all().nth(number.into())
}

/// True if `network` contains a whole shared /64.
pub fn is_inside(network: Ipv6Net) -> bool {
    all().any(|upper| network.contains(&Ipv6Addr::from_bits(u128::from(upper) << 64)))
}

fn all() -> impl Iterator<Item = u64> {
    WELL_KNOWN.into_iter().chain(NAT64.get().into_iter().flatten().copied())
}

fn upper(address: Ipv6Addr) -> u64 {
    (address.to_bits() >> 64) as u64
}
