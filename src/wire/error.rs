//! Defines the reasons why a frame gives no packet.

/// Why a frame gave no packet. Such frames are counted, but not logged one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undecoded {
    /// Not IP (ARP, LLDP, …). This is not an error.
    NotIp,
    /// The captured bytes end inside a header.
    Truncated,
    /// A header contains an invalid version, length or offset.
    Malformed,
}
