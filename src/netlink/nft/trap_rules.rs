//! Builds the rules of the trap: the kernel counts the distinct ports that a source probes, and blocks the source
//! before any program wakes up. nft/portsentry-trap.nft documents each rule, nft/portsentry-trap-udp.nft those for UDP.
//!
//! A probe counts here only if it also counts in the sensor; the trap never counts more than the sensor, and often
//! less. Sources blocked by the kernel stay in `caught` until the sensor has reviewed them. `caught` is small, which
//! limits the number of bans without the sensor. While the sensor's own ceilings have no room for that many bans, the
//! kernel blocks no source.
//!
//! References: the kernel's net/netfilter/nft_dynset.c, nft_socket.c, nft_limit.c.

use rustables::expr::{CmpOp, Meta, MetaType, VerdictKind};
use rustables::sys;

use super::exclusions::{connected, nat64_rules, no_route_back, returning};
use super::family::{Family, V4, V6};
use super::fragment_rules;
use super::hold_rules;
use super::rule::{
    ACK, ANYCAST, DESTINATION, DESTINATION_ADDRESS, ElementTimeout, FLAGS, LOCAL, Limit, NETWORK, Rule, SOURCE,
    SOURCE_ADDRESS, SYN, TCP, UDP,
};
use super::set::Set;
use super::spec::{TRAP_BURST, Trap};
use super::table::{TRAP, TRAP_ASKED, TRAP_BAN, TRAP_TOUCH};
use crate::engine::{PEER_THRESHOLD, RECENT_USE};
use crate::types::Expiry;

/// A transport protocol whose ports are trapped.
struct TrapProtocol {
    name: &'static str,
    number: u8,
    /// Sources of IPv4 and the ports that they probed.
    probed: Set,
}

pub(super) fn trap_rules(trap: &Trap) -> Vec<Rule> {
    let mut rules = ban_rules(trap);
    rules.extend(probe_rules(trap));
    if trap.tcp {
        rules.push(tcp_entry(trap, (FLAGS, SYN)));
    }
    if let Some(length) = trap.hold {
        rules.extend(hold_rules::ILLEGAL.map(|flags| tcp_entry(trap, flags)));
        // After the probe was counted.
        rules.extend(hold_rules::held(TRAP, trap, false));
        rules.extend(hold_rules::hold_rules(trap, length));
        rules.extend(fragment_rules::hiding_rules());
    }
    if trap.udp {
        rules.extend([LOCAL, ANYCAST].map(|kind| udp_entry(trap, kind)));
    }
    rules.extend([V4, V6].into_iter().filter(|_| trap.tcp).map(|family| answered(&family)));
    rules.extend(trap.udp.then(outbound));
    rules
}

/// Matches segments with these flags under this mask, if they are probes: for this host alone, to an own address, from
/// a foreign address.
fn tcp_entry(trap: &Trap, (mask, flags): (u8, u8)) -> Rule {
    let rule = Rule::new(TRAP).on_monitored(trap.named_interfaces);
    let rule = rule.tcp_flags(mask, CmpOp::Eq, flags).trapped_port(false).for_this_host();
    rule.address_type(DESTINATION_ADDRESS, CmpOp::Eq, LOCAL).foreign_source().jump(TRAP_TOUCH)
}

