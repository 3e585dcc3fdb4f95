//! Implements [`BanBackend`] for routes.

use super::{BlockError, Routes};
use crate::enforce::{BanBackend, BanContext, Gone, Refused};
use crate::engine::ActiveBan;
use crate::types::{Backend, BanTarget, Expiry, Timestamp};

impl Routes {
    fn add_all(&mut self, bans: &[(BanTarget, Expiry)], now: Timestamp) -> Result<Vec<Refused>, Gone> {
        BlockError::refusals(self.block(bans, now), Backend::Route, bans.iter().map(|(target, _)| *target))
    }
}

impl BanBackend for Routes {
    fn block(&mut self, bans: &[BanContext], now: Timestamp) -> Result<Vec<Refused>, Gone> {
        let bans: Vec<_> = bans.iter().map(|ban| (ban.target, ban.expiry)).collect();
        self.add_all(&bans, now)
    }

    fn lift(&mut self, targets: &[BanTarget]) -> Result<(), String> {
        let lifted = Self::lift(self, targets);
        lifted.map_err(|error| format!("cannot remove a route, retrying: {error}"))
    }

    fn put_back(&mut self, bans: &[ActiveBan], now: Timestamp) -> Result<Vec<Refused>, Gone> {
        let left: Vec<_> = bans.iter().map(|ban| (ban.target, ban.left)).collect();
        self.add_all(&left, now)
    }

    fn missing(&mut self, targets: &[BanTarget]) -> Vec<BanTarget> {
        let wanted: Vec<BanTarget> = targets.iter().copied().filter(|target| self.is_wanted(*target)).collect();
        Self::missing(self, &wanted).unwrap_or_default()
    }
}
