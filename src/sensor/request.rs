//! What an operator asks of the sensor, carried out between two looks at the packets.

use std::net::IpAddr;

use tokio::sync::oneshot;

use super::controller::BanController;
use crate::engine::Explanation;
use crate::events::event::EventKind;
use crate::types::{BanTarget, Expiry, Timestamp};

/// Where the sensor's answer goes. Whoever asked may have gone.
pub type Answer<T> = oneshot::Sender<T>;

/// What an operator asks for.
pub enum SensorRequest {
    /// Block `subject` from now on.
    Block {
        /// Whom.
        subject: BanTarget,
        /// For how long.
        expiry: Expiry,
        /// Who wants it.
        by: String,
        /// What he says about it.
        note: Option<String>,
        /// What came of it.
        answer: Answer<Result<(), String>>,
    },
    /// Lift bans.
    Unblock {
        /// Whose; `None`: everybody's.
        subjects: Option<Vec<BanTarget>>,
        /// Who wants it.
        by: String,
        /// Who was blocked and is not any more.
        answer: Answer<Result<Vec<BanTarget>, String>>,
    },
    /// How many bans should be in force.
    Count {
        /// So many.
        answer: Answer<usize>,
    },
    /// Some of the bans that should be in force, others each time.
    Sample {
        /// How many at most.
        most: usize,
        /// These, as far as they still should be.
        again: Vec<BanTarget>,
        /// These, as far as they still should have a route.
        routes_again: Vec<BanTarget>,
        /// Whose they are.
        answer: Answer<Sample>,
    },
    /// What is known about an address.
    Explain {
        /// Which one.
        address: IpAddr,
        /// All of it.
        answer: Answer<Explanation>,
    },
}

/// Bans that should be in force.
#[derive(Debug, Default)]
pub struct Sample {
    /// Some of them.
    pub fresh: Vec<BanTarget>,
    /// Those that were asked about, and still should be.
    pub again: Vec<BanTarget>,
    /// Those of `fresh` that should have a route.
    pub routes: Vec<BanTarget>,
    /// Those that were asked about, and still should have a route.
    pub routes_again: Vec<BanTarget>,
}

impl Sample {
    /// True where nobody is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.again.is_empty() && self.routes_again.is_empty()
    }
}

impl BanController {
    /// Carries `request` out. Whether it is a wise one was for its sender to say.
    pub(super) fn handle(&mut self, now: Timestamp, request: SensorRequest) {
        // An answer that nobody waits for any more is no failure.
        match request {
            SensorRequest::Block { subject, expiry, by, note, answer } => {
                let result = self.block_by_hand(now, subject, expiry);
                if result.is_ok() {
                    self.emit(EventKind::ByHand { subject, expiry, by, note, way: None });
                }
                let _ = answer.send(result);
            }
            SensorRequest::Unblock { subjects, by, answer } => {
                let result = match subjects {
                    Some(subjects) => self.lift(&subjects),
                    None => self.lift_everybody(),
                };
                if let Ok(bans_removed) = &result
                    && let [subject] = bans_removed[..]
                {
                    self.emit(EventKind::Unblocked { subject, by });
                }
                let _ = answer.send(result);
            }
            SensorRequest::Count { answer } => drop(answer.send(self.engine.bans().count())),
            SensorRequest::Sample { most, mut again, mut routes_again, answer } => {
                let mut fresh = Vec::new();
                self.engine.sample(now, &mut |subject| fresh.push(subject), most);
                // Who waits for a command is meant to be missing.
                fresh.retain(|subject| !self.waiting.contains_key(subject));
                let routed =
                    |subject: &BanTarget| self.blocker.routes.as_ref().is_some_and(|routes| routes.is_wanted(*subject));
                let routes: Vec<BanTarget> = fresh.iter().copied().filter(routed).collect();
                again.retain(|subject| self.engine.is_blocked(now, *subject));
                routes_again.retain(|subject| self.engine.is_blocked(now, *subject) && routed(subject));
                self.metrics.missing.set((again.len() + routes_again.len()) as u64);
                let _ = answer.send(Sample { fresh, again, routes, routes_again });
            }
            SensorRequest::Explain { address, answer } => {
                let _ = answer.send(self.explain(now, address));
            }
        }
    }
}
