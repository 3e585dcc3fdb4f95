//! Parses the command line into a command and its options. Help and version are returned as `clap::Error`s with their
//! own kinds.

mod classic;
mod completions;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

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
pub use crate::types::exit_code::{
    CONFIG as EXIT_CONFIG, DONE as EXIT_DONE, FAILED as EXIT_FAILED, USAGE as EXIT_USAGE,
};
pub use completions::Shell;

const HELP: &str = "\
{name} {version}: {about}

{usage-heading} {usage}

{options}
Commands (portsentry COMMAND --help):
  status list watch events explain            state, bans, events, addresses
  block unblock allow disallow allowed trial  change what is blocked
  confirm reload check import forget-service  configuration and services
  report replay fleet completions help        report, captures, fleet, shell
Modes: connect -tcp -udp, stealth -stcp -sudp, advanced -atcp -audp (default)
Bans in the kernel: nft list set inet portsentry blocked. Manual: man portsentry";

const USAGE: &str = "portsentry [OPTIONS]
       portsentry COMMAND";

/// Detects port scans and blocks their sources in nftables
#[derive(Parser)]
#[command(name = "portsentry", version, help_template = HELP, override_usage = USAGE, max_term_width = 80)]
#[command(args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(flatten)]
    run: RunOptions,
    #[command(subcommand)]
    command: Option<Command>,
}

/// The action that the command line requests.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Watch and block
    #[command(skip)]
    Run(RunOptions),
    #[command(flatten)]
    Ask(ControlCommand),
    /// Show what would be blocked for the packets of a capture file
    Replay(ReplayOptions),
    /// Translate the portsentry.conf of classic PortSentry to TOML
    Import(ImportOptions),
    /// Write an HTML page with statistics of the bans in the ledger
    Report(ReportOptions),
    /// Print a completion script for bash, zsh or fish
    Completions {
        /// Shell to print the script for
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// List active bans
    List(ListOptions),
    /// Show a live view of bans and events in the terminal
    Watch(WatchOptions),
    /// Check the configuration, and show what it means on this host
    Check(CheckOptions),
    /// Run the process that shares bans with other hosts through Valkey or Redis
    Fleet(FleetOptions),
}

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

/// The grammar of the command line, from which help, completions and the tests of the manual are generated.
pub fn grammar() -> clap::Command {
    <CommandLine as clap::CommandFactory>::command()
}
