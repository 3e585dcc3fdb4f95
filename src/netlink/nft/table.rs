//! Defines the table `inet portsentry` and its chains: names, hooks, and the messages that create them, encoded by
//! rustables.

use rustables::{Chain, ChainPolicy, ChainType, Hook, HookClass, MsgType, ProtocolFamily, Table};

use super::spec::RulesetSpec;
use crate::netlink::socket::BATCH_MARKER_LEN;
use crate::types::Action;

/// The daemon's own table, in the family `inet`.
pub const TABLE: &str = "portsentry";

/// The chain that sees every packet.
pub const CHAIN: &str = "prerouting";

/// The chain that logs or answers packets before they are dropped, if configured.
pub const REFUSE: &str = "refuse";

/// The base chain that drops frames with an own source address.
pub(super) const OWN_SOURCE: &str = "own_source";

/// The base chain that selects packets to trapped ports.
pub const TRAP: &str = "trap";
/// Counts the probes of a source.
pub(super) const TRAP_TOUCH: &str = "trap_touch";
/// Blocks a source that probed too many ports.
pub(super) const TRAP_BAN: &str = "trap_ban";
/// Holds a source that probes a port that is new for it.
pub(super) const TRAP_HOLD: &str = "trap_hold";
/// Holds a source unless it is already held or has reached the limit.
pub(super) const TRAP_HOLD_NEW: &str = "trap_hold_new";
/// Selects SYNs that scanners build themselves, and SYNs to two services at once.
pub(super) const TRAP_SYN: &str = "trap_syn";
/// Holds the sources of these SYNs.
pub(super) const TRAP_SYN_HOLD: &str = "trap_syn_hold";
/// Drops the SYNs of held sources.
pub(crate) const TRAP_HELD: &str = "trap_held";
/// Drops first fragments that hide the flags that the trap counts.
pub(super) const TRAP_FRAGMENT: &str = "trap_fragment";
/// Counts the packets of sources that are not held because a set is full.
pub(crate) const TRAP_FULL: &str = "trap_full";
/// Records traffic that this host's own stack sends from trapped ports, which are therefore in use.
pub(super) const TRAP_ASKED: &str = "trap_asked";

/// The base chain that selects packets to the decoys' ports.
pub(super) const DECOY: &str = "decoy";
/// Hands connections to the decoys' listener, and counts their SYNs.
pub(crate) const DECOY_TAKE: &str = "decoy_take";
/// Keeps the decoys' connections out of connection tracking.
pub(super) const DECOY_UNTRACK: &str = "decoy_untrack";
/// The base chain that selects packets from the decoys' ports.
pub(super) const DECOY_SENT: &str = "decoy_sent";
/// Counts the SYNs that decoys have answered.
pub(crate) const DECOY_ANSWERED: &str = "decoy_answered";

/// The chains of a table with this spec, in the order of creation. If packets are only dropped, one is enough.
pub(super) fn chains(spec: &RulesetSpec) -> Vec<&'static str> {
    let mut chains = vec![CHAIN];
    chains.extend(refuses(spec).then_some(REFUSE));
    chains.extend(spec.own_source.then_some(OWN_SOURCE));
    let holds = spec.trap.is_some_and(|trap| trap.hold.is_some());
    let hold = [TRAP_FRAGMENT, TRAP_HELD, TRAP_FULL, TRAP_HOLD_NEW, TRAP_HOLD, TRAP_SYN_HOLD, TRAP_SYN];
    chains.extend(holds.then_some(hold).into_iter().flatten());
    chains.extend(spec.trap.is_some().then_some([TRAP_BAN, TRAP_TOUCH, TRAP, TRAP_ASKED]).into_iter().flatten());
    if let Some(decoys) = &spec.decoys {
        chains.extend(decoys.max_new_tracked.is_none().then_some(DECOY_UNTRACK));
        chains.extend([DECOY_TAKE, DECOY, DECOY_ANSWERED, DECOY_SENT]);
    }
    chains
}

/// True if packets are logged or answered before they are dropped.
pub(super) fn refuses(spec: &RulesetSpec) -> bool {
    spec.action != Action::Drop || spec.log_drops.is_some()
}

/// The message that creates the table or clears its flags.
pub(super) fn table_message() -> Vec<u8> {
    encode(|messages| messages.add(&table(), MsgType::Add))
}

pub(super) fn chain_message(name: &str) -> Vec<u8> {
    let chain = Chain::new(&table()).with_name(name);
    let hook = match name {
        // `raw - 10`: before connection tracking and before the raw tables of other programs.
        // A separate chain, because own addresses are allowed, and allowed packets skip the rest of `prerouting`.
        CHAIN | OWN_SOURCE => Some(Hook::new(HookClass::PreRouting, -310)),
        // `filter - 10`: before the filters of other programs, and after destination NAT (-100, with firewalld -90), so
        // that a container's published port does not count as a port of this host.
        TRAP | DECOY => Some(Hook::new(HookClass::PreRouting, -10)),
        // `filter + 10`: after the filters of other programs. This hook sees only packets of this host's own stack. It
        // sees no forwarded packets, so that clients behind NAT cannot influence which ports count as used.
        TRAP_ASKED => Some(Hook::new(HookClass::Out, 10)),
        // `raw - 10`: before connection tracking.
        DECOY_SENT => Some(Hook::new(HookClass::Out, -310)),
        _ => None,
    };
    let chain = match hook {
        Some(hook) => chain.with_hook(hook).with_type(ChainType::Filter).with_policy(ChainPolicy::Accept),
        None => chain,
    };
    encode(|messages| messages.add(&chain, MsgType::Add))
}

fn table() -> Table {
    Table::new(ProtocolFamily::Inet).with_name(TABLE).with_flags(0_u32)
}

/// The messages that rustables builds, without BEGIN and END.
pub(super) fn encode(fill: impl FnOnce(&mut rustables::Batch)) -> Vec<u8> {
    let mut messages = rustables::Batch::new();
    fill(&mut messages);
    let mut bytes = messages.finalize();
    bytes.truncate(bytes.len().saturating_sub(BATCH_MARKER_LEN));
    bytes.drain(..BATCH_MARKER_LEN.min(bytes.len()));
    bytes
}
