//! Installs, examines, repairs and removes the table of nft/portsentry.nft in the kernel. Reads first, and changes only what is
//! this program's own.

use netlink_packet_core::NLM_F_DUMP;
use rustables::sys;
use rustix::io::Errno;

use super::change::RulesetChange;
use super::desired_ruleset::DesiredRuleset;
use super::message::{field, put_request};
use super::recognise::recognise;
use super::set::Set;
use super::snapshot::{Difference, Part, TableSnapshot};
use super::spec::RulesetSpec;
use super::table::TABLE;
use crate::netlink::message::be_u64;
use crate::netlink::socket::{Batch, Socket, SocketError};

/// Where the table came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// It was not there and is now.
    Created,
    /// It was there as it should be. Its sets may have another size than was asked for.
    Adopted {
        /// Size of `blocked`.
        blocked: u32,
        /// Size of `blocked6`.
        blocked6: u32,
    },
    /// It was there with the rules of another [`RulesetSpec`], and has those that were asked for now. Its sets kept their
    /// elements, and may have another size than was asked for.
    Rebuilt {
        /// Size of `blocked`.
        blocked: u32,
        /// Size of `blocked6`.
        blocked6: u32,
    },
    /// It was there, and something of ours had been altered, which is as it should be again. What other programs have in it
    /// stays.
    Repaired {
        /// The first thing that was altered, as the end of the sentence "it had …".
        difference: String,
        /// Size of `blocked`.
        blocked: u32,
        /// Size of `blocked6`.
        blocked6: u32,
    },
}

/// What there was to repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repaired {
    /// Nothing: all that is ours is as it should be.
    Unchanged,
    /// The table was gone. It is created again, with empty sets.
    Created,
    /// Something of ours had been altered, and is as it should be again.
    Repaired {
        /// The first thing that was altered, as the end of the sentence "it had …".
        difference: String,
        /// Sets that were gone, and are there again without their elements.
        emptied: Vec<Set>,
    },
}

/// Why the table is not in force.
#[derive(Debug, thiserror::Error)]
pub enum RulesetError {
    /// There is a table of this name, and it is not ours.
    #[error(
        "table inet {TABLE} exists and has {difference}; portsentry changes nothing that it did not create. Save what is \
         yours in it, then remove it with `nft delete table inet {TABLE}` and start again, or load /usr/share/portsentry/portsentry.nft"
    )]
    Foreign {
        /// The first thing that differs.
        difference: String,
    },
    /// The kernel lacks something that the rules need.
    #[error(
        "the kernel refused {object} of table inet {TABLE}: {errno}; the rules need the modules nf_tables and nft_counter, \
         to log also nft_limit and nft_log, to reject also nft_limit, nft_fib_inet, nft_reject_inet and Linux 5.9, \
         for the trap also nft_limit, nft_fib_inet and nft_socket, for the chain own_source nft_fib_inet, for decoys \
         nft_fib_inet, nft_socket and nft_tproxy: load them, or use a kernel that has them"
    )]
    Lacking {
        /// What it refused.
        object: String,
        errno: Errno,
    },
    /// Others created and removed the table again and again.
    #[error("another program keeps creating and deleting table inet {TABLE}; stop it, then start portsentry again")]
    Contended,
    /// The socket failed, or the kernel does not let us.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// Creates the table, or adopts one that is as it should be. Where its rules are those of another [`RulesetSpec`], they
