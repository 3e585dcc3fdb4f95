//! What was chosen about the table to the rules of its chains, each with its text; and rules of the kernel back to what
//! was chosen.
//!
//! rustables builds them, but for those with a limit, a log level or a look-up of routes, which it does not know: these
//! are encoded here.

use rustables::error::BuilderError;
use rustables::expr::{
    Bitwise, Cmp, CmpOp, Counter, HighLevelPayload, IPv4HeaderField, IPv6HeaderField, IcmpCode, Immediate, Lookup,
    Meta, MetaType, NetworkHeaderField, Register, Reject, RejectType, VerdictKind,
};
use rustables::{Chain, ChainPolicy, ChainType, Hook, HookClass, MsgType, ProtocolFamily, Rule, Table};

use super::message::{Attributes, be_u64, put_message};
use super::snapshot::TableSnapshot;
use super::spec::{Action, RulesetSpec};
use super::{CHAIN, REFUSE, Set, TABLE, TRAP, TRAP_ASKED, TRAP_BAN, TRAP_TOUCH, flag, kind, trap};
use crate::types::Rate;

/// A rule, ready to be sent.
pub(super) struct Encoded {
    /// The chain that it stands in.
    pub(super) chain: &'static str,
    /// As nft writes it.
    pub(super) text: String,
    /// The message that appends it to its chain.
    pub(super) message: Vec<u8>,
}

/// The chains of such a table, in the order in which they are made. Where packets are only dropped, one is enough.
pub(super) fn chains(spec: &RulesetSpec) -> Vec<&'static str> {
    let mut chains = vec![CHAIN];
    chains.extend(refuses(spec).then_some(REFUSE));
    chains.extend(spec.trap.is_some().then_some([TRAP_BAN, TRAP_TOUCH, TRAP]).into_iter().flatten());
    chains.extend(spec.trap.is_some_and(|trap| trap.udp).then_some(TRAP_ASKED));
    chains
}

/// True where there is more to do with a packet than to drop it.
fn refuses(spec: &RulesetSpec) -> bool {
    spec.action != Action::Drop || spec.log_drops.is_some()
}

/// The message that creates the chain of this name.
pub(super) fn chain_message(name: &str) -> Vec<u8> {
    let chain = chain(name);
    let chain = match name {
        CHAIN => chain
            .with_hook(Hook::new(HookClass::PreRouting, PRIORITY))
            .with_type(ChainType::Filter)
            .with_policy(ChainPolicy::Accept),
        TRAP => chain
            .with_hook(Hook::new(HookClass::PreRouting, TRAP_PRIORITY))
            .with_type(ChainType::Filter)
            .with_policy(ChainPolicy::Accept),
        TRAP_ASKED => chain
            .with_hook(Hook::new(HookClass::PostRouting, ASKED_PRIORITY))
            .with_type(ChainType::Filter)
            .with_policy(ChainPolicy::Accept),
        _ => chain,
    };
    built(|messages| messages.add(&chain, MsgType::Add))
}

/// The message that creates the table, or takes its flags from it.
pub(super) fn table_message() -> Vec<u8> {
    built(|messages| messages.add(&table(), MsgType::Add))
}

/// All rules, chain after chain.
pub(super) fn rules(spec: &RulesetSpec) -> Result<Vec<Encoded>, BuilderError> {
    let mut rules = sorting(spec)?;
    if refuses(spec) {
        rules.extend(refusing(spec)?);
    }
    if let Some(trap) = &spec.trap {
        rules.extend(trap::rules(trap));
    }
    Ok(rules)
}

