//! Defines the flags of the daemon's command line, and applies them over the configuration file.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::{Config, ConfigErrors, Mode, ProtocolConfig, parse_expiry, parse_span, parse_watched};
use crate::types::{Expiry, Response};

/// The classic modes as arguments. clap has no long flags with one dash, so these six become hidden flags with two.
pub(crate) const CLASSIC_MODES: [&str; 6] = ["-tcp", "-udp", "-stcp", "-sudp", "-atcp", "-audp"];

/// Options of the daemon, and the classic modes as clap reads them. A value that is `None`, empty or false keeps the
/// setting of the file.
#[derive(Parser, Clone, Debug, Default, PartialEq, Eq)]
#[allow(rustdoc::broken_intra_doc_links, reason = "the brackets are part of the help")]
pub struct RunOptions {
    /// Duration of a ban: 90m, 24h, 7d or never [24h]
    #[arg(long, value_name = "SPAN", value_parser = parse_expiry, allow_hyphen_values = true)]
    pub expire: Option<Expiry>,
    /// Configuration file [/etc/portsentry/portsentry.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Monitor only this interface, or all except !NAME
    #[arg(long = "interface", value_name = "NAME", value_parser = parse_watched)]
    pub interfaces: Vec<String>,
    /// Ports a source may probe without a ban, 0 to 15 [2]
    #[arg(long, value_name = "N", value_parser = parse_trigger, allow_hyphen_values = true)]
    pub scan_trigger: Option<u8>,
    /// Log scans, but ban no further source
    #[arg(long)]
    pub log_only: bool,
    /// Directory of the ledger [/var/lib/portsentry]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Control socket [/run/portsentry/portsentry.sock]
    #[arg(long, value_name = "FILE")]
    pub socket: Option<PathBuf>,
    /// Lift all bans and only log after SPAN unless confirmed
    #[arg(long, value_name = "SPAN", value_parser = parse_span, allow_hyphen_values = true)]
    pub confirm: Option<Duration>,
    /// Keep all privileges, for debugging
    #[arg(long)]
    pub no_sandbox: bool,
    /// Run in the background once monitoring begins
    #[arg(long)]
    pub daemon: bool,
    // The classic modes, see [`CLASSIC_MODES`]: at most one per protocol. A doc comment would appear in the help.
    #[arg(long, hide = true, group = "tcp_mode")]
    pub tcp: bool,
    #[arg(long, hide = true, group = "tcp_mode")]
    pub stcp: bool,
    #[arg(long, hide = true, group = "tcp_mode")]
    pub atcp: bool,
    #[arg(long, hide = true, group = "udp_mode")]
    pub udp: bool,
    #[arg(long, hide = true, group = "udp_mode")]
    pub sudp: bool,
    #[arg(long, hide = true, group = "udp_mode")]
    pub audp: bool,
}

fn parse_trigger(text: &str) -> Result<u8, String> {
    let number = text.parse().ok().filter(|number| *number <= 15);
    number.ok_or_else(|| "write a number from 0 to 15".to_owned())
}

/// Returns `words` with the classic modes in the form that clap accepts: two dashes instead of one. Stops at `--`.
pub(crate) fn with_long_modes(words: impl IntoIterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut options_ended = false;
    words.into_iter().map(move |word| {
        options_ended |= word == "--";
        match CLASSIC_MODES.iter().find(|mode| word == **mode) {
            Some(mode) if !options_ended => format!("-{mode}").into(),
            _ => word,
        }
    })
}

fn mode(connect: bool, stealth: bool, advanced: bool) -> Option<Mode> {
    let modes = [(connect, Mode::Connect), (stealth, Mode::Stealth), (advanced, Mode::Advanced)];
    modes.into_iter().find_map(|(given, mode)| given.then_some(mode))
}

impl RunOptions {
    /// Parses the command line of a daemon, program name first. Returns `None` if it is not a valid command line of a
    /// daemon.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Option<Self> {
        Self::try_parse_from(with_long_modes(words)).ok()
    }

    /// Mode of TCP, from a classic option.
    pub fn tcp_mode(&self) -> Option<Mode> {
        mode(self.tcp, self.stcp, self.atcp)
    }

    /// Mode of UDP, from a classic option.
    pub fn udp_mode(&self) -> Option<Mode> {
        mode(self.udp, self.sudp, self.audp)
    }

    /// Reads the configuration file, or takes the built-in configuration, and applies the flags.
    ///
    /// # Errors
    /// All errors in the file, and flags that leave nothing to monitor.
    pub fn configure(&self) -> Result<Config, ConfigErrors> {
        let mut config = Config::load_or_builtin(self.config.as_deref())?;
        config.expire = self.expire.unwrap_or(config.expire);
        config.detect.scan_trigger = self.scan_trigger.unwrap_or(config.detect.scan_trigger);
        if !self.interfaces.is_empty() {
            config.interfaces.clone_from(&self.interfaces);
        }
        self.set_mode(&mut config.tcp, self.tcp_mode());
        self.set_mode(&mut config.udp, self.udp_mode());
        config.consistent("command line")
    }

    fn set_mode(&self, protocol: &mut ProtocolConfig, mode: Option<Mode>) {
        protocol.mode = mode.unwrap_or(protocol.mode);
        if self.log_only {
            protocol.block = Response::Log;
        }
    }
}
