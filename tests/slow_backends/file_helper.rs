//! Tests the helper process that writes root's files. It runs as a thread of the test; the requests of the daemon are
//! valid or malicious.

use std::fs;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use portsentry::config::DEFAULT_DENY_LINE;
use portsentry::enforce::HostsDenyQueue;
use portsentry::enforce::file_helper::{FileHelper, Files, serve};
use portsentry::enforce::helper_socket::{HelperError, pair};
use portsentry::enforce::hosts_deny::HostsDeny;
use portsentry::enforce::slow_backends::{BackendEvent, Task};
use portsentry::events::json_log;
use portsentry::types::Backend;
use rustix::net::{SendFlags, send};
use tempfile::TempDir;

use super::{Bench, context, target};

type Served = JoinHandle<Result<(), HelperError>>;

fn start(files: &Files) -> (FileHelper, Served) {
    let (ours, served) = start_raw(files);
    (FileHelper::new(ours, 7), served)
}

fn start_raw(files: &Files) -> (OwnedFd, Served) {
    let (ours, theirs) = pair().unwrap();
    let files = files.clone();
    (ours, std::thread::spawn(move || serve(&theirs, &files)))
}

fn setup() -> (TempDir, PathBuf, HostsDeny) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hosts.deny");
    let hosts_deny = HostsDeny::new(&path, DEFAULT_DENY_LINE).unwrap();
    (directory, path, hosts_deny)
}

fn names(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn lines_are_written_by_helper() {
    let (_directory, path, hosts_deny) = setup();
    fs::write(&path, "sshd: x\n").unwrap();
    let (helper, served) = start(&Files { hosts_deny: Some(hosts_deny.clone()), json_file: None });
    let queue = HostsDenyQueue::new(hosts_deny.clone(), Some(helper.clone()));
    let bench = Bench::start(vec![(Backend::HostsDeny, Box::new(queue))]);
    let context = context("192.0.2.7", 60);
    bench.block(context, &[Backend::HostsDeny]);
    assert_eq!(bench.next(), super::done(context));
    assert!(fs::read_to_string(&path).unwrap().starts_with("sshd: x\n# portsentry: 192.0.2.7 until "));
    // Another program replaces the file, without the line: the thread reads it through the helper and rewrites it.
    fs::write(path.with_extension("new"), "sshd: y\n").unwrap();
    fs::rename(path.with_extension("new"), &path).unwrap();
    assert!(matches!(bench.next(), BackendEvent::Restored { .. }));
    bench.put(Task::Release { targets: vec![target("192.0.2.7")] });
    assert!(matches!(bench.next(), BackendEvent::Released { .. }));
    assert_eq!(fs::read_to_string(&path).unwrap(), "sshd: y\n");
    drop((bench, helper));
    served.join().unwrap().unwrap();
}

#[test]
fn change_of_many_messages_is_atomic() {
    let (directory, _, hosts_deny) = setup();
    let (helper, served) = start(&Files { hosts_deny: Some(hosts_deny.clone()), json_file: None });
    assert_eq!(helper.read(1 << 20).unwrap(), None, "the file does not exist");
    let sources: Vec<String> =
        (0..1_200).map(|number| format!("192.0.{}.{}", number / 250, number % 250 + 1)).collect();
    let add: Vec<_> = sources.iter().map(|source| context(source, 60)).collect();
    helper.edit(&add, &[]).unwrap();
    assert_eq!(hosts_deny.targets().unwrap().len(), 1_200);
    let remove: Vec<_> = sources[1..].iter().map(|source| target(source)).collect();
    helper.edit(&[], &remove).unwrap();
    assert_eq!(hosts_deny.targets().unwrap(), [target(&sources[0])]);
    let bytes = helper.read(1 << 20).unwrap().unwrap();
    assert_eq!(bytes, fs::read(hosts_deny.path()).unwrap());
    assert_eq!(names(directory.path()), ["hosts.deny"]);
    drop(helper);
    served.join().unwrap().unwrap();
}

#[test]
fn garbage_ends_helper_and_writes_nothing() {
    let (directory, path, hosts_deny) = setup();
    let files = Files { hosts_deny: Some(hosts_deny), json_file: Some((directory.path().join("log"), json_log::open)) };
    let garbage: [&[u8]; 7] = [
        b"\x03",
        b"\"write\"",
        b"/etc/passwd",
        br#"{"edit":{"add":[],"remove":[]}}"#,
        br#"{"open-log":"/etc/shadow"}"#,
        br#"{"edit":{"add":[],"remove":[],"last":true,"path":"/etc/passwd"}}"#,
        &[b' '; 70_000],
    ];
    for bytes in garbage {
        let (ours, served) = start_raw(&files);
        send(&ours, bytes, SendFlags::NOSIGNAL).unwrap();
        assert!(matches!(served.join().unwrap(), Err(HelperError::InvalidRequest)), "{bytes:?}");
        let error = FileHelper::new(ours, 7).edit(&[context("192.0.2.7", 60)], &[]).unwrap_err();
        assert_eq!(error.to_string(), "process 7, which writes the file, has ended; restart portsentry");
    }
    assert!(!path.exists());
    // The size of an unfinished change is limited.
    let (ours, served) = start_raw(&files);
    let targets = ["\"192.0.2.7\""; 512].join(",");
    let part = format!(r#"{{"edit":{{"add":[],"remove":[{targets}],"last":false}}}}"#);
    let sent = (0..1_000).take_while(|_| send(&ours, part.as_bytes(), SendFlags::NOSIGNAL).is_ok()).count();
    assert!((256..1_000).contains(&sent), "{sent}");
    assert!(matches!(served.join().unwrap(), Err(HelperError::InvalidRequest)));
    assert_eq!(names(directory.path()), [""; 0]);
}

#[test]
fn helper_serves_configured_files_only() {
    let (directory, path, hosts_deny) = setup();
    let (helper, served) = start(&Files::default());
    for error in [helper.edit(&[context("192.0.2.7", 60)], &[]), helper.read(9).map(drop), helper.open_log().map(drop)]
    {
        let error = error.unwrap_err();
        assert_eq!(
            error.to_string(),
            "refused: the configuration did not name this file when portsentry started; restart portsentry"
        );
    }
    drop(helper);
    served.join().unwrap().unwrap();

    let [log, secret] = ["log", "secret"].map(|name| directory.path().join(name));
    fs::write(&secret, "of root\n").unwrap();
    let (helper, served) =
        start(&Files { hosts_deny: Some(hosts_deny), json_file: Some((log.clone(), json_log::open)) });
    helper.open_log().unwrap().write_all(b"one\n").unwrap();
    assert_eq!(fs::read_to_string(&log).unwrap(), "one\n");
    fs::remove_file(&log).unwrap();
    // Files that another user may have placed there.
    fs::hard_link(&secret, &log).unwrap();
    assert_eq!(
        helper.open_log().unwrap_err().to_string(),
        "refused: the file has a second hard link; remove one of the two"
    );
    fs::remove_file(&log).unwrap();
    symlink(&secret, &log).unwrap();
    assert!(helper.open_log().unwrap_err().to_string().contains("symbolic link"));
    symlink(&secret, &path).unwrap();
    assert!(helper.read(9).unwrap_err().to_string().contains("symbolic link"));
    assert!(helper.edit(&[context("192.0.2.7", 60)], &[]).unwrap_err().to_string().contains("symbolic link"));
    assert_eq!(fs::read_to_string(&secret).unwrap(), "of root\n");
    drop(helper);
    served.join().unwrap().unwrap();
}