/// Who is refused. Allowed first, so that no ban reaches who is protected.
fn sorting(spec: &RulesetSpec) -> Result<Vec<Encoded>, BuilderError> {
    let saddr4 = HighLevelPayload::Network(NetworkHeaderField::IPv4(IPv4HeaderField::Saddr));
    let saddr6 = HighLevelPayload::Network(NetworkHeaderField::IPv6(IPv6HeaderField::Saddr));
    let from = |family: u8, source: HighLevelPayload| -> Result<Rule, BuilderError> {
        let rule = Rule::new(&chain(CHAIN))?.with_expr(Meta::new(MetaType::NfProto));
        Ok(rule.with_expr(Cmp::new(CmpOp::Eq, [family])).with_expr(source.build()))
    };
    let within =
        |rule: Rule, set: Set| rule.with_expr(Lookup::default().with_set(set.name()).with_sreg(Register::Reg1));
    let accept = |rule: Rule| rule.with_expr(Immediate::new_verdict(VerdictKind::Accept));
    let (verb, verdict) = match refuses(spec) {
        true => (format!("jump {REFUSE}"), VerdictKind::Jump { chain: REFUSE.to_owned() }),
        false => ("drop".to_owned(), VerdictKind::Drop),
    };
    let refuse = |rule: Rule| rule.with_expr(Counter::default()).with_expr(Immediate::new_verdict(verdict.clone()));
    let slash_64 = Bitwise::new((u128::MAX << 64).to_be_bytes(), [0; 16])?;
    let rule = |text: &str, rule: Rule| encoded(CHAIN, text.to_owned(), rule);
    let mut rules = vec![
        rule("ip saddr @allowed accept", accept(within(from(IPV4, saddr4)?, Set::Allowed))),
        rule("ip6 saddr @allowed6 accept", accept(within(from(IPV6, saddr6)?, Set::Allowed6))),
        rule(&format!("ip saddr @blocked counter {verb}"), refuse(within(from(IPV4, saddr4)?, Set::Blocked))),
        rule(
            &format!("ip6 saddr & ffff:ffff:ffff:ffff:: @blocked6 counter {verb}"),
            refuse(within(from(IPV6, saddr6)?.with_expr(slash_64), Set::Blocked6)),
        ),
        rule(&format!("ip6 saddr @blocked6 counter {verb}"), refuse(within(from(IPV6, saddr6)?, Set::Blocked6))),
    ];
    if spec.wide {
        let (nets, nets6) = (Set::BlockedNets, Set::BlockedNets6);
        rules.push(rule(&format!("ip saddr @blocked_nets counter {verb}"), refuse(within(from(IPV4, saddr4)?, nets))));
        rules.push(rule(
            &format!("ip6 saddr @blocked_nets6 counter {verb}"),
            refuse(within(from(IPV6, saddr6)?, nets6)),
        ));
    }
    Ok(rules)
}

/// How they are refused. What makes answers harmless to others:
/// - A source can be forged, and its answer then goes to a stranger. An answer is never longer than what it answers, but
///   for the ICMP errors, which quote it, and which the kernel itself limits (icmp_ratelimit: one a second to each
///   destination; icmp_msgs_per_sec in all). It limits no resets, and so a rule does: all answers together are at most
///   100 a second, above that packets are dropped. A host without a filter resets every one of them.
/// - To a broadcast or multicast address, or one that is only routed here, the kernel would send a reset from that
///   address: only what goes to an address of this host is answered.
///
/// ICMP says port unreachable, because that and the reset are what a host says on which nothing listens; "prohibited"
/// would tell a scanner of the filter.
fn refusing(spec: &RulesetSpec) -> Result<Vec<Encoded>, BuilderError> {
    let mut rules = Vec::new();
    if let Some(rate) = spec.log_drops {
        let text = format!("limit rate {rate} burst {LOG_BURST} packets log prefix \"{LOG_PREFIX}\"");
        rules.push(raw(REFUSE, text, |list| {
            let (packets, seconds) = rate.for_kernel();
            put_limit(list, packets, seconds, LOG_BURST, 0);
            put_expression(list, "log", |log| {
                log.put_text(LOG_PREFIX_FIELD, LOG_PREFIX);
                log.put(LOG_LEVEL, &WARNING.to_be_bytes());
            });
        }));
    }
    let refuse = Rule::new(&chain(REFUSE))?;
    match spec.action {
        Action::Drop => {
            let drop = refuse.with_expr(Immediate::new_verdict(VerdictKind::Drop));
            rules.push(encoded(REFUSE, "drop".to_owned(), drop));
        }
        Action::Reject => {
            rules.push(raw(REFUSE, "fib daddr type != local drop".to_owned(), |list| {
                put_address_type(list, FIB_DESTINATION);
                put_compare(list, NOT_EQUAL, &LOCAL.to_ne_bytes());
                put_drop(list);
            }));
            let text = format!("limit rate over {ANSWERS}/second burst {ANSWERS} packets drop");
            rules.push(raw(REFUSE, text, |list| {
                put_limit(list, ANSWERS.into(), 1, ANSWERS, LIMIT_OVER);
                put_drop(list);
            }));
            let tcp = refuse.clone().with_expr(Meta::new(MetaType::L4Proto)).with_expr(Cmp::new(CmpOp::Eq, [TCP]));
            let reset =
                tcp.with_expr(Reject::default().with_type(RejectType::TcpRst).with_icmp_code(IcmpCode::NoRoute));
            rules.push(encoded(REFUSE, "meta l4proto tcp reject with tcp reset".to_owned(), reset));
            let unreachable =
                Reject::default().with_type(RejectType::IcmpxUnreach).with_icmp_code(IcmpCode::PortUnreach);
            let text = "reject with icmpx port-unreachable".to_owned();
            rules.push(encoded(REFUSE, text, refuse.with_expr(unreachable)));
        }
    }
    Ok(rules)
}

