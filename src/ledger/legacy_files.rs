//! Writes the two text files of classic PortSentry, one line per ban: `1795242733 - 11/21/2026 06:32:13 Host:
//! 192.0.2.7/192.0.2.7 Port: 23 TCP Blocked`. Scripts and fail2ban's filter read them; this program does not.
//!
//! The date is in UTC, unlike classic's local time; it is the same moment as the preceding seconds, which fail2ban
//! reads. The address is also used as the name, even if `report.resolve_host` adds names to the log, because an
//! attacker chooses the name. For an IPv6 network it is the source of the last probe, because the filter expects a
//! host. Port 0 means that there is no port: an operator's ban.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::ban::{BanAuthor, BanRecord, BanSummary};
use super::error::LedgerError;
use super::state_dir::{StateDir, check_file};
use crate::atomic_file::{AtomicFile, TemporaryName, append, end_last_line, is_at};
use crate::clock::{printable_time, utc};
use crate::types::{BanTarget, Protocol};

/// Every ban since the last rotation.
pub const HISTORY: &str = "portsentry.history";

/// The bans in force.
pub const BLOCKED: &str = "portsentry.blocked";

/// Maximum size of the history until it is rotated: each forged source adds about 80 bytes.
const HISTORY_LIMIT: u64 = 256 << 20;

/// Maximum number of bytes that wait for free disk space.
const MAX_PENDING_BYTES: usize = 1 << 20;

/// The two files.
pub struct LegacyFiles {
    state_dir: StateDir,
    history: Option<File>,
    waiting: String,
    left_out: u64,
}

impl LegacyFiles {
    /// Opens the files in `directory`, which [`super::Ledger::open`] has created. Creates an empty history if it does
    /// not exist, because fail2ban does not start with a jail whose file is missing.
    pub fn open(directory: &Path) -> Result<Self, LedgerError> {
        let state_dir = StateDir::prepare(directory)?;
        // An error is reported when a line has to be written.
        let history = open_history(&state_dir.file(HISTORY)).ok();
        Ok(Self { state_dir, history, waiting: String::new(), left_out: 0 })
    }

    /// Queues `ban` for the history. Imported bans are excluded, because the source of the import already has them.
    pub fn add(&mut self, ban: &BanRecord) {
        if ban.author == BanAuthor::Import {
            return;
        }
        let mut line = String::with_capacity(96);
        append_line(&mut line, ban.since, ban.ports.first().copied(), host(ban.target, ban.source));
        if self.waiting.len() + line.len() > MAX_PENDING_BYTES {
            self.left_out += 1;
        } else {
            self.waiting.push_str(&line);
        }
    }

    /// Number of lines dropped since the start because the buffer was full.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Appends the queued lines to the history in one write. On failure they stay queued.
    pub fn append(&mut self) -> Result<(), LedgerError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let path = self.state_dir.file(HISTORY);
        let mut file = match self.history.take() {
            Some(file) if is_at(&file, &path) => file,
            // Rotated, removed or not created yet.
            _ => open_history(&path)?,
        };
        append_bounded(&mut file, self.waiting.as_bytes()).map_err(LedgerError::system("append to", &path))?;
        self.waiting.clear();
        self.history = Some(file);
        Ok(())
    }

    /// Atomically replaces the list of bans in force.
    pub fn rewrite(&self, active: impl IntoIterator<Item = BanSummary>) -> Result<(), LedgerError> {
        let path = self.state_dir.file(BLOCKED);
        let mut text = String::new();
        for ban in active {
            append_line(&mut text, ban.since, ban.port, host(ban.target, ban.source));
        }
        let old = check_file(&path)?;
        let fill = |file: &mut File| {
            if let Some(old) = &old {
                // Readers have access through the group, which is kept if this user may set it. The owner is always
                // this user, because a file of another owner is refused.
                let _ = fchown(&*file, None, Some(old.gid()));
                file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
            }
            file.write_all(text.as_bytes())
        };
        let replaced =
            AtomicFile::write(&path, TemporaryName::Suffix(".new"), 0o600, fill).and_then(AtomicFile::replace);
        replaced.map_err(LedgerError::system("rewrite", &path))
    }
}

/// Appends the line of a ban, with its end.
fn append_line(text: &mut String, since: SystemTime, port: Option<(Protocol, u16)>, source: IpAddr) {
    let (protocol, port) = port.unwrap_or((Protocol::Tcp, 0));
    let seconds = printable_time(since).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let date = utc(since).strftime("%m/%d/%Y %H:%M:%S");
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{seconds} - {date} Host: {source}/{source} Port: {port} {} Blocked", protocol.name());
}

/// The host for the line. A filter would read a forged ::ffff:192.0.2.1 as 192.0.2.1, which may be protected.
fn host(target: BanTarget, source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => target.element(),
        source => source,
    }
}

fn open_history(path: &Path) -> Result<File, LedgerError> {
    check_file(path)?;
    let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path);
    let mut file = file.map_err(LedgerError::system("open", path))?;
    end_last_line(&mut file).map_err(LedgerError::system("repair the last line of", path))?;
    Ok(file)
}

/// As [`append`], unless the history is full.
fn append_bounded(file: &mut File, text: &[u8]) -> io::Result<()> {
    if file.metadata()?.len() >= HISTORY_LIMIT {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "the file has reached its maximum of 256 MiB; rotate it",
        ));
    }
    append(file, text)
}
