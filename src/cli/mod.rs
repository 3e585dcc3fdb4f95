//! Parses the command line into a command and its options; help and version are `clap::Error`s of their own kinds.

mod classic;
mod completions;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use crate::config::flags::{RunFlags, with_long_modes};

pub use crate::check::CheckOptions;
pub use crate::config::DEFAULT_CONFIG;
pub use crate::config::flags::RunOptions;
pub use crate::control::DEFAULT_SOCKET;
pub use crate::control::list::{ListOptions, Order};
pub use crate::control::live_view::WatchOptions;
pub use crate::control::options::{
    AllowOptions, BlockOptions, Connection, ControlCommand, DisallowOptions, ExplainOptions, TrialOptions,
    UnblockOptions,
};
pub use crate::fleet::options::FleetOptions;
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
  status list watch events explain            how it is, what happens
  block unblock allow disallow allowed trial  what is blocked, and what is not
  confirm reload check import forget-service  the settings, the services
  report replay fleet completions help        the past; captures; fleet; shell
Classic modes: -tcp -udp connect, -stcp -sudp stealth, -atcp -audp advanced
Bans: nft list set inet portsentry blocked      Manual: man 8 portsentry";

const USAGE: &str = "portsentry [OPTIONS]
       portsentry COMMAND";

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Watch and block.
    Run(RunOptions),
    /// Judge the packets of a capture file.
    Replay(ReplayOptions),
    /// Ask the running daemon.
    Ask(ControlCommand),
    /// Translate a classic configuration.
    Import(ImportOptions),
    /// Make a page of the ledger.
    Report(ReportOptions),
    /// Print what a shell completes command lines with.
    Complete(Shell),
    /// List the bans in force.
    List(ListOptions),
    /// Show what happens as it does.
    Watch(WatchOptions),
    /// Say what is wrong with the settings, or what they come to.
    Check(CheckOptions),
    /// Share bans with other hosts.
    Fleet(FleetOptions),
}

/// Detects port scans and blocks their sources in nftables
#[derive(Parser)]
#[command(name = "portsentry", version, help_template = HELP, override_usage = USAGE, max_term_width = 80)]
#[command(args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(flatten)]
    run: RunFlags,
    #[command(subcommand)]
    command: Option<Subcommands>,
}

#[derive(Subcommand)]
enum Subcommands {
    #[command(flatten)]
    Ask(ControlCommand),
    /// Judge the packets of a capture file, without blocking
    Replay(ReplayOptions),
    /// Translate a classic portsentry.conf to TOML
    Import(ImportOptions),
    /// Make a page of the ledger's bans
    Report(ReportOptions),
    /// What bash, zsh or fish completes command lines with
    Completions(completions::Completions),
    /// List the bans in force
    List(ListOptions),
    /// Show bans and events as they come, at a terminal
    Watch(WatchOptions),
    /// Check the settings, and say what they come to on this host
    Check(CheckOptions),
    /// Share bans with other hosts through Valkey or Redis
    Fleet(FleetOptions),
}

/// Reads the command line, program name first.
///
/// # Errors
/// What is wrong with it, and also what `--help` and `--version` print; `clap::Error::use_stderr` tells them apart.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, clap::Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    if let Some(error) = classic::refusal(&args) {
        return Err(error);
    }
    let line = CommandLine::try_parse_from(with_long_modes(args))?;
    Ok(match line.command {
        None => Command::Run(line.run.into()),
        Some(Subcommands::Replay(options)) => Command::Replay(options),
        Some(Subcommands::Ask(command)) => Command::Ask(command),
        Some(Subcommands::Import(options)) => Command::Import(options),
        Some(Subcommands::Report(options)) => Command::Report(options),
        Some(Subcommands::Completions(wanted)) => Command::Complete(wanted.shell),
        Some(Subcommands::List(options)) => Command::List(options),
        Some(Subcommands::Watch(options)) => Command::Watch(options),
        Some(Subcommands::Check(options)) => Command::Check(options),
        Some(Subcommands::Fleet(options)) => Command::Fleet(options),
    })
}

/// The command line's grammar, for what is generated from it: help, completions, and the tests of the manual.
#[must_use]
pub fn grammar() -> clap::Command {
    <CommandLine as clap::CommandFactory>::command()
}
