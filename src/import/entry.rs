//! Defines one option of a classic configuration file, the unit of translation.

use super::diagnostics::quoted;

/// One option as written in its file.
#[derive(Clone, Debug)]
pub(super) struct Entry<'s> {
    pub(super) file: &'s str,
    pub(super) line: usize,
    pub(super) key: String,
    pub(super) value: String,
}

impl Entry<'_> {
    /// The origin of this option, for a comment.
    pub(super) fn origin(&self) -> String {
        format!("{}={} (line {})", self.key, quoted(&self.value), self.line)
    }
}
