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
mod words;

pub use diagnostics::{Diagnostic, ImportError};
pub use files::{read, write};

use clap::Args;
use diagnostics::quoted;
use document::Value;
use options::Options;
use output::Output;
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::MAX_BANNER_LEN;

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

/// Maximum number of unknown options that are listed; further ones are only counted.
const MAX_UNKNOWN: usize = 100;

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
        banner(&options, &mut output);
        scan_trigger(&options, &mut output);
        allow::translate(&options, &sources.ignore, read, &mut output);
        resolve_host(&options, &mut output);
        leave_out(&options, &mut output);
    }
    output.finish()
}

fn banner(options: &Options, output: &mut Output) {
    let Some(entry) = options.get("PORT_BANNER") else { return };
    if entry.value.len() > MAX_BANNER_LEN {
        output.left_out("tcp", entry, "it is longer than 1024 bytes; write a shorter tcp.port_banner");
        return;
    }
    let remark = format!("{}\nSent only in mode \"connect\", and only over TCP.", entry.origin());
    output.document.set("tcp", "port_banner", &Value::text(&entry.value), &remark);
}

fn scan_trigger(options: &Options, output: &mut Output) {
    let remark = "Number of ports that are forgiven. 0 blocks at the first probe, even at a mistake of an honest \
                  client; the built-in value is 2.";
    let Some(entry) = options.get("SCAN_TRIGGER") else {
        let remark = format!("SCAN_TRIGGER is not set: classic PortSentry then forgives no port.\n{remark}");
        return output.document.set("detect", "scan_trigger", &Value::Number(0), &remark);
    };
    let value = entry.value.trim();
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let Some(number) = value.parse::<u32>().ok().filter(|_| digits) else {
        return output.refuse(entry, format!("{} is not a number; write a number from 0 to 16", quoted(&entry.value)));
    };
    // Classic blocks at the probe with this number, so 0 and 1 are the same.
    let before = number.saturating_sub(1);
    let forgiven = u8::try_from(before.min(15)).unwrap_or(15);
    if before > 15 {
        output.add_note(entry, "exceeds the maximum; 15 is written");
    }
    let remark = format!("{}\n{remark}", entry.origin());
    output.document.set("detect", "scan_trigger", &Value::Number(forgiven), &remark);
}

fn resolve_host(options: &Options, output: &mut Output) {
    let Some(entry) = options.get("RESOLVE_HOST") else { return };
    // Classic treats every other value as no.
    if entry.value.trim() == "1" {
        output.set("report", "resolve_host", &Value::Switch(true), entry);
    } else {
        output
            .document
            .tail(&format!("{}: names are not looked up, which is also the built-in value.", entry.origin()));
    }
}

/// Writes comments for the options without a key here, and for those that no version of PortSentry has.
fn leave_out(options: &Options, output: &mut Output) {
    for (key, file) in [("HISTORY_FILE", "portsentry.history"), ("BLOCKED_FILE", "portsentry.blocked")] {
        let Some(entry) = options.get(key) else { continue };
        let remark = format!("is written as {file} to /var/lib/portsentry, or to the directory of --state-dir");
        output.document.tail(&format!("{}: the file {remark}.", entry.origin()));
        if Path::new(&entry.value).parent() != Some(Path::new("/var/lib/portsentry")) {
            output.add_note(entry, &format!("no key is needed: the file {remark}"));
        }
    }
    for entry in options.unknown.iter().take(MAX_UNKNOWN) {
        output.document.tail(&format!("{}: not an option of PortSentry; left out.", entry.origin()));
        output.add_note(entry, "not an option of PortSentry; left out");
    }
    if let Some(more) = options.unknown.len().checked_sub(MAX_UNKNOWN).filter(|more| *more > 0) {
        output.document.tail(&format!("Further lines that are not options of PortSentry: {more}."));
    }
}
