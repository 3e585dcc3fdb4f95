//! Text to [`Config`]: the TOML file, the classic ignore file, and what holds where there is no file. Every error says
//! file, line, column, key and what to write instead, all of them in one run; a configuration that cannot be read stops
//! the program and never means "watch nothing" or "allow everyone". What a setting does is not done here.
//!
//! Read with: docs/settings.md, and examples/portsentry.toml, which tests hold against this.

mod block;
mod error;
pub mod ignore_file;
mod lists;
mod reader;
mod report;
mod settings;
mod value;

pub use crate::types::Backend;
pub use block::{Action, Block, Escalate, HostsDeny, LogRate, NftBlock, Route, Run};
pub use error::{ConfigError, ConfigErrors, Position};
pub use report::{LogTarget, Report};
pub use value::{is_command_word, is_deny_line, is_gateway, parse_expiry, parse_interface, parse_name, parse_network};

use crate::types::{Expiry, PortSet};
use ipnet::IpNet;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything an operator can say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long a ban lasts.
    pub expire: Expiry,
    /// Interfaces to watch; empty: every one that carries addresses, also those that come later.
    pub interfaces: Vec<String>,
    /// What is watched of TCP.
    pub tcp: Protocol,
    /// What is watched of UDP.
    pub udp: Protocol,
    /// When probes become a scan.
    pub detect: Detect,
    /// Who is never blocked, besides those whom the program protects by itself.
    pub allow: Allow,
    /// How a ban is carried out.
    pub block: Block,
    /// Longer bans for who comes back.
    pub escalate: Escalate,
    /// Counting inside the kernel.
    pub trap: Trap,
    /// Figures for Prometheus.
    pub metrics: Metrics,
    /// Where it is written what happens.
    pub report: Report,
}

/// Figures for Prometheus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Where they are given out; `None`: nowhere.
    pub listen: Option<SocketAddr>,
}

/// How a protocol is watched: the classic modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Not at all.
    Off,
    /// The listed ports, which are opened: who connects counts (classic `-tcp`, `-udp`).
    Connect,
    /// The listed ports, and scans that open no connection (classic `-stcp`, `-sudp`).
    Stealth,
    /// A whole range less what is in use and what is excluded (classic `-atcp`, `-audp`).
    Advanced,
}

/// What happens to a scanner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockPolicy {
    /// Blocked and logged.
    Yes,
    /// Logged.
    No,
    /// Left to the command of `block.run`, and logged.
    Run,
}

/// What is watched of one protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// How it is watched.
    pub mode: Mode,
    /// Ports of the modes connect and stealth.
    pub ports: PortSet,
    /// Ports of the mode advanced.
    pub advanced_ports: PortSet,
    /// Ports that the mode advanced leaves out.
    pub advanced_exclude: PortSet,
    /// What happens to who scans it.
    pub block: BlockPolicy,
    /// What connect mode says to who connects; at most 1,024 bytes, and always empty for UDP.
    pub port_banner: String,
}

impl Protocol {
    /// The ports that this mode watches, in use or not.
    #[must_use]
    pub fn watched(&self) -> PortSet {
        match self.mode {
            Mode::Off => PortSet::new(),
            Mode::Connect | Mode::Stealth => self.ports.clone(),
            Mode::Advanced => self.advanced_ports.without(&self.advanced_exclude),
        }
    }
}

/// When probes become a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detect {
    /// How many distinct ports are forgiven, 0 to 15; 0: the first touch is a scan.
    pub scan_trigger: u8,
    /// How long a touched port counts: one second to 30 days.
    pub window: Duration,
    /// How many sources are remembered at once: 1,024 to 16,777,216. Beyond it the oldest, least suspicious one goes.
    pub max_sources: u32,
    /// Whether SCTP INITs count.
    pub sctp: bool,
    /// Whether ICMP probes count.
    pub icmp: bool,
}

