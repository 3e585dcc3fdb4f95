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
mod options;
mod output;
mod ports;
mod source;
mod translate;
mod words;

pub use diagnostics::ImportError;
pub use files::{classic_only_logs, read, write};
pub use output::Import;
pub use source::{InputFile, ReadFile, Sources};
pub use translate::translate;

use clap::Args;
use std::path::PathBuf;

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
