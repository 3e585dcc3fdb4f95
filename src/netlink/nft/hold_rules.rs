//! Builds the rules that hold a source: after a probe of a closed TCP port that is new for it, its SYNs to this host
//! are dropped for slightly less than a second. A scanner therefore learns nothing before it is banned. A source whose
//! address was forged loses only packets that TCP retransmits. nft/portsentry-trap.nft documents each rule.
//!
//! No rule here uses connection tracking: one such expression enables it for the whole network namespace.
//!
//! References: the kernel's net/netfilter/nft_dynset.c, nft_limit.c.

use std::time::Duration;

use rustables::expr::{CmpOp, MetaType, VerdictKind};
use rustables::sys;

use super::exclusions::{connected, nat64_rules, no_route_back, returning};
use super::family::{Family, LINK_LOCAL, V4, V6};
use super::fragment_rules::later_rules;
use super::rule::{
    ACK, DESTINATION, DESTINATION_ADDRESS, ElementTimeout, FIN, FLAGS, LOCAL, Limit, RST, Rule, SOURCE_ADDRESS, SYN,
    TCP,
};
use super::set::Set;
use super::spec::Trap;
use super::table::{CHAIN, TRAP_FULL, TRAP_HELD, TRAP_HOLD, TRAP_HOLD_NEW, TRAP_SYN, TRAP_SYN_HOLD, TRAP_TOUCH};

pub(super) fn hold_rules(trap: &Trap, length: Duration) -> Vec<Rule> {
    let full = |chain| Rule::new(chain).jump(TRAP_FULL);
    let mut rules: Vec<Rule> = KINDS.iter().flat_map(new_port_rules).collect();
    rules.push(full(TRAP_HOLD));
    rules.extend(KINDS.iter().flat_map(|family| source_rules(trap, length, family)));
    rules.extend([full(TRAP_HOLD_NEW), Rule::new(TRAP_FULL).counter()]);
    rules.extend(syn_rules(trap));
    rules.extend(
        [V4, V6].map(|family| Rule::new(TRAP_HELD).source_in(&family, Set::Allowed).verdict(VerdictKind::Return)),
    );
    let drop = Rule::new(TRAP_HELD).address_type(DESTINATION_ADDRESS, CmpOp::Eq, LOCAL).counter();
    rules.push(drop.verdict(VerdictKind::Drop));
    rules
}

/// The rules before address translation: for SYNs to any port, and for packets of held sources to ports that are open
/// or published, and not trapped.
pub(super) fn early_rules(trap: &Trap) -> impl Iterator<Item = Rule> {
    let syn = Rule::new(CHAIN).on_monitored(trap.named_interfaces).tcp_flags(FLAGS, CmpOp::Eq, SYN).for_this_host();
    let syn = syn.address_type(DESTINATION_ADDRESS, CmpOp::Eq, LOCAL).jump(TRAP_SYN);
    [syn].into_iter().chain(held(CHAIN, trap, true))
}

/// The rules that hold a source without a probe of a closed port: for SYNs that a scanner built, and for SYNs to two
/// services within [`HOLD_PAIR_WINDOW`].
fn syn_rules(trap: &Trap) -> impl Iterator<Item = Rule> {
    let rule = || Rule::new(TRAP_SYN);
    let scanner = rule().text("meta l4proto tcp @th,96,32 & 0xfffffffe == 0x60020400").meta(MetaType::L4Proto, TCP);
    let scanner = scanner.payload(sys::NFT_PAYLOAD_TRANSPORT_HEADER, 12, 4).mask(SCANNER_MASK);
    let scanner = scanner.compare(CmpOp::Eq, SCANNER_SYN).goto(TRAP_SYN_HOLD);
    let other = rule().text("tcp dport != @services").meta(MetaType::L4Proto, TCP).port(DESTINATION);
    let not_counted =
        [other.lookup_inverted(Set::Services), rule().link_local(), connected(TRAP_SYN, &V4), connected(TRAP_SYN, &V6)];
    let services = [V4, V6].into_iter().flat_map(|family| [true, false].map(|https| two_services(&family, https)));
    let exempt = nat64_rules(TRAP_SYN_HOLD, trap)
        .chain([no_route_back(TRAP_SYN_HOLD), Rule::new(TRAP_SYN_HOLD).address_type(SOURCE_ADDRESS, CmpOp::Eq, LOCAL)]);
    let hold = returning(exempt).chain([Rule::new(TRAP_SYN_HOLD).goto(TRAP_HOLD)]);
    let passing = returning(later_rules(TRAP_SYN));
    passing.chain([scanner]).chain(returning(not_counted)).chain(services).chain(hold)
}

/// Holds a source at the second service to which it sends a SYN within [`HOLD_PAIR_WINDOW`]. HTTP and HTTPS are one
/// service.
fn two_services(family: &Family, https: bool) -> Rule {
    let (how, port) = if https { (CmpOp::Eq, "80") } else { (CmpOp::Neq, "tcp dport") };
    let rule = Rule::new(TRAP_SYN).text(if https { "tcp dport 443" } else { "tcp dport != 443" });
    let rule = rule.meta(MetaType::L4Proto, TCP).port(DESTINATION).compare(how, HTTPS.to_be_bytes());
    let rule = rule.family(family).target(family);
    let rule = if https { rule.constant_behind(family, HTTP) } else { rule.port_behind(family, DESTINATION) };
    let (key, time) = (format!("{} . {port}", family.target), || Some(ElementTimeout::brief(HOLD_PAIR_WINDOW)));
    let rule = rule.add(family.set(Set::ServicePorts), &key, time(), Some(Limit::first()), sys::NFT_DYNSET_OP_ADD);
    let second = Some(Limit::above_total(1));
    rule.target(family)
        .add(family.set(Set::ServiceClients), family.target, time(), second, sys::NFT_DYNSET_OP_ADD)
        .goto(TRAP_SYN_HOLD)
}

