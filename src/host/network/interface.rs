//! The network interfaces of this host, with those settings of the kernel that decide which packets it takes.

use netlink_packet_route::link::{InfoKind, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface {
    /// The kernel's index, as in packets and listeners.
    pub index: u32,
    /// Its name, for example "eth0".
    pub name: String,
    /// True if it is administratively up (IFF_UP).
    pub up: bool,
    /// True for a loopback device (IFF_LOOPBACK).
    pub loopback: bool,
    /// True if it accepts IPv4 packets only from sources with a return route through it (rp_filter is 1).
    pub strict: bool,
    /// True if the kernel accepts IPv4 packets from this host's own addresses (accept_local).
    pub accepts_own: bool,
    /// True if the kernel drops unicast packets in broadcast and multicast frames (drop_unicast_in_l2_multicast), of
    /// IPv4 and of IPv6.
    pub filters_frames: [bool; 2],
    /// True if its frames come from programs on the same machine, and not over a wire: of a container, a virtual
    /// machine, or the hypervisor. The tunnels of this host count as such; interfaces that only carry frames of other
    /// interfaces do not.
    pub virtual_link: bool,
    /// Index of the VRF to which it belongs; its own index if it is a VRF.
    pub vrf: Option<u32>,
    /// Index of its master (IFLA_MASTER): a bridge, a bond, a VRF.
    pub master: Option<u32>,
    /// Index of the lower interface (IFLA_LINK) of a VLAN or macvlan.
    pub lower: Option<u32>,
    /// Index of its bridge, if it is a bridge port (IFLA_MASTER, if IFLA_INFO_SLAVE_KIND is "bridge").
    pub bridge: Option<u32>,
}

impl Interface {
    pub(super) fn new(link: &LinkMessage) -> Self {
        let (mut name, mut master, mut lower, mut bus) = (None, None, None, None);
        let (mut kind, mut port_kind) = (None, None);
        // An index in another network namespace is meaningless here.
        let mut elsewhere = false;
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text.as_str()),
                LinkAttribute::Controller(index) => master = Some(*index),
                LinkAttribute::Link(index) => lower = Some(*index),
                LinkAttribute::LinkNetNsId(_) => elsewhere = true,
                LinkAttribute::ParentDevBusName(text) => bus = Some(text.as_str()),
                LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| match info {
                    LinkInfo::Kind(found) => kind = Some(found),
                    LinkInfo::PortKind(found) => port_kind = Some(found),
                    _ => {}
                }),
                _ => {}
            }
        }
        let flags = link.header.flags;
        Self {
            index: link.header.index,
            // 1 is strict, 2 loose.
            strict: name.is_some_and(|name| setting(name, "rp_filter") == Some(1)),
            accepts_own: name.is_some_and(accepts_local),
            filters_frames: name.map_or([false; 2], filters_frames),
            virtual_link: is_virtual(kind, bus, elsewhere),
            name: name.unwrap_or_default().to_owned(),
            up: flags.contains(LinkFlags::Up),
            loopback: flags.contains(LinkFlags::Loopback),
            bridge: master.filter(|_| port_kind == Some(&InfoPortKind::Bridge)),
            master,
            lower: lower.filter(|_| !elsewhere),
            vrf: if kind == Some(&InfoKind::Vrf) {
                Some(link.header.index)
            } else {
                master.filter(|_| port_kind == Some(&InfoPortKind::Vrf))
            },
        }
    }

    /// True if a setting of which the kernel sends no notification differs from this one.
    pub(super) fn has_changed(&self) -> bool {
        accepts_local(&self.name) != self.accepts_own || filters_frames(&self.name) != self.filters_frames
    }
}

/// True if programs on the same machine can send frames through a device of this `kind`. For hardware without a kind,
/// the `bus` decides, which Linux reports since 5.14. `elsewhere` is true if the lower device is in another network
/// namespace.
fn is_virtual(kind: Option<&InfoKind>, bus: Option<&str>, elsewhere: bool) -> bool {
    match kind {
        // KVM, Hyper-V, Xen.
        None => matches!(bus, Some("virtio" | "vmbus" | "xen")),
        // Hardware, although it has a kind.
        Some(InfoKind::Dsa | InfoKind::Wwan | InfoKind::RmNet | InfoKind::Ipoib) => false,
        // These only carry the frames of other interfaces.
        Some(InfoKind::Bridge | InfoKind::Bond | InfoKind::Team | InfoKind::Vrf) => false,
        Some(InfoKind::Vlan | InfoKind::MacSec) => elsewhere,
        Some(_) => true,
    }
}

/// True if the kernel accepts IPv4 packets from this host's own addresses (accept_local).
fn accepts_local(interface: &str) -> bool {
    setting(interface, "accept_local") == Some(1)
}

/// True if the kernel drops unicast packets in broadcast and multicast frames (drop_unicast_in_l2_multicast), of IPv4
/// and of IPv6, which has no value for all interfaces.
fn filters_frames(interface: &str) -> [bool; 2] {
    let key = "drop_unicast_in_l2_multicast";
    [setting(interface, key), value("ipv6", interface, key)].map(|value| value.is_some_and(|value| value > 0))
}

/// The kernel uses the maximum of the interface's value and that of `all`.
fn setting(interface: &str, key: &str) -> Option<u8> {
    value("ipv4", interface, key).max(value("ipv4", "all", key))
}

fn value(family: &str, interface: &str, key: &str) -> Option<u8> {
    std::fs::read_to_string(format!("/proc/sys/net/{family}/conf/{interface}/{key}")).ok()?.trim().parse().ok()
}
