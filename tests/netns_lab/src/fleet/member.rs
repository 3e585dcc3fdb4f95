//! Runs `portsentry fleet` with the test's own daemon.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::engine::{Engine, Users};
use super::fake_daemon::FakeDaemon;
use crate::daemon::{Log, binary};
use crate::memory;

/// A fleet process; killed when dropped.
pub struct Member {
    pub daemon: FakeDaemon,
    child: Child,
    log: Log,
    _directory: tempfile::TempDir,
}

impl Member {
    /// Starts the process of a host that has a user on the server.
    pub fn start(host: &str, engine: &Engine) -> Self {
        let url = format!("url = \"unix://{}\"", engine.socket().display());
        Self::start_with(host, &url, &engine.users().password_file(host), &mut Command::new(binary()))
    }

    /// Starts it with these lines under `[fleet]`, by this command.
    pub fn start_with(host: &str, lines: &str, credentials: &Path, command: &mut Command) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let daemon = FakeDaemon::listen(&directory.path().join("fleet.sock"));
        let config = directory.path().join("portsentry.toml");
        let text = format!(
            "[fleet]\nname = \"lab\"\nhost = \"{host}\"\n{lines}\ncredentials = {credentials:?}\nsocket = {:?}\n",
            daemon.path()
        );
        fs::write(&config, text).unwrap();
        command.args(["fleet", "--config"]).arg(&config).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Log::follow(child.stderr.take().unwrap());
        Self { daemon, child, log, _directory: directory }
    }

    /// Starts the processes of these hosts, and waits until each has scanned the server.
    pub fn fleet<const N: usize>(hosts: [&str; N], engine: &Engine) -> [Self; N] {
        let members = hosts.map(|host| Self::start(host, engine));
        for member in &members {
            member.await_scan();
        }
        members
    }

    pub fn await_scan(&self) {
        self.eventually("it scans the server", || self.daemon.received(|received| received.scans > 0));
    }

    /// Waits until `holds`; panics with the log at the time limit.
    pub fn eventually(&self, condition: &str, mut holds: impl FnMut() -> bool) {
        // On a busy machine a scan of many keys takes minutes, because it leaves the server time.
        let held = crate::within(crate::TIMEOUT * 5, || holds().then_some(()));
        assert!(held.is_some(), "never: {condition}\n{}", self.log());
    }

    pub fn log(&self) -> String {
        self.log.lines().join("\n")
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn processor_time(&self) -> Duration {
        processor_time_of(self.child.id())
    }

    /// Resident memory in KiB.
    pub fn resident(&self) -> u64 {
        memory(self.child.id(), "VmRSS")
    }
}

/// Processor time that a process has used so far.
pub fn processor_time_of(id: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    // After the name: state, then ten fields, then the times in user and kernel mode, in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server with users for hosts a, b and c.
pub fn engine(options: &[&str]) -> Engine {
    Engine::start(Users::new(&["a", "b", "c"]), options)
}

/// The key of a report in the fleet `lab`.
pub fn key(host: &str, target: &str) -> String {
    format!("portsentry:lab:ban:{host}:{target}")
}
