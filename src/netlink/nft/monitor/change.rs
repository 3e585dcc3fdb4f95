//! Defines the changes by other programs to the daemon's table that the monitor reports.

use super::super::element::Remaining;
use super::super::set::Set;
use crate::types::BanTarget;

/// A change by another program to `table inet portsentry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The table was deleted with all its contents: `nft flush ruleset`, `nft delete table`. Later changes in the same
    /// batch belong to a table created in its place.
    TableGone,
    /// A set was deleted with all its elements. The rules that used it were deleted before.
    SetGone(Set),
    /// The table, a chain, a rule or a set was added, removed or changed: compare the whole ruleset with the desired
    /// one.
    RulesetChanged,
    /// An element was added, or its timeout changed.
    ElementAdded(BanTarget, Remaining),
    /// An element was added by a ruleset loaded in one transaction, for example from a file.
    ElementLoaded(BanTarget),
    /// An element was deleted. `nft flush set` causes one change per element.
    ElementRemoved(BanTarget),
    /// The contents of `allowed` or `allowed6` changed.
    AllowedChanged,
    /// The ports or interfaces monitored by the trap changed.
    TrapChanged,
    /// Some table changed during a [`MonitorPause`](super::MonitorPause).
    Unheard,
    /// Notifications were lost: any change may have happened, including those notified before.
    Overrun,
}

/// The process that made a change, as reported by the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// Process id; the thread id if the process has several threads.
    pub process: u32,
    /// Name, at most 15 bytes, chosen by the process itself; other characters than printable ASCII are replaced with
    /// "?".
    pub name: String,
}
