//! The kernel's sets and the ledger to the bans in force, each with who of the two knows of it. Asks a daemon nothing.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use ipnet::IpNet;
use rustix::io::Errno;

use crate::enforce::nft::{BlockError, Nft, Remaining};
use crate::ledger::{Entry, Found, LedgerError, Reader};
use crate::types::{Backend, BanTarget, Expiry, Prefix};

/// Bans up to which the kernel's sets are read: some seconds. The time grows with the square of their number.
const DUMPED: usize = 200_000;

/// Bans that the two disagree about are asked for once more, this many at most: one may have begun or ended in between.
const ASKED_AGAIN: usize = 1_000;

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// Neither the ledger nor the kernel tells anything.
    #[error("{ledger}; and {kernel}")]
    Nothing {
        /// What is wrong with the ledger.
        ledger: Box<LedgerError>,
        /// Why the kernel says nothing.
        kernel: String,
    },
    /// It cannot be written.
    #[error("the list cannot be written: {0}")]
    Write(io::Error),
}

/// The bans that were found.
#[derive(Debug)]
pub struct Bans {
    /// Each, in no order.
    pub bans: Vec<Listed>,
    /// Whether the kernel was asked.
    pub kernel: bool,
    /// What a reader of the list should know.
    pub notes: Vec<String>,
}

/// A ban that is in force, as far as the kernel or the ledger knows.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Who is blocked.
    pub subject: BanTarget,
    /// What the ledger has; `None` where it knows nothing of it.
    pub remembered: Option<Entry>,
    /// What the kernel has.
    pub held: Held,
}

/// What the kernel's set says of somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It was not asked, or the ban needs no set.
    Unasked,
    /// Not blocked.
    No,
    /// Blocked, and for how long still.
    For(Remaining),
}

impl Listed {
    /// How much of it is left; the kernel's word counts, because it is the kernel that blocks.
    #[must_use]
    pub fn left(&self, now: SystemTime) -> Expiry {
        match (self.held, &self.remembered) {
            (Held::For(left), _) => left.map_or(Expiry::Never, Expiry::After),
            // One that has just run out shows its last second.
            (_, Some(entry)) => entry.ban.left(now).unwrap_or(Expiry::After(std::time::Duration::ZERO)),
            (_, None) => Expiry::Never,
        }
    }

    /// The address that has a name: the one that probed, where it is known.
    #[must_use]
    pub fn source(&self) -> Option<IpAddr> {
        match (&self.remembered, self.subject) {
            (_, BanTarget::Prefix(_)) => None,
            (Some(entry), _) => Some(entry.ban.source),
            (None, subject) => Some(subject.element()),
        }
    }
}

/// The bans in force at `now`, all of them or those that `target` has to do with.
///
/// # Errors
/// Where neither the ledger nor the kernel tells anything.
pub fn read(directory: &Path, target: Option<IpNet>, now: SystemTime) -> Result<Bans, ListError> {
    match target.map(|target| (target, BanTarget::of_prefix(target))) {
        Some((target, Ok(subject @ (BanTarget::V4(_) | BanTarget::V6(_))))) => one(directory, target, subject, now),
        target => {
            let mut all = all(directory, now)?;
            if let Some((target, _)) = target {
                all.bans.retain(|ban| touch(ban.subject, target));
            }
            Ok(all)
        }
    }
}

/// True where they have an address in common.
fn touch(subject: BanTarget, target: IpNet) -> bool {
    let network = IpNet::new(subject.element(), subject.prefix_len()).ok();
    network.is_some_and(|network| network.contains(&target) || target.contains(&network))
}

/// The bans of one source: its own, and those of the networks around it. Nothing is read as a whole.
fn one(directory: &Path, target: IpNet, subject: BanTarget, now: SystemTime) -> Result<Bans, ListError> {
    let address = if target.prefix_len() > subject.prefix_len() { target.addr() } else { subject.element() };
    let around = (0..128).filter_map(|length| Prefix::of(address, length)).map(BanTarget::Prefix);
    let subjects: Vec<BanTarget> = std::iter::once(subject).chain(around).collect();
    let remembered = Reader::read(directory, |reader| {
        let mut found = Found { items: Vec::new(), unreadable: 0 };
        for subject in &subjects {
            let of = reader.of(*subject)?;
            found.unreadable += of.unreadable;
            found.items.extend(of.items.into_iter().filter(|entry| is_active(entry, now)));
        }
        Ok(found)
    });
    let mut kernel = Kernel::open();
    let held = kernel.holds(subject);
    let held = held.map(|held| held.map_or_else(Vec::new, |left| vec![(subject, left)]));
    join(remembered, held, &mut kernel)
}

