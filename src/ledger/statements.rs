//! Writes changes within a transaction. Changes of bans are written here, all others by the module of their table. When
//! a ban begins or ends, this module determines which row it continues and which one it replaces.

use std::time::SystemTime;

use rusqlite::{Connection, OptionalExtension, Statement, named_params};

use super::ban::{BanAuthor, BanRecord, EndRecord, Ending, LedgerChange};
use super::logged::{self, UPSERT};
use super::reader::collect;
use super::row::{self, micros, replace};
use super::rows::Rows;
use super::{decisions, services};
use crate::types::{Backend, Backends, BanTarget};

/// The newest ban of a target: the only one that may be open, because each new one ends the previous one.
const NEWEST: &str = "
    SELECT id, strikes, ended IS NULL, since, method, author = 'import', author = 'detector' AND NOT capped AND ending IS NOT 'lifted'
    FROM ban WHERE subject = :subject ORDER BY id DESC LIMIT 1";

/// Sets the backends of a ban; a command that has to be undone stays recorded.
const ALSO: &str = "UPDATE ban SET method = :method, undo = undo OR :undo WHERE id = :id";

/// Records the bridge port of the open ban that began at `since`.
const GUEST_PORT: &str =
    "UPDATE ban SET guest_port = :port WHERE subject = :subject AND ended IS NULL AND since = :since";

/// The command of bans that have ended, and of the ban that began at `since`, was undone at `at`. A ban that began
/// later has its own command.
const UNDONE: &str = "
    UPDATE ban SET undo = 0
    WHERE subject = :subject AND undo = 1 AND (ended IS NOT NULL OR until <= :at OR since <= :since)";

/// Deletes a row that another row supersedes.
const DROP: &str = "DELETE FROM ban WHERE id = :id";

/// Ends a ban. A ban whose time was already over is recorded as expired, regardless of what ended it.
const END: &str = "
    UPDATE ban SET
        ended = min(coalesce(until, :at), :at),
        ending = CASE WHEN until <= :at THEN 'expired' ELSE :how END,
        lifted_by = CASE WHEN until <= :at THEN NULL ELSE :by END
    WHERE id = :id";

const INSERT: &str = "
    INSERT INTO ban (subject, source, since, until, class, ports, probes, interface, strikes, method, author, capped,
        note, evidence, guest_port, undo)
    VALUES (:subject, :source, :since, :until, :class, :ports, :probes, :interface, :strikes, :method, :author, :capped,
        :note, :evidence, :guest_port, :undo)";

/// Marks the bans that have ended.
const EXPIRE: &str = "
    UPDATE ban SET ended = until, ending = 'expired'
    WHERE ended IS NULL AND until IS NOT NULL AND until <= :now
    RETURNING subject";

/// Moves the begins and ends of bans in force when the clock is set. Times beyond the bound are not changed.
pub(super) const SHIFT_TIMES: &str = "
    UPDATE ban SET
        since = CASE WHEN since BETWEEN -:bound AND :bound THEN since + :by ELSE since END,
        until = CASE WHEN until BETWEEN -:bound AND :bound THEN until + :by ELSE until END
    WHERE ended IS NULL";

/// A ban that began in the future, by a clock that was ahead, begins now.
pub(super) const BEGIN: &str = "
    UPDATE ban SET until = until - (since - :now), since = :now
    WHERE ended IS NULL AND since > :now AND :now > 0";

/// Bans in force whose command ran before there was an expiry command, or before the ledger recorded it.
pub(super) const OWE_UNDO: &str =
    "UPDATE ban SET undo = 1 WHERE ended IS NULL AND undo = 0 AND ' ' || method || ' ' LIKE '% run %'";

/// Bans that ended before the retention time.
pub(super) const FORGET: &str = "DELETE FROM ban WHERE ended IS NOT NULL AND ended < :before";

/// The surplus of past bans, those that ended first.
pub(super) const PRUNE: &str = "
    DELETE FROM ban WHERE id IN (
        SELECT id FROM ban WHERE ended IS NOT NULL ORDER BY ended LIMIT max((SELECT count(*) FROM ban) - :rows, 0))";

