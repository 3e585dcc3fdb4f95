//! What the daemon knows about its own run, for `status` and the metrics.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::events::event::Event;
use crate::sensor::SensorMetrics;

pub(super) struct RunState {
    pub(super) started: SystemTime,
    pub(super) since: Instant,
    pub(super) metrics: Arc<SensorMetrics>,
    pub(super) last_event: Option<Event>,
    /// Events that came faster than they could be logged.
    pub(super) lost: u64,
}

impl RunState {
    pub(super) fn new(metrics: Arc<SensorMetrics>) -> Self {
        Self { started: SystemTime::now(), since: Instant::now(), metrics, last_event: None, lost: 0 }
    }
}
