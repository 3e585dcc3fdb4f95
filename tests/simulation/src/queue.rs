//! Implements the virtual clock: a priority queue of the times at which actors act next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use portsentry::types::Timestamp;

/// The number of an actor on its host, in order of creation.
pub(crate) type ActorId = usize;

/// Entries with the same time are returned in the order of insertion, so that a run is reproducible.
#[derive(Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<(Timestamp, u64, ActorId)>>,
    pushed: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, at: Timestamp, actor: ActorId) {
        self.heap.push(Reverse((at, self.pushed, actor)));
        self.pushed += 1;
    }

    /// The next entry that is due before `end`.
    pub(crate) fn pop_before(&mut self, end: Timestamp) -> Option<(Timestamp, ActorId)> {
        let Reverse((at, ..)) = self.heap.peek()?;
        if *at >= end {
            return None;
        }
        self.heap.pop().map(|Reverse((at, _, actor))| (at, actor))
    }
}
