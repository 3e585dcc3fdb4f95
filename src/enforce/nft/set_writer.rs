//! Changes bans in the sets: in large transactions, and individually if the kernel refuses them.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::table::Table;
use super::{BlockError, Failed, Failure};
use crate::netlink::nft::{BANS_A_MESSAGE, Batch, Set, put_lifts};
use crate::netlink::socket::SocketError;
use crate::types::BanTarget;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Block,
    Lift,
}

/// Remembers the sets that were full recently, with their sizes.
#[derive(Debug, Default)]
pub(super) struct SetWriter {
    full: Vec<(Set, u32, Instant)>,
}

impl SetWriter {
    /// Applies `items` in transactions of at most [`BANS_A_MESSAGE`] items. One refused message reverts its whole
    /// transaction (an element may expire between two messages, a set may be full), so then each of its items is tried
    /// individually.
    pub(super) fn change<T>(
        &mut self,
        table: &mut Table,
        operation: Operation,
        items: &[T],
        put: impl Fn(&mut Batch, &[T]),
        target: impl Fn(&T) -> BanTarget,
    ) -> Result<(), BlockError> {
        self.full.retain(|(_, _, seen)| seen.elapsed() < STILL_FULL);
        let mut failed = Vec::new();
        for chunk in items.chunks(BANS_A_MESSAGE) {
            let full = chunk.iter().any(|item| operation == Operation::Block && self.was_full(target(item)).is_some());
            if !full {
                let Err(error) = table.transact(|batch| put(batch, chunk)) else { continue };
                if let [alone] = chunk {
                    failed.extend(self.retry(table, operation, (chunk, target(alone)), error, &put)?);
                    continue;
                }
                // After lost answers the result is unknown; all of these messages can be sent twice.
                if !matches!(error, SocketError::Refused { .. } | SocketError::Overrun(_)) {
                    return Err(error.into());
                }
            }
            for item in chunk {
                let target = target(item);
                if operation == Operation::Block
                    && let Some(reason) = self.was_full(target)
                    && table.time_left(target)?.is_none()
                {
                    failed.push(Failed { target, reason });
                    continue;
                }
                let item = std::slice::from_ref(item);
                if let Err(error) = table.transact(|batch| put(batch, item)) {
                    failed.extend(self.retry(table, operation, (item, target), error, &put)?);
                }
            }
        }
        BlockError::check(items.len(), failed)
    }

    /// Handles the failure of one item. A source that the trap has banned as well, at the same moment, is lifted and
    /// blocked again.
    fn retry<T>(
        &mut self,
        table: &mut Table,
        operation: Operation,
        (item, target): (&[T], BanTarget),
        mut error: SocketError,
        put: &impl Fn(&mut Batch, &[T]),
    ) -> Result<Option<Failed>, BlockError> {
        if operation == Operation::Block && error.is(Errno::EXIST) {
            let kernel = table.kernel();
            let again = table.transact(|batch| {
                put_lifts(batch, kernel, &[target]);
                put(batch, item);
            });
            let Err(other) = again else { return Ok(None) };
            error = other;
        }
        self.classify_failure(table, operation, target, error)
    }

    /// Determines whether the failure of one target concerns only this target or all of them.
    pub(super) fn classify_failure(
        &mut self,
        table: &mut Table,
        operation: Operation,
        target: BanTarget,
        error: SocketError,
    ) -> Result<Option<Failed>, BlockError> {
        let set = Set::for_target(target);
        let reason = match error {
            SocketError::Refused { errno: Errno::NOENT, .. } => {
                // Either the set itself is missing, or there was nothing to lift. A ban never misses its element, so
                // its failure means that the table has just been replaced.
                table.size(set)?;
                if operation == Operation::Lift {
                    return Ok(None);
                }
                error.into()
            }
            SocketError::Refused { errno: Errno::NFILE, .. } => {
                let size = table.size(set)?;
                self.full.retain(|(known, ..)| *known != set);
                self.full.push((set, size, Instant::now()));
                Failure::Full { set: set.name(), size }
            }
            SocketError::Refused { .. } => error.into(),
            other => return Err(other.into()),
        };
        Ok(Some(Failed { target, reason }))
    }

    /// True if no set was full recently.
    pub(super) fn has_room(&self) -> bool {
        self.full.is_empty()
    }

    /// Returns the failure if the set of `target` was full recently.
    fn was_full(&self, target: BanTarget) -> Option<Failure> {
        let set = Set::for_target(target);
        let known = self.full.iter().find(|(known, ..)| *known == set);
        known.map(|(_, size, _)| Failure::Full { set: set.name(), size: *size })
    }
}

/// Time for which a set counts as full without a query. Reverting a transaction takes the kernel about 12 ms, so that a
/// flood of new sources against a full set would use all the time; querying an element takes microseconds.
const STILL_FULL: Duration = Duration::from_millis(10);
