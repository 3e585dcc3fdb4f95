//! Samples of the bans that should be in force, for the comparison with the kernel.

use super::enforcement::Enforcement;
use super::scope::Scope;
use crate::types::BanTarget;

/// One sample.
#[derive(Debug, Default)]
pub struct Sample {
    /// Newly sampled bans.
    pub fresh: Vec<BanTarget>,
    /// Targets of the caller's list that should still be banned.
    pub again: Vec<BanTarget>,
    /// Targets of `fresh` that should have a route.
    pub routes: Vec<BanTarget>,
    /// Targets of the caller's list that should still have a route.
    pub routes_again: Vec<BanTarget>,
}

impl Sample {
    /// True if there is nothing to compare with the kernel.
    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.again.is_empty() && self.routes_again.is_empty()
    }

    /// Takes a sample of at most `most` bans; each call samples other ones.
    /// Keeps those targets of `again` and `routes_again`, missing at the last comparison, that should still be banned.
    pub(super) fn take(
        (enforcement, scope): (&mut Enforcement, Scope<'_>),
        most: usize,
        mut again: Vec<BanTarget>,
        mut routes_again: Vec<BanTarget>,
    ) -> Self {
        let Scope { now, observer, reporter } = scope;
        let mut fresh = Vec::new();
        observer.engine.sample(now, &mut |target| fresh.push(target), most);
        fresh.retain(|target| !enforcement.pending.awaits_command(*target));
        let (engine, blocker) = (&observer.engine, &enforcement.blocker);
        let routes = fresh.iter().copied().filter(|target| blocker.wants_route(*target)).collect();
        again.retain(|target| engine.is_blocked(now, *target));
        routes_again.retain(|target| engine.is_blocked(now, *target) && blocker.wants_route(*target));
        reporter.metrics.missing.set((again.len() + routes_again.len()) as u64);
        Self { fresh, again, routes, routes_again }
    }
}
