//! Implements the route backend: adds a blackhole, unreachable or prohibit route to a banned source, so that it gets no
//! answers. Packets of the source still arrive, and a datagram reaches its socket; only the nftables backend blocks
//! them.
//!
//! Own routes carry the protocol number [`PROTOCOL`] and are in the table `main`. Routes of the administrator are
//! neither replaced nor removed: if one exists for exactly the banned prefix, such as the remote end of a tunnel, the
//! ban is refused. Longer prefixes within a ban, and tables that `ip rule` consults before `main`, take precedence over
//! a ban as over any route.
//!
//! The kernel ignores `expires` on such routes, so their ends are stored here: call [`Routes::due`] at
//! [`Routes::next_due`]. Routes left by a crash are found at the start:
//!
//! ```text
//! protect(own and allowed prefixes); leftovers(); block(bans of the ledger); remove_stale()
//! ```
//!
//! A removal that fails is retried until it succeeds.

mod route_table;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use rustix::io::Errno;

use crate::enforce::{
    BackendGone, BanContext, ExemptPrefixes, InlineBackend, MaintenanceReport, OpenError, Overlap, Refused,
};
use crate::engine::{ActiveBan, Host};
pub use crate::netlink::routes::{KernelRefusal, PROTOCOL, RouteError};
use crate::netlink::routes::{Route, RouteSocket, is_closed};
use crate::types::{Backend, BanTarget, Expiry, RouteKind, Timestamp, is_host_address};

use route_table::RouteTable;

/// Failure of a change of the routes. After [`BlockError::System`](crate::enforce::BlockError::System), routes that
/// were to be added count as not added, and are removed by the next [`Routes::due`]; removals are retried.
pub type BlockError = crate::enforce::BlockError<Failure, RouteError>;

pub type Failed = crate::enforce::Failed<Failure>;

/// Why one target could not be blocked or lifted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error(
        "a route cannot block a link-local address, which belongs to a different host on each interface; use the backend \
         nft"
    )]
    LinkLocal,
    #[error("it is an unspecified, loopback, multicast or broadcast address, which a route cannot block")]
    NoHost,
    /// The route would cut off an address that must stay reachable.
    #[error(transparent)]
    Protected(#[from] Overlap),
    #[error("the maximum of {size} routes is reached; shorten `expire`, or use the backend nft")]
    Full {
        /// Maximum number of routes.
        size: usize,
    },
    #[error(
        "another program has a route to the same target{}, which stays; remove it (see `ip route show table all` and \
         `ip -6 route show table all`), or use the backend nft",
        creator(*.0)
    )]
    Taken(Option<u8>),
    /// The gateway of [`RouteKind::Via`] is unsuitable.
    #[error(
        "the kernel refused a route via {gateway} ({refusal}): `via` must be an unused address in a network of an \
         active interface of this host; correct it, or use kind = \"blackhole\""
    )]
    Gateway { gateway: IpAddr, refusal: KernelRefusal },
    #[error("the kernel refused the route: {0}")]
    Refused(KernelRefusal),
}

fn creator(protocol: Option<u8>) -> String {
    protocol.map_or_else(String::new, |number| format!(" (of routing protocol {number}, see /etc/iproute2/rt_protos)"))
}

/// The result of a removal: targets that are no longer blocked.
#[derive(Debug, Default)]
#[must_use]
pub struct Removal {
    pub targets: Vec<BanTarget>,
    /// Error for targets that are still blocked; [`Routes::due`] retries them.
    pub error: Option<BlockError>,
}

/// The route backend: one socket, opened in the network namespace of the thread that opens it.
#[derive(Debug)]
pub struct Routes {
    socket: RouteSocket,
    kind: RouteKind,
    routes: RouteTable,
    exempt: ExemptPrefixes,
    /// Own routes from before the start that no ban has claimed yet; true for those of the configured kind.
    leftovers: HashMap<IpNet, bool>,
    /// Time at which a failed [`Routes::remove_stale`] is retried.
    retry_stale: Option<Timestamp>,
}

