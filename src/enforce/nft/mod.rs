//! The nftables backend: writes bans as elements into the sets of `table inet portsentry`, and reads them back. The kernel
//! enforces and expires them by itself; nothing here knows the reason of a ban.
//!
//! A ban is one transaction and one acknowledgement, some 6 µs in all: of one message, or of three where the target may be
//! blocked already. Once the buffers are warm it allocates nothing (benches/nft_encoding.rs).

mod allow_set;
mod backend;
mod bulk_restore;
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
pub use bulk_restore::Generation;
use transaction::Change;
pub use trap::{DecoyCounts, Hold, HoldCounts, TrapUsage};

pub use crate::netlink::nft::{
    Action, DecoyRules, Installed, KernelFeatures, MAX_HOLDS, Remaining, Repaired, RulesetError, RulesetSpec,
    TRAP_BURST, Trap, Watched,
};
use crate::netlink::socket::{Socket, SocketError};

/// Why the sets are not as they were asked to be.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The table or one of its sets was deleted, for example with `nft flush ruleset`: no ban is in force.
    #[error("table inet portsentry, or a set in it, is gone; it has to be installed again and the bans restored")]
    Gone,
    /// Some of the bans could not be changed; all others were.
    #[error("{} of {asked} could not be changed; {}", failed.len(), Failed::first(failed))]
    Failed {
        asked: usize,
        /// Which ones failed, and why; at least one.
        failed: Vec<Failed>,
    },
    /// The socket failed, or the kernel refused the whole.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

pub type Failed = super::Failed<Failure>;

/// Why one target could not be blocked or lifted.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No room.
    #[error(
        "set inet portsentry {set} is full ({size}): shorten `expire`, or save the bans, delete the table and start with \
         a larger size"
    )]
    Full {
        /// The set's name.
        set: &'static str,
        /// How many elements it holds.
        size: u32,
    },
    /// It is part of a network that is blocked for a shorter time. One set cannot hold both.
    #[error(
        "it is part of {around}, which is blocked for a shorter time: unblock that first, or block all of it for as long"
    )]
    Inside {
        /// The network around it.
        around: BanTarget,
    },
    /// What else the kernel or the socket said.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// The back end: one socket, opened in the network namespace of the thread that opens it.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
    batch: Batch,
    request: Vec<u8>,
    /// The sets that were full a moment ago, with their sizes.
    full: Vec<(Set, u32, Instant)>,
    /// Whether the table has a trap, which blocks sources before the daemon does.
    trapped: bool,
    /// When a target was last found to be blocked already.
    blocked_anew: Option<Instant>,
    /// Bans that the trap has not made as they are wanted. Kept for its memory.
    remaining: Vec<(BanTarget, Expiry)>,
    /// What the kernel's allow-list holds; `None` where that is not known.
    protected: Option<Protected>,
    /// What the kernel can do; `None` where it was not asked yet.
    kernel: Option<KernelFeatures>,
    /// Pauses the monitor of the table while very many bans are restored.
    monitor_pause: Option<MonitorPause>,
}

impl Nft {
    /// Opens the socket. Whether the kernel lets us is seen with [`Nft::install`].
    ///
    /// # Errors
    /// Where the kernel has no netfilter netlink.
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

    /// What the kernel can do. It is asked once; the table must be there by then.
    pub fn kernel(&mut self) -> KernelFeatures {
        *self.kernel.get_or_insert_with(|| KernelFeatures::probe(&mut self.socket))
    }

    /// Takes the kernel for one that can only do this, whatever it could.
    pub fn treat_as(&mut self, kernel: KernelFeatures) {
        self.kernel = Some(kernel);
    }

    /// The number by which the kernel names this socket in notifications of what it changed.
    #[must_use]
    pub fn port_id(&self) -> u32 {
        self.socket.port_id()
    }

    /// Creates the table, or adopts one of this program's own, repaired where others altered it. For the start: a table of
    /// another program is refused.
    pub fn install(&mut self, spec: &RulesetSpec) -> Result<Installed, RulesetError> {
        (self.protected, self.trapped) = (None, spec.trap.is_some());
        let installed = nft::install(&mut self.socket, spec)?;
        // Now rather than on the way of a packet: a kernel that cannot takes its time to say so.
        self.kernel();
        Ok(installed)
    }

    /// The kernel's number of the table, which another table of the same name does not have; `None` where there is none.
    pub fn table_handle(&mut self) -> Result<Option<u64>, SocketError> {
        nft::table_handle(&mut self.socket)
    }

