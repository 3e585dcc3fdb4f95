//! Lifts bans for an operator, or at the end of a trial.

use std::time::SystemTime;

use tokio::sync::oneshot;

use super::ban_recorder::lifted;
use super::event_sink::EventSink;
use super::sensor_handle::SensorHandle;
use crate::events::event::EventKind;
use crate::sensor::SensorRequest;
use crate::types::BanTarget;

/// Lifts the bans of `targets`, or all bans if `None`, and records it in the ledger; the answer is their number.
pub(super) fn lift(
    sensor: &SensorHandle,
    sink: &EventSink,
    targets: Option<Vec<BanTarget>>,
    by: String,
) -> oneshot::Receiver<Result<usize, String>> {
    let lifting = sensor.ask(|answer| SensorRequest::Unblock { targets, by: by.clone(), answer });
    let (finished, done) = oneshot::channel();
    let (recorder, events) = (sink.ban_recorder.recorder(), sink.events.clone());
    tokio::spawn(async move {
        let Ok(result) = lifting.await else { return };
        let result = result.map(|targets| {
            let count = targets.len();
            if count > 1 {
                // One line per ban would fill the log. A single ban has its usual event.
                events.emit(EventKind::Note(format!("bans lifted by {by}: {count}")));
                let at = SystemTime::now();
                let changes = targets.into_iter().map(move |target| lifted(target, &by, at));
                if let Some(recorder) = recorder {
                    tokio::task::spawn_blocking(move || changes.for_each(|change| recorder.put_patiently(change)));
                }
            }
            count
        });
        let _ = finished.send(result);
    });
    done
}
