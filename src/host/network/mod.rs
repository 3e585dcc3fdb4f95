//! Reads this host's addresses, gateways and interfaces from the kernel over rtnetlink, and its resolvers from
//! resolv.conf. They are exempt without configuration and follow changes of the system: [`Watcher`] reports when to
//! read again.
//!
//! A socket belongs to the network namespace of the thread that opens it, so a tokio runtime with one thread keeps all
//! of them in one namespace.
//!
//! References: rtnetlink(7), `linux/rtnetlink.h`, `linux/if_addr.h`.

mod dump;
mod error;
mod facts;
mod interface;
mod ipsec;
mod next_hops;
mod reader;
mod tunnels;
mod watch;

pub use error::HostError;
pub use facts::{HostFacts, ReverseRoute};
pub use interface::Interface;
pub use reader::{HostReader, NetworkReading};
pub use watch::Watcher;

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