/// are replaced in one transaction; the sets keep what they hold. Where others have altered it, it is repaired.
///
/// # Errors
/// [`RulesetError::Foreign`] where a table of this name is not ours or cannot be repaired, and what the kernel refuses.
pub fn install(socket: &mut Socket, spec: &RulesetSpec) -> Result<Installed, RulesetError> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let Some(found) = read(socket)? else { continue };
        let wanted = DesiredRuleset::new(&kept(spec, &found));
        let (blocked, blocked6) = (found.size(Set::Blocked), found.size(Set::Blocked6));
        let (change, done) = if found.exists() {
            let differences = wanted.differences(&found);
            if differences.is_empty() {
                return Ok(Installed::Adopted { blocked, blocked6 });
            }
            match recognise_own(&found, spec.size) {
                Ok(old) => (wanted.repair(&found, &differences, Some(&old)), Installed::Rebuilt { blocked, blocked6 }),
                Err(error) if !found.has_base_sets() => return Err(error),
                Err(_) => {
                    return Ok(match repair(socket, spec)? {
                        Repaired::Created => Installed::Created,
                        Repaired::Unchanged => Installed::Adopted { blocked, blocked6 },
                        Repaired::Repaired { difference, .. } => Installed::Repaired { difference, blocked, blocked6 },
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
    Err(given_up(last))
}

/// What [`install`] would find: the sizes of `blocked` and `blocked6` where the table is there, whether its rules are those
/// of `spec` or of another one, or altered; `None` where it is not. Changes nothing.
pub fn examine(socket: &mut Socket, spec: &RulesetSpec) -> Result<Option<(u32, u32)>, RulesetError> {
    let Some(found) = read_existing(socket)? else { return Ok(None) };
    if !found.has_base_sets() {
        recognise_own(&found, spec.size)?;
    }
    let differences = DesiredRuleset::new(&kept(spec, &found)).differences(&found);
    irreparable(&differences)?;
    Ok(Some((found.size(Set::Blocked), found.size(Set::Blocked6))))
}

/// The table; `None` where there is none.
fn read_existing(socket: &mut Socket) -> Result<Option<TableSnapshot>, RulesetError> {
    for _ in 0..ATTEMPTS {
        if let Some(found) = read(socket)? {
            return Ok(found.exists().then_some(found));
        }
    }
    Err(RulesetError::Contended)
}

/// What the table holds that no version of this program makes, each as the end of the sentence "it has …".
pub fn foreign_objects(socket: &mut Socket, spec: &RulesetSpec) -> Result<Vec<String>, RulesetError> {
    let Some(found) = read_existing(socket)? else { return Ok(Vec::new()) };
    Ok(DesiredRuleset::new(&recognise(&found, spec.size)).foreign(&found))
}

/// Deletes the table with all that it holds; false where there was none.
///
/// # Errors
/// As [`install`]; a table of another program stays.
pub fn remove(socket: &mut Socket, spec: &RulesetSpec) -> Result<bool, RulesetError> {
    let Some(found) = read(socket)?.filter(TableSnapshot::exists) else { return Ok(false) };
    recognise_own(&found, spec.size)?;
    let mut batch = Batch::new();
    batch.put(sys::NFT_MSG_DELTABLE, 0, |table| table.put_text(sys::NFTA_TABLE_NAME, TABLE));
    match socket.transact(&mut batch) {
        Err(error) if error.is(Errno::NOENT) => Ok(false),
        done => Ok(done.map(|()| true)?),
    }
}

/// Makes the table as it should be, whatever was done to it: what is missing or altered is made anew, in one
/// transaction (a dormant table is woken in another one after it); what is not ours, and sets that are as they should be
/// with all that they hold, stay as they are.
///
/// # Errors
/// [`RulesetError::Foreign`] where that cannot be, and then nothing is changed: a set of another type stands in the place
/// of ours, or the table is owned by a process. Further what the kernel refuses.
pub fn repair(socket: &mut Socket, spec: &RulesetSpec) -> Result<Repaired, RulesetError> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let Some(found) = read(socket)? else { continue };
        let wanted = DesiredRuleset::new(&kept(spec, &found));
        if !found.exists() {
            last = carry_out(socket, wanted.create())?;
            if last.is_none() {
                return Ok(Repaired::Created);
            }
            continue;
        }
        let mut differences = wanted.differences(&found);
        // What a table of another kind has too much of goes with that. Anything else is of another program.
        let old = recognise(&found, spec.size);
        let other_kind = DesiredRuleset::new(&old).foreign(&found);
        differences.retain(|difference| difference.part != Part::Foreign || !other_kind.contains(&difference.text));
        let Some(Difference { text: first, .. }) = differences.first().cloned() else { return Ok(Repaired::Unchanged) };
        irreparable(&differences)?;
        let dormant = differences.iter().any(|difference| matches!(difference.part, Part::Flags(_)));
        if differences.len() > usize::from(dormant) {
            last = carry_out(socket, wanted.repair(&found, &differences, Some(&old)))?;
            if last.is_some() {
                continue;
            }
        }
        // Not together with the rest: kernels refuse a new base chain in a table whose flags change.
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
    Err(given_up(last))
}

/// Refuses a table that cannot be made right without deleting what others have in it.
fn irreparable(differences: &[Difference]) -> Result<(), RulesetError> {
    let hopeless = |part: &Part| matches!(part, Part::OtherSet | Part::Flags(2..));
    let found = differences.iter().find(|difference| hopeless(&difference.part));
    found.map_or(Ok(()), |Difference { text, .. }| Err(RulesetError::Foreign { difference: text.clone() }))
}

/// What was chosen when this program made the table that was `found`.
fn recognise_own(found: &TableSnapshot, size: u32) -> Result<RulesetSpec, RulesetError> {
    let spec = recognise(found, size);
    match DesiredRuleset::new(&spec).differences(found).into_iter().next() {
        None => Ok(spec),
        Some(Difference { text, .. }) => Err(RulesetError::Foreign { difference: text }),
    }
}

/// What is asked for, with the sets of networks where the table has them: what they hold is not to be lost.
fn kept(spec: &RulesetSpec, found: &TableSnapshot) -> RulesetSpec {
    let both = found.has_set(Set::BlockedNets) && found.has_set(Set::BlockedNets6);
    RulesetSpec { wide: spec.wide || both, ..*spec }
}

/// What the kernel refused because the table was no longer as it was read: so it seems.
struct Outrun {
    object: String,
    errno: Errno,
    /// It is one of the rules.
    rule: bool,
}

/// Why the table is not as it should be after all attempts. A kernel that lacks an expression says ENOENT of the rule, as it
/// does of one whose set or chain has just been deleted; but no program deletes as often as that.
fn given_up(last: Option<Outrun>) -> RulesetError {
    match last {
        Some(Outrun { object, errno: errno @ Errno::NOENT, rule: true }) => RulesetError::Lacking { object, errno },
        _ => RulesetError::Contended,
    }
}

/// Sends the transaction; gives something where the table was no longer as it was read.
fn carry_out(socket: &mut Socket, mut change: RulesetChange) -> Result<Option<Outrun>, RulesetError> {
    match socket.transact(&mut change.batch) {
        Ok(()) => Ok(None),
        // Another program was quicker: see what it did.
        Err(SocketError::Refused { message, errno: errno @ (Errno::EXIST | Errno::NOENT), .. }) => {
            Ok(Some(Outrun { object: change.object(message).to_owned(), errno, rule: change.is_rule(message) }))
        }
        Err(SocketError::Refused { message, errno: Errno::BUSY, .. }) => {
            let difference =
                format!("rules of another program that use what has to be removed ({})", change.object(message));
            Err(RulesetError::Foreign { difference })
        }
        Err(SocketError::Refused { message, errno, .. }) => {
            Err(RulesetError::Lacking { object: change.object(message).to_owned(), errno })
        }
        Err(error) => Err(error.into()),
    }
}

/// The number by which the kernel tells this table from an earlier one of its name; `None` where there is none. A listing of the
/// ruleset does not have it.
pub(crate) fn table_handle(socket: &mut Socket) -> Result<Option<u64>, SocketError> {
    let mut request = Vec::new();
    put_request(&mut request, sys::NFT_MSG_GETTABLE, 0, |fields| fields.put_text(sys::NFTA_TABLE_NAME, TABLE));
    let mut handle = None;
    let asked = socket.ask(&mut request, |message| {
        handle = message.nft().and_then(|(_, list)| field(list, sys::NFTA_TABLE_HANDLE)).and_then(be_u64);
    });
    match asked {
        Err(error) if error.is(Errno::NOENT) => Ok(None),
        asked => asked.map(|()| handle),
    }
}

/// What the kernel has under the table's name; `None` where it went while it was being read.
fn read(socket: &mut Socket) -> Result<Option<TableSnapshot>, SocketError> {
    let mut shape = TableSnapshot::default();
    let mut request = Vec::new();
    put_request(&mut request, sys::NFT_MSG_GETTABLE, 0, |fields| fields.put_text(sys::NFTA_TABLE_NAME, TABLE));
    match socket.ask(&mut request, |message| shape.absorb(message)) {
        Ok(()) => {}
        Err(error) if error.is(Errno::NOENT) => return Ok(Some(shape)),
        // nfnetlink answers so where it knows no subsystem of that number.
        Err(SocketError::Refused { errno: errno @ (Errno::INVAL | Errno::OPNOTSUPP), .. }) => {
            return Err(SocketError::NoNfTables(errno));
        }
        Err(error) => return Err(error),
    }
    for kind in [sys::NFT_MSG_GETSET, sys::NFT_MSG_GETCHAIN, sys::NFT_MSG_GETRULE] {
        put_request(&mut request, kind, NLM_F_DUMP, |fields| fields.put_text(sys::NFTA_TABLE_NAME, TABLE));
        shape = match socket.dump(&mut request, || shape.clone(), TableSnapshot::absorb) {
            Err(error) if error.is(Errno::NOENT) => return Ok(None),
            read => read?,
        };
    }
    Ok(Some(shape))
}

/// Attempts to find or make the table while others do the same.
const ATTEMPTS: u32 = 4;
