//! Asks the sensor which ports destination NAT publishes. No socket of this host shows them, and after a boot their containers
//! often start later than everything else.

use std::time::Duration;

use tokio::sync::oneshot::{self, Receiver};

use crate::engine::Service;
use crate::sensor::{SensorCommand, SensorRequest};
use crate::types::Timestamp;

/// The time between two questions.
const INTERVAL: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct PublishedPorts {
    answer: Option<Receiver<Vec<Service>>>,
    next: Timestamp,
}

impl PublishedPorts {
    /// The question to the sensor, if the last one is answered and long enough ago. While the host settles (`hurry`) the next
    /// question follows at once.
    pub(super) fn ask(&mut self, now: Timestamp, hurry: bool) -> Option<SensorCommand> {
        if self.answer.is_some() || now < self.next && !hurry {
            return None;
        }
        let (answer, receiver) = oneshot::channel();
        (self.answer, self.next) = (Some(receiver), now.after(INTERVAL));
        Some(SensorCommand::Request(SensorRequest::Published { answer }))
    }

    /// The ports, once the sensor has answered.
    pub(super) fn take(&mut self) -> Option<Vec<Service>> {
        let answered = self.answer.as_mut()?.try_recv();
        if matches!(answered, Err(oneshot::error::TryRecvError::Empty)) {
            return None;
        }
        self.answer = None;
        answered.ok()
    }
}
