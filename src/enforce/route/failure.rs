//! Errors of the route backend, with their remedies.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::netlink::routes::{Refusal, RouteError};

/// Why the routes are not as they were asked to be.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Some of the subjects were not dealt with; all others were.
    #[error("{} of {asked} could not be changed; {}", failed.len(), Failed::first(failed))]
    Failed {
        asked: usize,
        /// Which ones failed, and why; at least one.
        failed: Vec<Failed>,
    },
    /// The socket failed, or this process may not change routes. What was to be laid counts as not laid, and is taken away
    /// with the next [`super::Routes::due`]; what was to be lifted is tried again.
    #[error(transparent)]
    Route(#[from] RouteError),
}

pub type Failed = crate::enforce::Failed<Failure>;

/// Why one subject could not be blocked or lifted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A neighbour's address that says nothing without an interface.
    #[error(
        "no route can block a link-local address, which is another host behind every interface; use the method nft"
    )]
    LinkLocal,
    /// No single host or customer has this address.
    #[error("a route to it would block no host: it is an unspecified, loopback, multicast or broadcast address")]
    NoHost,
    /// The route would take away what must be reached.
    #[error("a route to it would cut off {0}, which is protected; shorten the ban's prefix, or use the method nft")]
    Protected(IpNet),
    /// No room.
    #[error(
        "{size} sources are blocked by routes already, and no more may be: shorten `expire`, or use the method nft"
    )]
    Full {
        /// How many there may be.
        size: usize,
    },
    /// A route of another program; it is left unchanged.
    #[error(
        "there is already a route to exactly this{}, and it stays: see `ip route show table all` and `ip -6 route show \
         table all`; remove it, or use the method nft",
        laid_by(*.0)
    )]
    Taken(Option<u8>),
    /// The gateway of [`crate::types::RouteKind::Via`] does not do.
    #[error(
        "the kernel takes no route by way of {gateway} ({refusal}): `via` has to be an unused address, in a \
         network that an interface of this host is in which is up; or use the kind blackhole"
    )]
    Gateway {
        /// The gateway.
        gateway: IpAddr,
        refusal: Refusal,
    },
    /// What else the kernel says.
    #[error("the kernel refused the route: {0}")]
    Refused(Refusal),
}

fn laid_by(protocol: Option<u8>) -> String {
    protocol.map_or_else(String::new, |number| format!(" (of routing protocol {number}, see /etc/iproute2/rt_protos)"))
}
