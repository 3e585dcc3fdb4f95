//! Applies a new configuration to a running engine; the source table is kept.

use super::candidates::Candidates;
use super::{Engine, Response, Settings};

impl Engine {
    /// Applies new settings. The table sizes stay as they are; a ban in force keeps its end.
    pub fn reconfigure(&mut self, settings: Settings) {
        self.sources.set_window(settings.window);
        self.strikes.set_forget(settings.escalate.forget);
        self.ceilings.reconfigure(&settings);
        // Their next probes are judged by the new settings.
        self.candidates = Candidates::new();
        let (max_sources, max_judged) = (self.settings.max_sources, self.settings.max_judged);
        self.settings = Settings { max_sources, max_judged, ..settings };
    }

    /// Stops blocking: further scans are only logged. Existing bans stay in force.
    pub fn log_only(&mut self) {
        self.settings.tcp.response = Response::Log;
        self.settings.udp.response = Response::Log;
    }
}
