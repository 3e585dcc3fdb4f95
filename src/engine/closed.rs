//! Lists the ports whose probes count as evidence, for the kernel's trap and for the decoys.

use super::key::Response;
use super::{Engine, Host};
use crate::types::{PortSet, Protocol, Timestamp};

impl Engine {
    /// The TCP ports that decoys serve: the ports of connect mode without a non-loopback listener, without recent use
    /// and without a remembered service. Empty while this host settles, because a decoy must not answer in place of a
    /// service that has not started yet.
    pub fn decoy_ports(&self, now: Timestamp, host: &Host) -> PortSet {
        if self.is_settling(now) {
            return PortSet::new();
        }
        let now = self.latest.max(now).tick();
        let free = self.settings.decoys.without(&host.tcp.anywhere());
        free.without(&self.recent_ports.ports(Protocol::Tcp, now)).without(&host.services.ports(Protocol::Tcp))
    }

    /// The monitored ports of `protocol` without a non-loopback listener, without recent use and without a remembered
    /// service; empty if probes of `protocol` do not block. A new connection or datagram to one of them counts against
    /// its source, unless a listener was opened in the meantime.
    ///
    /// For UDP, ephemeral ports are excluded: packets to them are often answers and may arrive at any time.
    pub fn closed_ports(&self, now: Timestamp, host: &Host, protocol: Protocol) -> PortSet {
        let closed = self.unused_ports(now, host, protocol);
        // Related ports that count as one port are counted by the engine alone.
        if protocol == Protocol::Tcp { closed.without(&host.related.ports()) } else { closed }
    }

    /// The monitored TCP ports that are not among [`Engine::closed_ports`] only because they are related to a service.
    /// A new connection to one of them does not count in the kernel, but the kernel holds its source.
    pub fn related_ports(&self, now: Timestamp, host: &Host) -> PortSet {
        let closed = self.unused_ports(now, host, Protocol::Tcp);
        closed.without(&closed.without(&host.related.tried_once()))
    }

    /// The TCP ports that this host serves, as far as known. Ephemeral ports are left out, because passive FTP opens
    /// its data connections there. Empty if probes of TCP ports do not block, and while this host settles.
    pub fn served_ports(&self, now: Timestamp, host: &Host) -> PortSet {
        if self.settings.tcp.response != Response::Block || self.is_settling(now) {
            return PortSet::new();
        }
        let in_use = self.recent_ports.ports(Protocol::Tcp, self.latest.max(now).tick());
        host.tcp.anywhere().with(&in_use).without(&host.ephemeral)
    }

    fn unused_ports(&self, now: Timestamp, host: &Host, protocol: Protocol) -> PortSet {
        let (watch, listeners) = match protocol {
            Protocol::Tcp => (&self.settings.tcp, &host.tcp),
            Protocol::Udp => (&self.settings.udp, &host.udp),
            Protocol::Sctp | Protocol::Icmp => return PortSet::new(),
        };
        // While this host settles, the kernel must not ban a source either.
        if watch.response != Response::Block || self.is_settling(now) {
            return PortSet::new();
        }
        let now = self.latest.max(now).tick();
        let closed = watch.ports.without(&listeners.anywhere()).without(&self.recent_ports.ports(protocol, now));
        let closed = closed.without(&host.services.ports(protocol));
        if protocol == Protocol::Udp { closed.without(&host.ephemeral) } else { closed }
    }
}
