//! What operators decided for a time and a restart must not undo: the trial.

use std::time::SystemTime;

use rusqlite::{Connection, Error, OptionalExtension, named_params};

use super::ban::Change;
use super::row::{micros, time};
use super::{Ledger, LedgerError};

pub(super) const END_TRIAL: &str = "DELETE FROM trial";

pub(super) const START_TRIAL: &str = "INSERT INTO trial (until) VALUES (:until)";

pub(super) const TRIAL: &str = "SELECT until FROM trial LIMIT 1";

/// Records until when scans are only logged; `None`: the trial is over.
pub(super) fn write_trial(connection: &Connection, until: Option<SystemTime>) -> Result<(), Error> {
    connection.execute(END_TRIAL, [])?;
    let Some(until) = until else { return Ok(()) };
    connection.execute(START_TRIAL, named_params! {":until": micros(until)}).map(drop)
}

impl Ledger {
    /// Until when scans are only logged; `None` where no trial was left running.
    pub fn trial(&self) -> Result<Option<SystemTime>, LedgerError> {
        let until = self.connection.query_row(TRIAL, [], |row| row.get::<_, i64>(0)).optional();
        until.map(|until| until.and_then(time)).map_err(LedgerError::database("read", &self.path()))
    }

    /// All decisions, as changes for another ledger.
    pub(super) fn decisions(&self) -> Result<Vec<Change>, LedgerError> {
        let until = self.trial()?;
        Ok(until.map(|until| Change::Trial { until: Some(until) }).into_iter().collect())
    }
}
