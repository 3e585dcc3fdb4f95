//! Combines the kernel's sets with the ledger: the bans in force, each with its state in both.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ipnet::IpNet;
use rustix::io::Errno;

use crate::control::ban_info::BanInfo;
use crate::control::client::{ClientError, JOIN_GROUP};
use crate::control::scoped_network::ScopedNetwork;
use crate::enforce::nft::{BlockError, Table};
use crate::ledger::{LedgerEntry, LedgerError, Reader, Rows, unreadable_note};
use crate::types::{Backend, BanTarget, Expiry, Prefix, shared64};

/// Maximum number of bans for which the kernel's sets are read, which takes a few seconds. The time grows with the
/// square.
const MAX_DUMPED: usize = 200_000;

/// Maximum number of differing bans that are queried again: one may have begun or ended in between.
const MAX_RECHECKED: usize = 1_000;

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// Neither the ledger nor the kernel can be read.
    #[error("{ledger}; and {kernel}")]
    Nothing { ledger: Box<LedgerError>, kernel: String },
    #[error("only root can read the ledger and the kernel's sets; run this with sudo")]
    Forbidden,
    /// This user cannot ask the daemon either.
    #[error(
        "only root can read the ledger and the kernel's sets, and this user has no access to {}; run this with sudo, or \
         {JOIN_GROUP}",
        .0.display()
    )]
    NoAccess(PathBuf),
    #[error("this user cannot read the ledger and the kernel's sets, and the daemon does not list the bans: {0}")]
    Daemon(ClientError),
    /// The requested data is only in the ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("cannot write the list: {0}")]
    Write(io::Error),
}

/// The bans found, unordered, and notes for the reader.
#[derive(Debug)]
pub struct BanList {
    pub bans: Vec<BanInfo>,
    /// True if the kernel was queried.
    pub kernel: bool,
    pub notes: Vec<String>,
}

/// Reads the bans in force at `now`, or those that overlap `asked`.
///
/// # Errors
/// Neither the ledger nor the kernel can be read.
pub(super) fn read(directory: &Path, asked: Option<ScopedNetwork>, now: SystemTime) -> Result<BanList, ListError> {
    match asked.map(|asked| (asked, BanTarget::from_prefix(asked.network))) {
        // A link-local address may have a ban on each link.
        Some((asked, Ok(target @ (BanTarget::V4(_) | BanTarget::V6(_))))) if !is_link_local(asked.network) => {
            one(directory, asked.network, target, now)
        }
        asked => {
            let mut all = all(directory, now)?;
            if let Some((asked, _)) = asked {
                all.bans.retain(|ban| asked.overlaps(ban.target));
            }
            Ok(all)
        }
    }
}

fn is_link_local(target: IpNet) -> bool {
    matches!(target.addr(), IpAddr::V6(v6) if shared64::is_link_local(v6))
}

/// The bans of one source, and of the networks around it. Reads neither the ledger nor the sets as a whole.
fn one(directory: &Path, asked: IpNet, target: BanTarget, now: SystemTime) -> Result<BanList, ListError> {
    let address = if asked.prefix_len() > target.prefix_len() { asked.addr() } else { target.element() };
    let around = (0..128).filter_map(|length| Prefix::containing(address, length)).map(BanTarget::Prefix);
    let targets: Vec<BanTarget> = std::iter::once(target).chain(around).collect();
    let remembered = Reader::read(directory, |reader| {
        let mut found = Rows { items: Vec::new(), unreadable: 0 };
        for target in &targets {
            let of = reader.bans_of(*target)?;
            found.unreadable += of.unreadable;
            let is_active =
                |entry: &LedgerEntry| entry.ended.is_none() && entry.ban.until.is_none_or(|until| until > now);
            found.items.extend(of.items.into_iter().filter(is_active));
        }
        Ok(found)
    });
    let mut kernel = Kernel::open();
    let elements = kernel.ask(|table| table.time_left(target));
    let elements = elements.map(|elements| elements.map_or_else(Vec::new, |left| vec![(target, left)]));
    join(remembered, elements, &mut kernel, now)
}

fn all(directory: &Path, now: SystemTime) -> Result<BanList, ListError> {
    let mut kernel = Kernel::open();
    // Counted first, because reading a set of a million elements takes half a minute.
    let remembered = Reader::read(directory, |reader| reader.active(now));
    let many = remembered.as_ref().map_or(0, |found| found.items.len());
    let elements = match many > MAX_DUMPED {
        true => Err(KernelError::Other(format!(
            "the kernel's sets are not read, because there are {many} bans; name an address to see whether the kernel \
             blocks it"
        ))),
        false => kernel.ask(Table::elements),
    };
    join(remembered, elements, &mut kernel, now)
}