pub(super) const USED: [&str; 13] =
    [NEWEST, ALSO, GUEST_PORT, UNDONE, DROP, END, INSERT, EXPIRE, SHIFT_TIMES, BEGIN, OWE_UNDO, FORGET, PRUNE];

/// Marks the bans that have ended at `now`, and returns their targets.
pub(super) fn expire(connection: &Connection, now: SystemTime) -> rusqlite::Result<Rows<BanTarget>> {
    collect(connection, EXPIRE, named_params! {":now": micros(now)}, |row| row::parsed(row, 0))
}

/// The newest ban of a target.
struct Newest {
    id: i64,
    strikes: i64,
    /// True if its end is not recorded.
    open: bool,
    since: i64,
    backends: String,
    imported: bool,
    /// True if it is a strike, unless it is lifted later.
    strike: bool,
}

/// The prepared statements of a transaction that writes bans.
pub(super) struct Statements<'a> {
    connection: &'a Connection,
    newest: Statement<'a>,
    also: Statement<'a>,
    end: Statement<'a>,
    insert: Statement<'a>,
    log: Statement<'a>,
    /// True if commands have to be undone.
    undoes: bool,
    /// Number of new rows.
    pub(super) recorded: u64,
}

impl<'a> Statements<'a> {
    pub(super) fn prepare(connection: &'a Connection, undoes: bool) -> rusqlite::Result<Self> {
        Ok(Self {
            connection,
            newest: connection.prepare(NEWEST)?,
            also: connection.prepare(ALSO)?,
            end: connection.prepare(END)?,
            insert: connection.prepare(INSERT)?,
            log: connection.prepare(UPSERT)?,
            undoes,
            recorded: 0,
        })
    }

    pub(super) fn write(&mut self, change: &LedgerChange) -> rusqlite::Result<()> {
        let connection = self.connection;
        match change {
            LedgerChange::Banned(ban) => self.record(ban),
            LedgerChange::Also(ban) => match self.open_ban(ban.target, ban.since)? {
                Some(Newest { id, backends, .. }) => {
                    self.set_backends(id, backends.parse().unwrap_or(Backends::default()).and(ban.backends))
                }
                None => self.record(ban),
            },
            LedgerChange::Moved { target, since, backends } => match self.open_ban(*target, *since)? {
                Some(Newest { id, .. }) => self.set_backends(id, *backends),
                None => Ok(()),
            },
            LedgerChange::GuestPort { target, since, port } => {
                let (subject, port) = (target.to_string(), row::guest_port_text(*port));
                let values = named_params! {":subject": subject, ":since": micros(*since), ":port": port};
                connection.execute(GUEST_PORT, values).map(drop)
            }
            LedgerChange::Logged(logged) => {
                self.recorded += 1;
                logged::write(logged, &mut self.log)
            }
            LedgerChange::Ended { target, ended } => self.end(*target, ended).map(drop),
            LedgerChange::Undone { target, since, at } => {
                let values =
                    named_params! {":subject": target.to_string(), ":since": micros(*since), ":at": micros(*at)};
                connection.execute(UNDONE, values).map(drop)
            }
            LedgerChange::Trial { until } => {
                replace(connection, decisions::REPLACE_TRIAL, until.map(|until| [micros(until)]))
            }
            LedgerChange::FleetLifts(lifts) => decisions::replace_lifts(connection, lifts),
            LedgerChange::Allowed(allowance) => decisions::allow(connection, allowance),
            LedgerChange::Disallowed { network } => {
                connection.execute(decisions::DISALLOW, [network.to_string()]).map(drop)
            }
            LedgerChange::Served(service, at) => services::insert(connection, *service, *at),
            LedgerChange::ServiceForgotten(service) => services::remove(connection, *service),
            LedgerChange::Listeners(listeners) => services::replace_listeners(connection, listeners),
            LedgerChange::KnownPeers(peers) => services::replace_peers(connection, peers),
            LedgerChange::Table(table) => replace(connection, services::REPLACE_TABLE, [[table]]),
        }
    }

