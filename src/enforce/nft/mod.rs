//! Implements the nftables backend: writes bans as elements into the sets of `table inet portsentry`, and reads them
//! back. The kernel enforces and expires them; this module does not know the reason of a ban.
//!
//! A ban is one transaction with one acknowledgement, about 6 µs in all. It has one message, or three if the target may
//! already be blocked. Once the buffers are warm it does not allocate (benches/nft_encoding.rs).

mod allow_set;
mod backend;
mod fleet_sets;
mod prefixes;
mod transaction;
mod trap;

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rustables::sys;
use rustix::io::Errno;

use crate::netlink::nft::monitor::MonitorPause;
use crate::netlink::nft::{self, Batch, Bound, RestoredBan, Set, bounds_of};
use crate::types::{BanTarget, Expiry};
use allow_set::Protected;
pub use backend::NftBackend;
use prefixes::as_wide;
pub use transaction::Generation;
use transaction::{Change, MANY};
pub use trap::{DecoyCounts, Hold, HoldCounts, TrapUsage};

pub use crate::netlink::nft::{
    DecoyRules, Installed, KernelFeatures, MAX_HOLDS, Remaining, Repaired, RulesetError, RulesetSpec, TRAP_BURST, Trap,
    Watched,
};
use crate::netlink::socket::{Socket, SocketError};

/// Failure of a change of the sets.
pub type BlockError = super::BlockError<Failure, SocketError>;

pub type Failed = super::Failed<Failure>;

/// Why one target could not be blocked or lifted.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(
        "set inet portsentry {set} is full ({size} elements); shorten `expire`, or raise block.nft.size, delete the \
         table and restart portsentry"
    )]
    Full {
        set: &'static str,
        /// Size of the set in elements.
        size: u32,
    },
    /// It is part of a network that is blocked for a shorter time. One set cannot hold both.
    #[error(
        "it is in the network {around}, which is blocked for a shorter time; unblock that network first, or block \
         all of it for the same time"
    )]
    Inside {
        /// The surrounding network.
        around: BanTarget,
    },
    /// Another error of the kernel or the socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// The nftables backend: one socket, opened in the network namespace of the thread that opens it.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
    batch: Batch,
    request: Vec<u8>,
    /// The sets that were full recently, with their sizes.
    full: Vec<(Set, u32, Instant)>,
    /// True if the table has a trap, which blocks sources before the daemon does.
    trapped: bool,
    /// Time at which a target was last found to be already blocked.
    blocked_anew: Option<Instant>,
    /// Bans that the trap has not made as required. The buffer is kept.
    remaining: Vec<(BanTarget, Expiry)>,
    /// Contents of the kernel's allow-list; `None` if unknown.
    protected: Option<Protected>,
    /// Features of the kernel; `None` before the first query.
    kernel: Option<KernelFeatures>,
    /// Pauses the table's monitor while very many bans are restored.
    monitor_pause: Option<MonitorPause>,
}