/// Combines both; differing bans are queried again.
fn join(
    remembered: Result<Rows<LedgerEntry>, LedgerError>,
    elements: Result<Vec<(BanTarget, Expiry)>, KernelError>,
    kernel: &mut Kernel,
    now: SystemTime,
) -> Result<BanList, ListError> {
    let mut notes = Vec::new();
    let remembered = match (remembered, &elements) {
        (Ok(found), _) => found,
        // A daemon that does not say where its ledger is may have it elsewhere.
        (Err(LedgerError::Forbidden(_) | LedgerError::Absent(_)), Err(KernelError::Forbidden)) => {
            return Err(ListError::Forbidden);
        }
        (Err(ledger), Err(kernel)) => {
            return Err(ListError::Nothing { ledger: Box::new(ledger), kernel: kernel.to_string() });
        }
        (Err(error), Ok(_)) => {
            notes.push(format!("listed from the kernel alone: {error}"));
            Rows { items: Vec::new(), unreadable: 0 }
        }
    };
    notes.extend(unreadable_note(remembered.unreadable));
    let asked = elements.is_ok();
    let needs_table = |entry: &LedgerEntry| entry.ban.backends.iter().any(|backend| backend == Backend::Nft);
    let mut elements: HashMap<BanTarget, Expiry> = match elements {
        Ok(elements) => elements.into_iter().collect(),
        Err(KernelError::NoTable) if !remembered.items.iter().any(needs_table) => HashMap::new(),
        Err(why) => {
            notes.push(format!("listed from the ledger alone: {why}"));
            HashMap::new()
        }
    };
    let listed = |entry: &LedgerEntry| {
        let left = elements.remove(&entry.ban.target);
        let is_absent = left.is_none() && asked && needs_table(entry);
        let ban = BanInfo::new(entry.ban.target, Some(entry), left, now);
        if is_absent { BanInfo { in_kernel: Some(false), ..ban } } else { ban }
    };
    let mut bans: Vec<BanInfo> = remembered.items.iter().map(listed).collect();
    bans.extend(elements.into_iter().map(|(target, left)| BanInfo::new(target, None, Some(left), now)));
    let disagree = |ban: &&mut BanInfo| ban.in_kernel == Some(false) || !ban.in_ledger;
    for ban in bans.iter_mut().filter(disagree).take(MAX_RECHECKED) {
        if let Ok(left) = kernel.ask(|table| table.time_left(ban.target)) {
            ban.set_kernel(left, now);
        }
    }
    // Neither of them has the ban now.
    bans.retain(|ban| ban.in_kernel != Some(false) || ban.in_ledger);
    Ok(BanList { bans, kernel: asked, notes })
}

/// Why the kernel's sets cannot be queried.
#[derive(Clone, Debug, thiserror::Error)]
enum KernelError {
    #[error("only root can read the kernel's sets; run this with sudo")]
    Forbidden,
    #[error("the kernel has no table inet portsentry, so nftables blocks no source now")]
    NoTable,
    #[error("{0}")]
    Other(String),
}

/// The kernel's sets, or the reason why they cannot be queried.
struct Kernel(Result<Table, KernelError>);

impl Kernel {
    fn open() -> Self {
        Self(Table::open().map_err(|error| KernelError::Other(error.to_string())))
    }

    fn ask<T>(&mut self, question: impl FnOnce(&mut Table) -> Result<T, BlockError>) -> Result<T, KernelError> {
        let table = self.0.as_mut().map_err(|error| error.clone())?;
        question(table).map_err(|error| match error {
            BlockError::Gone => KernelError::NoTable,
            BlockError::System(error) if error.errno() == Some(Errno::PERM) => KernelError::Forbidden,
            other => KernelError::Other(other.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_without_access_reads_one_remedy() {
        let refused = LedgerError::Forbidden("/var/lib/portsentry/ledger.sqlite".into());
        let mut kernel = Kernel(Err(KernelError::Forbidden));
        let error =
            join(Err(refused), Err(KernelError::Forbidden), &mut kernel, SystemTime::now()).unwrap_err().to_string();
        assert_eq!(error.matches("run this with sudo").count(), 1, "one sentence for one remedy: {error}");
    }
}
