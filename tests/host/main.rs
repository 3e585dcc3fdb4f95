//! Tests what the program reads about its host and its listeners. Each test runs in its own network namespace.

#![expect(clippy::unwrap_used, reason = "a test that cannot build its network has failed")]

mod facts;
mod flows;
mod sockets;

use netns_lab::Namespace;

/// A namespace with 192.0.2.1/24, 2001:db8::1/64 and fe80::1/64 on its interface `out`. Address generation is off: an
/// address that completes duplicate detection later would be an unexpected change.
fn network() -> Namespace {
    let net = Namespace::new();
    net.ip_batch(
        "link set lo up\n\
         link add out type veth peer name far\n\
         link set out addrgenmode none\n\
         link set far addrgenmode none\n\
         link set out up\n\
         link set far up\n\
         address add 192.0.2.1/24 dev out\n\
         address add 2001:db8::1/64 dev out nodad\n\
         address add fe80::1/64 dev out nodad\n",
    );
    net
}
