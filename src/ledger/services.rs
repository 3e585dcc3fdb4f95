//! Stores what the daemon remembers about the host: services, recent listeners, sources that are, or were recently,
//! connected to a service, the kernel's table, and the boot in which the ledger was last opened.

use std::time::SystemTime;

use rusqlite::{Connection, OptionalExtension, Row, named_params};

use super::ban::KnownPeer;
use super::error::LedgerError;
use super::reader::Reader;
use super::row::{self, micros, replace};
use super::rows::Rows;
use crate::engine::Service;
use crate::types::Protocol;

const PUT: &str = "
    INSERT INTO service (protocol, port, address, served) VALUES (:protocol, :port, :address, :served)
    ON CONFLICT (protocol, port, address) DO UPDATE SET served = excluded.served";

const REMOVE: &str = "DELETE FROM service WHERE protocol = :protocol AND port = :port AND address = :address";

/// The most recently served first.
const ALL: &str = "SELECT protocol, port, address, served FROM service ORDER BY served DESC LIMIT :most";

const REPLACE_LISTENERS: [&str; 2] =
    ["DELETE FROM listener", "INSERT OR REPLACE INTO listener (protocol, port, address, gone) VALUES (?, ?, ?, ?)"];
const LISTENERS: &str = "SELECT protocol, port, address, gone FROM listener LIMIT :most";

const REPLACE_PEERS: [&str; 2] =
    ["DELETE FROM known_peer", "INSERT OR REPLACE INTO known_peer (target, since, last) VALUES (?, ?, ?)"];
/// Those with the latest connections first.
const PEERS: &str = "SELECT target, since, last FROM known_peer ORDER BY last DESC LIMIT :most";

const TABLE: &str = "SELECT id FROM kernel_table LIMIT 1";
/// Replaces the identity of the kernel's table.
pub(super) const REPLACE_TABLE: [&str; 2] = ["DELETE FROM kernel_table", "INSERT INTO kernel_table (id) VALUES (?)"];

const LAST_BOOT: &str = "SELECT id FROM boot LIMIT 1";
const REPLACE_BOOT: [&str; 2] = ["DELETE FROM boot", "INSERT INTO boot (id) VALUES (?)"];

/// All statements.
pub(super) fn used() -> Vec<&'static str> {
    let replace = [REPLACE_LISTENERS, REPLACE_PEERS, REPLACE_TABLE, REPLACE_BOOT].concat();
    [&replace[..], &[PUT, REMOVE, ALL, LISTENERS, PEERS, TABLE, LAST_BOOT]].concat()
}

pub(super) fn insert(connection: &Connection, service: Service, served: SystemTime) -> rusqlite::Result<()> {
    let Service { protocol, port, address } = service;
    let values = named_params! {
        ":protocol": protocol.key(), ":port": port, ":address": address.to_string(), ":served": micros(served),
    };
    connection.execute(PUT, values).map(drop)
}

pub(super) fn remove(connection: &Connection, service: Service) -> rusqlite::Result<()> {
    let Service { protocol, port, address } = service;
    let values = named_params! {":protocol": protocol.key(), ":port": port, ":address": address.to_string()};
    connection.execute(REMOVE, values).map(drop)
}

/// Replaces the recent listeners.
pub(super) fn replace_listeners(
    connection: &Connection,
    listeners: &[(Service, Option<SystemTime>)],
) -> rusqlite::Result<()> {
    let rows = listeners.iter().map(|(Service { protocol, port, address }, gone)| {
        (protocol.key(), *port, address.to_string(), gone.map(micros))
    });
    replace(connection, REPLACE_LISTENERS, rows)
}

/// Replaces the known peers.
pub(super) fn replace_peers(connection: &Connection, peers: &[KnownPeer]) -> rusqlite::Result<()> {
    let row = |peer: &KnownPeer| (peer.target.to_string(), micros(peer.since), micros(peer.last));
    replace(connection, REPLACE_PEERS, peers.iter().map(row))
}

fn service(row: &Row<'_>) -> Option<Service> {
    let served = |protocol: &Protocol| matches!(protocol, Protocol::Tcp | Protocol::Udp);
    let protocol = row::parsed(row, 0).filter(served)?;
    let port = row.get::<_, u16>(1).ok().filter(|port| *port > 0)?;
    Some(Service { protocol, port, address: row::parsed(row, 2)? })
}

fn peer(row: &Row<'_>) -> Option<KnownPeer> {
    Some(KnownPeer {
        target: row::parsed(row, 0)?,
        since: row::time(row.get(1).ok()?),
        last: row::time(row.get(2).ok()?),
    })
}

/// At most `most` remembered services with the times at which they were last served, the most recent first.
pub fn remembered(ledger: &Reader, most: usize) -> Result<Rows<(Service, SystemTime)>, LedgerError> {
    ledger.first(ALL, most, |found| Some((service(found)?, row::time(found.get(3).ok()?))))
}

/// At most `most` recently open ports with the times at which they closed; `None` if open at the time of writing.
pub fn listeners(ledger: &Reader, most: usize) -> Result<Rows<(Service, Option<SystemTime>)>, LedgerError> {
    ledger.first(LISTENERS, most, |found| Some((service(found)?, row::optional_time(found, 3).ok()?)))
}

/// At most `most` known peers, those with the latest connections first.
pub fn known_peers(ledger: &Reader, most: usize) -> Result<Rows<KnownPeer>, LedgerError> {
    ledger.first(PEERS, most, peer)
}

/// Identity of the kernel's table when the daemon last ran.
pub fn kernel_table(ledger: &Reader) -> Result<Option<String>, LedgerError> {
    ledger.run(|connection| connection.query_row(TABLE, [], |row| row.get(0)).optional())
}

/// Replaces the recorded boot with `id`, and returns the earlier one.
pub(super) fn enter_boot(connection: &mut Connection, id: &str) -> rusqlite::Result<Option<String>> {
    let transaction = connection.transaction()?;
    let last: Option<String> = transaction.query_row(LAST_BOOT, [], |row| row.get(0)).optional()?;
    if last.as_deref() != Some(id) {
        replace(&transaction, REPLACE_BOOT, [[id]])?;
    }
    transaction.commit()?;
    Ok(last)
}
