//! Parses utmp into the addresses of sessions whose process runs as root, as a login program does. Records of other
//! processes are ignored: any local user can add them with setgid helpers such as libutempter's. Never fails: an
//! incomplete record is skipped.
//!
//! References: utmp(5), and glibc's bits/utmp.h for the record: type (16 bits) at 0, process (32) at 4, user (32 bytes)
//! at 44, host (256 bytes) at 76, address (16 bytes, in network order) near its end.

use std::net::IpAddr;
use std::path::Path;

use crate::host::file_watch::{address, beginning, foreign, lines};

/// A login session from another host.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RemoteLogin {
    pub(super) user: String,
    pub(super) address: IpAddr,
}

/// Length of a record, and offset of the address in it. glibc uses 32 bits for session and time on architectures that
/// share the file with 32-bit programs, and 64 bits elsewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    length: usize,
    address: usize,
}

/// The layout of this machine.
pub(super) const RECORD: Layout = if cfg!(target_arch = "aarch64") { LONG } else { SHORT };

const SHORT: Layout = Layout { length: 384, address: 348 };
const LONG: Layout = Layout { length: 400, address: 360 };

const PROCESS: usize = 4;
const USER: usize = 44;
const USER_LENGTH: usize = 32;
const HOST: usize = 76;
const HOST_LENGTH: usize = 256;

/// ut_type of a session.
pub(super) const USER_PROCESS: i16 = 7;

/// The logins from other hosts whose processes belong to root.
pub(super) fn sessions(file: &[u8]) -> Vec<RemoteLogin> {
    read(file, RECORD, is_roots)
}

fn read(file: &[u8], layout: Layout, is_roots: impl Fn(i32) -> bool) -> Vec<RemoteLogin> {
    file.chunks_exact(layout.length).filter_map(|record| session(record, layout, &is_roots)).collect()
}

fn session(record: &[u8], layout: Layout, is_roots: impl Fn(i32) -> bool) -> Option<RemoteLogin> {
    if i16::from_ne_bytes(*record.first_chunk()?) != USER_PROCESS {
        return None;
    }
    let process = i32::from_ne_bytes(*record.get(PROCESS..)?.first_chunk()?);
    let user = record.get(USER..)?.get(..USER_LENGTH)?;
    let user = String::from_utf8_lossy(user.split(|byte| *byte == 0).next()?).into_owned();
    let host = record.get(HOST..)?.get(..HOST_LENGTH)?;
    let binary = record.get(layout.address..)?.first_chunk::<16>()?;
    // The text is preferred because it is unambiguous: an IPv6 address that ends in zeros looks like an IPv4 one.
    let address = host_address(host).or_else(|| binary_address(*binary))?;
    is_roots(process).then_some(RemoteLogin { user, address })
}

/// The address in ut_host, which ends at its first zero byte or at the end of the field. mosh writes
/// `ADDRESS via mosh [PID]`, screen `ADDRESS:S.0`, and others a name or a display.
fn host_address(host: &[u8]) -> Option<IpAddr> {
    let host = host.split(|byte| *byte == 0).next().and_then(|host| std::str::from_utf8(host).ok())?;
    let host = host.split_whitespace().next()?;
    address(host.split_once(":S.").map_or(host, |(host, _window)| host))
}

/// The address in ut_addr_v6. An IPv4 address occupies the first four bytes, followed by zeros.
fn binary_address(bytes: [u8; 16]) -> Option<IpAddr> {
    let [a, b, c, d, rest @ ..] = bytes;
    foreign(if rest == [0; 12] { IpAddr::from([a, b, c, d]) } else { IpAddr::from(bytes) })
}

/// True if the process exists and all four of its uids are root: a setuid program run by a user has the user's real
/// uid. A record remains after a session whose process was killed.
fn is_roots(process: i32) -> bool {
    let status = beginning(Path::new(&format!("/proc/{process}/status")), MAX_STATUS);
    let users = lines(&status).find_map(|line| line.strip_prefix("Uid:"));
    process > 0 && users.is_some_and(|users| users.split_whitespace().eq(["0"; 4]))
}

