//! Chooses an unused uid on a host without the user `portsentry`, from the range that systemd reserves for dynamic
//! users. No distribution assigns a uid of this range to an account.
//!
//! References: "Users, Groups, UIDs and GIDs on systemd systems" for the range, DynamicUser= in systemd.exec(5),
//! getpwnam(3), user_namespaces(7).

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Group, User};

/// The uids of dynamic users.
const RANGE: RangeInclusive<u32> = 61_184..=65_519;

/// Directory in which systemd keeps a file for each assigned uid.
const HANDED_OUT: &str = "/run/systemd/dynamic-uid";

/// Returns the uid for a process whose state is in the first of `directories`: the owner that an earlier run gave one
/// of them, otherwise the first unused uid. The search begins at a uid that depends only on the path, so that a later
/// start finds the same. `None` if no uid is unused, or none is mapped into this user namespace.
pub(super) fn choose(directories: &[PathBuf]) -> Option<u32> {
    let owners =
        directories.iter().filter_map(|directory| fs::symlink_metadata(directory).ok()).map(|found| found.uid());
    let size = RANGE.end() - RANGE.start() + 1;
    let path = directories.first().map_or(Path::new("/"), PathBuf::as_path);
    let first = u32::try_from(hash(path.as_os_str().as_bytes()) % u64::from(size)).unwrap_or_default();
    let all = (0..size).map(|offset| RANGE.start() + (first + offset) % size);
    let mut candidates = owners.filter(|owner| RANGE.contains(owner)).chain(all).filter(|number| is_mapped(*number));
    candidates.find(|number| is_unused(*number))
}

/// True for a uid of the range that belongs to no account, no systemd service and no process.
pub(super) fn is_unused(number: u32) -> bool {
    RANGE.contains(&number)
        && matches!(looked_up(User::from_uid(number.into())), Ok(None))
        && matches!(looked_up(Group::from_gid(number.into())), Ok(None))
        && !Path::new(HANDED_OUT).join(number.to_string()).exists()
        && !has_process(number).unwrap_or(true)
}

/// FNV-1a, which gives the same number for the same path in every version of this program.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// True if a process has this uid as one of its four uids.
fn has_process(number: u32) -> io::Result<bool> {
    for process in fs::read_dir("/proc")? {
        let path = process?.path();
        let is_process = path.file_name().is_some_and(|name| name.as_bytes().iter().all(u8::is_ascii_digit));
        // A process that has ended in the meantime has no status.
        if is_process && fs::read_to_string(path.join("status")).is_ok_and(|status| runs_as(&status, number)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads one `/proc/PID/status`. A zombie is inactive, and may be the previous daemon.
fn runs_as(status: &str, number: u32) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let ended = field("State:").is_some_and(|state| state.trim_start().starts_with(['Z', 'X']));
    let users = field("Uid:").unwrap_or_default();
    !ended && users.split_whitespace().any(|user| user.parse() == Ok(number))
}

/// Converts a name service result; several errors mean that there is no such entry (getpwnam(3)).
pub(super) fn looked_up<T>(found: nix::Result<Option<T>>) -> nix::Result<Option<T>> {
    match found {
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => Ok(None),
        other => other,
    }
}

/// True if this user namespace maps `number` as a uid and as a gid.
pub(super) fn is_mapped(number: u32) -> bool {
    ["/proc/self/uid_map", "/proc/self/gid_map"]
        .iter()
        .all(|path| fs::read_to_string(path).map_or(true, |map| maps(&map, number)))
}

/// Reads one map. Its lines contain the first id inside, the first id outside, and the count.
fn maps(map: &str, number: u32) -> bool {
    map.lines().any(|line| {
        let mut words = line.split_whitespace().map(str::parse::<u32>);
        let (Some(Ok(first)), Some(_), Some(Ok(count))) = (words.next(), words.next(), words.next()) else {
            return false;
        };
        number.checked_sub(first).is_some_and(|offset| offset < count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_is_stable_and_in_range() {
        let number = choose(&["/var/lib/portsentry".into()]);
        let Some(number) = number else { return println!("skipped: no user id of the range is mapped here") };
        assert!(RANGE.contains(&number));
        assert_eq!(choose(&["/var/lib/portsentry".into()]), Some(number), "a second start has the same number");
        assert_ne!(choose(&["/var/lib/other".into()]), Some(number), "another state has another number");
    }

    #[test]
    fn uid_of_running_process_is_used() {
        let status = |state: &str, users: &str| format!("Name:\tx\nState:\t{state}\nUid:\t{users}\nGid:\t61200\n");
        assert!(runs_as(&status("S (sleeping)", "0\t0\t61200\t0"), 61_200), "saved");
        assert!(!runs_as(&status("S (sleeping)", "0\t0\t0\t0"), 61_200), "only its group");
        assert!(!runs_as(&status("Z (zombie)", "61200\t61200\t61200\t61200"), 61_200));
        assert!(has_process(rustix::process::getuid().as_raw()).unwrap());
    }

    #[test]
    fn uid_outside_range_is_never_free() {
        for number in [0, 1_000, 61_183, 65_520, 65_534] {
            assert!(!is_unused(number), "{number}");
        }
    }

    #[test]
    fn map_of_a_user_namespace_is_read() {
        let whole = "         0          0 4294967295\n";
        assert!(maps(whole, 0) && maps(whole, 61_184));
        let container = "0 100000 65536\n";
        assert!(maps(container, 65_519) && !maps(container, 65_536));
        assert!(!maps("0 1000 1\n", 61_184) && !maps("", 0) && !maps("0 x\n", 0));
    }
}