    /// What [`Nft::install`] would find: the sizes of the sets for IPv4 and IPv6, `None` where there is no table. Changes
    /// nothing.
    pub fn examine(&mut self, spec: &RulesetSpec) -> Result<Option<(u32, u32)>, RulesetError> {
        nft::examine(&mut self.socket, spec)
    }

    /// What other programs have put into the table, each as the end of the sentence "it has …".
    pub fn foreign_objects(&mut self, spec: &RulesetSpec) -> Result<Vec<String>, RulesetError> {
        nft::foreign_objects(&mut self.socket, spec)
    }

    /// Deletes the table, and with it every ban that it holds; false where there was none.
    pub fn remove(&mut self, spec: &RulesetSpec) -> Result<bool, RulesetError> {
        self.protected = None;
        nft::remove(&mut self.socket, spec)
    }

    /// Makes the table as it should be, whatever was done to it since [`Nft::install`].
    pub fn repair(&mut self, spec: &RulesetSpec) -> Result<Repaired, RulesetError> {
        (self.protected, self.trapped) = (None, spec.trap.is_some());
        nft::repair(&mut self.socket, spec)
    }

    /// Has frames with an own source address dropped at these interfaces, by their indexes, and at no others.
    ///
    /// # Errors
    /// [`BlockError::Gone`] where the table has no rules for that.
    pub fn guard(&mut self, interfaces: &[u32]) -> Result<(), BlockError> {
        self.batch.clear();
        nft::put_interfaces(&mut self.batch, Set::Guarded, interfaces);
        self.send_batch()
    }

