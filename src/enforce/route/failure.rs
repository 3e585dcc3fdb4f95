//! Defines the errors of the route backend, with their remedies.

use std::net::IpAddr;

use crate::enforce::Overlap;
use crate::netlink::routes::{Refusal, RouteError};

/// Failure of a change of the routes. After [`crate::enforce::BlockError::System`], routes that were to be added count as
/// not added, and are removed by the next [`super::Routes::due`]; removals are retried.
pub type BlockError = crate::enforce::BlockError<Failure, RouteError>;

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
