//! Defines the result of reading rows that other programs can write.

/// The read items, and the number of unreadable rows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Rows<T> {
    pub items: Vec<T>,
    /// Number of invalid rows, which were skipped: written by another program or a failing disk.
    pub unreadable: u64,
}

/// The note about unreadable rows, if there are any.
pub fn unreadable_note(rows: u64) -> Option<String> {
    (rows > 0).then(|| format!("unreadable rows of the ledger, which are ignored: {rows}"))
}
