//! Installs, examines, repairs and removes the table of nft/portsentry.nft in the kernel. Reads it first, and changes
//! only objects that this program created.

use netlink_packet_core::NLM_F_DUMP;
use rustables::sys;
use rustix::io::Errno;

use super::desired_ruleset::{DesiredRuleset, RulesetChange};
use super::message::{field, put_request};
use super::recognise::recognise;
use super::set::Set;
use super::snapshot::{Difference, SnapshotPart, TableSnapshot};
use super::spec::RulesetSpec;
use super::table::TABLE;
use crate::netlink::message::be_u64;
use crate::netlink::socket::{Batch, Socket, SocketError};

/// Result of an installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// The table did not exist and was created.
    Created,
    /// The table existed unchanged. The sizes of its sets may differ from the requested ones.
    Adopted(SetSizes),
    /// The table had the rules of another [`RulesetSpec`], which were replaced. Its sets kept their elements and sizes.
    Rebuilt(SetSizes),
    /// The table had been altered and was repaired. Objects of other programs in it stay.
    Repaired {
        /// The first difference, as the end of the sentence "it had …".
        difference: String,
        sizes: SetSizes,
    },
}

/// Sizes of `blocked` and `blocked6`.
pub type SetSizes = (u32, u32);

/// Result of a repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repaired {
    /// All own objects were unchanged.
    Unchanged,
    /// The table was missing and was created with empty sets.
    Created,
    /// Own objects were altered and have been restored.
    Repaired {
        /// The first difference, as the end of the sentence "it had …".
        difference: String,
        /// Sets that were missing and were created without their elements.
        emptied: Vec<Set>,
    },
}

/// Why the table is not in force.
#[derive(Debug, thiserror::Error)]
pub enum RulesetError {
    #[error(
        "table inet {TABLE} was not created by portsentry: it has {difference}. portsentry changes nothing that it \
         did not create. Save your rules in it, remove it with `nft delete table inet {TABLE}` and start portsentry \
         again, or load /usr/share/portsentry/portsentry.nft"
    )]
    Foreign {
        /// The first thing that differs.
        difference: String,
    },
    #[error(
        "the kernel refused {object} of table inet {TABLE}: {errno}; load the modules that its rules need, or use a kernel \
         that has them. All rules: nf_tables, nft_counter. To log: nft_limit, nft_log. To reject: nft_limit, nft_fib_inet, \
         nft_reject_inet, Linux 5.9. Trap: nft_limit, nft_fib_inet, nft_socket. Chain own_source: nft_fib_inet. Decoys: \
         nft_fib_inet, nft_socket, nft_tproxy"
    )]
    Lacking { object: String, errno: Errno },
    #[error("another program keeps creating and deleting table inet {TABLE}; stop it, then start portsentry again")]
    Contended,
    /// The socket failed, or permission was denied.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// Creates the table, or adopts an unchanged existing one. The rules of another [`RulesetSpec`] are replaced in one
/// transaction, and the sets keep their elements. A table altered by others is repaired.
///
/// # Errors
/// [`RulesetError::Foreign`] if a table of this name belongs to another program or cannot be repaired; the kernel's
/// refusals.
pub fn install(socket: &mut Socket, spec: &RulesetSpec) -> Result<Installed, RulesetError> {
    let mut last = None;
    for _ in 0..MAX_ATTEMPTS {
        let Some(found) = read(socket)? else { continue };
        let wanted = DesiredRuleset::new(&kept(spec, &found));
        let sizes = sizes(&found);
        let (change, done) = if found.exists {
            let differences = wanted.differences(&found);
            if differences.is_empty() {
                return Ok(Installed::Adopted(sizes));
            }
            match recognise_own(&found, spec.size) {
                Ok(old) => (wanted.repair(&found, &differences, &old), Installed::Rebuilt(sizes)),
                Err(error) if !found.has_base_sets() => return Err(error),
                Err(_) => {
                    return Ok(match repair(socket, spec)? {
                        Repaired::Created => Installed::Created,
                        Repaired::Unchanged => Installed::Adopted(sizes),
                        Repaired::Repaired { difference, .. } => Installed::Repaired { difference, sizes },
                    });
                }
            }
        } else {
            (wanted.create(), Installed::Created)
        };
        last = carry_out(socket, change)?;
        if last.is_none() {
            return Ok(done);
        }
    }
    Err(last.unwrap_or(RulesetError::Contended))
}

