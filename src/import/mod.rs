//! Translates a classic `portsentry.conf` to this program's TOML. Every option becomes a key, or a comment that says why not.
//!
//! The steps: read the files, parse their options, translate each option, and return the document with notes about what
//! its owner should know. The translation is text to text; only `files` touches the system, and no command is run.
//!
//! The input was written by people and scripts over twenty years: the syntaxes of 1.2, 2.0b1 and 2.0.x, and of the
//! shell in /etc/default/portsentry. For any input, the result is TOML that the daemon reads. If the classic program
//! and the evident intention of a line differ, the intention is written and a note says so. If the intention is not
//! clear, the line becomes a comment.
//!
//! References: docs/migrating-from-classic.md.

mod allow;
mod block;
mod command;
mod defaults;
mod diagnostics;
mod document;
mod entry;
mod files;
mod general;
mod options;
mod output;
mod ports;
mod words;

pub use diagnostics::{Diagnostic, ImportError};
pub use files::{Files, read, write};

use clap::Args;
use options::Options;
use output::Output;
use serde::Serialize;
use std::io;
use std::path::Path;
use std::path::PathBuf;

/// Options of `import`.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// The portsentry.conf to translate [/etc/portsentry/portsentry.conf]
    pub file: Option<PathBuf>,
    /// Take the modes from this file [if FILE is not given: the enabled portsentry@MODE.service, or /etc/default/portsentry]
    #[arg(long, value_name = "FILE")]
    pub defaults: Option<PathBuf>,
    /// Write the networks of this ignore file into the result (repeatable)
    #[arg(long, value_name = "FILE")]
    pub ignore: Vec<PathBuf>,
    /// Write one JSON object: the result and the notes
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
    /// Write the result to this file, which must not be there
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace the file of --output
    #[arg(long, requires = "output")]
    pub force: bool,
}

/// The largest text that is read. The longest configurations that people share have some 20 KiB.
const MAX_LEN: usize = 1 << 20;

/// A text to translate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Its name in messages.
    pub name: String,
    /// Its contents: UTF-8 outside of comments.
    pub bytes: Vec<u8>,
}

/// Everything that is translated together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// `portsentry.conf`.
    pub config: Source,
    /// `/etc/default/portsentry`, which has the modes on Debian.
    pub defaults: Option<Source>,
    /// Ignore files; without any, the file of `IGNORE_FILE` is read.
    pub ignore: Vec<Source>,
}

/// The result; as JSON it is what `portsentry import --json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Import {
    /// The configuration, with comments that name the origin of each line.
    pub toml: String,
    /// What its owner should know, in the order of the input.
    pub notes: Vec<Diagnostic>,
}

/// Reads a file that the configuration names.
pub type ReadFile<'r> = dyn Fn(&Path) -> io::Result<Vec<u8>> + 'r;

/// Translates `sources`; `read` reads the ignore file that they name.
///
/// # Errors
/// [`ImportError::Wrong`] with all errors at once: no option of PortSentry in it, or values without a meaning.
pub fn translate(sources: &Sources, read: &ReadFile) -> Result<Import, ImportError> {
    let mut output = Output::new(sources);
    if let Some(options) = Options::parse(&sources.config, &mut output) {
        let modes = sources.defaults.as_ref().map(|source| defaults::parse(source, &mut output));
        ports::translate(&options, modes.as_ref(), &mut output);
        block::translate(&options, &mut output);
        general::banner(&options, &mut output);
        general::scan_trigger(&options, &mut output);
        allow::translate(&options, &sources.ignore, read, &mut output);
        general::resolve_host(&options, &mut output);
        general::leave_out(&options, &mut output);
    }
    output.finish()
}
