//! Tests from outside, with the kernel's own data, which rights the program gives up.

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

/// True if this kernel has Landlock (Linux 5.13, unless disabled).
fn has_landlock() -> bool {
    let known = AccessFs::from_all(ABI::V1);
    Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(known).is_ok()
}