/// Returns the sizes of `blocked` and `blocked6` if the table exists, with the rules of any spec, altered or not;
/// `None` if it does not exist. Changes nothing.
pub fn examine(socket: &mut Socket, spec: &RulesetSpec) -> Result<Option<SetSizes>, RulesetError> {
    let Some(found) = read_existing(socket)? else { return Ok(None) };
    if !found.has_base_sets() {
        recognise_own(&found, spec.size)?;
    }
    let differences = DesiredRuleset::new(&kept(spec, &found)).differences(&found);
    irreparable(&differences)?;
    Ok(Some(sizes(&found)))
}

fn sizes(found: &TableSnapshot) -> SetSizes {
    (found.size(Set::Blocked), found.size(Set::Blocked6))
}

/// The table; `None` where there is none.
fn read_existing(socket: &mut Socket) -> Result<Option<TableSnapshot>, RulesetError> {
    for _ in 0..MAX_ATTEMPTS {
        if let Some(found) = read(socket)? {
            return Ok(found.exists.then_some(found));
        }
    }
    Err(RulesetError::Contended)
}

/// Returns the objects in the table that no version of this program creates, each as the end of the sentence "it has
/// …".
pub fn foreign_objects(socket: &mut Socket, spec: &RulesetSpec) -> Result<Vec<String>, RulesetError> {
    let Some(found) = read_existing(socket)? else { return Ok(Vec::new()) };
    Ok(DesiredRuleset::new(&recognise(&found, spec.size)).foreign(&found))
}

/// True if the table exists and a saved ruleset was loaded into it.
///
/// # Errors
/// The table cannot be read.
pub fn has_repeated_rules(socket: &mut Socket) -> Result<bool, RulesetError> {
    Ok(read_existing(socket)?.is_some_and(|found| found.has_repeated_rules()))
}

/// Deletes the table with all its contents; false if it did not exist.
///
/// # Errors
/// As for [`install`]; a table of another program stays.
pub fn remove(socket: &mut Socket, spec: &RulesetSpec) -> Result<bool, RulesetError> {
    let Some(found) = read(socket)?.filter(|found| found.exists) else { return Ok(false) };
    recognise_own(&found, spec.size)?;
    let mut batch = Batch::new();
    batch.append(sys::NFT_MSG_DELTABLE, 0, |table| table.put_text(sys::NFTA_TABLE_NAME, TABLE));
    match socket.transact(&mut batch) {
        Err(error) if error.is(Errno::NOENT) => Ok(false),
        done => Ok(done.map(|()| true)?),
    }
}

/// Repairs the table: missing or altered objects are recreated in one transaction, followed by a second one if the
/// table was dormant. Objects of other programs and unaltered sets with their elements stay.
///
/// # Errors
/// [`RulesetError::Foreign`] if a repair is impossible, because a set of ours was replaced with one of another type or
/// the table is owned by a process; nothing is changed then. Also the kernel's refusals.
pub fn repair(socket: &mut Socket, spec: &RulesetSpec) -> Result<Repaired, RulesetError> {
    let mut last = None;
    for _ in 0..MAX_ATTEMPTS {
        let Some(found) = read(socket)? else { continue };
        let wanted = DesiredRuleset::new(&kept(spec, &found));
        if !found.exists {
            last = carry_out(socket, wanted.create())?;
            if last.is_none() {
                return Ok(Repaired::Created);
            }
            continue;
        }
        let mut differences = wanted.differences(&found);
        // Objects that belong to another spec are removed with it. All others belong to other programs.
        let old = recognise(&found, spec.size);
        let other_kind = DesiredRuleset::new(&old).foreign(&found);
        differences
            .retain(|difference| difference.part != SnapshotPart::Foreign || !other_kind.contains(&difference.text));
        let Some(Difference { text: first, .. }) = differences.first().cloned() else { return Ok(Repaired::Unchanged) };
        irreparable(&differences)?;
        let dormant = differences.iter().any(|difference| matches!(difference.part, SnapshotPart::Flags(_)));
        if differences.len() > usize::from(dormant) {
            last = carry_out(socket, wanted.repair(&found, &differences, &old))?;
            if last.is_some() {
                continue;
            }
        }
        // In a separate transaction: kernels refuse a new base chain in a table whose flags change.
        if dormant {
            let mut change = RulesetChange::new();
            change.clear_table_flags();
            if carry_out(socket, change)?.is_some() {
                continue;
            }
        }
        let emptied = wanted.missing_sets(&found).collect();
        return Ok(Repaired::Repaired { difference: first, emptied });
    }
    Err(last.unwrap_or(RulesetError::Contended))
}

