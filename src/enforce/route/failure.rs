//! Defines the errors of the route backend, with their remedies.

use std::net::IpAddr;

use crate::enforce::Overlap;
use crate::netlink::routes::{Refusal, RouteError};

/// Failure of a change of the routes.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Some of the targets failed; all others were changed.
    #[error("{} of {asked} changes failed; {}", failed.len(), Failed::first(failed))]
    Failed {
        asked: usize,
        /// The failed ones with their reasons; at least one.
        failed: Vec<Failed>,
    },
    /// The socket failed, or this process may not change routes. Routes that were to be added count as not added, and
    /// are removed by the next [`super::Routes::due`]; removals are retried.
    #[error(transparent)]
    Route(#[from] RouteError),
}

pub type Failed = crate::enforce::Failed<Failure>;

/// Why one target could not be blocked or lifted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error(
        "a route cannot block a link-local address, which belongs to a different host on each interface; use the backend nft"
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
        laid_by(*.0)
    )]
    Taken(Option<u8>),
    /// The gateway of [`crate::types::RouteKind::Via`] is unsuitable.
    #[error(
        "the kernel refused a route via {gateway} ({refusal}): `via` must be an unused address in a network of an \
         active interface of this host; correct it, or use kind = \"blackhole\""
    )]
    Gateway { gateway: IpAddr, refusal: Refusal },
    #[error("the kernel refused the route: {0}")]
    Refused(Refusal),
}

fn laid_by(protocol: Option<u8>) -> String {
    protocol.map_or_else(String::new, |number| format!(" (of routing protocol {number}, see /etc/iproute2/rt_protos)"))
}
