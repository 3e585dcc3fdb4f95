//! What other programs do to the daemon's table, as the monitor reports it.

use super::super::element::Remaining;
use super::super::set::Set;
use crate::types::BanTarget;

/// Something that another program did to `table inet portsentry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The table was deleted, with all that was in it: `nft flush ruleset`, `nft delete table`. Changes that come after it
    /// in the same batch belong to a table that was created in its place.
    TableGone,
    /// One of its sets was deleted, with all that was in it. The rules that used it went before.
    SetGone(Set),
    /// The table, a chain, a rule or a set was added, removed or altered: compare the whole with what it should be.
    RulesetChanged,
    /// An element was added, or its timeout changed.
    ElementAdded(BanTarget, Remaining),
    /// An element came with a ruleset that was loaded in one transaction, as from a file.
    ElementLoaded(BanTarget),
    /// An element was deleted. `nft flush set` gives one for each.
    ElementRemoved(BanTarget),
    /// What `allowed` or `allowed6` hold changed.
    AllowedChanged,
    /// The ports or interfaces that the trap watches changed.
    TrapChanged,
    /// A table was changed, this or another one, during a [`MonitorPause`](super::MonitorPause).
    Unheard,
    /// Notifications were lost: anything may have happened. All that was notified before is part of it.
    Overrun,
}

/// The process that made a change, in the words of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// Its number, that of the thread where it has several.
    pub process: u32,
    /// Its name, at most 15 bytes, chosen by the process itself; what is not printable ASCII stands as "?".
    pub name: String,
}
