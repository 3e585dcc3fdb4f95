//! Tests hosts.deny on a real disk, and its interpretation by the real TCP wrappers.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use portsentry::config::DEFAULT_DENY_LINE;
use portsentry::enforce::BanContext;
use portsentry::enforce::hosts_deny::{HostsDeny, HostsDenyError};
use rustix::fs::{XattrFlags, getxattr, setxattr};
use tempfile::TempDir;

use super::{context, target};

/// A directory with a file hosts.deny of this text.
fn directory(text: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hosts.deny");
    fs::write(&path, text).unwrap();
    (directory, path)
}

fn at(path: &Path) -> HostsDeny {
    HostsDeny::new(path, DEFAULT_DENY_LINE).unwrap()
}

fn names(directory: &TempDir) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn missing_file_is_created_world_readable() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hosts.deny");
    let hosts_deny = at(&path);
    assert_eq!(hosts_deny.targets().unwrap(), []);
    assert_eq!(hosts_deny.apply(&[], &[target("192.0.2.7")]).unwrap(), []);
    assert!(!path.exists(), "without a change no file is created");
    hosts_deny.apply(&[context("192.0.2.7", 60), context("2001:db8:1:2:3::4", 60)], &[]).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
    assert_eq!(hosts_deny.targets().unwrap(), [target("192.0.2.7"), target("2001:db8:1:2::")]);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("\nALL: 192.0.2.7\n") && text.ends_with("\nALL: [2001:db8:1:2::]/64\n"), "{text}");
    let removed = hosts_deny.apply(&[], &[target("2001:db8:1:2:9::9"), target("192.0.2.7"), target("192.0.2.8")]);
    assert_eq!(removed.unwrap(), [target("192.0.2.7"), target("2001:db8:1:2::")]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "");
    assert_eq!(names(&directory), ["hosts.deny"]);
}

#[test]
fn file_keeps_owner_mode_and_attributes() {
    let (_directory, path) = directory("sshd: x\n");
    // In a user namespace with a single user the owner cannot be changed.
    let given = chown(&path, Some(1234), Some(4321)).is_ok();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    setxattr(&path, "user.note", b"ours", XattrFlags::empty()).unwrap();
    // struct posix_acl_xattr_header and its entries of tag, permissions, id: user 0 may read.
    let nobody = u32::MAX;
    let entries = [(1_u16, 6_u16, nobody), (2, 4, 0), (4, 4, nobody), (0x10, 4, nobody), (0x20, 0, nobody)];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    setxattr(&path, "system.posix_acl_access", &list, XattrFlags::empty()).unwrap();
    let before = fs::metadata(&path).unwrap();
    at(&path).apply(&[context("192.0.2.7", 60)], &[]).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_ne!(before.ino(), after.ino(), "the file is replaced");
    assert_eq!((after.uid(), after.gid(), after.mode() & 0o7777), (before.uid(), before.gid(), 0o640));
    assert_eq!(given, after.uid() == 1234);
    let attribute = |name: &str| {
        let mut value = vec![0; 1024];
        let length = getxattr(&path, name, &mut value).unwrap();
        value.truncate(length);
        value
    };
    assert_eq!(attribute("user.note"), b"ours");
    assert_eq!(attribute("system.posix_acl_access"), list);
}

#[test]
fn link_pipe_and_directory_are_refused() {
    let (directory, real) = directory("sshd: x\n");
    let link = directory.path().join("link");
    symlink(&real, &link).unwrap();
    let add = [context("192.0.2.7", 60)];
    let error = at(&link).apply(&add, &[]).unwrap_err();
    assert!(matches!(error, HostsDenyError::Link(_)), "{error}");
    assert!(error.to_string().ends_with("is a symbolic link; configure the file that it points to"), "{error}");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    let dangling = directory.path().join("dangling");
    symlink(directory.path().join("nowhere"), &dangling).unwrap();
    assert!(matches!(at(&dangling).apply(&add, &[]), Err(HostsDenyError::Link(_))));
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(matches!(at(&pipe).targets(), Err(HostsDenyError::Kind(_))), "opening a pipe does not wait for a writer");
    assert!(matches!(at(directory.path()).apply(&add, &[]), Err(HostsDenyError::Kind(_))));
    let nowhere = directory.path().join("missing/hosts.deny");
    assert!(matches!(at(&nowhere).apply(&add, &[]), Err(HostsDenyError::System { .. })));
    assert_eq!(fs::read_to_string(&real).unwrap(), "sshd: x\n");
    assert_eq!(names(&directory), ["dangling", "hosts.deny", "link", "pipe"]);
}

#[test]
fn file_over_16_mib_is_refused() {
    let (directory, path) = directory("");
    let big = vec![b'#'; (16 << 20) + 1];
    fs::write(&path, &big).unwrap();
    assert!(matches!(at(&path).targets(), Err(HostsDenyError::TooBig(_))));
    fs::write(&path, [&big[..(16 << 20) - 10], b"\n"].concat()).unwrap();
    let before = fs::metadata(&path).unwrap();
    assert!(matches!(at(&path).apply(&[context("192.0.2.7", 60)], &[]), Err(HostsDenyError::Full(_))));
    let after = fs::metadata(&path).unwrap();
    assert_eq!((before.ino(), before.len()), (after.ino(), after.len()));
    assert_eq!(names(&directory), ["hosts.deny"]);
}

