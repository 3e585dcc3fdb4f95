//! Collects the output of a translation in progress: the document, and the errors and notes about the lines it comes
//! from.

use super::diagnostics::{Diagnostics, ImportError, quoted};
use super::document::{Document, TomlValue};
use super::source::Sources;
use crate::config::{ConfigErrors, Diagnostic};
use serde::{Serialize, Serializer};
use serde_json::json;

/// The result of a translation; its JSON form is the output of `portsentry import --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Import {
    /// The configuration, with comments that state the origin of each line.
    pub toml: String,
    /// Notes for the operator, in the order of the input.
    #[serde(serialize_with = "without_column")]
    pub notes: Vec<Diagnostic>,
}

/// A note is about a whole line.
fn without_column<S: Serializer>(notes: &[Diagnostic], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(notes.iter().map(|Diagnostic { file, line, key, message, .. }| {
        json!({"file": file, "line": line, "key": key, "message": message})
    }))
}

/// One option as written in its file, the unit of translation.
#[derive(Clone, Debug)]
pub(super) struct OptionLine<'s> {
    pub(super) file: &'s str,
    pub(super) line: usize,
    pub(super) key: String,
    pub(super) value: String,
}

impl OptionLine<'_> {
    /// The origin of this option, for a comment.
    pub(super) fn origin(&self) -> String {
        format!("{}={} (line {})", self.key, quoted(&self.value), self.line)
    }
}

pub(super) struct Output<'s> {
    config: &'s str,
    pub(super) document: Document,
    pub(super) errors: Diagnostics,
    pub(super) notes: Diagnostics,
}

impl<'s> Output<'s> {
    pub(super) fn new(sources: &'s Sources) -> Self {
        let config = &sources.config.name;
        let mut document = Document::default();
        document.head(&format!(
            "Translated from {config} by \"portsentry import\"; the comments name the origin of each line. Keys that \
             are not set have their built-in values. To try it: portsentry --config FILE --log-only"
        ));
        Self { config, document, errors: Diagnostics::new(sources), notes: Diagnostics::new(sources) }
    }

    pub(super) fn finish(self) -> Result<Import, ImportError> {
        let import = Import { toml: self.document.to_string(), notes: self.notes.into_vec() };
        Ok(ConfigErrors::unless_empty(self.errors.into_vec(), import)?)
    }

    /// Adds a note about the configuration as a whole.
    pub(super) fn note_config(&mut self, message: &str) {
        self.notes.add(self.config, None, None, message);
    }

    /// Adds a note about the line of `entry`.
    pub(super) fn add_note(&mut self, entry: &OptionLine, message: &str) {
        self.notes.add(entry.file, Some(entry.line), Some(&entry.key), message);
    }

    /// Refuses the line of `entry`.
    pub(super) fn refuse(&mut self, entry: &OptionLine, message: impl Into<String>) {
        self.errors.add(entry.file, Some(entry.line), Some(&entry.key), message);
    }

    /// Leaves a comment in `table` instead of a key, and adds a note.
    pub(super) fn left_out(&mut self, table: &str, entry: &OptionLine, why: &str) {
        self.document.remark(table, &format!("{}\nLeft out: {why}", entry.origin()));
        self.add_note(entry, &format!("left out: {why}"));
    }

    /// Writes `key = value` to `table`, with its origin.
    pub(super) fn set(&mut self, table: &str, key: &str, value: &TomlValue, entry: &OptionLine) {
        self.document.set(table, key, value, &entry.origin());
    }

    /// The value of an option that must be 0 or 1.
    pub(super) fn switch(&mut self, entry: &OptionLine) -> Option<bool> {
        match entry.value.trim() {
            "0" => Some(false),
            "1" => Some(true),
            wrong => {
                self.refuse(entry, format!("{} is not valid here; write \"0\" or \"1\"", quoted(wrong)));
                None
            }
        }
    }
}
