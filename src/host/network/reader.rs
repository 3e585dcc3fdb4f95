//! Reads the facts from the kernel, with a time limit of its own for the list of IPv6 routes.

use std::io;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{RouteMessage, RouteType};
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::{DUMP_TIMEOUT, HostError, MAX_IPV6_ROUTES_DUMP};
use super::facts::HostFacts;
use super::{ipsec, next_hops};
use crate::host::resolv_conf::ResolverFiles;

/// Number of attempts to read lists that change while they are read. After that, the notification of that change makes
/// the [`super::Watcher`]'s owner read once more anyway.
const MAX_ATTEMPTS: u32 = 3;

/// Listing IPv6 routes takes at most 1/`LOAD_DIVISOR` of the time, unless a list takes less than [`SHORT_DUMP`].
const LOAD_DIVISOR: u32 = 10;

const SHORT_DUMP: Duration = Duration::from_millis(100);

/// Reads the facts, any number of times. The list of IPv6 routes has a separate time limit, and the last one is kept. A
/// host on the link that floods router advertisements makes this list take seconds, because the kernel starts again at
/// the first default route for each datagram.
pub struct HostReader {
    limit: Duration,
    /// The facts of the last complete list of IPv6 routes.
    complete: HostFacts,
    /// The same, with the listed part of a late list added.
    last: HostFacts,
    is_late: bool,
    /// When IPv6 routes may be listed again.
    due: Option<Instant>,
}

/// The result of [`HostReader::read`].
#[derive(Debug)]
pub struct NetworkReading {
    pub facts: HostFacts,
    /// The error of the list of IPv6 routes, if it is late. Then the facts contain the gateways of the part that was
    /// listed in time and those of the last complete list.
    pub late: Option<HostError>,
    /// True if IPv6 routes must be listed again later.
    pub is_owed: bool,
}

impl Default for HostReader {
    fn default() -> Self {
        let (complete, last) = (HostFacts::default(), HostFacts::default());
        Self { limit: MAX_IPV6_ROUTES_DUMP, complete, last, is_late: false, due: None }
    }
}

impl HostReader {
    /// Sets the time limit for the list of IPv6 routes.
    pub fn limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// Reads the facts. To miss no change, open the [`super::Watcher`] first.
    ///
    /// # Errors
    ///
    /// A list other than that of IPv6 routes cannot be read completely: it could leave a gateway unprotected.
    pub async fn read(&mut self, resolvers: &ResolverFiles) -> Result<NetworkReading, HostError> {
        let resolvers = resolvers.read().map_err(|(path, error)| HostError::Resolvers(path, error))?;
        let is_due = self.due.is_none_or(|due| due <= Instant::now());
        if is_due {
            self.list_ipv6_routes().await?;
        }
        let mut attempt = 1;
        loop {
            let mut facts = HostFacts::default();
            facts.resolvers.clone_from(&resolvers);
            let lists = list_all(&mut facts, &self.last);
            let consistent = tokio::time::timeout(DUMP_TIMEOUT, lists).await.map_err(|_| HostError::Timeout)??;
            if consistent || attempt == MAX_ATTEMPTS {
                let late = self.is_late.then_some(HostError::Late);
                return Ok(NetworkReading { facts: facts.in_order(), is_owed: late.is_some() || !is_due, late });
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
                false => tokio::time::timeout(left, list(&mut listed, &[ipv6_routes()])).await.ok().transpose()?,
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
        self.due = (took > SHORT_DUMP).then(|| begin + took * LOAD_DIVISOR);
        Ok(())
    }
}

/// Adds the kernel's lists and the gateways in `ipv6_routes` to `facts`; false if a list changed while it was read.
async fn list_all(facts: &mut HostFacts, ipv6_routes: &HostFacts) -> Result<bool, HostError> {
    let consistent = list(facts, &requests()).await?;
    facts.add_gateways(ipv6_routes);
    let mut gateways = Vec::new();
    let consistent = next_hops::list(&mut gateways).await? && consistent;
    gateways.into_iter().for_each(|gateway| facts.add_next_hop(gateway));
    Ok(ipsec::list(&mut facts.tunnel_peers).await? && consistent)
}

/// Adds these lists of the kernel to `facts`; false if a list changed while it was read.
async fn list(facts: &mut HostFacts, requests: &[(&'static str, RouteNetlinkMessage)]) -> Result<bool, HostError> {
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
                    NetlinkPayload::InnerMessage(message) => facts.add(message),
                    NetlinkPayload::Done(done) if done.code == 0 => break,
                    NetlinkPayload::Done(done) => {
                        let error = io::Error::from_raw_os_error(done.code.saturating_neg());
                        return Err(HostError::Refused { list, error });
                    }
                    // A kernel without policy routing.
                    NetlinkPayload::Error(_) if list == RULES => break,
                    NetlinkPayload::Error(error) => return Err(HostError::Refused { list, error: error.to_io() }),
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
