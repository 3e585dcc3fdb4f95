//! Creates a named network namespace and removes it on drop. It needs root, or `unshare -Urnm` with a writable
//! /run/netns.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const PREFIX: &str = "pslab";
/// The directory with the files that replace those of this machine in /etc.
pub(crate) const ETC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/etc");
/// Its files: the users root and nobody, the name localhost, and where users and host names are looked up.
pub(crate) const ETC_FILES: [&str; 4] = ["passwd", "group", "hosts", "nsswitch.conf"];

/// Hides the units of an installed portsentry, which `portsentry check` reads.
pub(crate) const HIDE_UNITS: &str = r#"
for units in /etc/systemd/system /run/systemd/system /usr/local/lib/systemd/system /usr/lib/systemd/system /lib/systemd/system; do
    for unit in "$units"/portsentry.service*; do
        [ ! -e "$unit" ] || mount -t tmpfs tmpfs "$units"
    done
done
"#;

pub struct Namespace {
    name: String,
}

impl Namespace {
    #[expect(clippy::new_without_default, reason = "creating one is expensive")]
    pub fn new() -> Self {
        static REMOVE_STALE: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        REMOVE_STALE.call_once(remove_stale);
        let name = format!("{PREFIX}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let output = Command::new("ip").args(["netns", "add", &name]).output().expect("iproute2 is installed");
        assert!(
            output.status.success(),
            "this test did not run: no network namespace can be made here ({}). Run `make test`, as root or where \
             user namespaces are allowed",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Self { name }
    }

    /// Creates a namespace whose loopback interface is up.
    pub fn with_loopback() -> Self {
        let namespace = Self::new();
        namespace.ip_batch("link set lo up\n");
        namespace
    }

    /// The name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` inside with the arguments `words`.
    pub fn ip(&self, words: &str) {
        let output = Command::new("ip").args(["-n", &self.name]).args(words.split_whitespace()).output();
        let output = output.expect("iproute2 is installed");
        assert!(output.status.success(), "ip refused {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs `commands` inside as one batch of `ip`, in one process.
    pub fn ip_batch(&self, commands: &str) {
        let mut ip = Command::new("ip");
        ip.args(["-n", &self.name, "-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = ip.spawn().expect("iproute2 is installed");
        child.stdin.take().expect("piped").write_all(commands.as_bytes()).expect("ip reads its batch");
        let output = child.wait_with_output().expect("ip ends");
        assert!(output.status.success(), "ip refused {commands:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs a program inside.
    pub fn run(&self, program: &str, words: &str) {
        let status = self.enter_by_ip(&[program]).args(words.split(' ')).status().expect("ip runs");
        assert!(status.success(), "{program} {words} failed");
    }

    /// A command that runs inside with the lab's users and host names.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.enter_by_ip(&["sh"]);
        command.args(with_etc(ETC.as_ref(), "")).arg(program);
        command
    }

    /// A command that runs inside, in a mount namespace of its own, without this machine's locale and SSH session.
    pub(crate) fn enter_by_ip(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(words).env("LC_ALL", "C.UTF-8");
        for variable in ["COLUMNS", "SSH_CLIENT", "SSH_CONNECTION"] {
            command.env_remove(variable);
        }
        command
    }

    /// Runs `work` on a new thread inside. Processes that the thread starts are also inside.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            enter(&self.name);
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }

    /// Runs `work` inside, in a tokio runtime.
    pub fn inside_async<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(work())
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A failure here must not hide an earlier panic. The next test run removes the namespace.
        remove(&self.name);
    }
}

/// A command that runs in this process's network with the lab's users and host names.
pub fn command_with_etc(program: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh"]).args(with_etc(ETC.as_ref(), "")).arg(program);
    command
}

/// The arguments of a shell that hides the units of portsentry, binds the files in `directory` over those of /etc, then
/// runs the commands `prepare` with `directory` as `$1`, then the program of the following arguments. It must run in a separate mount namespace, so
/// that no other process is affected. A file that this machine lacks stays missing. `exec` keeps the process id, to
/// which signals are sent.
pub(crate) fn with_etc(directory: &Path, prepare: &str) -> [OsString; 4] {
    let files = ETC_FILES.join(" ");
    let bind =
        format!(r#"for file in {files}; do [ ! -e "/etc/$file" ] || mount --bind "$1/$file" "/etc/$file"; done"#);
    ["-ec".into(), format!("{HIDE_UNITS}{bind}\n{prepare}\nshift\nexec \"$@\"").into(), "sh".into(), directory.into()]
}

/// Moves the calling thread into a named namespace.
pub fn enter(name: &str) {
    let file = File::open(Path::new("/run/netns").join(name)).expect("the namespace exists");
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter it");
}

fn remove(name: &str) {
    let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
}

/// Removes namespaces that killed test runs left behind: those named after a process that no longer exists.
fn remove_stale() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&name);
        }
    }
}
