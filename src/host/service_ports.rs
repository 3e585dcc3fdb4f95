//! Tells which listeners of this host are services: those of system users or on privileged ports, outside of the
//! ephemeral range.

use crate::engine::{Service, ServiceMemory};
use crate::netlink::sock_diag::Listener;
use crate::types::PortSet;

/// The port ranges that sysctls define.
#[derive(Clone, Copy, Debug)]
pub struct PortRanges<'a> {
    /// `net.ipv4.ip_local_port_range`: ports that the kernel assigns at random.
    pub ephemeral: &'a PortSet,
    /// `net.ipv4.ip_unprivileged_port_start`: only privileged programs can open lower ports. It is 1,024 unless an
    /// administrator has lowered it; higher values count as 1,024.
    pub first_unprivileged: u16,
}

/// The highest [`PortRanges::first_unprivileged`], which is the kernel's default.
pub const FIRST_UNPRIVILEGED: u16 = 1_024;

/// The service ports among `listeners`: those of system users or privileged ones, outside of the ephemeral range.
pub fn listening(listeners: &[Listener], ranges: PortRanges<'_>) -> ServiceMemory {
    listeners.iter().filter(|one| is_eligible(one, ranges)).flat_map(services).collect()
}

/// True for a listener of a system user or on a privileged port, except on ephemeral ports and on single interfaces.
pub fn is_eligible(listener: &Listener, ranges: PortRanges<'_>) -> bool {
    let is_system = is_system_user(listener.user) || listener.port < ranges.first_unprivileged.min(FIRST_UNPRIVILEGED);
    // Remembered services apply to all interfaces.
    is_system && listener.interface == 0 && !ranges.ephemeral.contains(listener.port)
}

/// True for users that are not persons: those below 1000 (login.defs: SYS_UID_MAX is 999), those of systemd services
/// with `DynamicUser=` (<https://systemd.io/UIDS-GIDS/>), and nobody, which services in containers on the host's
/// network often use.
fn is_system_user(user: u32) -> bool {
    matches!(user, 0..=999 | 61_184..=65_519 | 65_534)
}

/// The ports of a listener that packets from outside can reach, one entry per family.
pub fn services(listener: &Listener) -> impl Iterator<Item = Service> + use<> {
    let (protocol, port) = (listener.protocol, listener.port);
    let addresses = listener.bound.addresses().filter(|address| !address.is_loopback());
    addresses.map(move |address| Service { protocol, port, address })
}