    fn set_backends(&mut self, id: i64, backends: Backends) -> rusqlite::Result<()> {
        let values = named_params! {":id": id, ":method": backends.to_string(), ":undo": self.has_to_undo(backends)};
        self.also.execute(values).map(drop)
    }

    /// True if the expiry command has to run for a ban by `backends`.
    fn has_to_undo(&self, backends: Backends) -> bool {
        self.undoes && backends.iter().any(|backend| backend == Backend::Command)
    }

    pub(super) fn record(&mut self, ban: &BanRecord) -> rusqlite::Result<()> {
        let target = ban.target.to_string();
        let strikes = match self.newest(&target)? {
            None => 0,
            // The start has found a ban in the kernel that the sensor had just made: the existing row has more
            // information.
            Some(Newest { open: true, .. }) if ban.author == BanAuthor::Import => return Ok(()),
            Some(Newest { id, strikes, open: true, imported: true, since, .. }) if since >= micros(ban.since) => {
                self.connection.execute(DROP, [id])?;
                strikes.clamp(0, i64::from(u32::MAX))
            }
            Some(Newest { id, strikes, open, strike, .. }) => {
                if open {
                    self.end_row(id, &EndRecord { how: Ending::Replaced, at: ban.since })?;
                }
                // Another program may have written an invalid value.
                strikes.clamp(0, i64::from(u32::MAX) - 1) + i64::from(strike)
            }
        };
        self.insert.execute(named_params! {
            ":subject": target,
            ":source": ban.source.to_string(),
            ":since": micros(ban.since),
            ":until": ban.until.map(micros),
            ":class": ban.class.map(crate::engine::Class::key),
            ":ports": row::ports_text(&ban.ports),
            ":probes": ban.probes,
            ":interface": ban.interface,
            ":strikes": strikes,
            ":method": ban.backends.to_string(),
            ":author": ban.author.key(),
            ":capped": ban.capped,
            ":note": ban.note,
            ":evidence": ban.grade.map(crate::engine::Grade::key),
            ":guest_port": ban.guest_port.map(row::guest_port_text),
            ":undo": self.has_to_undo(ban.backends),
        })?;
        self.recorded += 1;
        Ok(())
    }

    pub(super) fn end(&mut self, target: BanTarget, ended: &EndRecord) -> rusqlite::Result<bool> {
        match self.newest(&target.to_string())? {
            Some(Newest { id, open: true, .. }) => self.end_row(id, ended).map(|()| true),
            _ => Ok(false),
        }
    }

    /// The open ban of `target`, if it began at `since`.
    fn open_ban(&mut self, target: BanTarget, since: SystemTime) -> rusqlite::Result<Option<Newest>> {
        Ok(self.newest(&target.to_string())?.filter(|ban| ban.open && ban.since == micros(since)))
    }

    fn newest(&mut self, target: &str) -> rusqlite::Result<Option<Newest>> {
        let read = |row: &rusqlite::Row<'_>| {
            Ok(Newest {
                id: row.get(0)?,
                strikes: row.get(1)?,
                open: row.get(2)?,
                // A failing disk may have written an invalid value; it is then treated as another ban.
                since: row.get(3).unwrap_or(i64::MIN),
                backends: row.get(4).unwrap_or_default(),
                imported: row.get(5).unwrap_or_default(),
                strike: row.get(6).unwrap_or_default(),
            })
        };
        self.newest.query_row(named_params! {":subject": target}, read).optional()
    }

    fn end_row(&mut self, id: i64, ended: &EndRecord) -> rusqlite::Result<()> {
        let (how, by) = match &ended.how {
            Ending::Expired => (row::EXPIRED, None),
            Ending::Replaced => (row::REPLACED, None),
            Ending::Lifted { by } => (row::LIFTED, Some(by.as_str())),
        };
        self.end.execute(named_params! {":id": id, ":at": micros(ended.at), ":how": how, ":by": by}).map(drop)
    }
}
