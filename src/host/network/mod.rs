//! Reads this host's addresses, gateways and interfaces from the kernel over rtnetlink, and its resolvers from
//! resolv.conf. They are exempt without configuration and follow changes of the system: [`Watcher`] reports when to
//! read again.
//!
//! A socket belongs to the network namespace of the thread that opens it, so a tokio runtime with one thread keeps all
//! of them in one namespace.
//!
//! References: rtnetlink(7), `linux/rtnetlink.h`, `linux/if_addr.h`.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_core::{ErrorMessage, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RoutePreference, RouteProtocol, RouteType, RouteVia,
};
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::host::resolv_conf::ResolverFiles;
use crate::types::shared64;

mod dump;
mod error;
mod ipsec;
mod next_hops;
mod reverse_path;
mod tunnels;
mod watch;

pub use error::HostError;
use error::{MAX_IPV6_ROUTES_DUMP, TIMEOUT};
use next_hops::NextHop;
pub use reverse_path::ReverseRoute;
pub use watch::Watcher;

/// The network facts of this host. Every list is sorted and without duplicates, so that two readings can be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Every address of every interface, with the interface index and the prefix length of its network. Includes
    /// tentative and deprecated IPv6 addresses. A point-to-point address has a full-length prefix (/32 or /128).
    pub addresses: Vec<(u32, IpNet)>,
    /// Destinations of routes of type `local` in any table: own addresses, and whole prefixes (AnyIP). Excludes the
    /// default route of a transparent proxy, whose packets are addressed to others.
    pub local: Vec<IpNet>,
    /// Destinations of routes of type `anycast`: the first address of each network of an IPv6 router.
    pub anycast: Vec<IpNet>,
    /// The kernel's IPv4 routes for its reverse-path filter. Empty if no interface has a strict filter.
    pub reverse_routes: Vec<ReverseRoute>,
    /// Next hops of every unicast route in every table, both families, multipath, RTA_VIA and next-hop objects
    /// included. Of advertised routes, only default routes of the highest preference count: any host on the link can
    /// advertise a route that is never used, or one to a network that this host does not talk to.
    pub gateways: Vec<IpAddr>,
    /// The link-local gateways with the interfaces of their routes: on another link another host may have that address.
    pub link_gateways: Vec<(u32, IpAddr)>,
    /// Outer addresses of the remote ends of active tunnels, and of IPsec policies that send whole networks.
    pub tunnel_peers: Vec<IpAddr>,
    /// Name servers, including those behind a local stub.
    pub resolvers: Vec<IpAddr>,
    pub interfaces: Vec<Interface>,
    /// Routers that advertised a default route, with its preference, and the next-hop objects of such routes; empty
    /// once the facts are in order.
    advertised: Vec<(i8, Gateway)>,
    advertised_objects: Vec<(i8, u32)>,
}

/// A next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gateway {
    address: IpAddr,
    /// Index of the interface, or 0.
    interface: u32,
}

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

/// Number of attempts to read lists that change while they are read. After that, the notification of that change makes
/// the [`Watcher`]'s owner read once more anyway.
const MAX_ATTEMPTS: u32 = 3;

/// Maximum number of routers of one preference whose advertised default routes count. The kernel lists the oldest
/// first, and a host on the link can advertise any number.
const MAX_ADVERTISED: usize = 64;

/// Listing IPv6 routes takes at most 1/`SHARE` of the time, unless a list takes less than [`SHORT_DUMP`].
const SHARE: u32 = 10;

const SHORT_DUMP: Duration = Duration::from_millis(100);

/// Reads the facts, any number of times. The list of IPv6 routes has a separate time limit, and the last one is kept. A
/// host on the link that floods router advertisements makes this list take seconds, because the kernel starts again at
/// the first default route for each datagram.
pub struct Reader {
    limit: Duration,
    /// The facts of the last complete list of IPv6 routes.
    complete: HostFacts,
    /// The same, with the listed part of a late list added.
    last: HostFacts,
    is_late: bool,
    /// When IPv6 routes may be listed again.
    due: Option<Instant>,
}

/// The result of [`Reader::read`].
#[derive(Debug)]
pub struct Reading {
    pub facts: HostFacts,
    /// The error of the list of IPv6 routes, if it is late. Then the facts contain the gateways of the part that was
    /// listed in time and those of the last complete list.
    pub late: Option<HostError>,
    /// True if IPv6 routes must be listed again later.
    pub is_owed: bool,
}

impl Default for Reader {
    fn default() -> Self {
        let (complete, last) = (HostFacts::default(), HostFacts::default());
        Self { limit: MAX_IPV6_ROUTES_DUMP, complete, last, is_late: false, due: None }
    }
}