impl Routes {
    /// Opens the socket; changes nothing yet. At most `size` sources are blocked at one time.
    ///
    /// # Errors
    /// The kernel's routing tables cannot be accessed.
    pub fn open(kind: RouteKind, size: usize) -> Result<Self, RouteError> {
        Ok(Self {
            socket: RouteSocket::open()?,
            kind,
            routes: RouteTable::new(size),
            exempt: ExemptPrefixes::default(),
            leftovers: HashMap::new(),
            retry_stale: None,
        })
    }

    /// Sets the prefixes that no route may overlap; conflicting bans are lifted.
    ///
    /// Pass all allowed and protected prefixes, own addresses (as /32 and /128, so that a neighbour in the same IPv4
    /// network can be blocked), and own IPv6 networks.
    pub fn protect(&mut self, prefixes: &[IpNet]) -> Removal {
        self.exempt = ExemptPrefixes::new(prefixes.iter().copied());
        let exempt = &self.exempt;
        let mut now_protected: Vec<BanTarget> =
            self.routes.wanted().filter(|target| exempt.check(*target).is_err()).collect();
        let left: Vec<IpNet> =
            self.leftovers.keys().filter(|net| exempt.overlapping(**net).is_some()).copied().collect();
        // Treated as a route of a ban until [`Routes::due`] corrects it.
        now_protected
            .extend(left.into_iter().filter_map(BanTarget::exactly).inspect(|target| self.routes.keep(*target, None)));
        now_protected.sort_unstable();
        self.remove(&now_protected, |routes, target| routes.postpone(target, Timestamp::default()))
    }

    /// Blocks all targets, each from `now` on for its expiry, even if it is already blocked. A route of another kind
    /// that an earlier run left is replaced.
    ///
    /// # Errors
    /// [`BlockError::Failed`] with the targets that are not blocked, while the others are; after [`BlockError::System`]
    /// no target is newly blocked.
    pub fn block(&mut self, bans: &[(BanTarget, Expiry)], now: Timestamp) -> Result<(), BlockError> {
        let mut failed = Vec::new();
        let mut asked = Vec::with_capacity(bans.len());
        for (target, expiry) in bans {
            match self.admit(*target) {
                Ok(()) => {
                    let known =
                        self.leftovers.remove(&target.network()).unwrap_or(false) || self.routes.is_wanted(*target);
                    // Stored before the route is added, so that it ends even if its acknowledgement is lost.
                    self.routes.keep(*target, expiry.span().map(|span| now.after(span)));
                    asked.push((*target, known));
                }
                Err(reason) => failed.push(Failed { target: *target, reason }),
            }
        }
        match self.add_missing(&asked) {
            Ok(refused) => {
                // Routes of others are not affected, because only own ones are ever removed.
                refused.iter().for_each(|Failed { target, .. }| self.routes.give_up(*target, now));
                failed.extend(refused);
            }
            Err(error) => {
                let unsure = asked.iter().filter(|(_, known)| !known);
                unsure.for_each(|(target, _)| self.routes.give_up(*target, now));
                return Err(error.into());
            }
        }
        BlockError::check(bans.len(), failed)
    }

    /// Lifts the bans of these targets; targets without a ban are skipped.
    ///
    /// # Errors
    /// The targets whose routes still exist. [`Routes::due`] retries them, and does not report their removal.
    pub fn lift(&mut self, targets: &[BanTarget]) -> Result<(), BlockError> {
        let lifted = self.remove(targets, |routes, target| routes.give_up(target, Timestamp::default()));
        lifted.error.map_or(Ok(()), Err)
    }

