//! The expressions of which the trap's rules are made, encoded.
//!
//! Read with: linux/netfilter/nf_tables.h.

use crate::netlink::nft::Set;
use crate::netlink::nft::message::Attributes;
use crate::netlink::nft::rules::{REGISTER, put_expression};

use super::DYNSET_TIMEOUT;

pub(super) fn put_meta(list: &mut Attributes<'_>, key: u32) {
    put_expression(list, "meta", |meta| {
        meta.put(1, &REGISTER.to_be_bytes());
        meta.put(2, &key.to_be_bytes());
    });
}

pub(super) fn put_payload(list: &mut Attributes<'_>, register: u32, base: u32, offset: u32, length: u32) {
    put_expression(list, "payload", |payload| {
        payload.put(1, &register.to_be_bytes());
        payload.put(2, &base.to_be_bytes());
        payload.put(3, &offset.to_be_bytes());
        payload.put(4, &length.to_be_bytes());
    });
}

pub(super) fn put_mask(list: &mut Attributes<'_>, mask: &[u8]) {
    put_expression(list, "bitwise", |bitwise| {
        bitwise.put(1, &REGISTER.to_be_bytes());
        bitwise.put(2, &REGISTER.to_be_bytes());
        let length = u32::try_from(mask.len()).unwrap_or(0);
        bitwise.put(3, &length.to_be_bytes());
        bitwise.nest(4, |data| data.put(1, mask));
        let nothing = [0; 16];
        bitwise.nest(5, |data| data.put(1, nothing.get(..mask.len()).unwrap_or(&nothing)));
    });
}

pub(super) fn put_lookup(list: &mut Attributes<'_>, set: Set) {
    put_expression(list, "lookup", |lookup| {
        lookup.put_text(1, set.name());
        lookup.put(2, &REGISTER.to_be_bytes());
    });
}

/// Goes on with what is not in `set`.
pub(super) fn put_lookup_without(list: &mut Attributes<'_>, set: Set) {
    put_expression(list, "lookup", |lookup| {
        lookup.put_text(1, set.name());
        lookup.put(2, &REGISTER.to_be_bytes());
        lookup.put(LOOKUP_FLAGS, &LOOKUP_INVERTED.to_be_bytes());
    });
}

/// Adds what was loaded to `set`, where it is not in it yet. Where it is, the expression of its element goes on counting,
/// but its time is not prolonged: then what counts together always came within one window.
pub(super) fn put_add(
    list: &mut Attributes<'_>,
    set: Set,
    millis: Option<u64>,
    more: impl FnOnce(&mut Attributes<'_>),
) {
    put_dynamic(list, ADD, set, millis, more);
}

/// As [`put_add`], but the time of what is in it already begins anew.
pub(super) fn put_update(list: &mut Attributes<'_>, set: Set, millis: u64) {
    put_dynamic(list, UPDATE, set, Some(millis), |_| {});
}

fn put_dynamic(
    list: &mut Attributes<'_>,
    how: u32,
    set: Set,
    millis: Option<u64>,
    more: impl FnOnce(&mut Attributes<'_>),
) {
    put_expression(list, "dynset", |add| {
        add.put_text(1, set.name());
        add.put(3, &how.to_be_bytes());
        add.put(4, &REGISTER.to_be_bytes());
        if let Some(millis) = millis {
            add.put(DYNSET_TIMEOUT, &millis.to_be_bytes());
        }
        more(add);
    });
}

pub(super) fn put_return(list: &mut Attributes<'_>) {
    put_verdict(list, |verdict| verdict.put(1, &RETURN.to_be_bytes()));
}

pub(super) fn put_jump(list: &mut Attributes<'_>, chain: &str) {
    put_verdict(list, |verdict| {
        verdict.put(1, &JUMP.to_be_bytes());
        verdict.put_text(2, chain);
    });
}

fn put_verdict(list: &mut Attributes<'_>, fill: impl FnOnce(&mut Attributes<'_>)) {
    put_expression(list, "immediate", |immediate| {
        // Register 0 is the verdict.
        immediate.put(1, &0_u32.to_be_bytes());
        immediate.nest(2, |data| data.nest(2, fill));
    });
}

// enum nft_verdicts, nft_dynset_ops, nft_lookup_attributes, nft_lookup_flags
const JUMP: i32 = -3;
const RETURN: i32 = -5;
const ADD: u32 = 0;
const UPDATE: u32 = 1;
const LOOKUP_FLAGS: u16 = 5;
const LOOKUP_INVERTED: u32 = 1;
