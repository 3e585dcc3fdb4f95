//! Reads this host's addresses, gateways and interfaces from the kernel over rtnetlink, and its resolvers from
//! resolv.conf. They are exempt without configuration and follow changes of the system: [`Watcher`] reports when to
//! read again.
//!
//! A socket belongs to the network namespace of the thread that opens it, so a tokio runtime with one thread keeps all
//! of them in one namespace.
//!
//! References: rtnetlink(7), `linux/rtnetlink.h`, `linux/if_addr.h`.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

mod dump;
mod facts;
mod interface;
mod ipsec;
mod next_hops;
mod reader;
mod tunnels;
mod watch;

pub use facts::{HostFacts, ReverseRoute};
pub use interface::Interface;
pub use reader::{HostReader, HostReading};
pub use watch::Watcher;

/// Timeout for the kernel's lists. A million routes, a full Internet routing table, take a second on an idle machine,
/// and more than ten at the high load after a boot.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Time limit for the kernel's list of IPv6 routes.
const MAX_IPV6_ROUTES_DUMP: Duration = Duration::from_secs(5);

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
    #[error("the kernel did not list addresses, routes and links within {} s", TIMEOUT.as_secs())]
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

/// Runs any datagram through the readers of links, addresses, routes and next hops. For the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(datagram: &[u8]) {
    use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
    use netlink_packet_route::RouteNetlinkMessage;

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
