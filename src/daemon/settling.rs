//! Decides when the services of this host have started after a boot. Until then the engine bans no source.

use std::time::Duration;

use crate::types::Timestamp;

/// Maximum duration of settling. A service that has not started by then is usually not going to start.
pub const MAX_SETTLING: Duration = Duration::from_secs(60);

/// Time for which the listeners must not change.
const QUIET: Duration = Duration::from_secs(5);

/// Uptime below which a host counts as just booted if the ledger does not contain the boot in which it was last opened.
const JUST_BOOTED: Duration = Duration::from_secs(60);

/// The kernel's identifier of this boot; `None` if it cannot be read.
pub(super) fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

/// True if this is the first start since a boot, and not only a restart. `last` is the boot in which the ledger was
/// opened before, `present` the current one.
pub(super) fn has_booted(last: Option<&str>, present: Option<&str>, uptime: Duration) -> bool {
    match (last, present) {
        (Some(last), Some(present)) => last != present,
        _ => uptime < JUST_BOOTED,
    }
}

/// State of settling.
pub struct Settling {
    until: Timestamp,
    unchanged_since: Timestamp,
}

impl Settling {
    pub fn new(now: Timestamp) -> Self {
        Self { until: now.after(MAX_SETTLING), unchanged_since: now }
    }

    /// True once all services have started. `all_served`: there are remembered services and all of them are served.
    pub fn is_over(&mut self, now: Timestamp, listeners_changed: bool, all_served: bool) -> bool {
        if listeners_changed {
            self.unchanged_since = now;
        }
        now >= self.until || all_served && now.since(self.unchanged_since) >= QUIET
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::at;

    #[test]
    fn restart_is_distinguished_from_boot() {
        let (minute, day) = (Duration::from_secs(59), Duration::from_secs(86_400));
        assert!(has_booted(Some("a"), Some("b"), day));
        assert!(!has_booted(Some("a"), Some("a"), minute), "a restart shortly after the boot is no boot");
        assert!(has_booted(None, Some("b"), minute), "an empty ledger proves no earlier start");
        assert!(!has_booted(None, Some("b"), day));
        assert!(!has_booted(Some("a"), None, day));
    }

    #[test]
    fn settling_ends_with_services_or_minute() {
        let mut settling = Settling::new(at(100));
        assert!(!settling.is_over(at(110), false, false), "not all services are up");
        assert!(!settling.is_over(at(111), true, true), "they are starting");
        assert!(!settling.is_over(at(115), false, true));
        assert!(settling.is_over(at(116), false, true));
        let mut settling = Settling::new(at(100));
        assert!(!settling.is_over(at(159), true, false));
        assert!(settling.is_over(at(160), true, false), "even if services are missing");
    }
}