/// What was chosen when the rules that `found` holds were made, if it was this program that made them: if not, a table
/// made by this is not like `found`.
pub(super) fn chosen(found: &TableSnapshot, size: u32) -> RulesetSpec {
    let wide = found.has_set(Set::BlockedNets.name());
    let mut spec = RulesetSpec { size, wide, trap: trap::chosen(found), ..RulesetSpec::default() };
    for rule in found.rules(REFUSE) {
        let names: Vec<&str> = rule.iter().map(|(name, _)| name.as_str()).collect();
        match (names.as_slice(), rule.first()) {
            (["limit", "log"], Some((_, limit))) => {
                let field = |kind: u16| limit.get([kind].as_slice()).and_then(|value| be_u64(value));
                spec.log_drops = field(LIMIT_RATE).zip(field(LIMIT_UNIT)).and_then(|(p, s)| Rate::from_kernel(p, s));
            }
            (["reject"], _) => spec.action = Action::Reject,
            _ => {}
        }
    }
    spec
}

fn table() -> Table {
    Table::new(ProtocolFamily::Inet).with_name(TABLE).with_flags(0_u32)
}

fn chain(name: &str) -> Chain {
    Chain::new(&table()).with_name(name)
}

fn encoded(chain: &'static str, text: String, rule: Rule) -> Encoded {
    Encoded { chain, text, message: built(|messages| messages.add(&rule, MsgType::Add)) }
}

/// The messages that rustables builds, without the BEGIN and END that it puts around them.
fn built(fill: impl FnOnce(&mut rustables::Batch)) -> Vec<u8> {
    let mut messages = rustables::Batch::new();
    fill(&mut messages);
    let mut bytes = messages.finalize();
    bytes.truncate(bytes.len().saturating_sub(MARK));
    bytes.drain(..MARK.min(bytes.len()));
    bytes
}

/// A rule of `chain` from the expressions that `fill` appends.
pub(super) fn raw(chain: &'static str, text: String, fill: impl FnOnce(&mut Attributes<'_>)) -> Encoded {
    let mut message = Vec::new();
    put_message(&mut message, kind::NEW_RULE, flag::CREATE | flag::APPEND, |rule| {
        rule.put_text(1, TABLE);
        rule.put_text(2, chain);
        rule.nest(4, fill);
    });
    Encoded { chain, text, message }
}

/// Loads the type of an address of the packet.
pub(super) fn put_address_type(list: &mut Attributes<'_>, which: u32) {
    put_expression(list, "fib", |fib| {
        fib.put(1, &REGISTER.to_be_bytes());
        fib.put(2, &FIB_ADDRESS_TYPE.to_be_bytes());
        fib.put(3, &which.to_be_bytes());
    });
}

