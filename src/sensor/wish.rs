//! What an operator asks of the sensor, carried out between two looks at the packets.

use std::net::IpAddr;

use tokio::sync::oneshot;

use super::judge::Judge;
use crate::engine::subject::{Expiry, Subject};
use crate::engine::{Explanation, Moment};
use crate::report::event::What;

/// Where the sensor's answer goes. Whoever asked may have gone.
pub type Answer<T> = oneshot::Sender<T>;

/// What an operator asks for.
pub enum Wish {
    /// Block `subject` from now on.
    Block {
        /// Whom.
        subject: Subject,
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
        subjects: Option<Vec<Subject>>,
        /// Who wants it.
        by: String,
        /// Who was blocked and is not any more.
        answer: Answer<Result<Vec<Subject>, String>>,
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
        again: Vec<Subject>,
        /// These, as far as they still should have a route.
        routes_again: Vec<Subject>,
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
    pub fresh: Vec<Subject>,
    /// Those that were asked about, and still should be.
    pub again: Vec<Subject>,
    /// Those of `fresh` that should have a route.
    pub routes: Vec<Subject>,
    /// Those that were asked about, and still should have a route.
    pub routes_again: Vec<Subject>,
}

impl Sample {
    /// True where nobody is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.again.is_empty() && self.routes_again.is_empty()
    }
}

impl Judge {
    /// Carries `wish` out. Whether it is a wise one was for its sender to say.
    pub(super) fn grant(&mut self, now: Moment, wish: Wish) {
        // An answer that nobody waits for any more is no failure.
        match wish {
            Wish::Block { subject, expiry, by, note, answer } => {
                let result = self.block_by_hand(now, subject, expiry);
                if result.is_ok() {
                    self.say(What::ByHand { subject, expiry, by, note, way: None });
                }
                let _ = answer.send(result);
            }
            Wish::Unblock { subjects, by, answer } => {
                let result = match subjects {
                    Some(subjects) => self.lift(&subjects),
                    None => self.lift_everybody(),
                };
                if let Ok(lifted) = &result
                    && let [subject] = lifted[..]
                {
                    self.say(What::Unblocked { subject, by });
                }
                let _ = answer.send(result);
            }
            Wish::Count { answer } => drop(answer.send(self.engine.bans().count())),
            Wish::Sample { most, mut again, mut routes_again, answer } => {
                let mut fresh = Vec::new();
                self.engine.sample(now, &mut |subject| fresh.push(subject), most);
                // Who waits for a command is meant to be missing.
                fresh.retain(|subject| !self.waiting.contains_key(subject));
                let routed =
                    |subject: &Subject| self.blocker.routes.as_ref().is_some_and(|routes| routes.is_wanted(*subject));
                let routes: Vec<Subject> = fresh.iter().copied().filter(routed).collect();
                again.retain(|subject| self.engine.is_blocked(now, *subject));
                routes_again.retain(|subject| self.engine.is_blocked(now, *subject) && routed(subject));
                self.figures.missing.set((again.len() + routes_again.len()) as u64);
                let _ = answer.send(Sample { fresh, again, routes, routes_again });
            }
            Wish::Explain { address, answer } => {
                let _ = answer.send(self.explain(now, address));
            }
        }
    }
}