impl Reader {
    /// Sets the time limit for the list of IPv6 routes.
    pub fn limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// Reads the facts. To miss no change, open the [`Watcher`] first.
    ///
    /// # Errors
    ///
    /// A list other than that of IPv6 routes cannot be read completely: it could leave a gateway unprotected.
    pub async fn read(&mut self, resolvers: &ResolverFiles) -> Result<Reading, HostError> {
        let resolvers = resolvers.read().map_err(|(path, error)| HostError::Resolvers(path, error))?;
        let is_due = self.due.is_none_or(|due| due <= Instant::now());
        if is_due {
            self.list_ipv6_routes().await?;
        }
        let mut attempt = 1;
        loop {
            let mut facts = HostFacts { resolvers: resolvers.clone(), ..HostFacts::default() };
            let lists = facts.list_all(&self.last);
            let consistent = tokio::time::timeout(TIMEOUT, lists).await.map_err(|_| HostError::Timeout)??;
            if consistent || attempt == MAX_ATTEMPTS {
                let late = self.is_late.then_some(HostError::Late);
                return Ok(Reading { facts: facts.in_order(), is_owed: late.is_some() || !is_due, late });
            }
            attempt += 1;
        }
    }

    async fn list_ipv6_routes(&mut self) -> Result<(), HostError> {
        let begin = Instant::now();
        self.is_late = false;
        for _ in 0..MAX_ATTEMPTS {
            let mut listed = HostFacts::default();
            let left = self.limit.saturating_sub(begin.elapsed());
            let is_consistent = match left.is_zero() {
                true => None,
                false => tokio::time::timeout(left, listed.list(&[ipv6_routes()])).await.ok().transpose()?,
            };
            match is_consistent {
                Some(is_consistent) => {
                    (self.complete, self.last) = (listed.clone(), listed);
                    if is_consistent || begin.elapsed() > SHORT_DUMP {
                        break;
                    }
                }
                None => {
                    listed.add_gateways(&self.complete);
                    self.last = listed;
                    self.is_late = true;
                    break;
                }
            }
        }
        let took = begin.elapsed();
        self.due = (took > SHORT_DUMP).then(|| begin + took * SHARE);
        Ok(())
    }
}

impl HostFacts {
    /// True if a setting of an interface has changed of which the kernel sends no notification (accept_local,
    /// drop_unicast_in_l2_multicast).
    #[must_use]
    pub fn has_changed_settings(&self) -> bool {
        self.interfaces.iter().any(reverse_path::has_changed)
    }

    /// Adds the kernel's lists and the gateways in `ipv6_routes`; false if a list changed while it was read.
    async fn list_all(&mut self, ipv6_routes: &Self) -> Result<bool, HostError> {
        let consistent = self.list(&requests()).await?;
        self.add_gateways(ipv6_routes);
        let mut gateways = Vec::new();
        let consistent = next_hops::list(&mut gateways).await? && consistent;
        gateways.into_iter().for_each(|gateway| self.add_next_hop(gateway));
        Ok(ipsec::list(&mut self.tunnel_peers).await? && consistent)
    }

    fn add_gateways(&mut self, other: &Self) {
        self.gateways.extend_from_slice(&other.gateways);
        self.link_gateways.extend_from_slice(&other.link_gateways);
        other.advertised.iter().for_each(|(preference, router)| self.add_advertised(*preference, *router));
        self.advertised_objects.extend_from_slice(&other.advertised_objects);
    }

