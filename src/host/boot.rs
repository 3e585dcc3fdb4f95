//! Identifies the current boot of this host.

use std::time::Duration;

/// Uptime below which a host counts as just booted if the ledger does not contain the boot in which it was last opened.
const JUST_BOOTED: Duration = Duration::from_secs(60);

/// The kernel's identifier of this boot; `None` if it cannot be read.
pub fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

/// True if this is the first start since a boot, and not only a restart. `last` is the boot in which the ledger was
/// opened before, `present` the current one.
pub fn has_booted(last: Option<&str>, present: Option<&str>, uptime: Duration) -> bool {
    match (last, present) {
        (Some(last), Some(present)) => last != present,
        _ => uptime < JUST_BOOTED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_is_distinguished_from_boot() {
        let (minute, day) = (Duration::from_secs(59), Duration::from_secs(86_400));
        assert!(has_booted(Some("a"), Some("b"), day));
        assert!(!has_booted(Some("a"), Some("a"), minute), "a restart shortly after the boot is no boot");
        assert!(has_booted(None, Some("b"), minute), "an empty ledger proves no earlier start");
        assert!(!has_booted(None, Some("b"), day));
        assert!(!has_booted(Some("a"), None, day));
    }
}
