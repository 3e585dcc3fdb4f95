//! Provides helpers for the report tests.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portsentry::engine::{Class, Grade};
use portsentry::ledger::{Author, BanRecord, DATABASE, Ledger};
use portsentry::types::{Backend, BanTarget, Expiry, Protocol};
use rusqlite::Connection;
use tempfile::TempDir;

pub(crate) const DAY: u64 = 86_400;

/// 2026-11-21T06:32:13Z, a Saturday.
pub(crate) const NOW: u64 = 1_795_242_733;

pub(crate) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

/// `seconds` before [`now`].
pub(crate) fn ago(seconds: u64) -> SystemTime {
    now() - Duration::from_secs(seconds)
}

pub(crate) fn target(text: &str) -> BanTarget {
    BanTarget::containing(text.parse().unwrap())
}

/// Source number `number`, out of 16 million.
pub(crate) fn source(number: u32) -> BanTarget {
    BanTarget::V4(Ipv4Addr::from_bits(10 << 24 | number))
}

/// A ban by the detector: a SYN scan of two ports with seven probes.
pub(crate) fn ban(target: BanTarget, since: SystemTime, seconds: u64) -> BanRecord {
    BanRecord {
        class: Some(Class::Syn),
        grade: Some(Grade::Forgeable),
        ports: vec![(Protocol::Tcp, 23), (Protocol::Tcp, 8080)],
        probes: 7,
        interface: Some("eth0".to_owned()),
        guest_port: None,
        ..BanRecord::wanted_by(
            Author::Detector,
            target,
            since,
            Expiry::After(Duration::from_secs(seconds)),
            Backend::Nft,
        )
    }
}

/// A state directory that is removed at the end.
pub(crate) struct State(TempDir);

impl State {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A state directory with `bans` in its ledger, which is closed.
    pub(crate) fn with(bans: &[BanRecord]) -> Self {
        let state = Self::new();
        state.ledger().record(bans).unwrap();
        state
    }

    /// The parent of the state directory.
    pub(crate) fn parent(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("portsentry")
    }

    pub(crate) fn file(&self, suffix: &str) -> PathBuf {
        self.path().join(format!("{DATABASE}{suffix}"))
    }

    pub(crate) fn ledger(&self) -> Ledger {
        Ledger::open(&self.path()).unwrap().0
    }

    /// Another program's connection to the same database.
    pub(crate) fn intruder(&self) -> Connection {
        Connection::open(self.file("")).unwrap()
    }

    /// Runs `portsentry report` on it.
    pub(crate) fn report(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The number of bans that another process reads: in this process SQLite would share the writer's index of the log.
    pub(crate) fn count_in_other_process(&self) -> u64 {
        let output = self.report(&["--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["kept"].as_u64().unwrap()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portsentry"));
        command.args(["report", "--state-dir"]).arg(self.path()).args(arguments);
        command
    }
}