    /// Removes the routes whose end has come, the earliest first. At most 1,000 at once, so that packets do not wait
    /// long: call again while [`Routes::next_due`] has passed.
    pub fn due(&mut self, now: Timestamp) -> Removal {
        let again = now.after(RETRY_DELAY);
        if self.retry_stale.is_some_and(|at| at <= now) {
            return self.remove_stale(now);
        }
        let over = self.routes.expired(now, MAX_EXPIRED);
        let (expired, old): (Vec<BanTarget>, Vec<BanTarget>) =
            over.into_iter().partition(|target| self.routes.is_wanted(*target));
        let lifted = self.remove(&expired, |routes, target| routes.postpone(target, again));
        // These are already reported as lifted, or were never blocked: only a further failure is reported.
        let rest = self.remove(&old, |routes, target| routes.postpone(target, again));
        Removal { error: lifted.error.or(rest.error), ..lifted }
    }

    /// Time at which [`Routes::due`] has work to do; `None` if there is none.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.routes.next_end().into_iter().chain(self.retry_stale).min()
    }

    /// All targets with an own route from an earlier run, of any kind. Pass those that stay blocked to
    /// [`Routes::block`]; [`Routes::remove_stale`] removes the other routes.
    ///
    /// # Errors
    /// The kernel's routes cannot be read.
    pub fn leftovers(&mut self) -> Result<Vec<BanTarget>, RouteError> {
        let own = self.socket.own()?;
        let kind = self.kind;
        self.leftovers = own.into_iter().map(|(net, found)| (net, found == Some(kind.toward(net)))).collect();
        let routes = &self.routes;
        self.leftovers.retain(|net, _| BanTarget::exactly(*net).is_none_or(|target| !routes.is_wanted(target)));
        let mut targets: Vec<BanTarget> = self.leftovers.keys().filter_map(|net| BanTarget::exactly(*net)).collect();
        targets.sort_unstable();
        Ok(targets)
    }

    /// Removes every route from an earlier run that no ban has claimed since [`Routes::leftovers`].
    pub fn remove_stale(&mut self, now: Timestamp) -> Removal {
        self.retry_stale = None;
        let nets: Vec<IpNet> = self.leftovers.keys().copied().collect();
        let mut kept = Vec::new();
        let deleted = self.socket.delete(&nets, |place, refusal| {
            // Another program has already removed the route.
            if refusal.errno != Errno::SRCH {
                kept.extend(nets.get(place).map(|net| (*net, refusal)));
            }
        });
        let error = match deleted {
            Ok(()) => {
                let stay: HashMap<IpNet, KernelRefusal> = kept.into_iter().collect();
                self.leftovers.retain(|net, _| stay.contains_key(net));
                let failed = stay.into_iter().filter_map(|(net, refusal)| {
                    Some(Failed { target: BanTarget::exactly(net)?, reason: Failure::Refused(refusal) })
                });
                BlockError::check(nets.len(), failed.collect()).err()
            }
            Err(error) => Some(error.into()),
        };
        if !self.leftovers.is_empty() {
            self.retry_stale = Some(now.after(RETRY_DELAY));
        }
        let gone = nets.into_iter().filter(|net| !self.leftovers.contains_key(net));
        Removal { targets: gone.filter_map(BanTarget::exactly).collect(), error }
    }

    /// Returns the targets that the kernel would answer, because their route is missing or another one takes
    /// precedence. Queries each individually, a few microseconds each. A surrounding blackhole of another program
    /// counts as a route.
    ///
    /// # Errors
    /// An answer is missing.
    pub fn missing(&mut self, targets: &[BanTarget]) -> Result<Vec<BanTarget>, RouteError> {
        let nets: Vec<IpNet> = targets.iter().copied().map(BanTarget::network).collect();
        let lookups = self.socket.look_up(&nets)?;
        let looked = nets.into_iter().zip(lookups).zip(targets);
        let open = looked.filter(|((net, lookup), _)| !is_closed(lookup, *net, self.kind.toward(*net)));
        Ok(open.map(|(_, target)| *target).collect())
    }

    /// All targets that this backend blocks, unordered.
    pub fn blocked(&self) -> impl Iterator<Item = BanTarget> + '_ {
        self.routes.wanted()
    }

    fn add_all(&mut self, bans: &[(BanTarget, Expiry)], now: Timestamp) -> Result<Vec<Refused>, BackendGone> {
        BlockError::refusals(self.block(bans, now), Backend::Route, bans.iter().map(|(target, _)| *target))
    }

    /// Checks that a route to `target` may be added.
    fn admit(&self, target: BanTarget) -> Result<(), Failure> {
        let net = target.network();
        match net.addr() {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => return Err(Failure::LinkLocal),
            address if !is_host_address(&address) => return Err(Failure::NoHost),
            _ => {}
        }
        self.exempt.check(target)?;
        if self.routes.has_room_for(target) { Ok(()) } else { Err(Failure::Full { size: self.routes.size }) }
    }

    /// Adds the missing routes; returns those that the kernel refused. The flag of a target is true if its ban is
    /// already in force, with a route of the wanted kind.
    fn add_missing(&mut self, asked: &[(BanTarget, bool)]) -> Result<Vec<Failed>, RouteError> {
        let mut failed = Vec::new();
        let nets: Vec<IpNet> = asked.iter().map(|(target, _)| target.network()).collect();
        let lookups = self.socket.look_up(&nets)?;
        let mut new = Vec::with_capacity(asked.len());
        for (((target, known), net), lookup) in asked.iter().copied().zip(nets).zip(lookups) {
            match lookup {
                Ok(Route { net: found, protocol, .. })
                    if found.prefix_len() == net.prefix_len() && protocol != PROTOCOL =>
                {
                    failed.push(Failed { target, reason: Failure::Taken(Some(protocol)) });
                }
                // The result may come from a surrounding blackhole of another program, which may disappear.
                _ if known && is_closed(&lookup, net, self.kind.toward(net)) => {}
                _ => new.push(target),
            }
        }
        let present = self.add(&new, &mut failed)?;
        if present.is_empty() {
            return Ok(failed);
        }
        // A route with the same metric exists: an own one of another kind is replaced, a foreign one is kept.
        let nets: Vec<IpNet> = present.iter().copied().map(BanTarget::network).collect();
        let mut others = HashSet::new();
        self.socket.delete(&nets, |place, _| {
            others.insert(place);
        })?;
        let (mut taken, mut again) = (Vec::new(), Vec::new());
        for (place, target) in present.into_iter().enumerate() {
            if others.contains(&place) { taken.push(target) } else { again.push(target) }
        }
        taken.extend(self.add(&again, &mut failed)?);
        failed.extend(taken.into_iter().map(|target| Failed { target, reason: Failure::Taken(None) }));
        Ok(failed)
    }

    /// Adds routes; returns the targets of those that already existed.
    fn add(&mut self, new: &[BanTarget], failed: &mut Vec<Failed>) -> Result<Vec<BanTarget>, RouteError> {
        let nets = new.iter().copied().map(BanTarget::network);
        let routes: Vec<(IpNet, RouteKind)> = nets.map(|net| (net, self.kind.toward(net))).collect();
        let mut present = Vec::new();
        self.socket.add(&routes, |place, refusal| {
            let Some((target, (_, kind))) = new.get(place).copied().zip(routes.get(place)) else { return };
            let reason = match *kind {
                _ if refusal.errno == Errno::EXIST => return present.push(target),
                RouteKind::Via(gateway) => Failure::Gateway { gateway, refusal },
                _ => Failure::Refused(refusal),
            };
            failed.push(Failed { target, reason });
        })?;
        Ok(present)
    }

    /// Removes the routes to these targets; `again` schedules the retry of failed ones.
    fn remove(&mut self, targets: &[BanTarget], again: impl Fn(&mut RouteTable, BanTarget)) -> Removal {
        let nets: Vec<IpNet> = targets.iter().copied().map(BanTarget::network).collect();
        let mut failed = Vec::new();
        let removed = self.socket.delete(&nets, |place, refusal| {
            if refusal.errno != Errno::SRCH
                && let Some(target) = targets.get(place)
            {
                failed.push(Failed { target: *target, reason: Failure::Refused(refusal) });
            }
        });
        if let Err(error) = removed {
            targets.iter().for_each(|target| again(&mut self.routes, *target));
            return Removal { targets: Vec::new(), error: Some(error.into()) };
        }
        let stay: HashSet<BanTarget> = failed.iter().map(|one| one.target).collect();
        let mut lifted = Vec::with_capacity(targets.len());
        for target in targets {
            if stay.contains(target) {
                again(&mut self.routes, *target);
            } else {
                self.routes.forget(*target);
                self.leftovers.remove(&target.network());
                lifted.push(*target);
            }
        }
        let error = BlockError::check(targets.len(), failed).err();
        Removal { targets: lifted, error }
    }
}

