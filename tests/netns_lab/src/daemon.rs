//! Runs the program under test as a process in the victim's network namespace.

use std::io::{BufRead as _, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::process::{Pid, Signal, kill_process};

use crate::namespace::with_etc;
use crate::{Lab, PROMPT_TIMEOUT, TIMEOUT, eventually, slowness, within};

/// The line that the program logs when it is ready.
const READY: &str = "adminalert: PortSentry is now active and listening.";

/// Gives the program the lab's own resolver and no configuration of this machine.
const PREPARE: &str = r#"
target=$(readlink -m /etc/resolv.conf)
case $target in /run/*) mkdir -p "${target%/*}"; [ -e "$target" ] || : >"$target" ;; esac
mount --bind "$1/resolv.conf" "$target"
[ ! -d /etc/portsentry ] || mount -t tmpfs tmpfs /etc/portsentry
"#;

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    log: Log,
}

/// The exit status of a program, and its standard error.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    /// The complete text of standard error.
    pub log: String,
}

impl Daemon {
    /// Starts the program in the victim and waits until it is ready.
    pub fn start(lab: &Lab, arguments: &[&str]) -> Self {
        Self::start_under(lab, &[], arguments)
    }

    /// Starts the program with a wrapper that executes it in its own process, such as `strace -D`.
    pub fn start_under(lab: &Lab, wrapper: &[&str], arguments: &[&str]) -> Self {
        let daemon = Self::spawn(lab, wrapper, arguments);
        daemon.expect_line(READY);
        daemon
    }

    /// Starts the program with a log in another place. Standard error then does not show when it is ready, so this does
    /// not wait.
    pub fn start_elsewhere(lab: &Lab, wrapper: &[&str], arguments: &[&str]) -> Self {
        Self::spawn(lab, wrapper, arguments)
    }

    /// Starts the program with `configuration` as its configuration file.
    pub fn start_configured(lab: &Lab, configuration: &str, arguments: &[&str]) -> Self {
        let path = lab.write("portsentry.toml", configuration);
        let path = path.to_str().expect("temporary paths are text");
        Self::start(lab, &[&["--config", path], arguments].concat())
    }

    /// As [`Daemon::start_configured`] with `--expire 24h`; waits until the trap or the decoys monitor closed ports.
    pub fn start_armed(lab: &Lab, configuration: &str) -> Self {
        let daemon = Self::start_configured(lab, configuration, &["--expire", "24h"]);
        lab.trapped_ports();
        daemon
    }

    /// Runs the program until it exits, which must happen soon.
    pub fn run_to_end(lab: &Lab, wrapper: &[&str], arguments: &[&str]) -> Ended {
        Self::spawn(lab, wrapper, arguments).end()
    }

    /// Waits until the program exits, which must happen soon.
    pub fn end(mut self) -> Ended {
        let status = self.wait(TIMEOUT).unwrap_or_else(|| panic!("it did not exit; {}", self.log.text()));
        Ended { status, log: self.log.to_end() }
    }

    /// Starts the program without waiting until it is ready.
    pub fn spawn(lab: &Lab, wrapper: &[&str], arguments: &[&str]) -> Self {
        Self::spawn_with(lab, wrapper, arguments, Stdio::piped())
    }

    /// Starts the program with a log that only the test reads, or leaves unread. Returns the read end, whose buffer is
    /// small.
    pub fn spawn_unread(lab: &Lab, arguments: &[&str]) -> (Self, UnixStream) {
        let (reader, writer) = UnixStream::pair().expect("a pair of sockets");
        set_socket_send_buffer_size(&writer, 4_096).expect("it is a socket");
        (Self::spawn_with(lab, &[], arguments, OwnedFd::from(writer).into()), reader)
    }

    fn spawn_with(lab: &Lab, wrapper: &[&str], arguments: &[&str], stderr: Stdio) -> Self {
        let mut command: Command = lab.command("victim", "sh");
        command.args(with_etc(&lab.path(""), PREPARE)).args(wrapper).arg(binary()).args(arguments);
        // The ledger belongs to the lab and outlives a daemon, so that the next one in the same lab finds it.
        for (option, name) in [("--state-dir", "state"), ("--socket", "socket")] {
            if !arguments.contains(&option) {
                command.arg(option).arg(lab.path(name));
            }
        }
        let mut child = command.stdout(Stdio::null()).stderr(stderr).spawn().expect("ip runs");
        let log = child.stderr.take().map_or_else(|| Log::follow(std::io::empty()), Log::follow);
        Self { child, log }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The process id, for signals and limits.
    pub fn pid(&self) -> Pid {
        i32::try_from(self.id()).ok().and_then(Pid::from_raw).expect("a process id")
    }

    /// Waits for a line that contains `part`; panics with the whole log at the time limit.
    pub fn expect_line(&self, part: &str) -> String {
        let line = self.log.wait_for(part, TIMEOUT);
        line.unwrap_or_else(|| panic!("the log has no line with {part:?}; {}", self.log.text()))
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.lines().join("\n")
    }

    /// All lines so far that contain `part`.
    pub fn lines_with(&self, part: &str) -> Vec<String> {
        self.log.lines().into_iter().filter(|line| line.contains(part)).collect()
    }

    /// True while the process runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }

    /// Sends a signal and waits until the program exits. Returns its result and the time that this took.
    pub fn end_by(mut self, signal: Signal) -> (Ended, Duration) {
        let begin = Instant::now();
        self.signal(signal);
        let status =
            self.wait(TIMEOUT * slowness()).unwrap_or_else(|| panic!("{signal:?} did not end it; {}", self.log.text()));
        (Ended { status, log: self.log.to_end() }, begin.elapsed())
    }

    /// Stops the program as an administrator does. Returns its log; panics unless it exits quickly with code 0.
    pub fn stop(self) -> String {
        let (ended, took) = self.end_by(Signal::TERM);
        assert!(took < PROMPT_TIMEOUT * slowness(), "it took {took:?} to end; {}", ended.log);
        assert!(ended.status.success(), "{}; {}", ended.status, ended.log);
        ended.log
    }

    /// Kills the program, to simulate a crash.
    pub fn kill(self) {
        drop(self);
    }

    /// Runs `work` while the program is suspended, as by a debugger or in a frozen container.
    pub fn frozen<T>(&self, work: impl FnOnce() -> T) -> T {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.id());
        eventually("all its threads are stopped", || {
            let tasks = std::fs::read_dir(&tasks).expect("it runs").flatten();
            let states = tasks.map(|task| std::fs::read_to_string(task.path().join("stat")).unwrap_or_default());
            // The state follows the name, which is in parentheses.
            states.into_iter().all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        self.signal(Signal::CONT);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it is our child");
    }

    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        within(limit, || self.child.try_wait().expect("it is our child"))
    }
}

impl Drop for Daemon {
    #[expect(clippy::print_stderr, reason = "shown with the failed test")]
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log.text());
        }
    }
}

/// The program under test: the one in `PORTSENTRY`, for example that of an installed package, or the one that cargo
/// built for this test program. Cargo 1.94 and later sets a variable for it. With older versions, or if a test program
/// is started directly, it is in the parent directory.
pub fn binary() -> PathBuf {
    let named = ["PORTSENTRY", "CARGO_BIN_EXE_portsentry"].into_iter().find_map(std::env::var_os);
    let binary = named.map_or_else(
        || {
            let own = std::env::current_exe().expect("the test program has a path");
            own.ancestors().nth(2).expect("it is in one of cargo's directories").join("portsentry")
        },
        PathBuf::from,
    );
    assert!(binary.exists(), "{} does not exist; set PORTSENTRY to the program", binary.display());
    binary
}

/// The lines of a stream, which a thread adds as they arrive.
pub(crate) struct Log(Arc<(Mutex<Lines>, Condvar)>);

#[derive(Default)]
struct Lines {
    lines: Vec<String>,
    ended: bool,
}

impl Log {
    pub(crate) fn follow(stream: impl Read + Send + 'static) -> Self {
        let shared = Arc::new((Mutex::new(Lines::default()), Condvar::new()));
        let writer = Arc::clone(&shared);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                writer.0.lock().unwrap_or_else(PoisonError::into_inner).lines.push(line);
                writer.1.notify_all();
            }
            writer.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
            writer.1.notify_all();
        });
        Self(shared)
    }

    /// The first line that contains `part`; waits for it at most `limit`, or until the stream ends.
    fn wait_for(&self, part: &str, limit: Duration) -> Option<String> {
        let found = |lines: &Lines| lines.lines.iter().find(|line| line.contains(part)).cloned();
        let guard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wait =
            self.0.1.wait_timeout_while(guard, limit * slowness(), |lines| found(lines).is_none() && !lines.ended);
        found(&wait.unwrap_or_else(PoisonError::into_inner).0)
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).lines.clone()
    }

    fn text(&self) -> String {
        format!("it wrote:\n{}", self.lines().join("\n"))
    }

    /// Returns all lines once the stream has ended. The wait is limited, because a child process could keep the stream
    /// open.
    fn to_end(&self) -> String {
        let guard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.0.1.wait_timeout_while(guard, TIMEOUT * slowness(), |lines| !lines.ended);
        wait.unwrap_or_else(PoisonError::into_inner).0.lines.join("\n")
    }
}

/// The output file of `strace -o` in tests that trace the program.
pub fn trace_file(lab: &Lab) -> PathBuf {
    lab.path("trace")
}
