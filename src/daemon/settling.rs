//! Decides when the services of this host have started after a boot. Until then the engine bans no source.

use std::time::Duration;

use crate::types::{MINUTE, Timestamp};

/// Maximum duration of settling. A service that has not started by then is usually not going to start.
pub const MAX_SETTLING: Duration = MINUTE;

/// Time for which the listeners must not change.
const QUIET_TIME: Duration = Duration::from_secs(5);

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
        now >= self.until || all_served && now.since(self.unchanged_since) >= QUIET_TIME
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::at;

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
