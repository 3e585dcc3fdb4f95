//! The bounds of the excuses. They are built in; the simulation moves one at a time to show that each is needed.

use std::time::Duration;

use super::known_peers::PEER_THRESHOLD;
use super::recent_ports::RECENT;
use super::related_ports::{MAX_EXTRA, MAX_UNRELATED};

/// How far each excuse goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// How long a port counts as open after it was in use; at most 68 years.
    pub recent: Duration,
    /// The maximum number of ports that one source is forgiven for their relation to others.
    pub related: u8,
    /// The maximum number of unrelated ports of a source for which ports of groups that this host does not serve count as one;
    /// `None`: they never do.
    pub unrelated: Option<u8>,
    /// The number of distinct ports that is enough for a ban of a connected peer.
    pub peer_threshold: u8,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { recent: RECENT, related: MAX_EXTRA, unrelated: Some(MAX_UNRELATED), peer_threshold: PEER_THRESHOLD }
    }
}