/// Who is never blocked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    /// Networks; host bits are zero. 0.0.0.0/0 or ::/0 means everyone of that family: then nobody of it is blocked.
    pub networks: Vec<IpNet>,
    /// Names of hosts, in small letters, at most [`MAX_NAMES`]; whoever has one of their addresses. Not resolved here.
    pub names: Vec<String>,
    /// Classic ignore files with more of them.
    pub files: Vec<PathBuf>,
}

/// Names in `allow.names`: each is looked up again and again, and its addresses are looked through for every host change.
pub const MAX_NAMES: usize = 64;

impl Allow {
    /// All networks: those listed, then those of the files, which are read now.
    ///
    /// # Errors
    /// As [`Allow::read_files`].
    pub fn read(&self) -> Result<Vec<IpNet>, ConfigErrors> {
        let files = self.read_files()?.into_iter().flatten();
        Ok(self.networks.iter().copied().chain(files).collect())
    }

    /// The networks of each file, in their order.
    ///
    /// # Errors
    /// Every file that cannot be read, and every line of the files that is no network.
    pub fn read_files(&self) -> Result<Vec<Vec<IpNet>>, ConfigErrors> {
        let (mut read, mut errors) = (Vec::new(), Vec::new());
        for file in &self.files {
            match read_ignore_file(file) {
                Ok(networks) => read.push(networks),
                Err(wrong) => errors.extend(wrong.into_vec()),
            }
        }
        ConfigErrors::unless_empty(errors, read)
    }
}

/// Reads the networks of a classic ignore file.
///
/// # Errors
/// Where it cannot be read, and every line that is no network.
pub fn read_ignore_file(path: &Path) -> Result<Vec<IpNet>, ConfigErrors> {
    let name = path.display().to_string();
    // Opening a FIFO would wait for its writer for ever, and this is read while the program runs.
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        return Err(ConfigErrors::about(&name, None, "is no regular file; name a text file".to_owned()));
    }
    ignore_file::parse(&name, &read_text(path, "create it, or take it out of allow.files")?)
}

/// Counting inside the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trap {
    /// For TCP.
    pub tcp: bool,
    /// For UDP.
    pub udp: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self::builtin()
    }
}

impl Config {
    /// What holds where there is no file.
    #[must_use]
    pub fn builtin() -> Self {
        let protocol = |lists: &lists::Lists, block| Protocol {
            mode: Mode::Advanced,
            ports: lists::set(lists.aware),
            advanced_ports: lists::set(lists.advanced),
            advanced_exclude: lists::set(lists.advanced_exclude),
            block,
            port_banner: String::new(),
        };
        Self {
            expire: Expiry::After(Duration::from_secs(86_400)),
            interfaces: Vec::new(),
            tcp: protocol(&lists::TCP, BlockPolicy::Yes),
            // Anybody can forge the source of a datagram, and so have somebody else blocked.
            udp: protocol(&lists::UDP, BlockPolicy::No),
            detect: Detect {
                scan_trigger: 2,
                window: Duration::from_secs(1_800),
                max_sources: 65_536,
                sctp: false,
                icmp: false,
            },
            allow: Allow::default(),
            block: Block::default(),
            escalate: Escalate::default(),
            trap: Trap { tcp: true, udp: false },
            metrics: Metrics::default(),
            report: Report::default(),
        }
    }