impl InlineBackend for Routes {
    fn block(&mut self, bans: &[BanContext], now: Timestamp) -> Result<Vec<Refused>, BackendGone> {
        let bans: Vec<_> = bans.iter().map(|ban| (ban.target, ban.expiry)).collect();
        self.add_all(&bans, now)
    }

    fn lift(&mut self, targets: &[BanTarget]) -> Result<(), String> {
        let lifted = Self::lift(self, targets);
        lifted.map_err(|error| format!("cannot remove a route, retrying: {error}"))
    }

    fn restore(&mut self, bans: &[ActiveBan], now: Timestamp) -> Result<Vec<Refused>, BackendGone> {
        let left: Vec<_> = bans.iter().map(|ban| (ban.target, ban.left)).collect();
        self.add_all(&left, now)
    }

    fn wants(&self, target: BanTarget) -> bool {
        self.routes.is_wanted(target)
    }

    fn missing(&mut self, targets: &[BanTarget]) -> Vec<BanTarget> {
        Self::missing(self, targets).unwrap_or_default()
    }

    /// Also protects this host's own IPv6 networks. A neighbour in an own IPv4 network is an ordinary address.
    fn protect(&mut self, host: &Host) -> Vec<String> {
        let own = host.networks.iter().copied().filter(|network| matches!(network, IpNet::V6(_)));
        let prefixes: Vec<IpNet> = host.allow.prefixes().chain(own).collect();
        let note = |target| {
            format!("the route that blocked {target} was removed because it would cut off protected addresses")
        };
        Self::protect(self, &prefixes).targets.into_iter().map(note).collect()
    }

