//! Stores the sources that are, or were lately, connected to a service of this host.

use rusqlite::{Connection, Error, Row, named_params};

use super::ban::KnownPeer;
use super::row::{self, micros, time};
use super::{Found, Ledger, LedgerError};

const CLEAR: &str = "DELETE FROM known_peer";
const PUT: &str = "INSERT OR REPLACE INTO known_peer (target, since, last) VALUES (:target, :since, :last)";

/// Those with the latest connections first.
const ALL: &str = "SELECT target, since, last FROM known_peer ORDER BY last DESC LIMIT :most";

pub(super) const USED: [&str; 3] = [CLEAR, PUT, ALL];

/// Replaces the known peers.
pub(super) fn put(connection: &Connection, peers: &[KnownPeer]) -> Result<(), Error> {
    connection.execute(CLEAR, [])?;
    let mut put = connection.prepare(PUT)?;
    peers.iter().try_for_each(|KnownPeer { target, since, last }| {
        let values = named_params! {":target": target.to_string(), ":since": micros(*since), ":last": micros(*last)};
        put.execute(values).map(drop)
    })
}

fn peer(row: &Row<'_>) -> Option<KnownPeer> {
    let target = row::target(row::text(row, 0)?)?;
    Some(KnownPeer { target, since: time(row.get(1).ok()?)?, last: time(row.get(2).ok()?)? })
}

impl Ledger {
    /// At most `most` known peers, those with the latest connections first.
    pub fn known_peers(&self, most: usize) -> Result<Found<KnownPeer>, LedgerError> {
        self.first(ALL, most, peer)
    }
}
