//! The words of the commands that show things at a terminal: who is blocked, what happens, what the settings come to.

use super::operator::parse_span;
use crate::config::parse_network;
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use std::path::PathBuf;
use std::time::Duration;

/// Options of `list`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ListOptions {
    /// Only the bans of this address, or in this network
    #[arg(value_name = "ADDRESS|PREFIX", value_parser = parse_network)]
    pub target: Option<IpNet>,
    /// What comes first: the next to end, the newest, or who was banned most often
    #[arg(long, value_name = "ORDER", value_enum, default_value = "expires")]
    pub sort: Order,
    /// Only bans that began within this time: 1h, 7d
    #[arg(long, value_name = "SPAN", value_parser = parse_span)]
    pub since: Option<Duration>,
    /// Look the names of the addresses up
    #[arg(long)]
    pub names: bool,
    /// Write one JSON object
    #[arg(long)]
    pub json: bool,
    /// Read the ledger in this directory
    #[arg(long, value_name = "DIR", default_value = super::DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
}

/// The order of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// The next to end first.
    Expires,
    /// The newest first.
    Since,
    /// Who was banned most often first.
    Hits,
}

/// Options of `watch`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct WatchOptions {
    /// The daemon's socket
    #[arg(long, value_name = "FILE", default_value = super::DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

/// Options of `check`.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// The settings to check [/etc/portsentry/portsentry.toml]
    pub file: Option<PathBuf>,
    /// Write one JSON object
    #[arg(long)]
    pub json: bool,
}

impl CheckOptions {
    /// The file's settings, or the built-in ones where none is named and none is there.
    ///
    /// # Errors
    /// Whatever is wrong with the file.
    pub fn configure(&self) -> Result<crate::config::Config, crate::config::ConfigErrors> {
        super::settings(self.file.as_deref())
    }
}
