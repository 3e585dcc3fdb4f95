//! Translates a classic `portsentry.conf` to this program's TOML. Every option becomes a key, or a comment with the
//! reason why it does not.
//!
//! The steps: read the files, parse their options, translate each option, and return the document with notes for the
//! operator. The translation is text to text: only `files` accesses the system, and no command is run.
//!
//! The input was written by people and scripts over twenty years, in the syntax of 1.2, 2.0b1 or 2.0.x, or of the shell
//! in /etc/default/portsentry. For any input, the result is TOML that the daemon accepts. If the classic program does
//! not do what a line evidently intends, the intention is translated, with a note. If the intention is unclear, the
//! line becomes a comment. A line without which nothing is blocked, or allowed sources are blocked, is refused.
//!
//! References: docs/migrating-from-classic.md.

mod allow;
mod block;
mod command;
mod defaults;
mod diagnostics;
mod document;
mod files;
mod general;
mod options;
mod output;
mod ports;
mod words;

pub use diagnostics::{Diagnostic, ImportError};
pub use files::{read, write};

use clap::Args;
use options::Options;
use output::Output;
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[allow(rustdoc::broken_intra_doc_links, reason = "the brackets are part of the help")]
pub struct ImportOptions {
    /// The portsentry.conf to translate [default: /etc/portsentry/portsentry.conf]
    pub file: Option<PathBuf>,
    /// Read TCP_MODE and UDP_MODE from this file [default without FILE: the enabled portsentry@MODE.service, or
    /// /etc/default/portsentry]
    #[arg(long, value_name = "FILE")]
    pub defaults: Option<PathBuf>,
    /// Copy the networks of this ignore file to allow.networks (repeatable)
    #[arg(long, value_name = "FILE")]
    pub ignore: Vec<PathBuf>,
    /// Print one JSON object with the TOML text and the notes
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
    /// Write the result to this new file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace the file of --output if it exists
    #[arg(long, requires = "output")]
    pub force: bool,
}

/// Maximum length of a text in bytes. The longest published configurations have about 20 KiB.
const MAX_LEN: usize = 1 << 20;

/// A text to translate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Name of the text in messages.
    pub name: String,
    /// Contents: UTF-8, except in comments.
    pub bytes: Vec<u8>,
}

/// All texts that are translated together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// `portsentry.conf`.
    pub config: Source,
    /// `/etc/default/portsentry`, which has the modes on Debian.
    pub defaults: Option<Source>,
    /// Ignore files; if empty, the file of `IGNORE_FILE` is read.
    pub ignore: Vec<Source>,
}

/// The result of a translation; its JSON form is the output of `portsentry import --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Import {
    /// The configuration, with comments that state the origin of each line.
    pub toml: String,
    /// Notes for the operator, in the order of the input.
    pub notes: Vec<Diagnostic>,
}

/// Reads a file that the configuration names.
pub type ReadFile<'r> = dyn Fn(&Path) -> io::Result<Vec<u8>> + 'r;

/// Translates `sources`. `read` reads the ignore file that the configuration names.
///
/// # Errors
/// [`ImportError::Wrong`] with all errors at once: no option of PortSentry is found, or values are invalid.
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
