//! Installs the table, and blocks and lifts targets in its sets. Restores large numbers of bans while the monitor is
//! paused: the notification of an element is half of its cost in the kernel, and the monitor is its only listener.

use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::io::Errno;

use super::allow_set::AllowSet;
use super::set_writer::{Operation, SetWriter};
use super::{BlockError, Failed, Installed, Repaired, RulesetError, RulesetSpec, Table, networks};
use crate::enforce::{BackendGone, BanContext, InlineBackend, Refused};
use crate::engine::ActiveBan;
use crate::netlink::nft::{self, Batch};
use crate::netlink::socket::SocketError;
use crate::types::{Backend, BanTarget, Expiry, Timestamp};

/// The nftables backend: the table with its rules, its sets of bans and its allow-list.
#[derive(Debug)]
pub struct Nft {
    pub table: Table,
    /// The desired ruleset.
    pub(super) spec: RulesetSpec,
    allowed: AllowSet,
    writer: SetWriter,
    /// Time at which a target was last found to be already blocked.
    blocked_anew: Option<Instant>,
    /// The elements of one transaction. The buffer is kept, so that a ban does not allocate.
    elements: Vec<ActiveBan>,
}

impl Nft {
    /// Opens the table. Missing permission is first reported by [`Nft::install`].
    ///
    /// # Errors
    /// The kernel has no netfilter netlink.
    pub fn open() -> Result<Self, SocketError> {
        Table::open().map(Self::new)
    }

    fn new(table: Table) -> Self {
        Self {
            table,
            spec: RulesetSpec::default(),
            allowed: AllowSet::default(),
            writer: SetWriter::default(),
            blocked_anew: None,
            elements: Vec::with_capacity(64),
        }
    }

    /// Creates another handle of this backend, for another thread.
    pub fn try_clone(&self) -> Result<Self, SocketError> {
        Ok(Self { spec: self.spec, ..Self::new(self.table.try_clone()?) })
    }

    /// Creates the table, or adopts one that this program created, and repairs it if other programs altered it. For the
    /// start: a table of another program is refused.
    pub fn install(&mut self, spec: &RulesetSpec) -> Result<Installed, RulesetError> {
        (self.allowed, self.spec) = (AllowSet::default(), *spec);
        let installed = nft::install(&mut self.table.socket, spec)?;
        // Queried now instead of on the packet path, because a kernel without the features answers slowly.
        self.table.kernel();
        Ok(installed)
    }

    /// The desired ruleset.
    pub fn spec(&self) -> &RulesetSpec {
        &self.spec
    }

    /// Objects of other programs in the table, each as the end of the sentence "it has …".
    pub fn foreign_objects(&mut self) -> Result<Vec<String>, RulesetError> {
        nft::foreign_objects(&mut self.table.socket, &self.spec)
    }

    /// Deletes the table with all its bans; false if it did not exist.
    pub fn remove(&mut self) -> Result<bool, RulesetError> {
        self.allowed = AllowSet::default();
        nft::remove(&mut self.table.socket, &self.spec)
    }

    /// Repairs the table after any change since [`Nft::install`], or replaces its rules with those of `spec`. Its sets
    /// keep their elements.
    pub fn repair(&mut self, spec: &RulesetSpec) -> Result<Repaired, RulesetError> {
        (self.allowed, self.spec) = (AllowSet::default(), *spec);
        nft::repair(&mut self.table.socket, spec)
    }

    /// Makes the table in the kernel match [`Nft::spec`]; otherwise as [`Nft::repair`].
    pub fn repair_to_spec(&mut self) -> Result<Repaired, RulesetError> {
        let spec = self.spec;
        self.repair(&spec)
    }

    /// Replaces the rules of the table and keeps its sets.
    ///
    /// # Errors
    /// See [`Nft::repair`].
    pub fn replace_rules(&mut self, wanted: RulesetSpec) -> Result<(), RulesetError> {
        let prefix_sets = self.spec.prefix_sets || wanted.prefix_sets;
        // The decoy listener does not change with the configuration.
        self.repair(&RulesetSpec { prefix_sets, decoys: self.spec.decoys, ..wanted }).map(|_| ())
    }

    /// Removes the rules of the trap from the table.
    pub fn remove_trap(&mut self) -> Result<(), RulesetError> {
        self.spec.trap = None;
        self.repair_to_spec().map(|_| ())
    }

    /// Enables or disables connection tracking for connections to decoys, if the table has rules for decoys.
    pub fn track_decoys(&mut self, max_new_tracked: Option<u32>) -> Result<(), RulesetError> {
        if let Some(decoys) = &mut self.spec.decoys {
            decoys.max_new_tracked = max_new_tracked;
        }
        self.repair_to_spec().map(|_| ())
    }

    /// Replaces the allow-list, even if another program changed it; see [`AllowSet::replace`].
    pub fn replace_allow_list(&mut self, prefixes: &[IpNet]) -> Result<(), BlockError> {
        self.allowed.replace(&mut self.table, prefixes)
    }

