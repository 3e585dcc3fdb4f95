//! Sends sd_notify(3) messages: ready, watchdog, stopping. Does nothing without `NOTIFY_SOCKET`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::sensor::SensorMetrics;

pub(super) struct Systemd {
    /// Interval between watchdog messages; `None`: no watchdog.
    every: Option<Duration>,
    last_heartbeat: Instant,
    metrics: Arc<SensorMetrics>,
    beats: u64,
}

impl Systemd {
    pub(super) fn new(metrics: Arc<SensorMetrics>) -> Self {
        // Three times as often as needed, because one answer may be late.
        let every = sd_notify::watchdog_enabled().map(|limit| limit / 3);
        Self { every, last_heartbeat: Instant::now(), metrics, beats: 0 }
    }

    /// True if the sensor should be sent a heartbeat now. The sensor answers after all earlier commands, and the answer
    /// is reported to the watchdog with the next call, so that a hanging sensor is detected.
    pub(super) fn is_due(&mut self) -> bool {
        let Some(every) = self.every else { return false };
        let beats = self.metrics.beats.get();
        if beats != self.beats {
            self.beats = beats;
            notify(&[NotifyState::Watchdog]);
        }
        let due = self.last_heartbeat.elapsed() >= every;
        if due {
            self.last_heartbeat = Instant::now();
        }
        due
    }
}

pub(super) fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

pub(super) fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
}

pub(super) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(state: &[NotifyState<'_>]) {
    // An error has no effect on the daemon: the parent process may not listen.
    let _ = sd_notify::notify(state);
}
