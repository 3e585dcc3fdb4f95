//! Parses the command line into a command and its options. Help and version are returned as `clap::Error`s with their
//! own kinds.

mod classic;
mod completions;
mod grammar;

use std::ffi::OsString;

use clap::Parser;

use crate::config::flags::with_long_modes;

pub use crate::check::CheckOptions;
pub use crate::config::DEFAULT_CONFIG;
pub use crate::config::flags::RunOptions;
pub use crate::control::DEFAULT_SOCKET;
pub use crate::control::commands::{ConnectionOptions, ControlCommand};
pub use crate::control::list::{ListOptions, SortOrder};
pub use crate::control::live_view::WatchOptions;
pub use crate::fleet::FleetOptions;
pub use crate::import::ImportOptions;
pub use crate::ledger::DEFAULT_STATE_DIR;
pub use crate::replay::ReplayOptions;
pub use crate::report::ReportOptions;
use grammar::CommandLine;
pub use grammar::{Command, Shell, grammar};

/// Reads the command line, program name first.
///
/// # Errors
/// A `clap::Error` for an invalid command line, and also for `--help` and `--version`. `clap::Error::use_stderr`
/// distinguishes the two cases.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, clap::Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    if let Some(error) = classic::refusal(&args) {
        return Err(error);
    }
    // The options of a command are not modes.
    let grammar = grammar();
    let is_command = |word: &OsString| word == "help" || grammar.find_subcommand(word).is_some();
    let modes = args.iter().skip(1).position(is_command).map_or(args.len(), |before| before + 1);
    let words = with_long_modes(args.iter().take(modes).cloned()).chain(args.iter().skip(modes).cloned());
    let line = CommandLine::try_parse_from(words).map_err(|error| classic::with_remedy(error, &args))?;
    Ok(line.command.unwrap_or(Command::Run(line.run)))
}