    /// Sends the changes of the allow-list since the last call; see [`AllowSet::follow`].
    pub fn follow_allow_list(&mut self, prefixes: &[IpNet]) -> Result<(), BlockError> {
        self.allowed.follow(&mut self.table, prefixes)
    }

    /// Adds the sets for prefixes to the desired ruleset if one of `targets` needs them; the next repair or creation of
    /// the table includes them. Returns true if they were added.
    pub fn require_prefix_sets(&mut self, mut targets: impl Iterator<Item = BanTarget>) -> bool {
        let adds = !self.spec.prefix_sets && targets.any(|target| target.is_prefix());
        self.spec.prefix_sets |= adds;
        adds
    }

    /// Adds the sets for prefixes to the table if one of `targets` needs them.
    fn ensure_prefix_sets(&mut self, targets: impl Iterator<Item = BanTarget>) -> Result<(), BackendGone> {
        if !self.require_prefix_sets(targets) {
            return Ok(());
        }
        // The bans run into the same error, and it is reported with them.
        let repaired = self.repair_to_spec();
        if matches!(repaired, Ok(Repaired::Created)) { Err(BackendGone) } else { Ok(()) }
    }

    /// Blocks all targets, each from now on for its expiry, even if it is already blocked.
    ///
    /// Overlapping networks cannot be in one set. A network inside the new one is replaced by it; a new network inside
    /// one that lasts at least as long is already blocked; a new network inside one that ends sooner is refused.
    ///
    /// # Errors
    /// [`BlockError::Gone`] if the table must be installed first; [`BlockError::Failed`] with the targets that are not
    /// blocked, while the others are.
    pub fn block(&mut self, bans: &[(BanTarget, Expiry)]) -> Result<(), BlockError> {
        self.set_elements(bans.iter().copied());
        self.block_elements()
    }

    fn set_elements(&mut self, bans: impl Iterator<Item = (BanTarget, Expiry)>) {
        self.elements.clear();
        // The remaining time of a new ban equals its length, so encoding the length would change nothing.
        self.elements.extend(bans.map(|(target, left)| ActiveBan { length: None, ..ActiveBan::new(target, left) }));
    }

    /// Blocks the targets of `elements`. If none of them is blocked yet and there is room, one message suffices, which
    /// takes a third of the work of [`SetWriter::change`]. On the packet path.
    fn block_elements(&mut self) -> Result<(), BlockError> {
        if self.elements.iter().any(|ban| ban.target.is_prefix()) {
            return self.replace(&self.elements.clone());
        }
        let asked = self.elements.len();
        if self.spec.trap.is_some() {
            self.drop_trapped()?;
        }
        let Self { table, writer, elements, blocked_anew, .. } = self;
        if elements.is_empty() {
            return Ok(());
        }
        let are_new = blocked_anew.is_none_or(|seen| seen.elapsed() >= STILL_BLOCKED);
        if are_new && elements.len() <= nft::BANS_A_MESSAGE && writer.has_room() {
            match (table.transact(|batch| nft::put_new_bans(batch, elements)), elements.as_slice()) {
                (Ok(()), _) => return Ok(()),
                (Err(error), _) if error.is(Errno::EXIST) => *blocked_anew = Some(Instant::now()),
                // A single ban is not tried again if its set is full.
                (Err(error), [ActiveBan { target, .. }]) if error.is(Errno::NFILE) => {
                    let failed = writer.classify_failure(table, Operation::Block, *target, error)?;
                    return Err(BlockError::Failed { asked, failed: failed.into_iter().collect() });
                }
                // Each target is tried individually below, and refusals are reported.
                (Err(SocketError::Refused { .. } | SocketError::Overrun(_)), _) => {}
                (Err(error), _) => return Err(error.into()),
            }
        }
        let kernel = table.kernel();
        let put = |batch: &mut Batch, bans: &[_]| nft::put_bans(batch, kernel, bans);
        writer.change(table, Operation::Block, elements, put, |ban| ban.target).map_err(|error| match error {
            BlockError::Failed { failed, .. } => BlockError::Failed { asked, failed },
            error => error,
        })
    }

    /// Drops bans that the trap has already made with the same length. While an element of a full set is replaced, the
    /// kernel counts it twice, and packets that add an element at that moment exceed the size (seen on Linux 6.18).
    fn drop_trapped(&mut self) -> Result<(), BlockError> {
        let Self { table, elements, blocked_anew, .. } = self;
        let mut looked = Ok(());
        elements.retain(|ban| {
            let held = if looked.is_ok() { table.time_left(ban.target) } else { Ok(None) };
            match held {
                Ok(Some(left)) if left.is_about(ban.left, JUST_NOW) => return false,
                Ok(Some(_)) => *blocked_anew = Some(Instant::now()),
                Ok(None) => {}
                Err(error) => looked = Err(error),
            }
            true
        });
        looked
    }

    /// Blocks all targets for their remaining times, and replaces the bans that the kernel has.
    pub fn replace(&mut self, bans: &[ActiveBan]) -> Result<(), BlockError> {
        let kernel = self.table.kernel();
        self.restore_by(bans, |batch, bans| nft::put_bans(batch, kernel, bans))
    }

