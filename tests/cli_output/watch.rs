//! Tests `portsentry watch` in a pseudo-terminal, with a daemon in a network namespace.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use netns_lab::{Namespace, soon};

const PROGRAM: &str = env!("CARGO_BIN_EXE_portsentry");

/// Escape sequences that enter and leave the alternate screen.
const ENTER: &str = "\u{1b}[?1049h";
const LEAVE: &str = "\u{1b}[?1049l";

/// A daemon that bans no source by itself: its namespace receives no packets.
pub(super) struct Daemon {
    pub(super) directory: TempDir,
    pub(super) namespace: Namespace,
    child: Child,
}

impl Daemon {
    pub(super) fn start() -> Self {
        let (directory, namespace) = (tempfile::tempdir().unwrap(), Namespace::new());
        let mut command = namespace.command(PROGRAM);
        command
            .arg("--state-dir")
            .arg(directory.path().join("state"))
            .arg("--socket")
            .arg(directory.path().join("socket"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let daemon = Self { directory, namespace, child };
        assert!(soon(|| daemon.ask(&["status"]).status.success()), "the daemon does not answer");
        daemon
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn ask(&self, words: &[&str]) -> Output {
        self.namespace.command(PROGRAM).args(words).arg("--socket").arg(self.socket()).output().unwrap()
    }

    fn watch(&self) -> Terminal {
        let line = format!("exec {PROGRAM} watch --socket {}", self.socket().display());
        Terminal::run(self.namespace.command("script"), &self.directory, &line)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program in a terminal of 80 columns and 24 rows.
struct Terminal {
    child: Child,
    process: PathBuf,
    written: Arc<Mutex<Vec<u8>>>,
    reading: Option<JoinHandle<()>>,
}

impl Terminal {
    fn run(mut script: Command, directory: &TempDir, line: &str) -> Self {
        let process = directory.path().join("process");
        let line = format!("stty cols 80 rows 24; echo $$ >{}; {line}", process.display());
        script.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm-256color");
        let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let written = Arc::new(Mutex::new(Vec::new()));
        let (mut out, buffer) = (child.stdout.take().unwrap(), Arc::clone(&written));
        let reading = thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = out.read(&mut bytes) {
                buffer.lock().unwrap().extend_from_slice(&bytes[..length]);
            }
        });
        Self { child, process, written, reading: Some(reading) }
    }

    fn written(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
    }

    fn expect(&self, part: &str) {
        let shows = soon(|| screen(&self.written()).iter().any(|row| row.contains(part)));
        assert!(shows, "{part:?} never came:\n{}", screen(&self.written()).join("\n"));
    }

    fn press(&mut self, keys: &str) {
        self.child.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    fn terminate(&self) {
        let process: i32 = fs::read_to_string(&self.process).unwrap().trim().parse().unwrap();
        kill_process(Pid::from_raw(process).unwrap(), Signal::TERM).unwrap();
    }

    /// Waits for the end; returns the exit code and all output.
    fn end(mut self) -> (Option<i32>, String) {
        assert!(soon(|| self.child.try_wait().unwrap().is_some()), "it has not ended: {:?}", self.written());
        let code = self.child.wait().unwrap().code();
        self.reading.take().unwrap().join().unwrap();
        (code, self.written())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The screen after this output, which moves the cursor and contains only changes.
fn screen(written: &str) -> Vec<String> {
    let mut cells = vec![vec![' '; 80]; 24];
    let (mut row, mut column) = (0, 0);
    let mut rest = written.chars();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' if rest.next() == Some('[') => {
                let mut numbers = String::new();
                let mut last = rest.next();
                while let Some(c) = last.filter(|c| !c.is_ascii_alphabetic()) {
                    numbers.push(c);
                    last = rest.next();
                }
                let mut numbers = numbers.split(';').map(|number| number.parse().unwrap_or(1));
                match last {
                    Some('H') => (row, column) = (numbers.next().unwrap() - 1, numbers.next().unwrap_or(1) - 1),
                    Some('J') => cells.iter_mut().for_each(|row| row.fill(' ')),
                    _ => {}
                }
            }
            c if c.is_control() => {}
            c => {
                if let Some(cell) = cells.get_mut(row).and_then(|row: &mut Vec<char>| row.get_mut(column)) {
                    *cell = c;
                }
                column += 1;
            }
        }
    }
    cells.into_iter().map(|row| row.into_iter().collect()).collect()
}

/// True if the terminal is restored: its main screen and its cursor are visible.
fn is_restored(written: &str) -> bool {
    let (enter, leave) = (written.rfind(ENTER), written.rfind(LEAVE));
    enter.is_some() && leave > enter && written.rfind("\u{1b}[?25h") > enter
}

#[test]
fn watch_without_terminal_is_refused() {
    let output = Command::new(PROGRAM).arg("watch").stdin(Stdio::null()).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(message, "portsentry: watch needs a terminal; use `portsentry events` in scripts\n");
    let directory = tempfile::tempdir().unwrap();
    let line = format!("exec {PROGRAM} watch --socket {}", directory.path().join("none").display());
    let (code, written) = Terminal::run(Command::new("script"), &directory, &line).end();
    assert_eq!(code, Some(1), "{written}");
    assert!(
        written.contains("portsentry: portsentry is not running: no daemon answers at ") && !written.contains(ENTER)
    );
    let (code, written) = Terminal::run(Command::new("script"), &directory, &format!("export TERM=dumb; {line}")).end();
    assert_eq!((code, written.contains("TERM is \"dumb\"")), (Some(1), true), "{written}");
}

#[test]
fn live_view_unblocks_with_three_keys() {
    let daemon = Daemon::start();
    let mut terminal = daemon.watch();
    terminal.expect("no source is blocked");
    assert!(daemon.ask(&["block", "192.0.2.77", "--expire", "1h"]).status.success());
    terminal.expect("192.0.2.77");
    terminal.press("j");
    terminal.press("u");
    terminal.expect("Unblock 192.0.2.77? y/n");
    terminal.press("y");
    terminal.expect("192.0.2.77 is unblocked");
    assert!(!daemon.ask(&["unblock", "192.0.2.77"]).status.success(), "the source is no longer banned");
    terminal.press("q");
    let (code, written) = terminal.end();
    assert_eq!(code, Some(0));
    assert!(is_restored(&written), "{written:?}");
    assert!(written.contains("\u{1b}[38;5;"), "in colour");
}

#[test]
fn terminal_is_restored_after_signal() {
    let mut daemon = Daemon::start();
    let terminal = daemon.watch();
    terminal.expect("no source is blocked");
    daemon.child.kill().unwrap();
    terminal.expect("no connection");
    terminal.terminate();
    let (code, written) = terminal.end();
    assert_eq!(code, Some(0));
    assert!(is_restored(&written), "{written:?}");
}

#[test]
fn no_colour_is_written_if_unwanted() {
    let daemon = Daemon::start();
    let line = format!("export NO_COLOR=1; exec {PROGRAM} watch --socket {}", daemon.socket().display());
    let mut terminal = Terminal::run(daemon.namespace.command("script"), &daemon.directory, &line);
    terminal.expect("no source is blocked");
    assert!(daemon.ask(&["block", "192.0.2.77", "--expire", "1h"]).status.success());
    terminal.expect("192.0.2.77");
    terminal.press("q");
    let (code, written) = terminal.end();
    assert_eq!((code, written.contains("[38;5;")), (Some(0), false), "{written:?}");
}
