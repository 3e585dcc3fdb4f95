//! Restores large numbers of bans while the monitor is paused: the notification of an element is half of its cost in
//! the kernel, and the monitor is its only listener.

use super::{BlockError, Nft};
use crate::netlink::nft::monitor::{MonitorPause, PausedSpan};
use crate::netlink::nft::{self, RestoredBan, await_turn, generation};
use crate::netlink::socket::SocketError;

/// Number of bans from which they are restored without notifications.
pub(super) const MANY: usize = nft::BANS_A_MESSAGE;

impl Nft {
    /// Uses `pause` to suspend its monitor while very many bans are restored. Changes by others in that time are
    /// reported as [`Change::Unheard`](crate::netlink::nft::monitor::Change::Unheard).
    pub fn pause_monitor_with(&mut self, pause: MonitorPause) {
        self.monitor_pause = Some(pause);
    }

    /// Creates another handle of this backend, for another thread.
    pub fn try_clone(&self) -> Result<Self, SocketError> {
        let socket = self.socket.try_clone()?;
        Ok(Self {
            socket,
            trapped: self.trapped,
            kernel: self.kernel,
            monitor_pause: self.monitor_pause.clone(),
            ..Self::open()?
        })
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
}

/// A position in the sequence of transactions.
#[derive(Clone, Copy, Debug)]
pub struct Generation {
    /// The kernel's count of all transactions.
    generation: u32,
    own: u32,
}
