//! Builds the rules that redirect connections to closed TCP ports to one transparent listener, which replaces a socket
//! for each port. nft/portsentry-decoys.nft documents each rule.
//!
//! The ports are those of the set `trapped`. The rules run after destination NAT, so that published ports are excluded.
//! They check for a socket first, so that a service that has just started gets its port immediately.
//!
//! References: the kernel's net/netfilter/nft_tproxy.c, nft_socket.c, and Documentation/networking/tproxy.rst.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustables::expr::{CmpOp, MetaType, VerdictKind};

use super::family::{V4, V6};
use super::rule::{ACK, DESTINATION_ADDRESS, FLAGS, LOCAL, Limit, Rule, SOURCE, SOURCE_ADDRESS, SYN, TCP};
use super::set::Set;
use super::spec::DecoyRules;
use super::table::{CHAIN, DECOY, DECOY_ANSWERED, DECOY_SENT, DECOY_TAKE, DECOY_UNTRACK};

pub(super) fn decoy_rules(decoys: &DecoyRules) -> Vec<Rule> {
    let mut rules = Vec::new();
    if decoys.max_new_tracked.is_none() {
        rules.push(Rule::new(DECOY_UNTRACK).socket_transparent(0).verdict(VerdictKind::Return));
        rules.push(Rule::new(DECOY_UNTRACK).notrack());
        let sent = Rule::new(DECOY_SENT).meta(MetaType::L4Proto, TCP);
        rules.push(from_trapped(sent).jump(DECOY_UNTRACK));
    }
    rules.extend(take_rules(decoys));
    let received = to_trapped(DECOY).address_type(SOURCE_ADDRESS, CmpOp::Neq, LOCAL);
    rules.push(received.jump(DECOY_TAKE));
    rules.push(from_trapped(Rule::new(DECOY_SENT).tcp_flags(FLAGS, CmpOp::Eq, SYN | ACK)).jump(DECOY_ANSWERED));
    rules.push(Rule::new(DECOY_ANSWERED).socket_transparent(0).verdict(VerdictKind::Return));
    rules.push(Rule::new(DECOY_ANSWERED).counter());
    rules
}

/// Excludes connections to decoys from connection tracking, if no connection to a decoy is tracked.
pub(super) fn early_rule(decoys: &DecoyRules) -> Option<Rule> {
    decoys.max_new_tracked.is_none().then(|| to_trapped(CHAIN).jump(DECOY_UNTRACK))
}

/// Hands a segment without a socket to the listener. Not only SYNs: while SYN cookies are in use, the segment that
/// completes a handshake has no socket either.
fn take_rules(decoys: &DecoyRules) -> Vec<Rule> {
    let rule = || Rule::new(DECOY_TAKE);
    let mut rules = Vec::from([0, 1].map(|value| rule().socket_transparent(value).verdict(VerdictKind::Return)));
    let syn = || rule().tcp_flags(FLAGS, CmpOp::Eq, SYN);
    if let Some(burst) = decoys.max_new_tracked {
        // New connections tracked per second once the burst is used up.
        let rate = (burst / TRACKED_FOR).max(1);
        let limit = Limit::above(rate.into(), 1, burst, format_args!("{rate}/second"));
        rules.push(syn().limit(limit).verdict(VerdictKind::Return));
    }
    rules.push(syn().counter());
    let listeners = [
        (V4, "meta nfproto ipv4", IpAddr::from(Ipv4Addr::LOCALHOST), Some(decoys.v4)),
        (V6, "meta nfproto ipv6", Ipv6Addr::LOCALHOST.into(), decoys.v6),
    ];
    for (family, version, address, port) in listeners {
        let Some(port) = port else { continue };
        let rule = rule().text(version).family(&family).text("meta l4proto tcp").meta(MetaType::L4Proto, TCP);
        rules.push(rule.tproxy(&family, address, port).verdict(VerdictKind::Accept));
    }
    rules
}

/// Matches packets from another host to a trapped port of an address of this host.
fn to_trapped(chain: &'static str) -> Rule {
    let rule = Rule::new(chain).meta(MetaType::L4Proto, TCP).trapped_port(false).for_this_host();
    rule.address_type(DESTINATION_ADDRESS, CmpOp::Eq, LOCAL)
}

/// Matches TCP segments that leave from a trapped port.
fn from_trapped(rule: Rule) -> Rule {
    rule.text("tcp sport @trapped").port(SOURCE).lookup(Set::Trapped)
}

/// Maximum time in seconds for which connection tracking keeps a connection that has ended or was never completed
/// (nf_conntrack_tcp_timeout_time_wait, nf_conntrack_tcp_timeout_fin_wait, nf_conntrack_tcp_timeout_syn_recv).
const TRACKED_FOR: u32 = 120;
