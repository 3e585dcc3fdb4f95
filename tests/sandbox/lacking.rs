//! Tests that the sandbox denies dropped privileges, and that it works on kernels with only some of its mechanisms.
//! Each test runs in its own process: this program, started again for one ignored test.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output};

use nix::libc;
use portsentry::sandbox::{Calls, Policy, Process, Sandbox};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

fn run_alone(test: &str) -> Output {
    let name = format!("lacking::{test}");
    let own = std::env::current_exe().unwrap();
    netns_lab::command_with_etc(&own)
        .args(["--exact", &name, "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .unwrap()
}

fn assert_passes(test: &str) {
    let output = run_alone(test);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
}

/// Simulates a kernel without this system call.
fn without(call: i64) {
    let rules = BTreeMap::from([(call, Vec::new())]);
    let missing = SeccompAction::Errno(u32::try_from(libc::ENOSYS).unwrap());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter: BpfProgram =
        SeccompFilter::new(rules, SeccompAction::Allow, missing, arch).unwrap().try_into().unwrap();
    apply_filter(&filter).unwrap();
}

#[test]
fn exec_in_sandbox_kills_process() {
    let output = run_alone("subprocess_executes_program");
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("sandboxed"), "{output:?}");
}

#[test]
#[ignore = "runs in its own process"]
fn subprocess_executes_program() {
    assert_eq!(Sandbox::enter(&Policy::default(), || ()).state.seccomp, Calls::Listed);
    assert_eq!(Command::new("/bin/true").status().unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    println!("sandboxed");
    // The call does not return, or is not executed by the kernel.
    drop(Command::new("/bin/true").exec());
}

#[test]
fn harmful_syscall_arguments_are_refused() {
    assert_passes("subprocess_makes_harmful_calls");
}

#[test]
#[ignore = "runs in its own process"]
fn subprocess_makes_harmful_calls() {
    let (parent, has_landlock) = (rustix::process::getppid().unwrap(), super::has_landlock());
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let name =
        rustix::net::SocketAddrUnix::new_abstract_name(format!("lacking-{}", std::process::id()).as_bytes()).unwrap();
    let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &name).unwrap();
    rustix::net::listen(&listener, 4).unwrap();
    let sandbox = Sandbox::enter(&Policy::default(), || ());
    assert_eq!(sandbox.state.seccomp, Calls::Listed);
    let abi = sandbox.state.landlock_abi.unwrap_or_default();
    let socket = |family| rustix::net::socket(family, SocketType::STREAM, None).map(drop);
    assert_eq!(socket(AddressFamily::VSOCK), Err(Errno::PERM));
    socket(AddressFamily::INET).unwrap();
    assert_eq!(rustix::process::kill_process(parent, rustix::process::Signal::CONT), Err(Errno::PERM));
    assert_eq!(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable), Err(Errno::PERM));
    // As far as this kernel's Landlock supports it (6.7, 6.12).
    let bound = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    assert_eq!(bound(0), abi < 4, "no port is allowed by the policy");
    let connected = TcpStream::connect(address).err().map(|error| error.kind());
    assert_eq!(connected, (abi >= 4).then_some(ErrorKind::PermissionDenied));
    let stream = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    assert_eq!(rustix::net::connect(&stream, &name), if abi >= 6 { Err(Errno::PERM) } else { Ok(()) });
    // seccomp allows signal 0, which only asks whether a process exists.
    let test_signal = rustix::process::test_kill_process(parent);
    assert_eq!(test_signal, if abi >= 6 { Err(Errno::PERM) } else { Ok(()) });
    rustix::process::test_kill_process(rustix::process::getpid()).unwrap();
    // A thread can be started.
    std::thread::spawn(|| ()).join().unwrap();
    let denied = std::fs::read("/etc/shadow").err().map(|error| error.kind());
    assert_eq!(denied, has_landlock.then_some(std::io::ErrorKind::PermissionDenied));
}

#[test]
fn missing_landlock_is_reported_once() {
    assert_passes("subprocess_without_landlock");
}

#[test]
#[ignore = "runs in its own process"]
fn subprocess_without_landlock() {
    without(libc::SYS_landlock_create_ruleset);
    let sandbox = Sandbox::enter(&Policy::default(), || ());
    assert_eq!((sandbox.state.landlock_abi, sandbox.state.seccomp), (None, Calls::Listed));
    assert!(sandbox.state.no_new_privs && !sandbox.state.core_dumps);
    let warnings: Vec<_> = sandbox.warnings.iter().filter(|text| text.contains("Landlock")).collect();
    assert_eq!(warnings, ["the file access of portsentry is not restricted: this kernel has no Landlock (Linux 5.13)"]);
    assert!(sandbox.out_of_reach("/etc/shadow".as_ref(), false).is_none());
}

#[test]
fn missing_seccomp_is_reported_once() {
    assert_passes("subprocess_without_seccomp");
}

#[test]
#[ignore = "runs in its own process"]
fn subprocess_without_seccomp() {
    let has_landlock = super::has_landlock();
    without(libc::SYS_seccomp);
    let sandbox = Sandbox::enter(&Policy::default(), || ());
    assert_eq!((sandbox.state.seccomp, sandbox.state.landlock_abi.is_some()), (Calls::All, has_landlock));
    assert!(sandbox.state.no_new_privs);
    let warnings = sandbox
        .warnings
        .iter()
        .filter(|text| text.starts_with("the system calls of portsentry are not restricted: "))
        .count();
    assert_eq!(warnings, 1, "{:?}", sandbox.warnings);
}

#[test]
fn commands_run_any_program_without_ptrace() {
    assert_passes("subprocess_with_commands");
}

#[test]
#[ignore = "runs in its own process"]
fn subprocess_with_commands() {
    let sandbox =
        Sandbox::enter(&Policy { process: Process::Commands, root: Some("commands"), ..Policy::default() }, || ());
    assert_eq!((sandbox.state.seccomp, sandbox.state.landlock_abi), (Calls::Most, None));
    let output = Command::new("sh").args(["-c", "grep -E 'CapPrm|NoNewPrivs' /proc/self/status"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("0000000000003000") && text.contains("NoNewPrivs:\t1"), "{text}");
    assert_eq!(rustix::process::chroot("/"), Err(Errno::PERM));
}

#[test]
fn root_file_helper_creates_no_socket() {
    let output = run_alone("subprocess_of_file_helper");
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("sandboxed"), "{output:?}");
}

#[test]
#[ignore = "runs in its own process"]
fn subprocess_of_file_helper() {
    let (place, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let policy = Policy {
        process: Process::Files,
        write: vec![place.path().to_owned()],
        root: Some("root's files"),
        ..Policy::default()
    };
    let has_landlock = super::has_landlock();
    let sandbox = Sandbox::enter(&policy, || ());
    assert_eq!((sandbox.state.seccomp, sandbox.state.landlock_abi.is_some()), (Calls::Listed, has_landlock));
    std::fs::write(place.path().join("hosts.deny"), "x").unwrap();
    let elsewhere = std::fs::write(other.path().join("hosts.deny"), "x");
    assert_eq!(elsewhere.is_err(), has_landlock, "{elsewhere:?}");
    println!("sandboxed");
    drop(rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None));
}
