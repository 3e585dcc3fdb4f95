//! Defines configuration errors for operators: file, line, column, key, and remedy.

use std::fmt;

use serde::Serialize;

/// The start offsets of all lines of a text. They are computed once, because a long file may have an error in every
/// line.
pub(super) struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(newline, _)| newline + 1)).collect();
        Self { text, starts }
    }

    /// The line and the column of byte `offset`.
    pub(super) fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let before = self.text.get(start..offset).map_or(0, |before| before.chars().count());
        (line, before + 1)
    }
}

/// An error or a note about a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file, as the operator named it.
    pub file: String,
    /// The line, from 1; `None` if the message is about the whole file.
    pub line: Option<usize>,
    /// The character in the line, from 1; `None` for a message about the whole line.
    pub column: Option<usize>,
    /// The dotted key, for example `detect.window`, or the classic option; `None` if the message is not about a single
    /// one.
    pub key: Option<String>,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// All errors of a configuration: at least one, in the order of the file. Displayed with one line per error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{}", .0.iter().map(Diagnostic::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigErrors(pub(super) Vec<Diagnostic>);

impl ConfigErrors {
    /// Returns `value` if there are no errors.
    pub(crate) fn unless_empty<T>(errors: Vec<Diagnostic>, value: T) -> Result<T, Self> {
        if errors.is_empty() { Ok(value) } else { Err(Self(errors)) }
    }

    /// Returns one error about `file` as a whole, or about `position` (line and column) in it.
    pub(super) fn about(file: &str, position: Option<(usize, usize)>, message: String) -> Self {
        let (line, column) = position.unzip();
        Self(vec![Diagnostic { file: file.to_owned(), line, column, key: None, message }])
    }

    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.0.iter()
    }
}