/// Maximum size read; more than the kernel writes.
const MAX_STATUS: u64 = 16 << 10;

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;
    use proptest::prelude::*;

    /// A record as sshd writes it.
    pub(in super::super) fn record(layout: Layout, kind: i16, process: i32, host: &str, address: [u8; 16]) -> Vec<u8> {
        let mut record = vec![0; layout.length];
        record[..2].copy_from_slice(&kind.to_ne_bytes());
        record[4..8].copy_from_slice(&process.to_ne_bytes());
        record[8..13].copy_from_slice(b"pts/0");
        record[40..43].copy_from_slice(b"ts/");
        record[44..48].copy_from_slice(b"root");
        record[76..76 + host.len()].copy_from_slice(host.as_bytes());
        record[layout.address..layout.address + 16].copy_from_slice(&address);
        record
    }

    /// A running process of root: this one, or else init.
    pub(in super::super) fn process_of_root() -> i32 {
        if rustix::process::geteuid().is_root() { std::process::id().cast_signed() } else { 1 }
    }

    fn one(host: &str, address: [u8; 16]) -> Option<String> {
        let found =
            [SHORT, LONG].map(|layout| read(&record(layout, USER_PROCESS, 812, host, address), layout, |_| true));
        assert_eq!(found[0], found[1]);
        found[0].first().map(|login| login.address.to_string())
    }

    fn v4(octets: [u8; 4]) -> [u8; 16] {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&octets);
        address
    }

    fn v6(text: &str) -> [u8; 16] {
        text.parse::<std::net::Ipv6Addr>().unwrap().octets()
    }

    #[test]
    fn address_is_found_as_text_or_binary() {
        for (host, address, found) in [
            ("203.0.113.9", v4([203, 0, 113, 9]), Some("203.0.113.9")),
            ("admin.example.net", v4([203, 0, 113, 9]), Some("203.0.113.9")),
            ("admin.example.net", v6("2001:db8::9"), Some("2001:db8::9")),
            ("2001:db8::", v6("2001:db8::"), Some("2001:db8::")),
            ("fe80::9%eth0", [0; 16], Some("fe80::9")),
            ("203.0.113.9 via mosh [4711]", [0; 16], Some("203.0.113.9")),
            ("203.0.113.9:S.0", [0; 16], Some("203.0.113.9")),
            ("2001:db8::9:S.1", [0; 16], Some("2001:db8::9")),
            ("::ffff:203.0.113.9", [0; 16], Some("203.0.113.9")),
            ("name", v6("::ffff:203.0.113.9"), Some("203.0.113.9")),
            ("admin.example.net", [0; 16], None),
            ("", [0; 16], None),
            (":0", [0; 16], None),
            ("tmux(1234).%0", [0; 16], None),
            ("localhost", v4([127, 0, 0, 1]), None),
            ("localhost", v6("::1"), None),
        ] {
            assert_eq!(one(host, address).as_deref(), found, "{host:?}");
        }
    }

    #[test]
    fn full_host_field_has_no_address() {
        assert_eq!(one(&"1".repeat(256), [0; 16]), None);
        let padded = format!("203.0.113.9{}", " ".repeat(245));
        assert_eq!(one(&padded, [0; 16]).as_deref(), Some("203.0.113.9"));
    }

    #[test]
    fn only_logins_by_root_processes_count() {
        let of = |kind, process| sessions(&record(RECORD, kind, process, "203.0.113.9", [0; 16])).len();
        let roots = process_of_root();
        assert_eq!(of(USER_PROCESS, roots), 1);
        // Empty, run level, boot, clock, init, login prompt, dead.
        for kind in (i16::MIN..=i16::MAX).step_by(1_013).chain(0..=9).filter(|kind| *kind != USER_PROCESS) {
            assert_eq!(of(kind, roots), 0, "{kind}");
        }
        let mut other = std::process::Command::new("sleep");
        if rustix::process::geteuid().is_root() {
            other.uid(65_534);
        }
        let mut other = other.arg("60").spawn().unwrap();
        assert_eq!(of(USER_PROCESS, i32::try_from(other.id()).unwrap()), 0, "the process belongs to another user");
        other.kill().unwrap();
        other.wait().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        for process in [dead, 0, -1, -roots, i32::MIN, i32::MAX] {
            assert_eq!(of(USER_PROCESS, process), 0, "{process}");
        }
    }

    #[test]
    fn truncated_file_gives_complete_records() {
        for layout in [SHORT, LONG] {
            let first = record(layout, USER_PROCESS, 1, "203.0.113.9", [0; 16]);
            let second = record(layout, USER_PROCESS, 2, "", v4([203, 0, 113, 10]));
            let file = [first, second].concat();
            for end in 0..=file.len() {
                assert_eq!(read(&file[..end], layout, |_| true).len(), end / layout.length, "{end}");
            }
        }
    }

    proptest! {
        #[test]
        fn record_gives_one_address_at_most(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
            let mut bytes = bytes;
            for record in bytes.chunks_exact_mut(384) {
                record[..2].copy_from_slice(&USER_PROCESS.to_ne_bytes());
            }
            prop_assert!(read(&bytes, SHORT, |_| true).len() <= bytes.len() / 384);
        }
    }
}