    fn next_due(&self) -> Option<Timestamp> {
        Self::next_due(self)
    }

    fn run_due(&mut self, now: Timestamp) -> Option<String> {
        self.due(now).error.as_ref().map(cannot_remove)
    }

    fn unexpiring_targets(&mut self) -> Result<Vec<BanTarget>, OpenError> {
        Ok(self.leftovers()?)
    }

    fn route_port_id(&self) -> Option<u32> {
        Some(self.socket.port_id())
    }

    fn remove_stale(&mut self, now: Timestamp) -> MaintenanceReport {
        let Removal { targets, error } = Self::remove_stale(self, now);
        let note = format!("routes of an earlier run that belong to no ban were removed: {}", targets.len());
        MaintenanceReport { note: (!targets.is_empty()).then_some(note), error: error.as_ref().map(cannot_remove) }
    }
}

fn cannot_remove(error: &BlockError) -> String {
    format!("cannot remove expired routes, retrying: {error}")
}

/// Returns the targets without an own route of any kind. Reads all routes once; for large numbers.
///
/// # Errors
/// The kernel's routes cannot be read.
pub fn without_own_route(targets: &[BanTarget]) -> Result<Vec<BanTarget>, RouteError> {
    let own = RouteSocket::open()?.own()?;
    Ok(targets.iter().copied().filter(|target| !own.contains_key(&target.network())).collect())
}

/// Maximum number of ends handled at once, so that packets do not wait long.
const MAX_EXPIRED: usize = 1_000;

/// Delay before a failed removal is retried. Its causes (memory, a lost capability) last longer than a moment, and each
/// attempt may cause a log line.
const RETRY_DELAY: Duration = Duration::from_secs(5);
