//! Provides helpers for the ledger tests.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use portsentry::engine::{Class, Grade, LinkId};
use portsentry::ledger::{
    BanAuthor, BanRecord, BanSummary, DATABASE, Ending, Ledger, LedgerChange, LegacyFiles, LoadedState, Opened,
    Recorder, Writer, WriterEvent,
};
use portsentry::types::{Backend, BanTarget, Expiry, Protocol};
use rusqlite::Connection;
use tempfile::TempDir;

use netns_lab::{TIMEOUT, slowness};

/// 2026-11-21T06:32:13.5Z.
pub(crate) const NOON: Duration = Duration::from_millis(1_795_242_733_500);

pub(crate) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + NOON + Duration::from_secs(seconds)
}

pub(crate) fn target(text: &str) -> BanTarget {
    BanTarget::containing(text.parse().unwrap())
}

/// Source number `number`, out of 16 million.
pub(crate) fn source(number: u32) -> BanTarget {
    BanTarget::V4(Ipv4Addr::from_bits(10 << 24 | number))
}

/// A ban by the detector: of `target`, from `since` on for `seconds`.
pub(crate) fn ban(target: BanTarget, since: SystemTime, seconds: u64) -> BanRecord {
    BanRecord {
        class: Some(Class::Syn),
        grade: Some(Grade::Forgeable),
        ports: vec![(Protocol::Tcp, 23), (Protocol::Tcp, 8080), (Protocol::Udp, 161)],
        probes: 7,
        interface: Some("eth0".to_owned()),
        guest_port: Some(LinkId::new(7, "veth7")),
        source: match target.element() {
            IpAddr::V6(v6) if target.prefix_len() == 64 => (v6.to_bits() | 0xbad).to_be_bytes().into(),
            address => address,
        },
        ..BanRecord::wanted_by(
            BanAuthor::Detector,
            target,
            since,
            Expiry::After(Duration::from_secs(seconds)),
            Backend::Nft,
        )
    }
}

/// A permanent ban of `target` by an operator.
pub(crate) fn by_hand(target: BanTarget, since: SystemTime) -> BanRecord {
    BanRecord::wanted_by(BanAuthor::Operator, target, since, Expiry::Never, Backend::Nft)
}

pub(crate) fn lifted(by: &str) -> Ending {
    Ending::Lifted { by: by.to_owned() }
}

/// A state directory that is removed at the end.
pub(crate) struct State(TempDir);

impl State {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A state directory with an empty ledger, which is open.
    pub(crate) fn open_new() -> (Self, Ledger) {
        let state = Self::new();
        let ledger = state.ledger();
        (state, ledger)
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

    /// The database, or with a `suffix` one of the files beside it.
    pub(crate) fn database(&self, suffix: &str) -> PathBuf {
        self.file(&format!("{DATABASE}{suffix}"))
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn ledger(&self) -> Ledger {
        self.open().0
    }

    pub(crate) fn open(&self) -> (Ledger, Opened) {
        Ledger::open(&self.path()).unwrap()
    }

    /// The numbers of bans without a recorded end, and of all stored bans.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let count = "SELECT count(*) FILTER (WHERE ended IS NULL), count(*) FROM ban";
        let (open, all): (u32, u32) =
            intruder(&self.path()).query_row(count, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        (open.into(), all.into())
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    /// Runs `portsentry report` on it.
    pub(crate) fn report(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portsentry"));
        command.args(["report", "--state-dir"]).arg(self.path()).args(arguments);
        command
    }

    /// The number of bans that another process reads: in this process SQLite would share the writer's index of the log.
    pub(crate) fn count_in_other_process(&self) -> u64 {
        let output = self.report(&["--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["kept"].as_u64().unwrap()
    }
}

/// The number of strikes of `target` that a start at `now` would load.
pub(crate) fn strikes(ledger: &Ledger, target: BanTarget, forget: Duration, now: SystemTime) -> u32 {
    let histories = LoadedState::read(ledger.reader(), forget, now, usize::MAX).unwrap().histories;
    histories.iter().find(|history| history.target == target).map_or(0, |history| history.strikes)
}

/// Another program's connection to the same database.
pub(crate) fn intruder(directory: &Path) -> Connection {
    Connection::open(directory.join(DATABASE)).unwrap()
}

/// A writer, a sender of changes for it, and the channel with its events.
pub(crate) fn writer(directory: &Path, texts: bool) -> (Writer, Recorder, Receiver<WriterEvent>) {
    let (ledger, _) = Ledger::open(directory).unwrap();
    let classic = texts.then(|| LegacyFiles::open(directory).unwrap());
    let (sender, events) = channel();
    let writer = Writer::start(ledger, classic, move |event| drop(sender.send(event))).unwrap();
    let recorder = writer.recorder();
    (writer, recorder, events)
}

pub(crate) fn banned(number: u32, since: SystemTime, seconds: u64) -> LedgerChange {
    LedgerChange::Banned(ban(source(number), since, seconds))
}

/// The time limit for any operation of the writer, for a busy machine.
pub(crate) fn time_limit() -> Duration {
    TIMEOUT * slowness()
}

/// Returns the next event that `fits`; fails with `condition` at the time limit.
pub(crate) fn await_event(
    events: &Receiver<WriterEvent>,
    condition: &str,
    fits: impl Fn(&WriterEvent) -> bool,
) -> WriterEvent {
    let start = Instant::now();
    loop {
        let left = time_limit().saturating_sub(start.elapsed());
        match events.recv_timeout(left) {
            Ok(event) if fits(&event) => return event,
            Ok(_) => {}
            Err(_) => panic!("timed out: {condition}"),
        }
    }
}

/// What a start reads of `ban`.
pub(crate) fn summary(ban: &BanRecord) -> BanSummary {
    let BanRecord { target, source, since, until, class, grade, backends, guest_port, .. } = *ban;
    BanSummary { target, source, since, until, class, grade, port: ban.ports.first().copied(), backends, guest_port }
}
