//! Restores large numbers of bans while the monitor is paused: the notification of an element is half of its cost
//! in the kernel, and the monitor is the only listener that would receive it.

use super::{BlockError, Nft};
use crate::netlink::nft::monitor::{MonitorPause, PausedSpan};
use crate::netlink::nft::{self, RestoredBan, await_turn, generation};
use crate::netlink::socket::SocketError;

/// So many bans are put back without a notification of each.
pub(super) const MANY: usize = nft::BANS_A_MESSAGE;

impl Nft {
    /// From now on very many bans are put back while `pause` keeps its monitor from hearing of it. What others do meanwhile
    /// is heard as [`Change::Unheard`](crate::netlink::nft::monitor::Change::Unheard).
    pub fn pause_monitor_with(&mut self, pause: MonitorPause) {
        self.monitor_pause = Some(pause);
    }

    /// The same back end for another thread.
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

    /// As [`Nft::put_back`], unheard by the monitor of this table; false where they are too few for that,
    /// where it was not possible, or where others changed something meanwhile: then it is not certain that all of them are
    /// blocked.
    pub fn put_back_unheard(&mut self, bans: &[RestoredBan]) -> Result<bool, BlockError> {
        if bans.len() < MANY {
            return Ok(false);
        }
        let Some(quiet) = self.pause_monitor() else { return Ok(false) };
        self.restore_by(bans, nft::put_back)?;
        Ok(quiet.end(self))
    }

    /// Silence from here on, where it can be had.
    pub(super) fn pause_monitor(&mut self) -> Option<Quiet> {
        let pause = self.monitor_pause.clone()?;
        let mark = self.mark()?;
        // Transactions that were under way at that moment are over once it was our turn; later ones make it grow.
        await_turn(&mut self.socket);
        // That changed nothing.
        let mark = Generation { own: self.socket.changes(), ..mark };
        Some(Quiet { span: pause.begin().ok()?, mark })
    }

    /// How far the kernel has come.
    pub fn mark(&mut self) -> Option<Generation> {
        let own = self.socket.changes();
        Some(Generation { generation: generation(&mut self.socket).ok()?, own })
    }

    /// Whether no other program has changed any table since. A transaction of our own that changed nothing does not count for the
    /// kernel, and one that is under way not here: both look like another program's.
    pub fn is_undisturbed_since(&mut self, mark: Generation) -> bool {
        let own = self.socket.changes().wrapping_sub(mark.own);
        generation(&mut self.socket).ok() == Some(mark.generation.wrapping_add(own))
    }
}

/// A moment, by how many transactions there have been.
#[derive(Clone, Copy, Debug)]
pub struct Generation {
    /// The kernel's count of all of them.
    generation: u32,
    own: u32,
}

/// A time in which the monitor hears nothing.
pub(super) struct Quiet {
    span: PausedSpan,
    mark: Generation,
}

impl Quiet {
    /// Ends it; whether no other program changed anything.
    pub(super) fn end(self, nft: &mut Nft) -> bool {
        let mut undisturbed = false;
        self.span.end(|| {
            undisturbed = nft.is_undisturbed_since(self.mark);
            !undisturbed
        });
        undisturbed
    }
}