#[test]
fn leftovers_of_crash_are_ignored() {
    let (directory, path) = directory("sshd: x\n");
    let left = directory.path().join("hosts.deny.portsentry-new");
    symlink(&path, &left).unwrap();
    at(&path).apply(&[context("192.0.2.7", 60)], &[]).unwrap();
    assert_eq!(names(&directory), ["hosts.deny"]);
    assert!(!fs::symlink_metadata(&path).unwrap().is_symlink());
    assert!(fs::read_to_string(&path).unwrap().starts_with("sshd: x\n# portsentry: 192.0.2.7 until 2"));
}

#[test]
fn unchanged_content_keeps_the_inode() {
    let (_directory, path) = directory("");
    let hosts_deny = at(&path);
    let context = context("192.0.2.7", 60);
    hosts_deny.apply(&[context], &[]).unwrap();
    let inode = || fs::metadata(&path).unwrap().ino();
    let before = inode();
    hosts_deny.apply(&[context, context], &[target("192.0.2.9")]).unwrap();
    assert_eq!(inode(), before);
    hosts_deny.apply(&[BanContext { expiry: portsentry::types::Expiry::Never, ..context }], &[]).unwrap();
    assert_ne!(inode(), before);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text, "# portsentry: 192.0.2.7 until never\nALL: 192.0.2.7\n");
}

#[test]
fn concurrent_appends_keep_lines_whole() {
    let (_directory, path) = directory("");
    let stop = AtomicBool::new(false);
    let hosts_deny = at(&path);
    let mut written = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
                file.write_all(format!("sshd: host{number}\n").as_bytes()).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(7));
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        for last in 1..=60 {
            match hosts_deny.apply(&[context(&format!("192.0.2.{last}"), 60)], &[]) {
                Ok(_) => written.push(target(&format!("192.0.2.{last}"))),
                // On a slow disk every attempt finds the file changed.
                Err(error) => assert!(matches!(error, HostsDenyError::Unsteady(_)), "{error}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(hosts_deny.targets().unwrap(), written);
    let text = fs::read_to_string(&path).unwrap();
    let others: Vec<u32> =
        text.lines().filter_map(|line| Some(line.strip_prefix("sshd: host")?.parse().unwrap())).collect();
    assert!(!others.is_empty() && others.is_sorted(), "{text}");
    assert_eq!(text.lines().count(), others.len() + 2 * written.len(), "{text}");
}

/// True if the real TCP wrappers accept `client` for `service` with this directory's hosts.deny.
fn lets_in(directory: &TempDir, service: &str, client: &str) -> bool {
    for name in ["hosts.allow", "inetd.conf"] {
        fs::write(directory.path().join(name), "").unwrap();
    }
    let output = Command::new("tcpdmatch")
        .args(["-d", "-i", "inetd.conf", service, client])
        .current_dir(directory.path())
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .expect("tcpdmatch of Debian's package tcpd");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match (text.contains("granted"), text.contains("denied")) {
        (true, false) => true,
        (false, true) => false,
        _ => panic!("tcpdmatch says {text:?} {:?}", String::from_utf8_lossy(&output.stderr)),
    }
}

#[test]
fn tcp_wrappers_deny_only_listed_sources() {
    for (template, before) in [
        (DEFAULT_DENY_LINE, "# mine\nin.ftpd: 203.0.113.0/24\n"),
        ("ALL: $TARGET$ : DENY", "in.ftpd: 203.0.113.0/24\n"),
        ("ALL: $TARGET$ : DENY", "in.ftpd: 203.0.113.0/24\r\n"),
        ("ALL:$TARGET$:deny", "in.ftpd: \\\n203.0.113.0/24\n"),
    ] {
        let (directory, path) = directory(before);
        let hosts_deny = HostsDeny::new(&path, template).unwrap();
        hosts_deny.apply(&["192.0.2.7", "2001:db8:1:2::9", "fe80::7"].map(|source| context(source, 60)), &[]).unwrap();
        let lets = |client| lets_in(&directory, "sshd", client);
        let denied = ["192.0.2.7", "2001:db8:1:2::9", "2001:db8:1:2:ffff::1", "fe80::7"];
        let let_in = ["192.0.2.70", "192.0.2.77", "2001:db8:1:3::9", "fe80::8", "203.0.113.5"];
        assert_eq!(denied.map(lets), [false; 4], "{template:?} {before:?}");
        assert_eq!(let_in.map(lets), [true; 5], "{template:?} {before:?}");
        assert!(!lets_in(&directory, "in.ftpd", "203.0.113.5"), "the administrator's own rule still denies");
        hosts_deny.apply(&[], &hosts_deny.targets().unwrap()).unwrap();
        assert_eq!(denied.map(lets), [true; 4]);
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
    }
}

#[test]
fn tcp_wrappers_join_lines_as_assumed() {
    // A line after a backslash or a NUL is not a separate rule, so our line would have no effect there.
    for (before, joins) in [("x: y \\\n", true), ("# x \\\n", true), ("a\0b: c\n", true), ("x: y \\\r\n", false)] {
        let (directory, path) = directory(&format!("{before}ALL: 192.0.2.7\n"));
        assert_eq!(lets_in(&directory, "sshd", "192.0.2.7"), joins, "{before:?}");
        fs::write(&path, "").unwrap();
    }
    let (directory, path) = directory("x: y\nALL: 203.0.113.5");
    assert!(!lets_in(&directory, "sshd", "198.51.100.1"), "a last line without newline denies all clients");
    at(&path).apply(&[context("192.0.2.7", 60)], &[]).unwrap();
    assert!(!lets_in(&directory, "sshd", "198.51.100.1"), "our line does not change that");
}
