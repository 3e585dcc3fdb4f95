//! Lists the ports whose probes count as evidence, and those that this host serves, for the kernel's trap and for the
//! decoys.

use super::host::Host;
use super::recent_ports::RecentPorts;
use super::settings::Settings;
use crate::types::{PortSet, Protocol, Response, Tick};

/// The ports of a host at one moment, from [`super::Engine::ports`].
pub struct HostPorts<'a> {
    pub(super) settings: &'a Settings,
    pub(super) recent_ports: &'a RecentPorts,
    pub(super) host: &'a Host,
    pub(super) now: Tick,
    /// True while no source is banned: the kernel must not ban one either, and a decoy must not answer in place of a
    /// service that has not started yet.
    pub(super) is_settling: bool,
}

impl HostPorts<'_> {
    /// The TCP ports that decoys serve: the ports of connect mode without a non-loopback listener, without recent use
    /// and without a remembered service. Empty while this host settles.
    pub fn decoys(&self) -> PortSet {
        if self.is_settling { PortSet::new() } else { self.unused(Protocol::Tcp, &self.settings.decoys) }
    }

    /// The monitored ports of `protocol` without a non-loopback listener, without recent use and without a remembered
    /// service; empty if probes of `protocol` do not block. A new connection or datagram to one of them counts against
    /// its source, unless a listener was opened in the meantime.
    ///
    /// For UDP, ephemeral ports are excluded: packets to them are often answers and may arrive at any time.
    pub fn closed(&self, protocol: Protocol) -> PortSet {
        let closed = self.unused_monitored(protocol);
        match protocol {
            // Related ports that count as one port are counted by the engine alone.
            Protocol::Tcp => closed.without(&self.host.related.ports()),
            _ => closed.without(&self.host.ephemeral),
        }
    }

    /// The monitored TCP ports that are not among [`HostPorts::closed`] only because they are related to a service,
    /// without web ports. A new connection to one of them does not count in the kernel, but the kernel holds its
    /// source.
    pub fn related(&self) -> PortSet {
        let closed = self.unused_monitored(Protocol::Tcp);
        closed.without(&closed.without(&self.host.related.tried_once()))
    }

    /// The TCP ports that this host serves, as far as known. Ephemeral ports are left out, because passive FTP opens
    /// its data connections there. Empty if probes of TCP ports do not block, and while this host settles.
    pub fn served(&self) -> PortSet {
        if self.settings.tcp.response != Response::Block || self.is_settling {
            return PortSet::new();
        }
        let in_use = self.recent_ports.ports(Protocol::Tcp, self.now);
        self.host.tcp.anywhere().with(&in_use).without(&self.host.ephemeral)
    }

    fn unused_monitored(&self, protocol: Protocol) -> PortSet {
        let watch = self.settings.of_protocol(protocol);
        let is_idle = watch.response != Response::Block || self.is_settling;
        if is_idle { PortSet::new() } else { self.unused(protocol, &watch.ports) }
    }

    /// Those of `ports` that are not in use.
    fn unused(&self, protocol: Protocol, ports: &PortSet) -> PortSet {
        let Some(listeners) = self.host.listeners(protocol) else { return PortSet::new() };
        let free = ports.without(&listeners.anywhere()).without(&self.recent_ports.ports(protocol, self.now));
        free.without(&self.host.services.ports(protocol))
    }
}
