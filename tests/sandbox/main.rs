//! What the program gives up, seen from outside, by the kernel's own account.

#![cfg(test)]

mod commands;
mod dynamic;
mod files;
mod handover;
mod lacking;
mod rights;
mod root_files;
mod second;
mod trust;

use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};

/// Whether this kernel has Landlock (Linux 5.13, where it was not switched off).
fn has_landlock() -> bool {
    let known = AccessFs::from_all(ABI::V1);
    Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(known).is_ok()
}