fn all(directory: &Path, now: SystemTime) -> Result<Bans, ListError> {
    let mut kernel = Kernel::open();
    // A look first: reading a set of a million elements takes half a minute.
    let remembered = Reader::read(directory, |reader| reader.active(now));
    let many = remembered.as_ref().map_or(0, |found| found.items.len());
    let held = match many > DUMPED {
        true => Err(format!("{many} bans are too many to read the kernel's sets as well; ask for one address")),
        false => kernel.elements(),
    };
    join(remembered, held, &mut kernel)
}

fn is_active(entry: &Entry, now: SystemTime) -> bool {
    entry.ended.is_none() && entry.ban.until.is_none_or(|until| until > now)
}

/// What both say, in one.
fn join(
    remembered: Result<Found<Entry>, LedgerError>,
    held: Result<Vec<(BanTarget, Remaining)>, String>,
    kernel: &mut Kernel,
) -> Result<Bans, ListError> {
    let mut notes = Vec::new();
    let remembered = match (remembered, &held) {
        (Ok(found), _) => found,
        (Err(ledger), Err(kernel)) => {
            return Err(ListError::Nothing { ledger: Box::new(ledger), kernel: kernel.clone() });
        }
        (Err(error), Ok(_)) => {
            notes.push(format!("from the kernel alone: {error}"));
            Found { items: Vec::new(), unreadable: 0 }
        }
    };
    if remembered.unreadable > 0 {
        notes.push(format!("{} rows of the ledger cannot be read and are left out", remembered.unreadable));
    }
    let asked = held.is_ok();
    let mut elements: HashMap<BanTarget, Remaining> = match held {
        Ok(held) => held.into_iter().collect(),
        Err(why) => {
            notes.push(format!("from the ledger alone: {why}"));
            HashMap::new()
        }
    };
    let mut again = ASKED_AGAIN;
    let mut bans: Vec<Listed> = Vec::with_capacity(remembered.items.len());
    for entry in remembered.items {
        let subject = entry.ban.subject;
        let mut state = match elements.remove(&subject) {
            Some(left) => Held::For(left),
            None if !asked || entry.ban.methods.iter().all(|method| method != Backend::Nft) => Held::Unasked,
            None => Held::No,
        };
        if state == Held::No && again > 0 {
            again -= 1;
            state = kernel.holds(subject).ok().flatten().map_or(Held::No, Held::For);
        }
        bans.push(Listed { subject, remembered: Some(entry), held: state });
    }
    for (subject, left) in elements {
        let left = match again.checked_sub(1) {
            Some(rest) => {
                again = rest;
                kernel.holds(subject).unwrap_or(Some(left))
            }
            None => Some(left),
        };
        bans.extend(left.map(|left| Listed { subject, remembered: None, held: Held::For(left) }));
    }
    Ok(Bans { bans, kernel: asked, notes })
}

/// The kernel's sets, and a sentence where they cannot be asked.
struct Kernel(Result<Nft, String>);

impl Kernel {
    fn open() -> Self {
        Self(Nft::open().map_err(|error| error.to_string()))
    }

    fn holds(&mut self, subject: BanTarget) -> Result<Option<Remaining>, String> {
        self.ask(|nft| nft.holds(subject))
    }

    fn elements(&mut self) -> Result<Vec<(BanTarget, Remaining)>, String> {
        self.ask(Nft::elements)
    }

    fn ask<T>(&mut self, question: impl FnOnce(&mut Nft) -> Result<T, BlockError>) -> Result<T, String> {
        let nft = self.0.as_mut().map_err(|error| error.clone())?;
        question(nft).map_err(|error| match error {
            BlockError::Gone => "there is no table inet portsentry in the kernel; nothing blocks by it now".to_owned(),
            BlockError::Socket(error) if error.errno() == Some(Errno::PERM) => {
                "the kernel shows its sets to root alone; try it with sudo".to_owned()
            }
            other => other.to_string(),
        })
    }
}
