//! Very many bans without a notification of each: that is half of what they cost the kernel, and the only one who listens
//! knows of them.

use std::time::Duration;

use super::{BlockError, Nft};
use crate::netlink::nft::monitor::{MonitorPause, PausedSpan};
use crate::netlink::nft::{self, await_turn, generation};
use crate::netlink::socket::SocketError;
use crate::types::{BanTarget, Expiry};

/// So many bans are put back without a notification of each.
pub(super) const MANY: usize = nft::BANS_A_MESSAGE;

impl Nft {
    /// From now on very many bans are put back while `hush` keeps its monitor from hearing of it. What others do meanwhile
    /// is heard as [`Change::Unheard`](crate::netlink::nft::monitor::Change::Unheard).
    pub fn hush_by(&mut self, hush: MonitorPause) {
        self.hush = Some(hush);
    }

    /// The same back end for another thread.
    ///
    /// # Errors
    /// As [`Nft::open`].
    pub fn try_clone(&self) -> Result<Self, SocketError> {
        let socket = self.socket.try_clone()?;
        Ok(Self { socket, trapped: self.trapped, kernel: self.kernel, hush: self.hush.clone(), ..Self::open()? })
    }

    /// As [`Nft::put_back`], unheard by whoever watches this table for what others do; false where they are too few for that,
    /// where it was not possible, or where others changed something meanwhile: then it is not certain that all of them are
    /// blocked.
    ///
    /// # Errors
    /// As [`Nft::block`].
    pub fn put_back_unheard(&mut self, bans: &[(BanTarget, Option<Duration>, Expiry)]) -> Result<bool, BlockError> {
        if bans.len() < MANY {
            return Ok(false);
        }
        let Some(quiet) = self.fall_silent() else { return Ok(false) };
        self.restore_by(bans, nft::put_back)?;
        Ok(quiet.end(self))
    }

    /// Silence from here on, where it can be had.
    pub(super) fn fall_silent(&mut self) -> Option<Quiet> {
        let hush = self.hush.clone()?;
        let mark = self.mark()?;
        // Who was at work when that was asked for has been heard once it was our turn; who begins later makes it grow.
        await_turn(&mut self.socket);
        // That changed nothing.
        let mark = Generation { own: self.socket.changes(), ..mark };
        Some(Quiet { silence: hush.begin().ok()?, mark })
    }

    /// How far the kernel has come.
    pub fn mark(&mut self) -> Option<Generation> {
        let own = self.socket.changes();
        Some(Generation { generation: generation(&mut self.socket).ok()?, own })
    }

    /// Whether nobody else has changed any table since. A transaction of our own that changed nothing does not count for the
    /// kernel, and one that is under way not here: both look as if somebody had.
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
    silence: PausedSpan,
    mark: Generation,
}

impl Quiet {
    /// Ends it; whether nobody else changed anything.
    pub(super) fn end(self, nft: &mut Nft) -> bool {
        let mut undisturbed = false;
        self.silence.end(|| {
            undisturbed = nft.is_undisturbed_since(self.mark);
            !undisturbed
        });
        undisturbed
    }
}
