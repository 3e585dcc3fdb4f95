//! Queries, without a change, the kernel's features, the number of transactions, whether running transactions have
//! ended, and the packet counters of rules.

use netlink_packet_core::NLM_F_DUMP;
use rustables::sys;

use super::bans::{KernelFeatures, put_lift};
use super::message::{field, put_request};
use super::table::TABLE;
use crate::netlink::message::{Message, attributes, be_u32, be_u64, text};
use crate::netlink::socket::{Batch, Socket, SocketError};
use crate::types::BanTarget;

/// Probes the kernel. The table must exist; nothing in it changes. If probing fails, the features of the oldest kernel
/// are assumed.
pub(crate) fn kernel_features(socket: &mut Socket) -> KernelFeatures {
    KernelFeatures { destroys: destroy_nothing(socket).is_ok() }
}

/// The kernel's ruleset generation. Each transaction of any sender that changes any table increments it; it wraps after
/// 2^32.
pub(crate) fn generation(socket: &mut Socket) -> Result<u32, SocketError> {
    let mut request = Vec::new();
    put_request(&mut request, sys::NFT_MSG_GETGEN, 0, |_| {});
    let mut generation = 0;
    socket.ask(&mut request, |message| {
        // Unlike other answers, this one has no family.
        let number = message.generation().and_then(|list| field(list, sys::NFTA_GEN_ID));
        generation = number.and_then(be_u32).unwrap_or(0);
    })?;
    Ok(generation)
}

/// Waits until all running transactions have ended and their notifications are queued for the listeners; the kernel
/// runs one transaction at a time. Changes nothing.
pub(crate) fn await_turn(socket: &mut Socket) {
    // A refused request has waited for its turn as well.
    let _ = destroy_nothing(socket);
}

/// Destroys an element that never exists: 255.255.255.255, which is never a source.
fn destroy_nothing(socket: &mut Socket) -> Result<(), SocketError> {
    let mut batch = Batch::new();
    put_lift(&mut batch, KernelFeatures { destroys: true }, BanTarget::V4(std::net::Ipv4Addr::BROADCAST));
    socket.transact(&mut batch)
}

/// Sum of the packet counters in the rules of `chain`. Recreated rules count from zero.
pub(crate) fn counted_packets(socket: &mut Socket, chain: &str) -> Result<u64, SocketError> {
    let mut request = Vec::new();
    put_request(&mut request, sys::NFT_MSG_GETRULE, NLM_F_DUMP, |fields| {
        fields.put_text(sys::NFTA_RULE_TABLE, TABLE);
        fields.put_text(sys::NFTA_RULE_CHAIN, chain);
    });
    socket.dump(&mut request, || 0, |sum: &mut u64, message| *sum = sum.saturating_add(packets(message, chain)))
}

fn packets(message: &Message<'_>, chain: &str) -> u64 {
    let rule = message.nft_of(sys::NFT_MSG_NEWRULE);
    if field(rule, sys::NFTA_RULE_CHAIN).and_then(text) != Some(chain) {
        return 0;
    }
    let expressions = attributes(field(rule, sys::NFTA_RULE_EXPRESSIONS).unwrap_or_default());
    let counters = expressions.filter(|(_, one)| field(one, sys::NFTA_EXPR_NAME).and_then(text) == Some("counter"));
    let packets = |one| be_u64(field(field(one, sys::NFTA_EXPR_DATA)?, sys::NFTA_COUNTER_PACKETS)?);
    counters.filter_map(|(_, one)| packets(one)).sum()
}
