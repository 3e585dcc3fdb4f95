//! Any bytes as what nf_tables answers and tells, through everything that reads it. For the fuzzer and its corpus.

use super::desired_ruleset::DesiredRuleset;
use super::element::elements_of;
use super::interval::{bounds_of, networks};
use super::message::Messages;
#[cfg(test)]
use super::message::{Attributes, put_request};
use super::monitor;
use super::rules::chosen;
use super::snapshot::TableSnapshot;
#[cfg(test)]
use super::{Set, TABLE, flag, kind};

/// The shortest element with an address in it: its own header, the key's and the value's, and four bytes.
const ELEMENT: usize = 16;
/// The most networks that one interval falls into.
const PIECES: usize = 2 * 128;

/// Reads `datagram` as the ruleset, as elements, as intervals and as notifications. What comes of it is no more than the
/// bytes can hold, and a table that was read is one that another reading finds nothing different in.
pub(crate) fn read(datagram: &[u8]) {
    let mut shape = TableSnapshot::default();
    let mut bounds = Vec::new();
    let mut elements = 0;
    for message in Messages(datagram) {
        shape.absorb(&message);
        let Some((_, list)) = message.nft() else { continue };
        elements += elements_of(list).count();
        bounds.extend(bounds_of(list));
    }
    assert!(elements <= datagram.len() / ELEMENT);
    let most = bounds.len() * PIECES;
    assert!(networks(bounds).len() <= most);
    assert!(shape.differences(&shape, |_, _| "").is_empty());
    if shape.exists() {
        mend(&shape);
    }
    assert!(monitor::fuzz(datagram) <= datagram.len());
}

/// What would be done about a table like this one.
fn mend(found: &TableSnapshot) {
    let old = chosen(found, 65_536);
    let Ok(blueprint) = DesiredRuleset::new(&old) else { return };
    let differences = blueprint.differences(found);
    assert!(!blueprint.mend(found, &differences, Some(&old)).batch.is_empty() || differences.is_empty());
}

/// Requests for all that there is in the table: the table itself, its sets, chains and rules, and what each set holds.
#[cfg(test)]
pub(crate) fn requests() -> Vec<Vec<u8>> {
    type Fill = fn(&mut Attributes<'_>);
    let table: Fill = |fields| fields.put_text(1, TABLE);
    let mut requests: Vec<Vec<u8>> = Vec::new();
    for (kind, flags) in
        [(kind::GET_TABLE, 0), (kind::GET_SET, flag::DUMP), (kind::GET_CHAIN, flag::DUMP), (kind::GET_RULE, flag::DUMP)]
    {
        let mut request = Vec::new();
        put_request(&mut request, kind, flags, table);
        requests.push(request);
    }
    for set in [Set::Blocked, Set::Blocked6, Set::BlockedNets, Set::Allowed, Set::Trapped] {
        let mut request = Vec::new();
        super::put_set_dump(&mut request, set);
        requests.push(request);
    }
    requests
}
