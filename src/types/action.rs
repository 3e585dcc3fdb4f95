//! Defines the treatment of a blocked source's packets in nftables.

use serde::Deserialize;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Drop them: the source waits for an answer that never arrives.
    #[default]
    Drop,
    /// Answer like a host without a listener, with a TCP reset or an ICMP error, so that an innocent client gives up
    /// immediately. Above a rate that could harm a third party, drop them.
    Reject,
}
