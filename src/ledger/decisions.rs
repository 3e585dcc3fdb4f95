//! Stores decisions of operators that survive a restart: allowances, a trial, and lifts of the fleet's bans.

use std::time::SystemTime;

use ipnet::IpNet;
use rusqlite::{Connection, Error, OptionalExtension, Row, named_params};

use super::ban::{Allowance, FleetLift, LedgerChange};
use super::error::LedgerError;
use super::reader::Reader;
use super::row::{self, micros, replace, time};
use super::rows::Rows;

/// Deletes the trial, and records the time at which another one ends.
pub(super) const REPLACE_TRIAL: [&str; 2] = ["DELETE FROM trial", "INSERT INTO trial (until) VALUES (?)"];

const TRIAL: &str = "SELECT until FROM trial LIMIT 1";

const ALLOW: &str = "
    INSERT OR REPLACE INTO allowance (network, since, until, author) VALUES (:network, :since, :until, :author)";

pub(super) const DISALLOW: &str = "DELETE FROM allowance WHERE network = :network";

const ALLOWANCES: &str = "SELECT network, since, until, author FROM allowance ORDER BY since, network";

/// Expired allowances.
pub(super) const FORGET: &str = "DELETE FROM allowance WHERE until <= :now";

const REPLACE_LIFTS: [&str; 2] =
    ["DELETE FROM fleet_lift", "INSERT OR REPLACE INTO fleet_lift (target, until, author) VALUES (?, ?, ?)"];

/// Those that end last come first.
const LIFTS: &str = "SELECT target, until, author FROM fleet_lift ORDER BY until DESC LIMIT :most";

/// All statements.
pub(super) fn used() -> Vec<&'static str> {
    [&REPLACE_TRIAL[..], &REPLACE_LIFTS, &[TRIAL, ALLOW, DISALLOW, ALLOWANCES, FORGET, LIFTS]].concat()
}

/// Moves the ends of all when the clock is set.
pub(super) const SHIFT_TIMES: [&str; 3] = [
    "UPDATE fleet_lift SET until = until + :by WHERE until BETWEEN -:bound AND :bound",
    "UPDATE allowance SET until = until + :by WHERE until BETWEEN -:bound AND :bound",
    "UPDATE trial SET until = until + :by WHERE until BETWEEN -:bound AND :bound",
];

pub(super) fn allow(connection: &Connection, allowance: &Allowance) -> Result<(), Error> {
    let values = named_params! {
        ":network": allowance.network.to_string(),
        ":since": micros(allowance.since),
        ":until": allowance.until.map(micros),
        ":author": allowance.by,
    };
    connection.execute(ALLOW, values).map(drop)
}

/// Replaces the lifts of the fleet's bans.
pub(super) fn replace_lifts(connection: &Connection, lifts: &[FleetLift]) -> Result<(), Error> {
    let row = |lift: &FleetLift| (lift.target.to_string(), micros(lift.until), <&str>::from(lift.by));
    replace(connection, REPLACE_LIFTS, lifts.iter().map(row))
}

fn lift(row: &Row<'_>) -> Option<FleetLift> {
    Some(FleetLift { target: row::parsed(row, 0)?, until: time(row.get(1).ok()?), by: row::parsed(row, 2)? })
}

fn allowance(row: &Row<'_>) -> Option<Allowance> {
    let text = row::text(row, 0)?;
    let network: IpNet = text.parse().ok()?;
    let until = row::optional_time(row, 2).ok()?;
    let allowance = Allowance { network, since: time(row.get(1).ok()?), until, by: row.get(3).ok()? };
    // A different spelling would be a second allowance of the same network.
    (network == network.trunc() && network.to_string() == text).then_some(allowance)
}

/// End of the log-only trial; `None` if there is none.
pub fn trial(ledger: &Reader) -> Result<Option<SystemTime>, LedgerError> {
    ledger.run(|connection| connection.query_row(TRIAL, [], |row| row.get(0).map(time)).optional())
}

/// The allowances of operators, oldest first.
pub fn allowances(ledger: &Reader) -> Result<Rows<Allowance>, LedgerError> {
    ledger.query(ALLOWANCES, &[], allowance)
}

/// At most `most` lifts of the fleet's bans.
pub fn fleet_lifts(ledger: &Reader, most: usize) -> Result<Rows<FleetLift>, LedgerError> {
    ledger.first(LIFTS, most, lift)
}

/// All decisions, as changes for another ledger.
pub(super) fn all(ledger: &Reader) -> Result<Vec<LedgerChange>, LedgerError> {
    let allowances = allowances(ledger)?.items.into_iter().map(LedgerChange::Allowed);
    let trial = trial(ledger)?.map(|until| LedgerChange::Trial { until: Some(until) });
    let lifts = Some(fleet_lifts(ledger, usize::MAX)?.items).filter(|lifts| !lifts.is_empty());
    Ok(allowances.chain(trial).chain(lifts.map(LedgerChange::FleetLifts)).collect())
}