/// Matches datagrams that are probes and not answers. The kernel accepts them in a frame for several hosts as well, and
/// at the anycast addresses of a router.
fn udp_entry(trap: &Trap, to: (&'static str, u32)) -> Rule {
    let rule = Rule::new(TRAP).on_monitored(trap.named_interfaces);
    let rule = rule.text("udp dport @trapped_udp udp dport != @asked").meta(MetaType::L4Proto, UDP);
    let rule = rule.port(DESTINATION).lookup(Set::TrappedUdp);
    let rule = rule.port(DESTINATION).lookup_inverted(Set::Outbound).not_for_other_host();
    rule.address_type(DESTINATION_ADDRESS, CmpOp::Eq, to).foreign_source().jump(TRAP_TOUCH)
}

/// Records the peers that a socket of this host has answered. A listener that lives for milliseconds is in no socket
/// table when the sensor looks it up. Only this hook distinguishes its SYN/ACK from a forwarded one.
fn answered(family: &Family) -> Rule {
    let version = if family.is_masked { "meta nfproto ipv6" } else { "meta nfproto ipv4" };
    let rule = Rule::new(TRAP_ASKED).text(version).family(family).tcp_flags(FLAGS, CmpOp::Eq, SYN | ACK);
    let rule = rule.text("tcp sport @trapped").port(SOURCE).lookup(Set::Trapped);
    let rule = rule.payload(NETWORK, family.destination_offset, family.source_length).port_behind(family, SOURCE);
    let key = format!("{} daddr . tcp sport", family.name);
    rule.add(
        family.set(Set::Answered),
        &key,
        ElementTimeout::new(Expiry::After(RECENT_USE)),
        None,
        sys::NFT_DYNSET_OP_UPDATE,
    )
}

/// Records the UDP ports from which this host sends. The sensor sees the same slightly later and then removes the port
/// from the trap. Until then, an answer to a socket that has already closed must not count. The port of a service is
/// not trapped, and costs one look-up.
fn outbound() -> Rule {
    let rule = Rule::new(TRAP_ASKED).text("udp sport @trapped_udp").meta(MetaType::L4Proto, UDP);
    let rule = rule.port(SOURCE).lookup(Set::TrappedUdp).address_type(SOURCE_ADDRESS, CmpOp::Eq, LOCAL).port(SOURCE);
    rule.add(
        Set::Outbound,
        "udp sport",
        ElementTimeout::new(Expiry::After(RECENT_USE)),
        None,
        sys::NFT_DYNSET_OP_UPDATE,
    )
}

/// The rules that determine how a probe counts.
fn probe_rules(trap: &Trap) -> Vec<Rule> {
    let rule = || Rule::new(TRAP_TOUCH);
    let mut rules = Vec::from([V4, V6].map(|family| rule().source_in(&family, Set::Allowed)));
    rules.extend(address_rules());
    rules.extend(nat64_rules(TRAP_TOUCH, trap));
    // Any socket counts, transparent or not.
    rules.extend([0, 1].map(|transparent| rule().socket_transparent(transparent)));
    rules.extend(fragment_rules::later_rules(TRAP_TOUCH));
    let hold = trap.hold.into_iter().flat_map(|_| hold_rules::probe_rules());
    let rules = returning(rules).chain(hold).chain([rule().link_local().verdict(VerdictKind::Return)]);
    if trap.forgiven == 0 {
        return rules.chain([rule().jump(TRAP_BAN)]).collect();
    }
    let tcp = trap.tcp.then_some(TrapProtocol { name: "tcp", number: TCP, probed: Set::Probed });
    let udp = trap.udp.then_some(TrapProtocol { name: "udp", number: UDP, probed: Set::ProbedUdp });
    let counted: Vec<TrapProtocol> = tcp.into_iter().chain(udp).collect();
    rules.chain(count_rules(trap, &counted)).collect()
}

/// Matches packets that the sensor ignores: from addresses that no host uses as source ([`crate::engine`] has the same
/// list); to loopback addresses, whose packets from outside the kernel drops only after these rules; and for IPv4, from
/// addresses without a return route, which a strict reverse-path filter drops after these rules as well. Without such a
/// filter, or with asymmetric routes, the sensor judges them.
fn address_rules() -> [Rule; 6] {
    let address = |family: &Family, (name, offset): (&str, u32), network: &str, length| {
        let text = format!("{} {name} {network}", family.name);
        Rule::new(TRAP_TOUCH).text(text).family(family).payload(NETWORK, offset, length)
    };
    let from = |family: &Family, network, length| address(family, ("saddr", family.source_offset), network, length);
    let to = |family: &Family, network, length| address(family, ("daddr", family.destination_offset), network, length);
    [
        from(&V4, "0.0.0.0/8", 1).compare(CmpOp::Eq, [0]),
        from(&V4, "224.0.0.0/3", 4).mask([0xe0, 0, 0, 0]).compare(CmpOp::Eq, [0xe0, 0, 0, 0]),
        from(&V6, "::/64", 8).compare(CmpOp::Eq, [0; 8]),
        to(&V4, "127.0.0.0/8", 1).compare(CmpOp::Eq, [127]),
        to(&V6, "::1", 16).compare(CmpOp::Eq, std::net::Ipv6Addr::LOCALHOST.octets()),
        no_route_back(TRAP_TOUCH),
    ]
}

/// Counts the ports of these protocols, each once and all together. Ports of connected sources are counted separately,
/// because more of them are forgiven.
fn count_rules(trap: &Trap, protocols: &[TrapProtocol]) -> Vec<Rule> {
    let every = || protocols.iter().flat_map(|protocol| [V4, V6].map(|family| (protocol, family)));
    let known = every().map(|(protocol, family)| {
        let set = family.set(protocol.probed);
        let text = format!("{} . {} dport @{}", family.target, protocol.name, set.name());
        Rule::new(TRAP_TOUCH).text(text).family(&family).source_and_port(&family, protocol.number).lookup(set)
    });
    let connected = |family: &Family| connected(TRAP_TOUCH, family);
    let of_peers = every().map(|(protocol, family)| {
        let rule = connected(&family).source_and_port(&family, protocol.number);
        let forgiven = trap.forgiven.max(PEER_THRESHOLD - 1);
        count_new_port(rule, trap, protocol, &family, (Set::PeerSuspects, forgiven))
    });
    let of_others = every().map(|(protocol, family)| {
        let rule = Rule::new(TRAP_TOUCH).family(&family).source_and_port(&family, protocol.number);
        count_new_port(rule, trap, protocol, &family, (Set::Suspects, trap.forgiven))
    });
    let peers_end = returning([V4, V6].map(|family| connected(&family)));
    returning(known).chain(of_peers).chain(peers_end).chain(of_others).collect()
}

/// Counts a port that is new for its source in the set of `counted`, and matches if more than `forgiven` ports were
/// counted.
fn count_new_port(
    rule: Rule,
    trap: &Trap,
    protocol: &TrapProtocol,
    family: &Family,
    (counted, forgiven): (Set, u8),
) -> Rule {
    let window = || ElementTimeout::new(Expiry::After(trap.window));
    let key = format!("{} . {} dport", family.target, protocol.name);
    let limit = Limit::above_total(forgiven.into());
    let rule = rule.add(family.set(protocol.probed), &key, window(), None, sys::NFT_DYNSET_OP_ADD).target(family);
    rule.add(family.set(counted), family.target, window(), Some(limit), sys::NFT_DYNSET_OP_ADD).jump(TRAP_BAN)
}

/// Blocks a source that probed too many ports, unless a ceiling is reached.
fn ban_rules(trap: &Trap) -> Vec<Rule> {
    let (packets, seconds) = trap.ceiling.for_kernel();
    let burst = trap.ceiling.packets().min(TRAP_BURST);
    let ceiling = Rule::new(TRAP_BAN).limit(Limit::above(packets, seconds, burst, trap.ceiling));
    let bans = [V4, V6].map(|family| {
        Rule::new(TRAP_BAN)
            .family(&family)
            .target(&family)
            .add(
                family.set(Set::TrapBanned),
                family.target,
                ElementTimeout::new(trap.expiry),
                None,
                sys::NFT_DYNSET_OP_ADD,
            )
            .target(&family)
            .add(
                family.set(Set::Blocked),
                family.target,
                ElementTimeout::new(trap.expiry),
                None,
                sys::NFT_DYNSET_OP_ADD,
            )
            .counter()
            .verdict(VerdictKind::Drop)
    });
    let above_ceilings =
        Rule::new(TRAP_BAN).text("meta l4proto @ceiling_reached").expression(Meta::new(MetaType::L4Proto));
    returning([above_ceilings.lookup(Set::CeilingReached), ceiling]).chain(bans).collect()
}