/// Refuses a table that cannot be repaired without deleting objects of other programs.
fn irreparable(differences: &[Difference]) -> Result<(), RulesetError> {
    let hopeless = |part: &SnapshotPart| matches!(part, SnapshotPart::OtherSet | SnapshotPart::Flags(2..));
    let found = differences.iter().find(|difference| hopeless(&difference.part));
    found.map_or(Ok(()), |Difference { text, .. }| Err(RulesetError::Foreign { difference: text.clone() }))
}

/// Returns the spec with which this program created the table `found`.
fn recognise_own(found: &TableSnapshot, size: u32) -> Result<RulesetSpec, RulesetError> {
    let spec = recognise(found, size);
    match DesiredRuleset::new(&spec).differences(found).into_iter().next() {
        None => Ok(spec),
        Some(Difference { text, .. }) => Err(RulesetError::Foreign { difference: text }),
    }
}

/// Returns `spec`, with the network sets added if the table has them, so that their elements are kept.
fn kept(spec: &RulesetSpec, found: &TableSnapshot) -> RulesetSpec {
    let both = found.has_set(Set::BlockedNets) && found.has_set(Set::BlockedNets6);
    RulesetSpec { prefix_sets: spec.prefix_sets || both, ..*spec }
}

/// Sends the transaction. If the table changed after it was read, returns the error to report if this was the last
/// attempt. A kernel without an expression returns ENOENT for the rule, as it does if the rule's set or chain has just
/// been deleted; but no program deletes them at every attempt.
fn carry_out(socket: &mut Socket, mut change: RulesetChange) -> Result<Option<RulesetError>, RulesetError> {
    let (message, errno) = match socket.transact(&mut change.batch) {
        Ok(()) => return Ok(None),
        Err(SocketError::Refused { message, errno, .. }) => (message, errno),
        Err(error) => return Err(error.into()),
    };
    let object = change.object(message).to_owned();
    match errno {
        Errno::NOENT if change.is_rule(message) => Ok(Some(RulesetError::Lacking { object, errno })),
        // Another program changed the table first: read it again.
        Errno::EXIST | Errno::NOENT => Ok(Some(RulesetError::Contended)),
        Errno::BUSY => {
            let difference = format!("rules of another program use objects that must be removed ({object})");
            Err(RulesetError::Foreign { difference })
        }
        _ => Err(RulesetError::Lacking { object, errno }),
    }
}

/// Returns the handle that distinguishes this table from an earlier one of the same name; `None` if there is no table.
/// A ruleset listing does not show it.
pub(crate) fn table_handle(socket: &mut Socket) -> Result<Option<u64>, SocketError> {
    let mut request = Vec::new();
    put_request(&mut request, sys::NFT_MSG_GETTABLE, 0, |fields| fields.put_text(sys::NFTA_TABLE_NAME, TABLE));
    let mut handle = None;
    socket.find(&mut request, |message| {
        handle = message.nft().and_then(|(_, list)| field(list, sys::NFTA_TABLE_HANDLE)).and_then(be_u64);
    })?;
    Ok(handle)
}

/// Reads the table; `None` if it was deleted while it was being read.
fn read(socket: &mut Socket) -> Result<Option<TableSnapshot>, SocketError> {
    let mut shape = TableSnapshot::default();
    let mut request = Vec::new();
    put_request(&mut request, sys::NFT_MSG_GETTABLE, 0, |fields| fields.put_text(sys::NFTA_TABLE_NAME, TABLE));
    match socket.find(&mut request, |message| shape.add_message(message)) {
        Ok(true) => {}
        Ok(false) => return Ok(Some(shape)),
        // nfnetlink's answer if the subsystem does not exist.
        Err(SocketError::Refused { errno: errno @ (Errno::INVAL | Errno::OPNOTSUPP), .. }) => {
            return Err(SocketError::NoNfTables(errno));
        }
        Err(error) => return Err(error),
    }
    for kind in [sys::NFT_MSG_GETSET, sys::NFT_MSG_GETCHAIN, sys::NFT_MSG_GETRULE] {
        put_request(&mut request, kind, NLM_F_DUMP, |fields| fields.put_text(sys::NFTA_TABLE_NAME, TABLE));
        shape = match socket.dump(&mut request, || shape.clone(), TableSnapshot::add_message) {
            Err(error) if error.is(Errno::NOENT) => return Ok(None),
            read => read?,
        };
    }
    Ok(Some(shape))
}

/// Attempts to find or create the table while other programs change it.
const MAX_ATTEMPTS: u32 = 4;