    /// Blocks them all, each from now on for its expiry, whether it is blocked already or not.
    ///
    /// Networks that overlap cannot all stand in one set: one that is inside the new one goes for it, and a new one inside
    /// one that lasts at least as long is blocked already. One inside another that ends sooner is refused.
    ///
    /// # Errors
    /// [`BlockError::Gone`] where the table has to be installed first; [`BlockError::Failed`] names those that are not
    /// blocked, while the others are.
    pub fn block(&mut self, bans: &[(BanTarget, Expiry)]) -> Result<(), BlockError> {
        if bans.iter().any(|(target, _)| is_wide(*target)) {
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

    /// Blocks them if none of them is blocked yet and there is room; whether they are blocked now. A third of the work
    /// of [`Nft::change`], on the way of a packet.
    fn block_new(&mut self, bans: &[(BanTarget, Expiry)]) -> Result<bool, BlockError> {
        if bans.len() > nft::BANS_A_MESSAGE || !self.full.is_empty() {
            return Ok(false);
        }
        self.batch.clear();
        nft::put_new_bans(&mut self.batch, bans);
        match self.socket.transact(&mut self.batch) {
            Ok(()) => return Ok(true),
            // What else was refused is refused again, and explained, where each is looked at.
            Err(error) if error.is(Errno::EXIST) => self.blocked_anew = Some(Instant::now()),
            Err(error @ (SocketError::Refused { .. } | SocketError::Overrun(_))) => {
                // Not a second time where there is nothing more to find out.
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

    /// Blocks them as they were blocked before: target, how long in all where that is known, and how long still.
    pub fn restore(&mut self, bans: &[RestoredBan]) -> Result<(), BlockError> {
        let kernel = self.kernel();
        self.restore_by(bans, |batch, bans| nft::put_restored(batch, kernel, bans))
    }

    /// The same for bans that the kernel has lost. A target that is blocked there all the same stays so.
    pub fn put_back(&mut self, bans: &[RestoredBan]) -> Result<(), BlockError> {
        let quiet = if bans.len() < bulk_restore::MANY { None } else { self.pause_monitor() };
        let done = self.restore_by(bans, nft::put_back);
        // The monitor reports what other programs did meanwhile.
        quiet.map(|quiet| quiet.end(self));
        done
    }

    fn restore_by(&mut self, bans: &[RestoredBan], put: impl Fn(&mut Batch, &[RestoredBan])) -> Result<(), BlockError> {
        let (wide, narrow): (Vec<_>, Vec<_>) = bans.iter().copied().partition(|(target, ..)| is_wide(*target));
        let done = self.change(Change::Block, &narrow, put, |(target, ..)| *target);
        if wide.is_empty() {
            return done;
        }
        let failed = self.block_networks(&wide)?;
        combine(bans.len(), done, failed)
    }

    /// Lifts the bans of these; those that are not blocked are passed over.
    pub fn lift(&mut self, targets: &[BanTarget]) -> Result<(), BlockError> {
        let kernel = self.kernel();
        let put = |batch: &mut Batch, targets: &[BanTarget]| {
            targets.iter().for_each(|target| nft::put_lift(batch, kernel, *target));
        };
        let (wide, narrow): (Vec<_>, Vec<_>) = targets.iter().copied().partition(|target| is_wide(*target));
        let done = self.change(Change::Lift, &narrow, put, |target| *target);
        if wide.is_empty() {
            return done;
        }
        let failed = self.lift_networks(&wide)?;
        combine(targets.len(), done, failed)
    }

    /// Whether `target` is blocked now, and for how long still. A network is also where a wider one around it is.
    ///
    /// # Errors
    /// [`BlockError::Gone`] where there is no set to look into.
    pub fn holds(&mut self, target: BanTarget) -> Result<Option<Remaining>, BlockError> {
        if let BanTarget::Prefix(network) = target {
            return self.holds_network(network);
        }
        nft::put_ban_query(&mut self.request, target);
        let found = self.ask_for(Set::for_target(target))?;
        Ok(found.filter(|found| found.target() == target).map(|found| found.remaining))
    }

    /// Which of these the kernel does not block. Asks for each by itself, some microseconds, however full the sets are.
    pub fn missing(&mut self, targets: &[BanTarget]) -> Result<Vec<BanTarget>, BlockError> {
        let mut missing = Vec::new();
        for target in targets {
            if self.holds(*target)?.is_none() {
                missing.push(*target);
            }
        }
        Ok(missing)
    }

    /// All bans that the kernel holds, ours and those that an administrator or a rule added. The time grows with the
    /// square of their number: 100,000 take 0.2 s, a million half a minute.
    ///
    /// # Errors
    /// [`SocketError::Unsteady`] where the sets change faster than they can be read.
    pub fn elements(&mut self) -> Result<Vec<(BanTarget, Remaining)>, BlockError> {
        let mut all = Vec::new();
        for set in [Set::Blocked, Set::Blocked6, Set::BlockedLink] {
            // A table that grows while it is read may show an element twice.
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

    /// The element of `set` with this address, or the first bound of the interval around it.
    fn find(&mut self, set: Set, address: IpAddr) -> Result<Option<Bound>, BlockError> {
        nft::put_element_query(&mut self.request, set, address);
        self.ask_for(set)
    }

    /// What the request, a query for an element of `set`, finds.
    fn ask_for(&mut self, set: Set) -> Result<Option<Bound>, BlockError> {
        let mut found = None;
        let asked = self.socket.ask(&mut self.request, |message| {
            found = bounds_of(message.nft_of(sys::NFT_MSG_NEWSETELEM)).find(|bound| !bound.is_end);
        });
        match asked {
            Ok(()) => Ok(found),
            // A missing element and a missing set look the same.
            Err(error) if error.is(Errno::NOENT) => self.size(set).map(|_| None),
            Err(error) => Err(error.into()),
        }
    }

    /// All elements of `set`, each given to `take`; again from `start` where the set changes meanwhile.
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

    /// Sends the batch, which fails only where the table or a set is gone.
    fn send_batch(&mut self) -> Result<(), BlockError> {
        self.socket.transact(&mut self.batch).map_err(BlockError::in_table)
    }
}

impl BlockError {
    /// The failure of a request that finds its element wherever it finds its set.
    fn in_table(error: SocketError) -> Self {
        if error.is(Errno::NOENT) { Self::Gone } else { error.into() }
    }
}

fn is_wide(target: BanTarget) -> bool {
    matches!(target, BanTarget::Prefix(_))
}

/// The result for single targets and networks together.
fn combine(asked: usize, done: Result<(), BlockError>, networks: Vec<Failed>) -> Result<(), BlockError> {
    let mut failed = match done {
        Ok(()) => Vec::new(),
        Err(BlockError::Failed { failed, .. }) => failed,
        Err(error) => return Err(error),
    };
    failed.extend(networks);
    if failed.is_empty() { Ok(()) } else { Err(BlockError::Failed { asked, failed }) }
}

/// How long new bans are taken for ones that may stand already, after one did: by hand, or from an earlier run. To
/// find out by a refusal takes the kernel some 12 ms.
const STILL_BLOCKED: Duration = Duration::from_secs(60);
