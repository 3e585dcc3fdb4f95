//! Permanently reduces all capability sets to the few that are needed.
//!
//! References: capabilities(7), on the bounding set and on securebits.

use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, capabilities_secure_bits,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
};

use super::policy::{Policy, Process};

/// The numbers of all capabilities that a kernel can have (capability.h).
const NUMBERS: std::ops::Range<u32> = 0..64;

/// The names of the permitted capabilities of the calling thread, for example `CAP_NET_ADMIN`; `None` if they are too many
/// to list, as for root.
pub(super) fn names() -> Option<Vec<String>> {
    names_of(capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted))
}

fn names_of(set: CapabilitySet) -> Option<Vec<String>> {
    let few = set.bits().count_ones() <= 8;
    few.then(|| set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect())
}

/// The capabilities that are kept.
fn needed(policy: &Policy, shut_out: bool) -> CapabilitySet {
    let mut needed = match policy.process {
        Process::Daemon | Process::Commands => CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW,
        Process::Files => CapabilitySet::empty(),
    };
    if policy.low_ports {
        needed |= CapabilitySet::NET_BIND_SERVICE;
    }
    if policy.others_files {
        needed |= CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER;
    }
    if shut_out {
        needed |= CapabilitySet::DAC_READ_SEARCH;
    }
    needed
}

/// Drops the permission for a real-time priority from the calling thread.
pub fn forget_priority() {
    if let Ok(CapabilitySets { effective, permitted, inheritable }) = capabilities(None) {
        let less = CapabilitySets {
            effective: effective - CapabilitySet::SYS_NICE,
            permitted: permitted - CapabilitySet::SYS_NICE,
            inheritable: inheritable - CapabilitySet::SYS_NICE,
        };
        // Dropping capabilities is always permitted.
        let _ = set_capabilities(None, less);
    }
}

/// Reduces all sets. Capabilities that the process lacks are not added.
///
/// `nice` is kept as well until the sensor thread has its priority ([`forget_priority`]). A process that is `shut_out`
/// of its own files may pass through all directories.
pub(super) fn cut(policy: &Policy, nice: bool, shut_out: bool) -> rustix::io::Result<()> {
    let has = capabilities(None)?.permitted;
    let kept = has & needed(policy, shut_out);
    // The change of user has emptied the effective set.
    let last = has & (kept | CapabilitySet::SETPCAP | CapabilitySet::SYS_NICE);
    set_capabilities(None, CapabilitySets { effective: last, permitted: last, inheritable: kept })?;
    if last.contains(CapabilitySet::SETPCAP) {
        for number in NUMBERS {
            let one = CapabilitySet::from_bits_retain(1 << number);
            if !kept.contains(one) {
                // A number unknown to the kernel is not a capability.
                let _ = remove_capability_from_bounding_set(one);
            }
        }
        if policy.process != Process::Commands {
            // Programs executed by root do not get root's capabilities automatically, and these flags are locked.
            let locked = CapabilitiesSecureBits::NO_ROOT
                | CapabilitiesSecureBits::NO_ROOT_LOCKED
                | CapabilitiesSecureBits::NO_SETUID_FIXUP
                | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
                | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
                | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
                | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
            let kept = capabilities_secure_bits()? - CapabilitiesSecureBits::KEEP_CAPS;
            set_capabilities_secure_bits(kept | locked)?;
        }
    }
    // A command inherits the ambient capabilities of the service; no other process inherits any.
    let inheritable = if policy.process == Process::Commands { kept } else { CapabilitySet::empty() };
    if policy.process != Process::Commands {
        clear_ambient_capability_set()?;
    }
    let nice =
        if nice && policy.process != Process::Files { has & CapabilitySet::SYS_NICE } else { CapabilitySet::empty() };
    let now = kept | nice;
    set_capabilities(None, CapabilitySets { effective: now, permitted: now, inheritable })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_needed_capabilities_are_kept() {
        let plain = needed(&Policy::default(), false);
        assert_eq!(plain, CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW);
        let low = needed(&Policy { low_ports: true, ..Policy::default() }, false);
        assert_eq!(low - plain, CapabilitySet::NET_BIND_SERVICE);
        assert_eq!(needed(&Policy::default(), true) - plain, CapabilitySet::DAC_READ_SEARCH);
        assert_eq!(needed(&Policy { names: true, process: Process::Commands, ..Policy::default() }, false), plain);
        let files = Policy { process: Process::Files, ..Policy::default() };
        assert_eq!(needed(&files, false), CapabilitySet::empty());
    }

    #[test]
    fn complete_capability_set_is_not_listed() {
        let few = names_of(needed(&Policy::default(), false));
        assert_eq!(few.unwrap(), ["CAP_NET_ADMIN", "CAP_NET_RAW"]);
        assert_eq!(names_of(CapabilitySet::all()), None);
    }
}