    /// Restores bans that the kernel has lost. A target that is still blocked stays blocked.
    pub fn restore_lost(&mut self, bans: &[ActiveBan]) -> Result<(), BlockError> {
        let pause = if bans.len() < MIN_PAUSED_BANS { None } else { self.table.pause_monitor() };
        let done = self.restore_by(bans, nft::put_back);
        // The monitor reports changes by other programs in the meantime.
        if let Some((pause, mark)) = pause {
            pause.end(|| !self.table.is_undisturbed_since(mark));
        }
        done
    }

    /// As [`Nft::restore_lost`], without notifications to this table's monitor. False if nothing was done, because
    /// there are too few bans or the monitor cannot be paused; also if another program changed a table meanwhile, so
    /// that some bans may be missing.
    pub fn restore_lost_unmonitored(&mut self, bans: &[ActiveBan]) -> Result<bool, BlockError> {
        if bans.len() < MIN_PAUSED_BANS {
            return Ok(false);
        }
        let Some((pause, mark)) = self.table.pause_monitor() else { return Ok(false) };
        self.restore_by(bans, nft::put_back)?;
        Ok(!pause.end(|| !self.table.is_undisturbed_since(mark)))
    }

    fn restore_by(&mut self, bans: &[ActiveBan], put: impl Fn(&mut Batch, &[ActiveBan])) -> Result<(), BlockError> {
        let (wide, narrow): (Vec<_>, Vec<_>) = bans.iter().partition(|ban| ban.target.is_prefix());
        let done = self.writer.change(&mut self.table, Operation::Block, &narrow, put, |ban| ban.target);
        let failed = networks::block(&mut self.table, &wide)?;
        combine(bans.len(), done, failed)
    }

    /// Lifts the ban of exactly `target`; false if there was none.
    ///
    /// # Errors
    /// The sets cannot be read or changed.
    pub fn remove_ban(&mut self, target: BanTarget) -> Result<bool, BlockError> {
        let found = match self.table.has_exactly(target) {
            Err(BlockError::Gone) => false,
            found => found?,
        };
        if found {
            self.lift(&[target])?;
        }
        Ok(found)
    }

    /// Lifts the bans of these targets; targets without a ban are skipped.
    pub fn lift(&mut self, targets: &[BanTarget]) -> Result<(), BlockError> {
        let kernel = self.table.kernel();
        let put = |batch: &mut Batch, targets: &[BanTarget]| nft::put_lifts(batch, kernel, targets);
        let (wide, narrow): (Vec<_>, Vec<_>) = targets.iter().copied().partition(|target| target.is_prefix());
        let done = self.writer.change(&mut self.table, Operation::Lift, &narrow, put, |target| *target);
        let failed = networks::lift(&mut self.table, &wide)?;
        combine(targets.len(), done, failed)
    }
}

impl InlineBackend for Nft {
    fn block(&mut self, bans: &[BanContext], _now: Timestamp) -> Result<Vec<Refused>, BackendGone> {
        self.ensure_prefix_sets(bans.iter().map(|ban| ban.target))?;
        self.set_elements(bans.iter().map(|ban| (ban.target, ban.expiry)));
        BlockError::refusals(self.block_elements(), Backend::Nft, bans.iter().map(|ban| ban.target))
    }

    fn lift(&mut self, targets: &[BanTarget]) -> Result<(), String> {
        match Self::lift(self, targets) {
            Ok(()) | Err(BlockError::Gone) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn restore(&mut self, bans: &[ActiveBan], _now: Timestamp) -> Result<Vec<Refused>, BackendGone> {
        self.ensure_prefix_sets(bans.iter().map(|ban| ban.target))?;
        BlockError::refusals(self.restore_lost(bans), Backend::Nft, bans.iter().map(|ban| ban.target))
    }

    fn missing(&mut self, targets: &[BanTarget]) -> Vec<BanTarget> {
        self.table.missing(targets).unwrap_or_default()
    }
}

/// Combines the results for single targets and networks.
fn combine(asked: usize, done: Result<(), BlockError>, networks: Vec<Failed>) -> Result<(), BlockError> {
    let mut failed = match done {
        Ok(()) => Vec::new(),
        Err(BlockError::Failed { failed, .. }) => failed,
        Err(error) => return Err(error),
    };
    failed.extend(networks);
    BlockError::check(asked, failed)
}

/// Minimum number of bans for which the monitor is paused.
const MIN_PAUSED_BANS: usize = nft::BANS_A_MESSAGE;

/// Maximum time between the trap's ban and the sensor's verdict on the same packet, under normal conditions.
const JUST_NOW: Duration = Duration::from_millis(100);

/// Time for which new bans are sent in the form that permits existing ones, after the kernel refused one because of an
/// existing ban by an operator or an earlier run. A refusal takes the kernel about 12 ms.
const STILL_BLOCKED: Duration = Duration::from_secs(60);
