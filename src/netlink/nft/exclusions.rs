//! Builds the rules for packets that neither the trap nor a hold may judge.

use std::net::Ipv6Addr;

use rustables::expr::{CmpOp, VerdictKind};

use super::family::{Family, V4, V6};
use super::rule::{NETWORK, Rule};
use super::set::Set;
use super::spec::Trap;

pub(super) fn returning(rules: impl IntoIterator<Item = Rule>) -> impl Iterator<Item = Rule> {
    rules.into_iter().map(|rule| rule.verdict(VerdictKind::Return))
}

/// Matches IPv4 packets from addresses without a return route, which a strict reverse-path filter drops later.
pub(super) fn no_route_back(chain: &'static str) -> Rule {
    Rule::new(chain).text("meta nfproto ipv4").family(&V4).no_route_back()
}

/// Matches packets from connected sources.
pub(super) fn connected(chain: &'static str, family: &Family) -> Rule {
    let peers = family.set(Set::Peers);
    let text = format!("{} @{}", family.target, peers.name());
    Rule::new(chain).text(text).family(family).target(family).lookup(peers)
}

/// Matches packets from the /64s of NAT64 translators.
pub(super) fn nat64_rules(chain: &'static str, trap: &Trap) -> impl Iterator<Item = Rule> {
    let configured = trap.nat64.into_iter().flatten().map(u64::to_be_bytes);
    [NAT64].into_iter().chain(configured).map(move |upper| {
        let first = u128::from(u64::from_be_bytes(upper)) << 64;
        let rule = Rule::new(chain).text(format_args!("ip6 saddr {}/64", Ipv6Addr::from_bits(first))).family(&V6);
        rule.payload(NETWORK, V6.source_offset, 8).compare(CmpOp::Eq, upper)
    })
}

/// The /64 that many IPv4 hosts share behind NAT64 (RFC 6052). The kernel must neither ban nor hold it as a whole.
pub(super) const NAT64: [u8; 8] = [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0];
