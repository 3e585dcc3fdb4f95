//! Applies changes to the sets: in large transactions, and individually if the kernel refuses them. Restores large
//! numbers of bans while the monitor is paused: the notification of an element is half of its cost in the kernel, and
//! the monitor is its only listener.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::{BlockError, Failed, Failure, Nft};
use crate::netlink::nft::monitor::{MonitorPause, PausedSpan};
use crate::netlink::nft::{self, Batch, RestoredBan, Set, await_turn, generation};
use crate::netlink::socket::SocketError;
use crate::types::BanTarget;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Block,
    Lift,
}

impl Nft {
    /// Puts `items` into transactions of limited length. One refused message reverts its whole transaction (an element
    /// may expire between two messages, a set may be full), so then each of its items is tried individually.
    pub(super) fn change<T>(
        &mut self,
        change: Change,
        items: &[T],
        put: impl Fn(&mut Batch, &[T]),
        target: impl Fn(&T) -> BanTarget,
    ) -> Result<(), BlockError> {
        self.full.retain(|(_, _, seen)| seen.elapsed() < STILL_FULL);
        let kernel = self.kernel();
        let mut failed = Vec::new();
        for chunk in items.chunks(nft::BANS_A_MESSAGE) {
            self.batch.clear();
            put(&mut self.batch, chunk);
            let full = chunk.iter().any(|item| change == Change::Block && self.was_full(target(item)).is_some());
            if !full {
                let Err(error) = self.socket.transact(&mut self.batch) else { continue };
                if let ([alone], false) = (chunk, error.is(Errno::EXIST)) {
                    self.judge(change, target(alone), error, &mut failed)?;
                    continue;
                }
                // After lost answers the result is unknown; all of these messages can be sent twice.
                if !matches!(error, SocketError::Refused { .. } | SocketError::Overrun(_)) {
                    return Err(error.into());
                }
            }
            for item in chunk {
                if change == Change::Block
                    && let Some(reason) = self.was_full(target(item))
                    && self.holds(target(item))?.is_none()
                {
                    failed.push(Failed { target: target(item), reason });
                    continue;
                }
                self.batch.clear();
                put(&mut self.batch, std::slice::from_ref(item));
                let mut done = self.socket.transact(&mut self.batch);
                if change == Change::Block && done.as_ref().is_err_and(|error| error.is(Errno::EXIST)) {
                    // The trap has banned the source as well, at the same moment.
                    self.batch.clear();
                    nft::put_lifts(&mut self.batch, kernel, &[target(item)]);
                    put(&mut self.batch, std::slice::from_ref(item));
                    done = self.socket.transact(&mut self.batch);
                }
                if let Err(error) = done {
                    self.judge(change, target(item), error, &mut failed)?;
                }
            }
        }
        BlockError::check(items.len(), failed)
    }

    /// Determines whether the failure of one target concerns only this target or all of them.
    pub(super) fn judge(
        &mut self,
        change: Change,
        target: BanTarget,
        error: SocketError,
        failed: &mut Vec<Failed>,
    ) -> Result<(), BlockError> {
        let set = Set::for_target(target);
        match error {
            SocketError::Refused { errno: Errno::NOENT, .. } => {
                // Either the set itself is missing, or there was nothing to lift. A ban adds before it deletes and
                // never misses its element; in that case the table has just been replaced.
                self.size(set)?;
                if change == Change::Block {
                    failed.push(Failed { target, reason: error.into() });
                }
            }
            SocketError::Refused { errno: Errno::NFILE, .. } => {
                let size = self.size(set)?;
                self.full.retain(|(known, ..)| *known != set);
                self.full.push((set, size, Instant::now()));
                failed.push(Failed { target, reason: Failure::Full { set: set.name(), size } });
            }
            SocketError::Refused { .. } => failed.push(Failed { target, reason: error.into() }),
            other => return Err(other.into()),
        }
        Ok(())
    }

    /// Uses `pause` to suspend its monitor while very many bans are restored. Changes by others in that time are
    /// reported as [`Change::Unheard`](crate::netlink::nft::monitor::Change::Unheard).
    pub fn pause_monitor_with(&mut self, pause: MonitorPause) {
        self.monitor_pause = Some(pause);
    }

    /// As [`Nft::put_back`], without notifications to this table's monitor. False if there are too few bans, if the
    /// monitor cannot be paused, or if others changed something in the meantime: then some bans may not be blocked.
    pub fn put_back_unheard(&mut self, bans: &[RestoredBan]) -> Result<bool, BlockError> {
        if bans.len() < MANY {
            return Ok(false);
        }
        let Some((pause, mark)) = self.pause_monitor() else { return Ok(false) };
        self.restore_by(bans, nft::put_back)?;
        Ok(!pause.end(|| !self.is_undisturbed_since(mark)))
    }

    /// Pauses the monitor, if possible; also returns the position at which the pause begins.
    pub(super) fn pause_monitor(&mut self) -> Option<(PausedSpan, Generation)> {
        let pause = self.monitor_pause.clone()?;
        let mark = self.mark()?;
        // Transactions that were running are over after this; later ones increment the generation.
        await_turn(&mut self.socket);
        // The probe itself changed nothing.
        let mark = Generation { own: self.socket.changes(), ..mark };
        Some((pause.begin().ok()?, mark))
    }

    /// The current position in the kernel's sequence of transactions.
    pub fn mark(&mut self) -> Option<Generation> {
        let own = self.socket.changes();
        Some(Generation { generation: generation(&mut self.socket).ok()?, own })
    }

    /// True if no other program has changed any table since `mark`. An own transaction that changed nothing is not
    /// counted by the kernel, and a running one is not counted here; both look like another program's.
    pub fn is_undisturbed_since(&mut self, mark: Generation) -> bool {
        let own = self.socket.changes().wrapping_sub(mark.own);
        generation(&mut self.socket).ok() == Some(mark.generation.wrapping_add(own))
    }

    /// Returns the failure if the set of `target` was full recently.
    fn was_full(&self, target: BanTarget) -> Option<Failure> {
        let set = Set::for_target(target);
        let known = self.full.iter().find(|(known, ..)| *known == set);
        known.map(|(_, size, _)| Failure::Full { set: set.name(), size: *size })
    }
}

/// A position in the sequence of transactions.
#[derive(Clone, Copy, Debug)]
pub struct Generation {
    /// The kernel's count of all transactions.
    generation: u32,
    own: u32,
}

/// Number of bans from which they are restored without notifications.
pub(super) const MANY: usize = nft::BANS_A_MESSAGE;

/// Time for which a set counts as full without a query. Reverting a transaction takes the kernel about 12 ms, so that a
/// flood of new sources against a full set would use all the time; querying an element takes microseconds.
const STILL_FULL: Duration = Duration::from_millis(10);
