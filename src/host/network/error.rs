//! Defines the errors of reading the host's network configuration, and the time limits that they name.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Timeout for the kernel's lists. A million routes, a full Internet routing table, take a second on an idle machine,
/// and more than ten at the high load after a boot.
pub(super) const DUMP_TIMEOUT: Duration = Duration::from_secs(30);

/// Time limit for the kernel's list of IPv6 routes.
pub(super) const MAX_IPV6_ROUTES_DUMP: Duration = Duration::from_secs(5);

/// Why the host's network configuration could not be read or watched.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("cannot open an rtnetlink socket: {0}; in a sandbox, allow AF_NETLINK")]
    Open(#[source] io::Error),
    #[error("the kernel ended its list of {0} early; try again")]
    Ended(&'static str),
    #[error("the kernel refused its list of {list}: {error}")]
    Refused {
        list: &'static str,
        #[source]
        error: io::Error,
    },
    #[error("the kernel did not list addresses, routes and links within {} s", DUMP_TIMEOUT.as_secs())]
    Timeout,
    #[error(
        "the kernel did not list all IPv6 routes within {} s, so a gateway that is only in the rest is not protected; \
         a flood of router advertisements is one cause, see `ip -6 route show default`",
        MAX_IPV6_ROUTES_DUMP.as_secs()
    )]
    Late,
    #[error("cannot read the name servers in {path}: {error}", path = .0.display(), error = .1)]
    Resolvers(PathBuf, #[source] io::Error),
    #[error("cannot receive the kernel's notifications of addresses, routes and links: {0}")]
    Watch(#[source] io::Error),
}
