//! Sends transactions to the table and reads its sets, through one long-lived socket.

use std::collections::HashMap;
use std::net::IpAddr;

use rustables::sys;
use rustix::io::Errno;

use super::BlockError;
use crate::netlink::nft::monitor::{MonitorPause, PausedSpan};
use crate::netlink::nft::{
    self, BANS_A_MESSAGE, Batch, KernelFeatures, Set, SetElement, await_turn, elements_of, generation, kernel_features,
};
use crate::netlink::socket::{Socket, SocketError};
use crate::types::{BanTarget, Expiry};

/// The table of the network namespace of the thread that opens it.
#[derive(Debug)]
pub struct Table {
    pub(super) socket: Socket,
    /// The buffers are kept, so that a ban does not allocate.
    batch: Batch,
    request: Vec<u8>,
    /// Features of the kernel; `None` before the first query. Only tests assign it.
    pub kernel: Option<KernelFeatures>,
    /// Pauses this table's monitor while very many bans are restored. Changes by others in that time are reported as
    /// [`TableChange::Unmonitored`](crate::netlink::nft::monitor::TableChange::Unmonitored).
    pub monitor_pause: Option<MonitorPause>,
}

impl Table {
    /// Opens the socket. Missing permission is reported by the first request.
    ///
    /// # Errors
    /// The kernel has no netfilter netlink.
    pub fn open() -> Result<Self, SocketError> {
        Ok(Self::through(Socket::open()?))
    }

    fn through(socket: Socket) -> Self {
        Self { socket, batch: Batch::new(), request: Vec::new(), kernel: None, monitor_pause: None }
    }

    /// Creates another handle of this table, for another thread.
    pub fn try_clone(&self) -> Result<Self, SocketError> {
        let (kernel, monitor_pause) = (self.kernel, self.monitor_pause.clone());
        Ok(Self { kernel, monitor_pause, ..Self::through(self.socket.try_clone()?) })
    }

    /// Features of the kernel. They are queried once; the table must exist by then.
    pub fn kernel(&mut self) -> KernelFeatures {
        *self.kernel.get_or_insert_with(|| kernel_features(&mut self.socket))
    }

    /// The port id by which the kernel identifies this socket in notifications of its changes.
    pub fn port_id(&self) -> u32 {
        self.socket.port_id()
    }

    /// Makes the kernel drop frames with an own source address on exactly these interfaces, given by their indexes.
    ///
    /// # Errors
    /// [`BlockError::Gone`] if the table has no rules for that.
    pub fn guard(&mut self, interfaces: &[u32]) -> Result<(), BlockError> {
        self.send(|batch| nft::put_interfaces(batch, Set::Guarded, interfaces))
    }

    /// Returns the remaining time if `target` is blocked now. A network is also blocked if a wider one around it is.
    ///
    /// # Errors
    /// [`BlockError::Gone`] if the set does not exist.
    pub fn time_left(&mut self, target: BanTarget) -> Result<Option<Expiry>, BlockError> {
        Ok(self.element_of(target)?.map(|found| found.left))
    }

    /// Returns the element that blocks `target` now; for a network, the first bound of the interval that contains all
    /// of it.
    ///
    /// # Errors
    /// As for [`Table::time_left`].
    pub(crate) fn element_of(&mut self, target: BanTarget) -> Result<Option<SetElement>, BlockError> {
        if let BanTarget::Prefix(network) = target {
            // The network is blocked if its first and its last address are in the same interval.
            let (set, network) = (Set::for_target(target), network.network());
            let (first, last) = (self.find(set, network.network())?, self.find(set, network.broadcast())?);
            return Ok(first.zip(last).filter(|(first, last)| first.address == last.address).map(|(first, _)| first));
        }
        nft::put_ban_query(&mut self.request, target);
        let found = self.ask_for(Set::for_target(target))?;
        Ok(found.filter(|found| found.target() == target))
    }

    /// True if a ban of exactly `target` is in force, which can be lifted.
    pub fn has_exactly(&mut self, target: BanTarget) -> Result<bool, BlockError> {
        match target {
            BanTarget::Prefix(_) => Ok(self.networks()?.is_some_and(|held| held.iter().any(|(one, _)| *one == target))),
            _ => self.time_left(target).map(|held| held.is_some()),
        }
    }

