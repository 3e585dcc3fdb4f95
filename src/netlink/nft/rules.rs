//! Builds the rules of the table, chain by chain, for a [`RulesetSpec`].

use rustables::expr::{CmpOp, IcmpCode, Meta, MetaType, Reject, RejectType, VerdictKind};
use rustables::sys;

use super::decoy_rules::{decoy_rules, early_rule};
use super::family::{V4, V6};
use super::fragment_rules;
use super::hold_rules;
use super::rule::{BROADCAST, DESTINATION_ADDRESS, LOCAL, Limit, Rule, SOURCE_ADDRESS, TCP};
use super::set::Set;
use super::spec::RulesetSpec;
use super::table::{CHAIN, OWN_SOURCE, REFUSE, refuses};
use super::trap_rules::trap_rules;
use crate::types::Action;

pub(super) fn rules(spec: &RulesetSpec) -> Vec<Rule> {
    let mut rules = source_rules(spec);
    if refuses(spec) {
        rules.extend(refuse_rules(spec));
    }
    if spec.own_source {
        rules.extend(own_source_rules());
    }
    rules.extend(spec.trap.iter().flat_map(trap_rules));
    rules.extend(spec.decoys.iter().flat_map(decoy_rules));
    rules
}

/// The rules that refuse sources. The allow-list comes first, so that no ban affects a protected source.
fn source_rules(spec: &RulesetSpec) -> Vec<Rule> {
    let rule = || Rule::new(CHAIN);
    let refuse = |rule: Rule| match refuses(spec) {
        true => rule.counter().jump(REFUSE),
        false => rule.counter().verdict(VerdictKind::Drop),
    };
    let accept = |rule: Rule| rule.verdict(VerdictKind::Accept);
    // Refuses the sources in `v4` and in its IPv6 counterpart, which contains the first address of each /64, and single
    // link-local addresses.
    let bans = |v4: Set| {
        let v6 = v4.for_ipv6();
        let slash_64 = rule().text(format_args!("{} @{}", V6.target, v6.name())).family(&V6).target(&V6).lookup(v6);
        [rule().source_in(&V4, v4), slash_64, rule().source_in(&V6, v4)].map(refuse)
    };
    let on_link =
        rule().link_local().text("iif . ip6 saddr @blocked_link").interface_and_source().lookup(Set::BlockedLink);
    let mut rules = Vec::from([V4, V6].map(|family| accept(rule().source_in(&family, Set::Allowed))));
    rules.extend(bans(Set::Blocked));
    rules.push(refuse(on_link));
    if spec.prefix_sets {
        rules.extend([V4, V6].map(|family| refuse(rule().source_in(&family, Set::BlockedNets))));
    }
    if spec.fleet.is_some() {
        rules.extend(bans(Set::Fleet));
    }
    if let Some(trap) = spec.trap.filter(|trap| trap.hold.is_some()) {
        rules.extend(fragment_rules::early_rules(&trap));
        rules.extend(hold_rules::early_rules(&trap));
    }
    rules.extend(spec.decoys.as_ref().and_then(early_rule));
    rules
}

/// Drops unicast frames from outside whose source and destination are addresses of this host. IPv6 would accept them,
/// and IPv4 connection tracking sees them before the kernel drops them. Own multicast packets legitimately return, and
/// a neighbour may have the link-local address that this host has on another link.
///
/// Also drops packets from the broadcast address of a link. Without a reverse-path filter the kernel answers them to
/// all hosts of the link, so that a neighbour could scan with an address that belongs to no host.
fn own_source_rules() -> [Rule; 3] {
    let rule = || Rule::new(OWN_SOURCE);
    let dropped = |kind| {
        let guarded = rule().text("iif @guarded_interfaces").expression(Meta::new(MetaType::Iif)).lookup(Set::Guarded);
        let from = guarded.for_this_host().address_type(SOURCE_ADDRESS, CmpOp::Eq, kind);
        from.address_type(DESTINATION_ADDRESS, CmpOp::Eq, LOCAL).counter().verdict(VerdictKind::Drop)
    };
    [rule().link_local().verdict(VerdictKind::Return), dropped(LOCAL), dropped(BROADCAST)]
}

/// The rules that answer or drop refused packets. Two measures protect third parties:
/// - The source of a packet can be forged, so that the answer goes to a third party. Except for ICMP errors, which
///   quote the packet, an answer is never longer than the packet. The kernel limits ICMP errors itself (icmp_ratelimit:
///   one per second and destination; icmp_msgs_per_sec in all), but not resets. Therefore a rule limits all answers
///   together to 100 per second and drops packets above that rate. A host without a filter resets all of them.
/// - For a broadcast or multicast address, or an address that is only routed to this host, the kernel would send a
///   reset from that address. Only packets to an address of this host are answered.
///
/// The ICMP error is "port unreachable", because a host without a listener sends either that or a reset; "prohibited"
/// would reveal the filter to a scanner.
fn refuse_rules(spec: &RulesetSpec) -> Vec<Rule> {
    let rule = || Rule::new(REFUSE);
    let drop = |rule: Rule| rule.verdict(VerdictKind::Drop);
    let mut rules = Vec::new();
    if let Some(rate) = spec.log_drops {
        let (packets, seconds) = rate.for_kernel();
        let limited = rule().limit(Limit::below(packets, seconds, LOG_BURST, rate));
        rules.push(limited.text(format_args!("log prefix \"{LOG_PREFIX}\"")).raw("log", |log| {
            log.put_text(sys::NFTA_LOG_PREFIX, LOG_PREFIX);
            log.put_u32(sys::NFTA_LOG_LEVEL, LOG_WARNING);
        }));
    }
    match spec.action {
        Action::Drop => rules.push(drop(rule())),
        Action::Reject => {
            let reject = |kind, code| Reject::default().with_type(kind).with_icmp_code(code);
            let rate = format_args!("{ANSWERS}/second").to_string();
            rules.extend([
                drop(rule().address_type(DESTINATION_ADDRESS, CmpOp::Neq, LOCAL)),
                drop(rule().limit(Limit::above(ANSWERS.into(), 1, ANSWERS, rate))),
                rule()
                    .text("meta l4proto tcp reject with tcp reset")
                    .meta(MetaType::L4Proto, TCP)
                    .expression(reject(RejectType::TcpRst, IcmpCode::NoRoute)),
                rule()
                    .text("reject with icmpx port-unreachable")
                    .expression(reject(RejectType::IcmpxUnreach, IcmpCode::PortUnreach)),
            ]);
        }
    }
    rules
}

/// Maximum number of answers per second to all blocked sources together; also the burst.
const ANSWERS: u32 = 100;
/// Prefix of the packet's line in the kernel log.
const LOG_PREFIX: &str = "Portsentry: dropping: ";
/// Burst of log lines: one packet and its retransmissions.
const LOG_BURST: u32 = 5;
/// NFT_LOGLEVEL_WARNING.
const LOG_WARNING: u32 = 4;
