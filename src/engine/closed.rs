//! Which ports are evidence whoever touches them: for who counts touches beside the engine.

use super::ports::PortSet;
use super::settings::Response;
use super::{Engine, Host, Moment};

impl Engine {
    /// The TCP ports that are watched, that nothing listens on at any address but loopback, and that were not in use a moment
    /// ago; none where nobody is blocked for touching them. A new connection to one of them counts against its source,
    /// unless a listener has come since.
    #[must_use]
    pub fn closed_ports(&self, now: Moment, host: &Host) -> PortSet {
        if self.settings.tcp.response != Response::Block {
            return PortSet::new();
        }
        let now = self.latest.max(now).tick();
        self.settings.tcp.ports.without(&host.tcp.anywhere()).without(&self.memory.tcp_ports(now))
    }
}
