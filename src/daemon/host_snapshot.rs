//! Owns the snapshot of this host that the sensor has, and what its capture was opened with: the filter that the
//! snapshot needs, and the size of the ring buffer.

use std::sync::Arc;
use std::time::Instant;

use super::error::DaemonError;
use super::ring_size::RingSizer;
use super::sensor_thread::SensorHandle;
use crate::capture::filter::Wanted;
use crate::capture::live::{Live, Ring};
use crate::engine::{Host, Settings};
use crate::events::channel::Sender;
use crate::events::event::EventKind;
use crate::panic_guard::failpoint;
use crate::sensor::SensorMessage;

pub(super) struct HostSnapshot {
    pub(super) host: Arc<Host>,
    /// What the capture has to see.
    pub(super) wanted: Wanted,
    ring_sizer: RingSizer,
}

impl HostSnapshot {
    pub(super) fn new(settings: &Settings, host: Host) -> Self {
        let wanted = Wanted::new(settings, &host);
        Self { host: Arc::new(host), wanted, ring_sizer: RingSizer::new(Instant::now()) }
    }

    /// Replaces the snapshot; returns another capture if `settings` and `host` need another filter.
    ///
    /// # Errors
    /// The capture cannot be opened. The old snapshot then stays, because the sensor does not get the new one either.
    pub(super) async fn replace(&mut self, settings: &Settings, host: Host) -> Result<Option<Live>, DaemonError> {
        let wanted = Wanted::new(settings, &host);
        let live = match wanted != self.wanted {
            true => Some(capture(&wanted, self.ring_sizer.ring).await?),
            false => None,
        };
        self.wanted = wanted;
        self.host = Arc::new(host);
        Ok(live)
    }

    /// Called when the sensor reports a high packet rate.
    pub(super) fn flood_begins(&mut self) {
        self.ring_sizer.flood_begins(Instant::now());
    }

    /// Replaces the capture by one with a larger ring buffer while the sensor's counters show a high packet rate, and
    /// by one with the usual ring buffer afterwards.
    pub(super) async fn resize_ring(&mut self, sensor: &SensorHandle, events: &Sender) {
        let (now, metrics) = (Instant::now(), &sensor.metrics);
        let Some(ring) = self.ring_sizer.wanted(now, metrics.frames.get(), metrics.dropped.get()) else { return };
        match capture(&self.wanted, ring).await {
            Ok(live) => {
                self.ring_sizer.ring = ring;
                sensor.send(SensorMessage::Capture(live));
            }
            Err(error) => {
                self.ring_sizer.refused(now);
                events.emit(EventKind::Error(format!(
                    "cannot change the size of the capture's ring buffer: {error}; the capture continues with the old one"
                )));
            }
        }
    }
}

/// Opens another capture. Compiling its filter takes about 50 ms and runs on a separate thread, while the old capture
/// continues.
async fn capture(wanted: &Wanted, ring: Ring) -> Result<Live, DaemonError> {
    let filter = wanted.to_filter();
    let opened = tokio::task::spawn_blocking(move || {
        failpoint("capture");
        Live::open(&filter, ring)
    });
    Ok(opened.await.map_err(|_| DaemonError::SensorGone)??)
}