impl Nft {
    /// Opens the socket. A lack of permission shows with [`Nft::install`].
    ///
    /// # Errors
    /// The kernel has no netfilter netlink.
    pub fn open() -> Result<Self, SocketError> {
        Ok(Self {
            socket: Socket::open()?,
            batch: Batch::new(),
            request: Vec::new(),
            full: Vec::new(),
            trapped: false,
            blocked_anew: None,
            remaining: Vec::new(),
            protected: None,
            kernel: None,
            monitor_pause: None,
        })
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

    /// Features of the kernel. They are queried once; the table must exist by then.
    pub fn kernel(&mut self) -> KernelFeatures {
        *self.kernel.get_or_insert_with(|| KernelFeatures::probe(&mut self.socket))
    }

    /// Assumes only these kernel features, regardless of the actual ones.
    pub fn treat_as(&mut self, kernel: KernelFeatures) {
        self.kernel = Some(kernel);
    }

    /// The port id by which the kernel identifies this socket in notifications of its changes.
    pub fn port_id(&self) -> u32 {
        self.socket.port_id()
    }

    /// Creates the table, or adopts one that this program created, and repairs it if other programs altered it. For the
    /// start: a table of another program is refused.
    pub fn install(&mut self, spec: &RulesetSpec) -> Result<Installed, RulesetError> {
        (self.protected, self.trapped) = (None, spec.trap.is_some());
        let installed = nft::install(&mut self.socket, spec)?;
        // Queried now instead of on the packet path, because a kernel without the features answers slowly.
        self.kernel();
        Ok(installed)
    }

    /// Objects of other programs in the table, each as the end of the sentence "it has …".
    pub fn foreign_objects(&mut self, spec: &RulesetSpec) -> Result<Vec<String>, RulesetError> {
        nft::foreign_objects(&mut self.socket, spec)
    }

    /// Deletes the table with all its bans; false if it did not exist.
    pub fn remove(&mut self, spec: &RulesetSpec) -> Result<bool, RulesetError> {
        self.protected = None;
        nft::remove(&mut self.socket, spec)
    }

    /// Repairs the table after any change since [`Nft::install`].
    pub fn repair(&mut self, spec: &RulesetSpec) -> Result<Repaired, RulesetError> {
        (self.protected, self.trapped) = (None, spec.trap.is_some());
        nft::repair(&mut self.socket, spec)
    }

    /// Makes the kernel drop frames with an own source address on exactly these interfaces, given by their indexes.
    ///
    /// # Errors
    /// [`BlockError::Gone`] if the table has no rules for that.
    pub fn guard(&mut self, interfaces: &[u32]) -> Result<(), BlockError> {
        self.batch.clear();
        nft::put_interfaces(&mut self.batch, Set::Guarded, interfaces);
        self.send_batch()
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
        if bans.iter().any(|(target, _)| as_wide(*target).is_some()) {
            let whole = |(target, expiry): &(BanTarget, Expiry)| (*target, None, *expiry);
            return self.restore(&bans.iter().map(whole).collect::<Vec<_>>());
        }
        if self.trapped {
            return self.block_beside_trap(bans);
        }
        self.block_all(bans)
    }

    fn block_all(&mut self, bans: &[(BanTarget, Expiry)]) -> Result<(), BlockError> {
        let fresh = self.blocked_anew.is_none_or(|seen| seen.elapsed() >= STILL_BLOCKED);
        if bans.is_empty() || fresh && self.block_new(bans)? {
            return Ok(());
        }
        let kernel = self.kernel();
        self.change(Change::Block, bans, |batch, bans| nft::put_bans(batch, kernel, bans), |(target, _)| *target)
    }

    /// Blocks the targets if none of them is blocked yet and there is room; returns whether they are blocked now. Takes
    /// a third of the work of [`Nft::change`]. On the packet path.
    fn block_new(&mut self, bans: &[(BanTarget, Expiry)]) -> Result<bool, BlockError> {
        if bans.len() > nft::BANS_A_MESSAGE || !self.full.is_empty() {
            return Ok(false);
        }
        self.batch.clear();
        nft::put_new_bans(&mut self.batch, bans);
        match self.socket.transact(&mut self.batch) {
            Ok(()) => return Ok(true),
            // Other refusals occur again, and are explained, when each target is tried individually.
            Err(error) if error.is(Errno::EXIST) => self.blocked_anew = Some(Instant::now()),
            Err(error @ (SocketError::Refused { .. } | SocketError::Overrun(_))) => {
                // A single ban is not tried again if its set is full.
                if let ([(target, _)], true) = (bans, error.is(Errno::NFILE)) {
                    let mut failed = Vec::new();
                    self.judge(Change::Block, *target, error, &mut failed)?;
                    return Err(BlockError::Failed { asked: 1, failed });
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(false)
    }

    /// Restores bans with their target, total duration if known, and remaining time.
    pub fn restore(&mut self, bans: &[RestoredBan]) -> Result<(), BlockError> {
        let kernel = self.kernel();
        self.restore_by(bans, |batch, bans| nft::put_restored(batch, kernel, bans))
    }

    /// Restores bans that the kernel has lost. A target that is still blocked stays blocked.
    pub fn put_back(&mut self, bans: &[RestoredBan]) -> Result<(), BlockError> {
        let pause = if bans.len() < MANY { None } else { self.pause_monitor() };
        let done = self.restore_by(bans, nft::put_back);
        // The monitor reports changes by other programs in the meantime.
        if let Some((pause, mark)) = pause {
            pause.end(|| !self.is_undisturbed_since(mark));
        }
        done
    }

    fn restore_by(&mut self, bans: &[RestoredBan], put: impl Fn(&mut Batch, &[RestoredBan])) -> Result<(), BlockError> {
        let (wide, narrow): (Vec<_>, Vec<_>) =
            bans.iter().copied().partition(|(target, ..)| as_wide(*target).is_some());
        let done = self.change(Change::Block, &narrow, put, |(target, ..)| *target);
        let failed = self.block_networks(&wide)?;
        combine(bans.len(), done, failed)
    }

    /// Lifts the bans of these targets; targets without a ban are skipped.
    pub fn lift(&mut self, targets: &[BanTarget]) -> Result<(), BlockError> {
        let kernel = self.kernel();
        let put = |batch: &mut Batch, targets: &[BanTarget]| nft::put_lifts(batch, kernel, targets);
        let (wide, narrow): (Vec<_>, Vec<_>) = targets.iter().copied().partition(|target| as_wide(*target).is_some());
        let done = self.change(Change::Lift, &narrow, put, |target| *target);
        let failed = self.lift_networks(&wide)?;
        combine(targets.len(), done, failed)
    }

    /// Returns the remaining time if `target` is blocked now. A network is also blocked if a wider one around it is.
    ///
    /// # Errors
    /// [`BlockError::Gone`] if the set does not exist.
    pub fn holds(&mut self, target: BanTarget) -> Result<Option<Remaining>, BlockError> {
        Ok(self.element_of(target)?.map(|found| found.remaining))
    }

    /// Returns the element that blocks `target` now.
    ///
    /// # Errors
    /// As for [`Nft::holds`].
    pub(crate) fn element_of(&mut self, target: BanTarget) -> Result<Option<Bound>, BlockError> {
        if let BanTarget::Prefix(network) = target {
            return self.interval_of(network);
        }
        nft::put_ban_query(&mut self.request, target);
        let found = self.ask_for(Set::for_target(target))?;
        Ok(found.filter(|found| found.target() == target))
    }

    /// Returns the targets that the kernel does not block. Queries each individually, a few microseconds each,
    /// regardless of the set sizes.
    pub fn missing(&mut self, targets: &[BanTarget]) -> Result<Vec<BanTarget>, BlockError> {
        let mut missing = Vec::new();
        for target in targets {
            if self.holds(*target)?.is_none() {
                missing.push(*target);
            }
        }
        Ok(missing)
    }

    /// All bans in the kernel, including those that an administrator or a rule added. The time grows with the square of
    /// their number: 100,000 take 0.2 s, a million half a minute.
    ///
    /// # Errors
    /// [`SocketError::Unsteady`] if the sets change faster than they can be read.
    pub fn elements(&mut self) -> Result<Vec<(BanTarget, Remaining)>, BlockError> {
        let mut all = Vec::new();
        for set in [Set::Blocked, Set::Blocked6, Set::BlockedLink] {
            // A table that grows while it is read may return an element twice.
            all.extend(self.read_set(set, HashMap::new, |found, bound| {
                found.insert(bound.target(), bound.remaining);
            })?);
        }
        all.extend(self.networks()?.unwrap_or_default());
        Ok(all)
    }

    fn size(&mut self, set: Set) -> Result<u32, BlockError> {
        nft::set_size(&mut self.socket, set).map_err(BlockError::in_table)
    }

    /// The element of `set` with this address, or the first bound of the surrounding interval.
    fn find(&mut self, set: Set, address: IpAddr) -> Result<Option<Bound>, BlockError> {
        nft::put_element_query(&mut self.request, set, address);
        self.ask_for(set)
    }

    /// Sends the request, a query for an element of `set`, and returns the element.
    fn ask_for(&mut self, set: Set) -> Result<Option<Bound>, BlockError> {
        let mut found = None;
        let is_found = self.socket.find(&mut self.request, |message| {
            found = bounds_of(message.nft_of(sys::NFT_MSG_NEWSETELEM)).find(|bound| !bound.is_end);
        })?;
        if !is_found {
            // A missing element and a missing set give the same error.
            self.size(set)?;
        }
        Ok(found)
    }

    /// Passes all elements of `set` to `take`; starts again from `start` if the set changes in the meantime.
    fn read_set<T>(
        &mut self,
        set: Set,
        start: impl Fn() -> T,
        mut take: impl FnMut(&mut T, Bound),
    ) -> Result<T, BlockError> {
        nft::put_set_dump(&mut self.request, set);
        let read = self.socket.dump(&mut self.request, start, |found, message| {
            bounds_of(message.nft_of(sys::NFT_MSG_NEWSETELEM)).for_each(|bound| take(found, bound));
        });
        read.map_err(BlockError::in_table)
    }

    /// Sends the batch, which fails only if the table or a set is missing.
    fn send_batch(&mut self) -> Result<(), BlockError> {
        self.socket.transact(&mut self.batch).map_err(BlockError::in_table)
    }
}

impl BlockError {
    /// Error of a request that fails only if its set is missing.
    fn in_table(error: SocketError) -> Self {
        if error.is(Errno::NOENT) { Self::Gone } else { error.into() }
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

/// Time for which new bans are sent in the form that permits existing ones, after the kernel refused one because of an
/// existing ban by an operator or an earlier run. A refusal takes the kernel about 12 ms.
const STILL_BLOCKED: Duration = Duration::from_secs(60);