    /// Returns the targets that the kernel does not block. Queries each individually, a few microseconds each,
    /// regardless of the set sizes.
    pub fn missing(&mut self, targets: &[BanTarget]) -> Result<Vec<BanTarget>, BlockError> {
        let mut missing = Vec::new();
        for target in targets {
            if self.time_left(*target)?.is_none() {
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
    pub fn elements(&mut self) -> Result<Vec<(BanTarget, Expiry)>, BlockError> {
        let mut all = self.timed_elements(&[Set::Blocked, Set::Blocked6, Set::BlockedLink])?;
        all.extend(self.networks()?.unwrap_or_default());
        Ok(all)
    }

    /// The elements of these sets, which are not sets of intervals, with their remaining times.
    pub(super) fn timed_elements(&mut self, sets: &[Set]) -> Result<Vec<(BanTarget, Expiry)>, BlockError> {
        let mut all = Vec::new();
        for set in sets {
            // A table that grows while it is read may return an element twice.
            all.extend(self.read_set(*set, HashMap::new, |found, element| {
                found.insert(element.target(), element.left);
            })?);
        }
        Ok(all)
    }

    /// All networks that the kernel blocks; `None` if the table has no sets for them.
    pub(super) fn networks(&mut self) -> Result<Option<Vec<(BanTarget, Expiry)>>, BlockError> {
        let mut all = Vec::new();
        for set in [Set::BlockedNets, Set::BlockedNets6] {
            match self.read_set(set, Vec::new, |bounds, bound| bounds.push(bound)) {
                Ok(bounds) => all.extend(nft::decode_prefixes(bounds)),
                Err(BlockError::Gone) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(all))
    }

    pub(super) fn size(&mut self, set: Set) -> Result<u32, BlockError> {
        nft::set_size(&mut self.socket, set).map_err(BlockError::in_table)
    }

    /// Sum of the packet counters in the rules of `chain`. Recreated rules count from zero.
    pub(super) fn counted(&mut self, chain: &str) -> Result<u64, BlockError> {
        nft::counted_packets(&mut self.socket, chain).map_err(BlockError::in_table)
    }

    /// The element of `set` with this address, or the first bound of the surrounding interval.
    pub(super) fn find(&mut self, set: Set, address: IpAddr) -> Result<Option<SetElement>, BlockError> {
        nft::put_element_query(&mut self.request, set, address);
        self.ask_for(set)
    }

    /// Sends the request, a query for an element of `set`, and returns the element.
    fn ask_for(&mut self, set: Set) -> Result<Option<SetElement>, BlockError> {
        let mut found = None;
        let is_found = self.socket.find(&mut self.request, |message| {
            found = elements_of(message.nft_of(sys::NFT_MSG_NEWSETELEM)).find(|element| !element.is_end);
        })?;
        if !is_found {
            // A missing element and a missing set give the same error.
            self.size(set)?;
        }
        Ok(found)
    }

    /// Passes all elements of `set` to `take`; starts again from `start` if the set changes in the meantime.
    pub(super) fn read_set<T>(
        &mut self,
        set: Set,
        start: impl Fn() -> T,
        mut take: impl FnMut(&mut T, SetElement),
    ) -> Result<T, BlockError> {
        nft::put_set_dump(&mut self.request, set);
        let read = self.socket.dump(&mut self.request, start, |found, message| {
            elements_of(message.nft_of(sys::NFT_MSG_NEWSETELEM)).for_each(|element| take(found, element));
        });
        read.map_err(BlockError::in_table)
    }

    /// Sends the messages that `put` appends, as one transaction.
    #[inline]
    pub(super) fn transact(&mut self, put: impl FnOnce(&mut Batch)) -> Result<(), SocketError> {
        self.batch.clear();
        put(&mut self.batch);
        self.socket.transact(&mut self.batch)
    }

    /// As [`Table::transact`], for messages that are refused only if the table or a set is missing.
    pub(super) fn send(&mut self, put: impl FnOnce(&mut Batch)) -> Result<(), BlockError> {
        self.transact(put).map_err(BlockError::in_table)
    }

    /// Removes these targets, which are single sources, from the set of their family; missing ones are skipped.
    pub(super) fn remove_from(&mut self, sets: [Set; 2], targets: &[BanTarget]) -> Result<(), BlockError> {
        let kernel = self.kernel();
        for targets in targets.chunks(BANS_A_MESSAGE) {
            self.send(|batch| {
                for (blocked, set) in [Set::Blocked, Set::Blocked6].into_iter().zip(sets) {
                    let of_family = targets.iter().copied().filter(|target| Set::for_target(*target) == blocked);
                    let of_family: Vec<BanTarget> = of_family.collect();
                    if !of_family.is_empty() {
                        nft::put_forget(batch, kernel, set, &of_family);
                    }
                }
            })?;
        }
        Ok(())
    }

    /// The current position in the kernel's sequence of transactions.
    pub fn generation(&mut self) -> Option<Generation> {
        let own = self.socket.changes();
        Some(Generation { generation: generation(&mut self.socket).ok()?, own })
    }

    /// True if no other program has changed any table since `mark`. An own transaction that changed nothing is not
    /// counted by the kernel, and a running one is not counted here; both look like another program's.
    pub fn is_undisturbed_since(&mut self, mark: Generation) -> bool {
        let own = self.socket.changes().wrapping_sub(mark.own);
        generation(&mut self.socket).ok() == Some(mark.generation.wrapping_add(own))
    }

    /// Pauses the monitor, if possible; also returns the position at which the pause begins.
    pub(super) fn pause_monitor(&mut self) -> Option<(PausedSpan, Generation)> {
        let pause = self.monitor_pause.clone()?;
        let mark = self.generation()?;
        // Transactions that were running are over after this; later ones increment the generation.
        await_turn(&mut self.socket);
        // The request of `await_turn` changed nothing, so the kernel's count does not include it.
        let mark = Generation { own: self.socket.changes(), ..mark };
        Some((pause.begin().ok()?, mark))
    }
}

impl BlockError {
    /// Error of a request that fails only if its set is missing.
    pub(super) fn in_table(error: SocketError) -> Self {
        if error.is(Errno::NOENT) { Self::Gone } else { error.into() }
    }
}

/// A position in the sequence of transactions.
#[derive(Clone, Copy, Debug)]
pub struct Generation {
    /// The kernel's count of all transactions.
    generation: u32,
    own: u32,
}