    /// Adds these lists of the kernel; false if a list changed while it was read.
    async fn list(&mut self, requests: &[(&'static str, RouteNetlinkMessage)]) -> Result<bool, HostError> {
        // The strict check makes the kernel filter by route type, so that large numbers of blackholes are not
        // transferred.
        let (connection, mut handle, mut answers) =
            rtnetlink::new_connection_with_strict_check().map_err(HostError::Open)?;
        let ask = async {
            let mut consistent = true;
            for (list, request) in requests {
                let list = *list;
                let mut request = NetlinkMessage::from(request.clone());
                request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
                // Not `Handle::request`, whose stream ends in the same way after a complete and a broken list.
                handle.notify(request).map_err(|_| HostError::Ended(list))?;
                loop {
                    let (message, _) = answers.recv().await.map_err(|_| HostError::Ended(list))?;
                    consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                    match message.payload {
                        NetlinkPayload::InnerMessage(message) => self.add(message),
                        NetlinkPayload::Done(done) if done.code == 0 => break,
                        NetlinkPayload::Done(done) => {
                            let error = io::Error::from_raw_os_error(done.code.saturating_neg());
                            return Err(HostError::Refused { list, error });
                        }
                        // A kernel without policy routing.
                        NetlinkPayload::Error(_) if list == RULES => break,
                        NetlinkPayload::Error(error) => return Err(refused(list, &error)),
                        NetlinkPayload::Overrun(_) => return Err(HostError::Ended(list)),
                        _ => {}
                    }
                }
            }
            Ok(consistent)
        };
        tokio::select! {
            answer = ask => answer,
            () = connection => Err(HostError::Ended("addresses, routes and links")),
        }
    }

    fn add(&mut self, message: RouteNetlinkMessage) {
        match message {
            RouteNetlinkMessage::NewLink(link) => {
                self.tunnel_peers.extend(tunnels::peer(&link));
                self.interfaces.push(interface(&link));
            }
            RouteNetlinkMessage::NewAddress(address) => self.addresses.extend(own_address(&address)),
            RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Local => {
                self.local.extend(reverse_path::destination(&route).filter(|network| network.prefix_len() > 0));
            }
            RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Anycast => {
                self.anycast.extend(reverse_path::destination(&route));
            }
            RouteNetlinkMessage::NewRoute(route) => {
                if self.interfaces.iter().any(|interface| interface.strict) {
                    self.reverse_routes.extend(ReverseRoute::new(&route));
                }
                let mut gateways = Vec::new();
                route_gateways(&route.attributes, 0, &mut gateways);
                if route.header.protocol != RouteProtocol::Ra {
                    gateways.into_iter().for_each(|gateway| self.add_gateway(gateway));
                } else if route.header.destination_prefix_length == 0 {
                    let preference = preference(&route);
                    gateways.into_iter().for_each(|router| self.add_advertised(preference, router));
                    self.advertised_objects.extend(object(&route).map(|object| (preference, object)));
                }
            }
            // Custom rules select tables in ways that this program does not follow.
            RouteNetlinkMessage::NewRule(rule) if !reverse_path::is_usual(&rule) => {
                self.interfaces.iter_mut().for_each(|interface| interface.strict = false);
            }
            _ => {}
        }
    }

    /// Adds the gateway of a next-hop object, after all routes. An advertised one counts with the default route that
    /// uses it.
    fn add_next_hop(&mut self, NextHop { id, advertised, gateway }: NextHop) {
        if !advertised {
            return self.add_gateway(gateway);
        }
        let of_object = |(preference, object): &(i8, u32)| (*object == id).then_some(*preference);
        let preferences: Vec<i8> = self.advertised_objects.iter().filter_map(of_object).collect();
        preferences.into_iter().for_each(|preference| self.add_advertised(preference, gateway));
    }

    fn add_advertised(&mut self, preference: i8, router: Gateway) {
        let mut of_preference = self.advertised.iter().filter(|(one, _)| *one == preference);
        // A list that changes while it is read may contain a route several times.
        let is_known = of_preference.clone().any(|(_, known)| *known == router);
        if !is_known && of_preference.nth(MAX_ADVERTISED - 1).is_none() {
            self.advertised.push((preference, router));
        }
    }

    fn add_gateway(&mut self, Gateway { address, interface }: Gateway) {
        match address {
            IpAddr::V6(v6) if interface != 0 && shared64::is_link_local(v6) => {
                self.link_gateways.push((interface, address));
            }
            _ => self.gateways.push(address),
        }
    }

    fn in_order(mut self) -> Self {
        let advertised = std::mem::take(&mut self.advertised);
        self.advertised_objects.clear();
        let best = advertised.iter().map(|(preference, _)| *preference).max();
        let in_use = advertised.into_iter().filter(|(preference, _)| Some(*preference) == best);
        in_use.for_each(|(_, router)| self.add_gateway(router));
        self.link_gateways.sort_unstable();
        self.link_gateways.dedup();
        self.tunnel_peers.sort_unstable();
        self.tunnel_peers.dedup();
        self.addresses.sort_unstable();
        self.addresses.dedup();
        self.local.sort_unstable();
        self.local.dedup();
        self.anycast.sort_unstable();
        self.anycast.dedup();
        self.reverse_routes.sort_unstable();
        self.gateways.sort_unstable();
        self.gateways.dedup();
        self.interfaces.sort_unstable();
        self.interfaces.dedup();
        self
    }
}

const RULES: &str = "IPv4 routing rules";

fn routes(family: AddressFamily, kind: RouteType) -> RouteNetlinkMessage {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    request.header.kind = kind;
    RouteNetlinkMessage::GetRoute(request)
}

fn ipv6_routes() -> (&'static str, RouteNetlinkMessage) {
    ("IPv6 routes", routes(AddressFamily::Inet6, RouteType::Unicast))
}

fn requests() -> [(&'static str, RouteNetlinkMessage); 7] {
    let mut rules = RuleMessage::default();
    rules.header.family = AddressFamily::Inet;
    [
        ("links", RouteNetlinkMessage::GetLink(LinkMessage::default())),
        ("addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default())),
        (RULES, RouteNetlinkMessage::GetRule(rules)),
        ("local IPv4 routes", routes(AddressFamily::Inet, RouteType::Local)),
        ("local IPv6 routes", routes(AddressFamily::Inet6, RouteType::Local)),
        ("anycast IPv6 routes", routes(AddressFamily::Inet6, RouteType::Anycast)),
        ("IPv4 routes", routes(AddressFamily::Inet, RouteType::Unicast)),
    ]
}

fn refused(list: &'static str, error: &ErrorMessage) -> HostError {
    HostError::Refused { list, error: error.to_io() }
}

fn interface(link: &LinkMessage) -> Interface {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    let is = |info: LinkInfo| {
        link.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.contains(&info),
            _ => false,
        })
    };
    let is_port = is(LinkInfo::PortKind(InfoPortKind::Bridge));
    let master = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    });
    let lower = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    });
    // An index in another network namespace is meaningless here.
    let elsewhere = link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::LinkNetNsId(_)));
    let flags = link.header.flags;
    let kind = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind),
            _ => None,
        }),
        _ => None,
    });
    let bus = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::ParentDevBusName(name) => Some(name.as_str()),
        _ => None,
    });
    Interface {
        index: link.header.index,
        strict: name.as_deref().is_some_and(reverse_path::is_strict),
        accepts_own: name.as_deref().is_some_and(reverse_path::accepts_local),
        filters_frames: name.as_deref().map_or([false; 2], reverse_path::filters_frames),
        virtual_link: is_virtual(kind, bus, elsewhere),
        name: name.unwrap_or_default(),
        up: flags.contains(LinkFlags::Up),
        loopback: flags.contains(LinkFlags::Loopback),
        bridge: master.filter(|_| is_port),
        master,
        lower: lower.filter(|_| !elsewhere),
        vrf: if is(LinkInfo::Kind(InfoKind::Vrf)) {
            Some(link.header.index)
        } else {
            master.filter(|_| is(LinkInfo::PortKind(InfoPortKind::Vrf)))
        },
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

/// The host's own end of an address. On a point-to-point link IFA_ADDRESS and the prefix length belong to the peer.
fn own_address(message: &AddressMessage) -> Option<(u32, IpNet)> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    let own = local.or(address)?;
    let net = if address.is_none_or(|address| address == own) {
        IpNet::new(own, message.header.prefix_len).ok()?
    } else {
        IpNet::from(own)
    };
    Some((message.header.index, net))
}

