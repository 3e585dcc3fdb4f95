//! Sends sd_notify(3) messages: ready, watchdog, stopping. Does nothing without `NOTIFY_SOCKET`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::sensor::SensorMetrics;

pub(super) struct Systemd {
    /// How often the watchdog wants to hear; `None`: never.
    every: Option<Duration>,
    told: Instant,
    metrics: Arc<SensorMetrics>,
    beats: u64,
}

impl Systemd {
    pub(super) fn new(metrics: Arc<SensorMetrics>) -> Self {
        // Three times as often as needed: one answer may be late.
        let every = sd_notify::watchdog_enabled().map(|limit| limit / 3);
        Self { every, told: Instant::now(), metrics, beats: 0 }
    }

    /// True where the sensor should give a sign of life now. It answers after everything that came before; the watchdog
    /// hears of it with the next call, so that a sensor that hangs is noticed as one that does.
    pub(super) fn is_due(&mut self) -> bool {
        let Some(every) = self.every else { return false };
        let beats = self.metrics.beats.get();
        if beats != self.beats {
            self.beats = beats;
            tell(&[NotifyState::Watchdog]);
        }
        let due = self.told.elapsed() >= every;
        if due {
            self.told = Instant::now();
        }
        due
    }
}

pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

pub(super) fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    // A parent process that does not listen is not affected.
    let _ = sd_notify::notify(state);
}
