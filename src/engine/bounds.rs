//! Limits of the rules that excuse probes. The built-in values apply; the simulation varies one at a time to show that
//! each is needed.

use std::time::Duration;

use super::known_peers::PEER_THRESHOLD;
use super::recent_ports::RECENT;
use super::related_ports::{MAX_EXTRA, MAX_UNRELATED};

/// Limits of the rules that excuse probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Time for which a port counts as open after it was in use; at most 68 years.
    pub recent: Duration,
    /// Maximum number of a source's ports that are forgiven because they are related to others.
    pub related: u8,
    /// Maximum number of unrelated ports with which every group of related ports of a source counts as one port. With
    /// more, or with `None`, only served groups do.
    pub unrelated: Option<u8>,
    /// Number of distinct ports that is enough for a ban of a connected peer.
    pub peer_threshold: u8,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { recent: RECENT, related: MAX_EXTRA, unrelated: Some(MAX_UNRELATED), peer_threshold: PEER_THRESHOLD }
    }
}