/// The preference of a route that a router advertised (RFC 4191).
fn preference(route: &RouteMessage) -> i8 {
    let preference = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Preference(preference) => Some(*preference),
        _ => None,
    });
    match preference {
        Some(RoutePreference::High) => 1,
        Some(RoutePreference::Low) => -1,
        _ => 0,
    }
}

/// The number of the next-hop object that a route uses, if it uses one.
fn object(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::NhId(object) => Some(*object),
        _ => None,
    })
}

/// Collects the gateways of a route or of one of its paths. Their interface is `interface`, unless the attributes
/// contain another one.
fn route_gateways(attributes: &[RouteAttribute], interface: u32, gateways: &mut Vec<Gateway>) {
    let named = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    let interface = named.unwrap_or(interface);
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) | RouteAttribute::Via(RouteVia::Inet(ip)) => {
                gateways.push(Gateway { address: (*ip).into(), interface });
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) | RouteAttribute::Via(RouteVia::Inet6(ip)) => {
                gateways.push(Gateway { address: (*ip).into(), interface });
            }
            // The kernel nests one level; the decoder has already limited the input to the datagram.
            RouteAttribute::MultiPath(paths) => {
                for path in paths {
                    route_gateways(&path.attributes, path.interface_index, gateways);
                }
            }
            _ => {}
        }
    }
}

/// Runs any datagram through the readers of links, addresses, routes and next hops. For the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(datagram: &[u8]) {
    let mut facts = HostFacts::default();
    let mut rest = datagram;
    while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) {
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4).max(16);
        rest = rest.get(length..).unwrap_or_default();
        if let NetlinkPayload::InnerMessage(message) = message.payload {
            facts.add(message);
        }
    }
    let mut gateways = Vec::new();
    let _ = next_hops::read(datagram, &mut gateways);
    gateways.into_iter().for_each(|gateway| facts.add_next_hop(gateway));
    let _ = ipsec::read(datagram, &mut Vec::new());
    let facts = facts.in_order();
    assert!(
        facts.addresses.len() + facts.gateways.len() + facts.link_gateways.len() + facts.interfaces.len()
            <= datagram.len()
    );
    let _ = watch::matters(datagram);
}