const HTTP: u16 = 80;
const HTTPS: u16 = 443;
/// A scanner sends its first SYNs within a millisecond. A client that connects to a second service because of what the
/// first one answered needs longer.
const HOLD_PAIR_WINDOW: Duration = Duration::from_millis(20);

/// Header length, flags and window of the SYNs of nmap and masscan: 24 bytes, so that a segment size is the only
/// option, SYN alone, and a window of 1,024 or 1,025 bytes. The stacks of operating systems add options for timestamps,
/// window scaling or selective acknowledgement, and offer larger windows.
const SCANNER_SYN: [u8; 4] = [0x60, SYN, 0x04, 0x00];
const SCANNER_MASK: [u8; 4] = [0xff, 0xff, 0xff, 0xfe];

/// The rules that hold the source of a packet to a trapped port, and drop flags that no TCP stack sends. A closed port
/// would answer such flags with a reset, an open one would not. A probe of a related port has no further consequence.
pub(super) fn probe_rules() -> [Rule; 3] {
    let rule = || Rule::new(TRAP_TOUCH);
    let hold = rule().text("meta l4proto tcp").meta(MetaType::L4Proto, TCP).jump(TRAP_HOLD);
    let illegal = rule().tcp_flags(FLAGS, CmpOp::Neq, SYN).counter();
    let related = rule().text("tcp dport @related").meta(MetaType::L4Proto, TCP).port(DESTINATION).lookup(Set::Related);
    [hold, illegal.verdict(VerdictKind::Drop), related.verdict(VerdictKind::Return)]
}

/// Flags that no TCP stack sends: none of the flags of which every segment has one, or SYN with FIN or RST.
pub(super) const ILLEGAL: [(u8, u8); 3] = [(SYN | RST | ACK, 0), (FIN | SYN, FIN | SYN), (SYN | RST, SYN | RST)];

/// Selects SYNs, and flags that no TCP stack sends. A port that is closed and not trapped would answer such flags with
/// a reset, which distinguishes it from open ports. With `inverted`, only at ports that are not trapped.
pub(super) fn held(chain: &'static str, trap: &Trap, inverted: bool) -> [Rule; 3] {
    [V4, V6, LINK_LOCAL].map(|family| {
        let rule = Rule::new(chain).on_monitored(trap.named_interfaces).tcp_flags(RST | ACK, CmpOp::Eq, 0);
        let held = family.set(Set::Held);
        let rule = rule.text(format_args!("{} @{}", family.target, held.name()));
        rule.family(&family).target(&family).lookup(held).trapped_port(inverted).jump(TRAP_HELD)
    })
}

/// Starts a rule for sources of this family.
fn of_kind(chain: &'static str, family: &Family) -> Rule {
    let rule = Rule::new(chain);
    if family.number == V6.number && !family.is_masked { rule.link_local() } else { rule.family(family) }
}

/// Returns at a port that the source probed recently: a retransmitted SYN then reaches the closed port.
fn new_port_rules(family: &Family) -> [Rule; 2] {
    let (key, ports) = (format!("{} . tcp dport", family.target), family.set(Set::HeldPorts));
    let rule = || of_kind(TRAP_HOLD, family);
    let known = rule().text(format_args!("{key} @{}", ports.name())).source_and_port(family, TCP);
    let add = rule().source_and_port(family, TCP);
    let add = add.add(ports, &key, Some(ElementTimeout::brief(PROBE_MEMORY)), None, sys::NFT_DYNSET_OP_ADD);
    [known.lookup(ports).verdict(VerdictKind::Return), add.goto(TRAP_HOLD_NEW)]
}

/// Holds a source that is counted in one of the two sets and is not above the limit. The kernel also evaluates the
/// limit of an element at a look-up; only its absence can be tested without counting.
fn source_rules(trap: &Trap, length: Duration, family: &Family) -> [Rule; 5] {
    let rule = || of_kind(TRAP_HOLD_NEW, family);
    let add = |rule: Rule, set: Set, span, limit, operation| {
        rule.target(family).add(set, family.target, Some(span), limit, operation).verdict(VerdictKind::Return)
    };
    let count = |rule, set, span| add(rule, set, span, Some(Limit::above_total(MAX_HOLDS)), sys::NFT_DYNSET_OP_UPDATE);
    let missing = |rule: Rule, set: Set| {
        rule.text(format_args!("{} != @{}", family.target, set.name())).target(family).lookup_inverted(set)
    };
    let [held, counts, recent] = [Set::Held, Set::HoldCounts, Set::HoldRecent].map(|set| family.set(set));
    let is_held = rule().text(format_args!("{} @{}", family.target, held.name())).target(family);
    [
        is_held.lookup(held).verdict(VerdictKind::Return),
        count(rule(), counts, ElementTimeout::brief(trap.window)),
        count(missing(rule(), counts), recent, ElementTimeout::brief(PROBE_MEMORY)),
        missing(missing(rule(), counts), recent).goto(TRAP_FULL),
        add(rule(), held, ElementTimeout::brief(length), None, sys::NFT_DYNSET_OP_ADD),
    ]
}

/// Link-local addresses come before their /64.
const KINDS: [Family; 3] = [V4, LINK_LOCAL, V6];
/// Maximum number of holds per source within a window; at most 900 ms each, less than 15 seconds in all.
pub const MAX_HOLDS: u32 = 16;
/// Time for which a probed port is remembered: longer than TCP retransmits a SYN, after 1, 3 and 7 seconds.
const PROBE_MEMORY: Duration = Duration::from_secs(10);
