//! Defines how nftables handles packets from blocked sources.

use serde::Deserialize;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Drop the packets: the source waits for a reply that never arrives.
    #[default]
    Drop,
    /// Reply as for a closed port, with a TCP reset or an ICMP error, so that an innocent client gives up immediately.
    /// Above a rate that could harm a third party, drop the packets.
    Reject,
}
