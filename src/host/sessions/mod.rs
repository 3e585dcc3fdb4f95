//! Reads the remote addresses of login sessions from the files of systemd-logind, or from utmp without logind. Only
//! programs of root register sessions with logind. utmp also has records that users create with setgid helpers, so only
//! records of root's processes count. The number of addresses per user is limited in either case. No name server is
//! queried: a session known only by host name has no address here. [`crate::engine`] decides whether the addresses are
//! protected.
//!
//! References: utmp(5), and sd-login(3). The files in /run/systemd/sessions are private to logind, but the lines used
//! here have been stable since systemd 30, and D-Bus would add a dependency that a firewall should not have.

mod utmp;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;

use super::file_watch::{Files, address, beginning, in_order, lines, listing};
use utmp::RemoteLogin;

/// Maximum number of remote addresses. Each becomes a protected address, so the list is limited.
pub const MAX_SESSIONS: usize = 256;

/// Maximum number of addresses per user, so that many sessions of one user leave room for others.
const MAX_SESSIONS_OF_USER: usize = 16;

/// Maximum size of utmp: about 5,000 logins.
const MAX_UTMP: u64 = 2 << 20;

/// Maximum size of a session file, which normally has about 600 bytes.
const MAX_FILE: u64 = 16 << 10;

/// Maximum number of session files read: most belong to local sessions.
const MAX_FILES: usize = 4_096;

/// Locations of session records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFiles {
    /// Files with utmp records; the same file under two names is harmless.
    pub utmp: Vec<PathBuf>,
    /// Directory in which logind keeps a file per session.
    pub logind: PathBuf,
}

impl Default for SessionFiles {
    /// /run/utmp, /var/run/utmp and /run/systemd/sessions.
    fn default() -> Self {
        Self { utmp: vec!["/run/utmp".into(), "/var/run/utmp".into()], logind: "/run/systemd/sessions".into() }
    }
}

impl SessionFiles {
    /// The addresses, sorted, without duplicates, at most [`MAX_SESSIONS`]. Never loopback. Missing and unreadable
    /// files are ignored. A killed process leaves its utmp record, so read them from time to time even without file
    /// changes.
    pub fn read(&self) -> Vec<IpAddr> {
        let logins: Vec<RemoteLogin> = if self.logind.is_dir() {
            self.sessions().into_iter().filter_map(|path| remote(&beginning(&path, MAX_FILE))).collect()
        } else {
            self.utmp.iter().flat_map(|path| utmp::sessions(&beginning(path, MAX_UTMP))).collect()
        };
        let mut by_user: HashMap<String, HashSet<IpAddr>> = HashMap::new();
        let admitted = logins.into_iter().filter_map(|RemoteLogin { user, address }| {
            let known = by_user.entry(user).or_default();
            let has_room = known.len() < MAX_SESSIONS_OF_USER;
            (known.contains(&address) || has_room && known.insert(address)).then_some(address)
        });
        in_order(admitted, MAX_SESSIONS)
    }

    fn sessions(&self) -> Vec<PathBuf> {
        // The session's FIFO, for example "4.ref", is in the same directory.
        listing(&self.logind, MAX_FILES, |name| !name.ends_with(".ref"))
    }
}

impl Files for SessionFiles {
    fn paths(&self) -> Vec<PathBuf> {
        self.utmp.iter().chain([&self.logind]).cloned().chain(self.sessions()).collect()
    }
}

/// A remote session of logind, unless it is closing.
fn remote(text: &[u8]) -> Option<RemoteLogin> {
    let (mut host, mut remote, mut over, mut user) = (None, false, false, "");
    for (key, value) in lines(text).filter_map(|line| line.split_once('=')) {
        match key {
            "UID" => user = value,
            "REMOTE" => remote = value == "1",
            "REMOTE_HOST" => host = address(value.trim_matches('"')),
            "STATE" => over = value == "closing",
            _ => {}
        }
    }
    let address = host.filter(|_| remote && !over)?;
    Some(RemoteLogin { user: user.to_owned(), address })
}

