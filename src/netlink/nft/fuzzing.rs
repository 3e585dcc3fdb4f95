//! Reads arbitrary bytes as replies and notifications of nf_tables, for a fuzz target.

use super::desired_ruleset::DesiredRuleset;
use super::element::{decode_prefixes, elements_of};
use super::monitor;
use super::recognise::recognise;
use super::snapshot::TableSnapshot;
use crate::netlink::message::Messages;

/// The shortest element with an address: its header, those of key and value, and four bytes.
const ELEMENT: usize = 16;
/// Maximum number of networks into which one interval is split.
const PIECES: usize = 2 * 128;

/// Reads `datagram` as a ruleset, as elements and intervals, and as notifications. The results must not exceed what the
/// bytes can hold, and a snapshot must not differ from itself.
pub(crate) fn read(datagram: &[u8]) {
    let mut shape = TableSnapshot::default();
    let mut bounds = Vec::new();
    for message in Messages(datagram) {
        shape.add_message(&message);
        let Some((_, list)) = message.nft() else { continue };
        bounds.extend(elements_of(list));
    }
    assert!(bounds.len() <= datagram.len() / ELEMENT);
    let most = bounds.len() * PIECES;
    assert!(decode_prefixes(bounds).len() <= most);
    assert!(shape.differences(&shape, |_, _| "").is_empty());
    if shape.exists {
        let old = recognise(&shape, 65_536);
        let desired = DesiredRuleset::new(&old);
        let differences = desired.differences(&shape);
        assert!(!desired.repair(&shape, &differences, &old).batch.is_empty() || differences.is_empty());
    }
    assert!(monitor::fuzz(datagram) <= datagram.len());
}

/// Requests for the whole table: the table itself, its sets, chains and rules, and the elements of each set.
#[cfg(test)]
pub(crate) fn requests() -> Vec<Vec<u8>> {
    use netlink_packet_core::NLM_F_DUMP;
    use rustables::sys;

    use super::message::put_request;
    use super::set::Set;
    use super::table::TABLE;

    let mut requests: Vec<Vec<u8>> = Vec::new();
    for (kind, flags) in [
        (sys::NFT_MSG_GETTABLE, 0),
        (sys::NFT_MSG_GETSET, NLM_F_DUMP),
        (sys::NFT_MSG_GETCHAIN, NLM_F_DUMP),
        (sys::NFT_MSG_GETRULE, NLM_F_DUMP),
    ] {
        let mut request = Vec::new();
        put_request(&mut request, kind, flags, |fields| fields.put_text(sys::NFTA_TABLE_NAME, TABLE));
        requests.push(request);
    }
    for set in [Set::Blocked, Set::Blocked6, Set::BlockedNets, Set::Allowed, Set::Trapped] {
        let mut request = Vec::new();
        super::put_set_dump(&mut request, set);
        requests.push(request);
    }
    requests
}
