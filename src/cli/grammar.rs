//! Defines the grammar of the command line: commands, options and their help.

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::check::CheckOptions;
use crate::config::flags::RunOptions;
use crate::control::commands::ControlCommand;
use crate::control::list::ListOptions;
use crate::control::live_view::WatchOptions;
use crate::fleet::FleetOptions;
use crate::import::ImportOptions;
use crate::replay::ReplayOptions;
use crate::report::ReportOptions;

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
pub(super) struct CommandLine {
    #[command(flatten)]
    pub(super) run: RunOptions,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
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

/// A shell that completes command lines.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    /// bash, with bash-completion
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// The grammar of the command line, from which help, completions and the tests of the manual are generated.
pub fn grammar() -> clap::Command {
    CommandLine::command()
}
