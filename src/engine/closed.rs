//! Lists the ports whose probes are evidence: for the kernel's trap, which counts beside the engine, and for decoys.

use super::settings::Response;
use super::{Engine, Host};
use crate::types::{PortSet, Protocol, Timestamp};

impl Engine {
    /// The TCP ports that decoys serve: those of connect mode that nothing listens on at any address but loopback, that were
    /// not in use a moment ago and that no remembered service has. None while this host settles: a service that is not up yet
    /// must not be answered for.
    #[must_use]
    pub fn decoy_ports(&self, now: Timestamp, host: &Host) -> PortSet {
        if self.is_settling(now) {
            return PortSet::new();
        }
        let now = self.latest.max(now).tick();
        let free = self.settings.decoys.without(&host.tcp.anywhere());
        free.without(&self.recent_ports.ports(Protocol::Tcp, now)).without(&host.services.ports(Protocol::Tcp))
    }

    /// The ports of `protocol` that are watched, that nothing listens on at any address but loopback, that were not in use a
    /// moment ago and that no remembered service has; none if probes of them do not block. A new connection or a datagram to one of them counts
    /// against its source, unless a listener has come since.
    ///
    /// Of UDP without the ports that this host gives to sockets which ask for none: what comes there is often an answer, and
    /// may come at any time.
    #[must_use]
    pub fn closed_ports(&self, now: Timestamp, host: &Host, protocol: Protocol) -> PortSet {
        let (watch, listeners) = match protocol {
            Protocol::Tcp => (&self.settings.tcp, &host.tcp),
            Protocol::Udp => (&self.settings.udp, &host.udp),
            Protocol::Sctp | Protocol::Icmp => return PortSet::new(),
        };
        // Nothing beside the engine may condemn a source while this host settles.
        if watch.response != Response::Block || self.is_settling(now) {
            return PortSet::new();
        }
        let now = self.latest.max(now).tick();
        let closed = watch.ports.without(&listeners.anywhere()).without(&self.recent_ports.ports(protocol, now));
        let closed = closed.without(&host.services.ports(protocol));
        // What counts as one port with others is counted by the engine alone.
        let closed = if protocol == Protocol::Tcp { closed.without(&host.related.ports()) } else { closed };
        if protocol == Protocol::Udp { closed.without(&host.ephemeral) } else { closed }
    }
}
