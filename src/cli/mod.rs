//! Words of the command line to a [`Command`], and its flags over the file's settings. Runs nothing and prints nothing:
//! help and version come back as `clap::Error`s whose kind says so.

mod completions;
mod console;
mod operator;

use crate::config::{BlockPolicy, Config, ConfigErrors, Mode, Protocol, parse_expiry, parse_interface, parse_network};
use crate::types::Expiry;
use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use completions::Shell;
pub use console::{CheckOptions, ListOptions, Order, WatchOptions};
pub use operator::{AllowOptions, BlockOptions, Connection, ControlCommand, ExplainOptions, UnblockOptions};

/// Exit code: all done.
pub const EXIT_DONE: u8 = 0;
/// Exit code: something failed while running.
pub const EXIT_FAILED: u8 = 1;
/// Exit code: the command line is wrong.
pub const EXIT_USAGE: u8 = 2;
/// Exit code: the configuration is wrong (`EX_CONFIG` of sysexits.h).
pub const EXIT_CONFIG: u8 = 78;

/// The file that is read where `--config` names none. Where it does not exist, the built-in settings hold.
pub const DEFAULT_CONFIG: &str = "/etc/portsentry/portsentry.toml";

/// The classic modes, as words: clap has no long flags with one dash, so these six become hidden ones with two.
const CLASSIC_MODES: [&str; 6] = ["-tcp", "-udp", "-stcp", "-sudp", "-atcp", "-audp"];

const HELP: &str = "\
{name} {version}: {about}

{usage-heading} {usage}

{options}
Commands (portsentry COMMAND --help):
  status list watch events        how it is, who is blocked, what happens
  block unblock allow explain     one address
  confirm reload check import     the settings
  report replay completions       what was; a capture judged; for your shell

Classic modes: -tcp -udp connect, -stcp -sudp stealth, -atcp -audp advanced
Bans: nft list set inet portsentry blocked      Manual: man 8 portsentry";

const USAGE: &str = "portsentry [OPTIONS]
       portsentry COMMAND";

/// Where the ledger is kept if nothing else is said.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/portsentry";

/// Where the running daemon answers if nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/portsentry/portsentry.sock";

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
}

/// Options of the daemon. What is `None`, empty or false leaves the file's word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// How long a ban lasts.
    pub expire: Option<Expiry>,
    /// The file to read; `None`: [`DEFAULT_CONFIG`] if it exists.
    pub config: Option<PathBuf>,
    /// Interfaces to watch.
    pub interfaces: Vec<String>,
    /// How many distinct ports are forgiven.
    pub scan_trigger: Option<u8>,
    /// Nothing is blocked.
    pub log_only: bool,
    /// Mode of TCP, from a classic word.
    pub tcp_mode: Option<Mode>,
    /// Mode of UDP, from a classic word.
    pub udp_mode: Option<Mode>,
    /// Where the ledger is kept; `None`: [`DEFAULT_STATE_DIR`].
    pub state_dir: Option<PathBuf>,
    /// Where operators' commands are answered; `None`: [`DEFAULT_SOCKET`].
    pub socket: Option<PathBuf>,
    /// Nothing is blocked any more after this time, unless somebody confirms.
    pub confirm: Option<Duration>,
    /// No rights are given up.
    pub no_sandbox: bool,
}

/// Options of `replay`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ReplayOptions {
    /// The capture to read (pcap or pcapng)
    pub file: PathBuf,
    /// Read settings from this file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Take this address or network as the host's own (repeatable)
    #[arg(long, value_name = "PREFIX", value_parser = parse_network)]
    pub local: Vec<IpNet>,
    /// Write events as JSON, one a line
    #[arg(long)]
    pub json: bool,
}

/// Options of `import`.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// The portsentry.conf to translate [/etc/portsentry/portsentry.conf]
    pub file: Option<PathBuf>,
    /// Take the modes from this file [/etc/default/portsentry, if FILE is not given]
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

/// Options of `report`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ReportOptions {
    /// Look back this far: 24h, 30d, 1y
    #[arg(long, value_name = "SPAN", default_value = "30d", value_parser = parse_since)]
    pub since: Duration,
    /// Write to this file instead of standard output
    #[arg(short = 'o', value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Read the ledger in this directory
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
    /// Write the figures as a JSON object instead of a page
    #[arg(long)]
    pub json: bool,
}

/// Blocks who scans the ports of this host, in nftables
#[derive(Parser)]
#[command(name = "portsentry", version, help_template = HELP, override_usage = USAGE, max_term_width = 80)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct CommandLine {
    /// Block for this long: 24h, 7d, 90m, or never
    #[arg(long, value_name = "SPAN", value_parser = parse_expiry)]
    expire: Option<Expiry>,
    /// The settings [/etc/portsentry/portsentry.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Watch only this interface (repeatable)
    #[arg(long, value_name = "NAME", value_parser = parse_interface)]
    interface: Vec<String>,
    /// Forgive this many distinct ports, 0 to 15
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=15))]
    scan_trigger: Option<u8>,
    /// Log scans, block nobody
    #[arg(long)]
    log_only: bool,
    /// The ledger's directory [/var/lib/portsentry]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The control socket [/run/portsentry/portsentry.sock]
    #[arg(long, value_name = "FILE")]
    socket: Option<PathBuf>,
    /// Only log after SPAN unless `portsentry confirm` comes
    #[arg(long, value_name = "SPAN", value_parser = operator::parse_span)]
    confirm: Option<Duration>,
    /// Keep all rights, for debugging
    #[arg(long)]
    no_sandbox: bool,
    #[arg(long, hide = true, group = "tcp_mode")]
    tcp: bool,
    #[arg(long, hide = true, group = "tcp_mode")]
    stcp: bool,
    #[arg(long, hide = true, group = "tcp_mode")]
    atcp: bool,
    #[arg(long, hide = true, group = "udp_mode")]
    udp: bool,
    #[arg(long, hide = true, group = "udp_mode")]
    sudp: bool,
    #[arg(long, hide = true, group = "udp_mode")]
    audp: bool,
    #[command(subcommand)]
    command: Option<Subcommands>,
}

