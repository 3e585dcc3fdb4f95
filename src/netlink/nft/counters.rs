//! Reads the packet counters of a chain's rules.

use netlink_packet_core::NLM_F_DUMP;
use rustables::sys;

use super::message::{field, put_request};
use super::table::TABLE;
use crate::netlink::message::{Message, attributes, be_u64, text};
use crate::netlink::socket::{Socket, SocketError};

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
