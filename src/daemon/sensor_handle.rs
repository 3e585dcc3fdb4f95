//! Gives the event loop access to the sensor thread: sends commands and requests to its inbox, and reads its metrics.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::error::DaemonError;
use crate::sensor::{Answer, Inbox, SensorCommand, SensorMetrics, SensorRequest};

/// Delay before a full inbox is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(5);

#[derive(Clone)]
pub(super) struct SensorHandle {
    pub(super) inbox: Inbox,
    pub(super) metrics: Arc<SensorMetrics>,
}

impl SensorHandle {
    pub(super) fn new() -> Result<Self, DaemonError> {
        let inbox = Inbox::new().map_err(DaemonError::system("make an event descriptor"))?;
        Ok(Self { inbox, metrics: Arc::default() })
    }

    /// Sends `command`, unless the inbox is full: then the sensor has been busy with packets for a thousand commands. A
    /// lost snapshot is repeated by the next change, because every snapshot is complete, and a lost request has no
    /// answer.
    pub(super) fn send(&self, command: SensorCommand) {
        let _ = self.inbox.send(command);
    }

    /// Sends several commands, as [`SensorHandle::send`].
    pub(super) fn send_all(&self, commands: impl IntoIterator<Item = SensorCommand>) {
        commands.into_iter().for_each(|command| self.send(command));
    }

    /// Sends `command`; blocks this thread while the inbox is full.
    pub(super) fn send_blocking(&self, mut command: SensorCommand) {
        while let Err(back) = self.inbox.send(command) {
            command = back;
            std::thread::sleep(RETRY_DELAY);
        }
    }

    /// Sends `command`; this task waits while the inbox is full.
    pub(super) async fn send_waiting(&self, mut command: SensorCommand) {
        while let Err(back) = self.inbox.send(command) {
            command = back;
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Sends a request that `request` builds from the answer channel; `None` if the inbox is full.
    pub(super) fn try_ask<T>(&self, request: impl FnOnce(Answer<T>) -> SensorRequest) -> Option<oneshot::Receiver<T>> {
        let (sent, answer) = oneshot::channel();
        self.inbox.send(SensorCommand::Request(request(sent))).is_ok().then_some(answer)
    }

    /// Sends a request that `request` builds from the answer channel. If the inbox is full, the answer is an error.
    pub(super) fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> SensorRequest) -> oneshot::Receiver<T> {
        // A receiver without a sender returns an error immediately.
        self.try_ask(request).unwrap_or_else(|| oneshot::channel().1)
    }
}
