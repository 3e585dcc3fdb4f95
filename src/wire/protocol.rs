//! Defines the IP protocol numbers of the decoded headers, and the length of a UDP header.

pub(super) const ICMPV4: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;
pub(super) const SCTP: u8 = 132;

/// The length of a UDP header in bytes.
pub(super) const UDP_HEADER: usize = 8;
