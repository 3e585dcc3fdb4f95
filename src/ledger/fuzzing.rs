//! Reads arbitrary bytes as a database file and as a row, for a fuzz target.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::time::UNIX_EPOCH;

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::{DATABASE, Ledger, Reader, row};

/// Minimum number of bytes that a row of any format takes in a database file.
const ROW: usize = 16;

thread_local! {
    static MEMORY: Option<Connection> = Connection::open_in_memory().ok();
}

/// Opens `bytes` as the ledger, as an operator's command does and as the daemon does.
pub(crate) fn database(bytes: &[u8]) {
    let place = tempfile::tempdir();
    assert!(place.is_ok(), "no temporary directory can be created");
    let Ok(place) = place else { return };
    let place = place.path();
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(place.join(DATABASE));
    let written = file.and_then(|mut file| file.write_all(bytes));
    assert!(written.is_ok(), "{} cannot be written to", place.display());
    let mut read = 0;
    let _ = Reader::read(place, |reader| {
        let _ = reader.active(UNIX_EPOCH);
        reader.each(|_| read += 1)
    });
    // A row takes more than one byte for each of its columns.
    assert!(read <= bytes.len() / ROW);
    if let Ok((mut ledger, _)) = Ledger::open(place) {
        let _ = ledger.reader().active(UNIX_EPOCH);
        let _ = ledger.begin(UNIX_EPOCH);
        let _ = ledger.expire(UNIX_EPOCH);
    }
}

/// Reads the values that `bytes` describe as a row of the ledger.
pub(crate) fn row(bytes: &[u8]) {
    let values = values(bytes);
    MEMORY.with(|memory| {
        let Some(memory) = memory else { return };
        let places = vec!["?"; columns()].join(", ");
        let entry =
            memory.query_row(&format!("SELECT {places}"), params_from_iter(&values), |found| Ok(row::entry(found)));
        if let (Ok(Some(entry)), Some(Value::Text(target))) = (entry, values.first()) {
            assert_eq!(&entry.ban.target.to_string(), target, "one spelling, one host");
        }
    });
}

/// Number of columns of a row.
fn columns() -> usize {
    row::COLUMNS.split(',').count()
}

/// Decodes values: a byte selects the type (null, integer, real, text or blob), a second one gives the length.
fn values(mut bytes: &[u8]) -> Vec<Value> {
    let mut values = Vec::new();
    while values.len() < columns() {
        let Some(([kind, length], rest)) = bytes.split_first_chunk::<2>() else {
            values.push(Value::Null);
            continue;
        };
        let (value, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        bytes = rest;
        let number = || value.first_chunk::<8>().map_or(i64::from(*length), |number| i64::from_be_bytes(*number));
        values.push(match kind {
            b'n' => Value::Null,
            b'i' => Value::Integer(number()),
            b'r' => Value::Real(f64::from_bits(number().cast_unsigned())),
            b't' => Value::Text(String::from_utf8_lossy(value).into_owned()),
            _ => Value::Blob(value.to_vec()),
        });
    }
    values
}