    /// Reads `text`; `name` is what messages call the file. A key that is left out keeps its built-in value.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the file.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigErrors> {
        settings::parse(name, text)
    }

    /// Reads the file `path`.
    ///
    /// # Errors
    /// As [`Config::parse`], and where the file cannot be read, with what the system says.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let text = read_text(path, "create it, or leave --config out to run with the built-in settings")?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Every key that a file may hold, dotted (`detect.window`), in alphabetical order.
    #[must_use]
    pub fn keys() -> Vec<String> {
        settings::keys()
    }

    /// This configuration, unless what was changed in it contradicts the rest. `origin` is what messages name.
    pub(crate) fn consistent(self, origin: &str) -> Result<Self, ConfigErrors> {
        let about = |(key, message)| ConfigError { file: origin.to_owned(), position: None, key: Some(key), message };
        let errors = self.contradictions().into_iter().map(about).collect();
        ConfigErrors::unless_empty(errors, self)
    }

    /// What each key says well and all together say wrong: the key to blame and a sentence. A detector must never say
    /// that it is active while it watches nothing.
    fn contradictions(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for (name, protocol) in [("tcp", &self.tcp), ("udp", &self.udp)] {
            let key = if protocol.mode == Mode::Advanced { "advanced_ports" } else { "ports" };
            if protocol.mode != Mode::Off && protocol.watched().is_empty() {
                let message = format!("no port is left to watch; list one, or write mode = \"off\" under [{name}]");
                found.push((format!("{name}.{key}"), message));
            }
        }
        if self.tcp.mode == Mode::Off && self.udp.mode == Mode::Off {
            let message = "off like udp.mode, so that nothing would be watched; write \"advanced\" for one of them";
            found.push(("tcp.mode".to_owned(), message.to_owned()));
        }
        if self.udp.mode == Mode::Connect && !self.interfaces.is_empty() {
            let message = "a socket of UDP's connect mode hears every interface and cannot tell which; leave the list empty, \
                           or write mode = \"stealth\" under [udp]";
            found.push(("interfaces".to_owned(), message.to_owned()));
        }
        if self.allow.names.len() > MAX_NAMES {
            let message = format!(
                "{} names are more than {MAX_NAMES}; write the networks of some of them under allow.networks",
                self.allow.names.len()
            );
            found.push(("allow.names".to_owned(), message));
        }
        if self.block.method.is_empty() {
            let message =
                "an empty list blocks nobody; write [\"nft\"], or block = false under [tcp] and [udp] to only log";
            found.push(("block.method".to_owned(), message.to_owned()));
        }
        let again =
            |(place, method): (usize, &Backend)| self.block.method.iter().take(place).any(|other| other == method);
        if self.block.method.iter().enumerate().any(again) {
            let message = "names one way twice; write each once".to_owned();
            found.push(("block.method".to_owned(), message));
        }
        for (key, command) in [("command", &self.block.run.command), ("expire_command", &self.block.run.expire_command)]
        {
            // Found through nobody's PATH: the daemon runs with rights over the firewall.
            if command.first().is_some_and(|program| !program.starts_with('/')) {
                let message = "the program needs its whole path; write for example \"/usr/local/sbin/on-scan\"";
                found.push((format!("block.run.{key}"), message.to_owned()));
            }
        }
        let runs = self.block.method.contains(&Backend::Command)
            || [&self.tcp, &self.udp].into_iter().any(|protocol| protocol.block == BlockPolicy::Run);
        if runs && self.block.run.command.is_empty() {
            let message = "no command is left to run; write for example [\"/usr/local/sbin/on-scan\", \"$TARGET$\"]";
            found.push(("block.run.command".to_owned(), message.to_owned()));
        }
        found
    }
}

/// The text of a file that an operator named. `missing` is what to do where there is none.
fn read_text(path: &Path, missing: &str) -> Result<String, ConfigErrors> {
    /// Far above any list that people write; below what a wrong name (/dev/zero, a capture) would read.
    const LARGEST: u64 = 16 << 20;
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => missing,
            io::ErrorKind::PermissionDenied => "let the program's user read it",
            io::ErrorKind::IsADirectory => "name a file in it",
            _ => "see whether it is a file on a working disk",
        };
        return Err(ConfigErrors::about(&name, None, format!("cannot be read: {error}; {remedy}")));
    }
    if u64::try_from(bytes.len()).is_ok_and(|length| length > LARGEST) {
        return Err(ConfigErrors::about(&name, None, "is larger than 16 MiB; name a text file".to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let text = error.as_bytes().get(..valid).map(String::from_utf8_lossy).unwrap_or_default();
        let position = error::Lines::of(&text).position(valid);
        ConfigErrors::about(&name, Some(position), "is not UTF-8 from here on; save it as UTF-8".to_owned())
    })
}