/// Goes on where what was loaded compares so with `value`.
pub(super) fn put_compare(list: &mut Attributes<'_>, how: u32, value: &[u8]) {
    put_expression(list, "cmp", |compare| {
        compare.put(1, &REGISTER.to_be_bytes());
        compare.put(2, &how.to_be_bytes());
        compare.nest(3, |data| data.put(1, value));
    });
}

pub(super) fn put_expression(list: &mut Attributes<'_>, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
    list.nest(1, |expression| {
        expression.put_text(1, name);
        expression.nest(2, fill);
    });
}

pub(super) fn put_limit(list: &mut Attributes<'_>, packets: u64, seconds: u64, burst: u32, flags: u32) {
    put_expression(list, "limit", |limit| fill_limit(limit, packets, seconds, burst, flags));
}

pub(super) fn fill_limit(limit: &mut Attributes<'_>, packets: u64, seconds: u64, burst: u32, flags: u32) {
    limit.put(LIMIT_RATE, &packets.to_be_bytes());
    limit.put(LIMIT_UNIT, &seconds.to_be_bytes());
    limit.put(LIMIT_BURST, &burst.to_be_bytes());
    // Packets, not bytes.
    limit.put(4, &0_u32.to_be_bytes());
    limit.put(5, &flags.to_be_bytes());
}

pub(super) fn put_drop(list: &mut Attributes<'_>) {
    put_expression(list, "immediate", |immediate| {
        // Register 0 is the verdict, and verdict 0 is NF_DROP.
        immediate.put(1, &0_u32.to_be_bytes());
        immediate.nest(2, |data| data.nest(2, |verdict| verdict.put(1, &0_u32.to_be_bytes())));
    });
}

/// Answers to all blocked sources together, a second; and as many at once.
const ANSWERS: u32 = 100;
/// What stands before the packet in the kernel's log.
const LOG_PREFIX: &str = "Portsentry: dropping: ";
/// Lines that may come at once: those of one packet and what its sender tries again.
const LOG_BURST: u32 = 5;

/// `raw - 10`: before connection tracking and before everybody's raw tables.
const PRIORITY: i32 = -310;
/// `filter - 10`: after destination NAT (-100, with firewalld -90), so that a published port of a container is none of this
/// host's, and before everybody's filters.
const TRAP_PRIORITY: i32 = -10;
/// `srcnat + 10`: the ports and addresses that answers come back to.
const ASKED_PRIORITY: i32 = 110;
/// Length of BEGIN and of END.
const MARK: usize = 20;
/// NFPROTO_IPV4 and NFPROTO_IPV6.
pub(super) const IPV4: u8 = 2;
pub(super) const IPV6: u8 = 10;
/// IPPROTO_TCP and IPPROTO_UDP.
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
// enum nft_limit_attributes, nft_limit_flags
pub(super) const LIMIT_RATE: u16 = 1;
const LIMIT_UNIT: u16 = 2;
pub(super) const LIMIT_BURST: u16 = 3;
pub(super) const LIMIT_OVER: u32 = 1;
// enum nft_log_attributes, nft_log_level
const LOG_PREFIX_FIELD: u16 = 2;
const LOG_LEVEL: u16 = 5;
const WARNING: u32 = 4;
/// NFT_REG_1.
pub(super) const REGISTER: u32 = 1;
/// NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_SADDR, NFTA_FIB_F_DADDR, RTN_UNICAST, RTN_LOCAL, NFT_CMP_EQ, NFT_CMP_NEQ.
const FIB_ADDRESS_TYPE: u32 = 3;
pub(super) const FIB_SOURCE: u32 = 1;
pub(super) const FIB_DESTINATION: u32 = 2;
pub(super) const UNICAST: u32 = 1;
pub(super) const LOCAL: u32 = 2;
pub(super) const EQUAL: u32 = 0;
pub(super) const NOT_EQUAL: u32 = 1;
