//! A classic `portsentry.conf` to this program's TOML: every option translated, or left as a comment that says why. Text
//! to text; only `files` touches the system, and nothing here asks the network or runs anything.
//!
//! The input was written by people and scripts over twenty years: syntaxes of 1.2, 2.0b1 and 2.0.x, and of the shell in
//! /etc/default/portsentry. It is at most 1 MiB, and whatever it holds, what comes out is TOML. Where the classic program
//! and the sense of a line differ, the sense is written and a note says so; where the sense is not clear, nothing is
//! written but the reason.
//!
//! Read with: docs/moving-over.md.

mod block;
mod classic;
mod command;
mod defaults;
mod document;
mod files;
mod finding;
mod shell;
mod translation;
mod watch;

pub use files::{Files, read, write};
pub use finding::{Finding, ImportError};

use std::path::Path;

/// The largest text that is read. The longest configurations that people share have some 20 KiB.
pub const LARGEST: usize = 1 << 20;

/// A text to translate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// What messages call it.
    pub name: String,
    /// What it holds: UTF-8 outside of comments.
    pub bytes: Vec<u8>,
}

/// Everything that is translated together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// `portsentry.conf`.
    pub config: Source,
    /// `/etc/default/portsentry`, which says the modes on Debian.
    pub defaults: Option<Source>,
    /// Ignore files whose networks go into the output. Without any, it names the file of `IGNORE_FILE`.
    pub ignore: Vec<Source>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// The configuration, with where each line comes from.
    pub toml: String,
    /// What its owner should know, in the order of the input.
    pub notes: Vec<Finding>,
}

impl Import {
    /// The same as one JSON object: `toml`, and `notes` with `file`, `line`, `key` and `message`.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let notes = self.notes.iter().map(
            |note| serde_json::json!({"file": note.file, "line": note.line, "key": note.key, "message": note.message}),
        );
        serde_json::json!({"toml": self.toml, "notes": notes.collect::<Vec<_>>()})
    }
}

/// Translates `sources`. `is_there` is asked for one thing: whether beside the ignore file lies the one that Debian makes
/// it of.
///
/// # Errors
/// [`ImportError::Wrong`]: no option of PortSentry in it, or values that mean nothing, all of them at once.
pub fn translate(sources: &Sources, is_there: &dyn Fn(&Path) -> bool) -> Result<Import, ImportError> {
    translation::Translation::of(sources)?.finish(sources, is_there)
}