/// Fuzz target: arbitrary bytes as session files.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let _ = remote(bytes);
    let _ = utmp::sessions(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::file_watch::{FileWatch, tests::assert_noticed_once};
    use std::fs;
    use tempfile::TempDir;

    fn in_directory() -> (TempDir, SessionFiles) {
        let directory = TempDir::new().unwrap();
        let logind = directory.path().join("sessions");
        fs::create_dir(&logind).unwrap();
        let utmp = vec![directory.path().join("utmp")];
        (directory, SessionFiles { utmp, logind })
    }

    fn session(host: &str, state: &str) -> String {
        format!(
            "# This is private data. Do not parse.\nUID=0\nUSER=root\nACTIVE=1\nIS_DISPLAY=0\nSTATE={state}\nREMOTE=1\n\
             TYPE=tty\nCLASS=user\nSCOPE=session-4.scope\nREMOTE_HOST={host}\nSERVICE=sshd\nLEADER=812\nAUDIT=4\n"
        )
    }

    fn texts(addresses: &[IpAddr]) -> Vec<String> {
        addresses.iter().map(IpAddr::to_string).collect()
    }

    #[test]
    fn logind_names_remote_sessions() {
        let (_directory, files) = in_directory();
        let write = |name: &str, text: String| fs::write(files.logind.join(name), text).unwrap();
        write("1", session("203.0.113.9", "active"));
        write("2", session("2001:db8::9", "online"));
        write("c3", session("fe80::9%eth0", "active"));
        write("4", session("203.0.113.10", "closing"));
        write("5", session("admin.example.net", "active"));
        write("6", session("203.0.113.11", "active").replace("REMOTE=1", "REMOTE=0"));
        write("7", session("127.0.0.1", "active"));
        write("8.ref", session("203.0.113.12", "active"));
        write("9", "REMOTE=1\nREMOTE_HOST".to_owned());
        assert_eq!(texts(&files.read()), ["203.0.113.9", "2001:db8::9", "fe80::9"]);
    }

    #[test]
    fn invalid_utf8_line_is_skipped_within_limit() {
        let mut text = b"\xff\xfe=\0\n".to_vec();
        text.extend_from_slice(session("203.0.113.9", "active").as_bytes());
        assert!(remote(&text).is_some());
        for end in 0..text.len() {
            let cut = remote(&text[..end]);
            // A truncated address is another one. Complete files are renamed into place.
            assert!(cut.is_none() || text[..end].windows(12).any(|window| window == b"REMOTE_HOST="), "{end}");
        }
        let (_directory, files) = in_directory();
        fs::write(files.logind.join("1"), "#\n".repeat(8 << 10) + &session("203.0.113.9", "active")).unwrap();
        assert!(files.read().is_empty());
    }

    #[test]
    fn logind_is_trusted_before_utmp() {
        let (_directory, files) = in_directory();
        let process = utmp::tests::process_of_root();
        let record = |host: &str| utmp::tests::record(utmp::RECORD, utmp::USER_PROCESS, process, host, [0; 16]);
        fs::write(&files.utmp[0], [record("203.0.113.9"), record("203.0.113.8")].concat()).unwrap();
        fs::write(files.logind.join("1"), session("203.0.113.9", "active")).unwrap();
        assert_eq!(texts(&files.read()), ["203.0.113.9"]);
        fs::remove_dir_all(&files.logind).unwrap();
        assert_eq!(texts(&files.read()), ["203.0.113.8", "203.0.113.9"], "no logind here");
    }

    #[test]
    fn addresses_per_user_are_limited() {
        let (_directory, files) = in_directory();
        let process = utmp::tests::process_of_root();
        let record = |host: &str| utmp::tests::record(utmp::RECORD, utmp::USER_PROCESS, process, host, [0; 16]);
        fs::remove_dir_all(&files.logind).unwrap();
        let many = || (0..1_000).flat_map(|n| record(&format!("10.0.{}.{}", n / 256, n % 256)));
        let mut other = record("203.0.113.9");
        other[44..48].copy_from_slice(b"anne");
        fs::write(&files.utmp[0], many().chain(other).collect::<Vec<u8>>()).unwrap();
        let found = files.read();
        assert_eq!(found.len(), MAX_SESSIONS_OF_USER + 1);
        assert!(texts(&found).contains(&"203.0.113.9".to_owned()), "another user has room");
        fs::create_dir(&files.logind).unwrap();
        for n in 0..100 {
            fs::write(files.logind.join(n.to_string()), session(&format!("10.0.0.{n}"), "active")).unwrap();
        }
        assert_eq!(files.read().len(), MAX_SESSIONS_OF_USER);
    }

    #[test]
    fn missing_files_give_no_addresses() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        assert!(
            SessionFiles { utmp: vec![missing.clone(), directory.path().into()], logind: missing }.read().is_empty()
        );
    }

    #[test]
    fn login_and_logout_are_noticed_once() {
        let (directory, files) = in_directory();
        let mut watch = FileWatch::new(files.clone());
        assert_noticed_once(&mut watch, &[&|| fs::write(&files.utmp[0], [0; 384]).unwrap()]);
        // A file outside the watched directory is no change, which `assert_noticed_once` checks first.
        let (new, one) = (directory.path().join(".new"), files.logind.join("1"));
        fs::write(&new, session("203.0.113.9", "active")).unwrap();
        let changes: [&dyn Fn(); 2] = [&|| fs::rename(&new, &one).unwrap(), &|| fs::remove_file(&one).unwrap()];
        assert_noticed_once(&mut watch, &changes);
    }
}
