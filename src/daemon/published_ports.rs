//! Queries the sensor for the ports that destination NAT publishes. No socket of this host shows them, and after a boot
//! their containers often start later than all other services.

use std::time::Duration;

use tokio::sync::oneshot::{self, Receiver};

use super::optional::take_answer;
use crate::engine::Service;
use crate::sensor::{SensorCommand, SensorRequest};
use crate::types::Timestamp;

/// Interval between two queries.
const INTERVAL: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct PublishedPorts {
    answer: Option<Receiver<Vec<Service>>>,
    next: Timestamp,
}

impl PublishedPorts {
    /// Returns a query for the sensor if the last one is answered and the interval has passed. While the host settles
    /// (`hurry`), the next query follows immediately.
    pub(super) fn ask(&mut self, now: Timestamp, hurry: bool) -> Option<SensorCommand> {
        if self.answer.is_some() || now < self.next && !hurry {
            return None;
        }
        let (answer, receiver) = oneshot::channel();
        (self.answer, self.next) = (Some(receiver), now.after(INTERVAL));
        Some(SensorCommand::Request(SensorRequest::Published { answer }))
    }

    /// The ports, once the sensor has answered the query.
    pub(super) fn take_answer(&mut self) -> Option<Vec<Service>> {
        take_answer(&mut self.answer)
    }
}