#[derive(Subcommand)]
enum Subcommands {
    #[command(flatten)]
    Ask(ControlCommand),
    /// Judge the packets of a capture file, block nobody
    Replay(ReplayOptions),
    /// Translate a classic portsentry.conf to TOML
    Import(ImportOptions),
    /// Make a page of the ledger's bans
    Report(ReportOptions),
    /// What bash, zsh or fish completes command lines with
    Completions(completions::Completions),
    /// List who is blocked
    List(ListOptions),
    /// Show bans and events as they come, at a terminal
    Watch(WatchOptions),
    /// Check the settings, and say what they come to on this host
    Check(CheckOptions),
}

/// Reads the command line, program name first.
///
/// # Errors
/// What is wrong with it, and also what `--help` and `--version` print; `clap::Error::use_stderr` tells them apart.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, clap::Error> {
    let mut options_ended = false;
    let words = args.into_iter().map(|word| {
        options_ended |= word == "--";
        if options_ended { word } else { long_mode(word) }
    });
    let words = CommandLine::try_parse_from(words)?;
    match words.command {
        Some(Subcommands::Replay(options)) => return Ok(Command::Replay(options)),
        Some(Subcommands::Ask(question)) => return Ok(Command::Ask(question)),
        Some(Subcommands::Import(options)) => return Ok(Command::Import(options)),
        Some(Subcommands::Report(options)) => return Ok(Command::Report(options)),
        Some(Subcommands::Completions(wanted)) => return Ok(Command::Complete(wanted.shell)),
        Some(Subcommands::List(options)) => return Ok(Command::List(options)),
        Some(Subcommands::Watch(options)) => return Ok(Command::Watch(options)),
        Some(Subcommands::Check(options)) => return Ok(Command::Check(options)),
        None => {}
    }
    Ok(Command::Run(RunOptions {
        expire: words.expire,
        config: words.config,
        interfaces: words.interface,
        scan_trigger: words.scan_trigger,
        log_only: words.log_only,
        tcp_mode: mode(words.tcp, words.stcp, words.atcp),
        udp_mode: mode(words.udp, words.sudp, words.audp),
        state_dir: words.state_dir,
        socket: words.socket,
        confirm: words.confirm,
        no_sandbox: words.no_sandbox,
    }))
}

/// The command line's grammar, for what is generated from it: help, completions, and the tests of the manual.
#[must_use]
pub fn grammar() -> clap::Command {
    <CommandLine as clap::CommandFactory>::command()
}

/// How far back a report may look: a minute is its finest bar, ten years are more than the ledger keeps.
const SINCE: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(315_576_000);

fn parse_since(text: &str) -> Result<Duration, String> {
    let span = humantime::parse_duration(text).ok().filter(|span| SINCE.contains(span));
    span.ok_or_else(|| "write a span from one minute to ten years, for example \"24h\", \"30d\" or \"1y\"".to_owned())
}

fn long_mode(word: OsString) -> OsString {
    if !CLASSIC_MODES.iter().any(|mode| word == *mode) {
        return word;
    }
    let mut long = OsString::from("-");
    long.push(word);
    long
}

fn mode(connect: bool, stealth: bool, advanced: bool) -> Option<Mode> {
    let modes = [(connect, Mode::Connect), (stealth, Mode::Stealth), (advanced, Mode::Advanced)];
    modes.into_iter().find_map(|(given, mode)| given.then_some(mode))
}

impl RunOptions {
    /// The file's settings, or the built-in ones, with the flags over them.
    ///
    /// # Errors
    /// Whatever is wrong with the file, and flags that leave nothing to watch.
    pub fn configure(&self) -> Result<Config, ConfigErrors> {
        let mut config = settings(self.config.as_deref())?;
        if let Some(expire) = self.expire {
            config.expire = expire;
        }
        if !self.interfaces.is_empty() {
            config.interfaces.clone_from(&self.interfaces);
        }
        if let Some(scan_trigger) = self.scan_trigger {
            config.detect.scan_trigger = scan_trigger;
        }
        self.set_mode(&mut config.tcp, self.tcp_mode);
        self.set_mode(&mut config.udp, self.udp_mode);
        config.consistent("command line")
    }

    fn set_mode(&self, protocol: &mut Protocol, mode: Option<Mode>) {
        protocol.mode = mode.unwrap_or(protocol.mode);
        if self.log_only {
            protocol.block = BlockPolicy::No;
        }
    }
}

impl ReplayOptions {
    /// The file's settings, or the built-in ones.
    ///
    /// # Errors
    /// Whatever is wrong with the file.
    pub fn configure(&self) -> Result<Config, ConfigErrors> {
        settings(self.config.as_deref())
    }
}

fn settings(named: Option<&Path>) -> Result<Config, ConfigErrors> {
    let default = Path::new(DEFAULT_CONFIG);
    match named {
        Some(file) => Config::load(file),
        // Only a file that is surely absent: one that cannot be looked at must not turn into defaults in silence.
        None if matches!(default.try_exists(), Ok(false)) => Ok(Config::builtin()),
        None => Config::load(default),
    }
}
