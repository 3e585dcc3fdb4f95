//! Writes events to the log and to the JSON file, in order and within the line limit. With `report.resolve_host`, a
//! limited number of lines wait up to two seconds for the name of their source. Bans are in force before their events
//! arrive here.

use std::path::PathBuf;
use std::time::Instant;

use super::optional::or_never;
use super::reverse_dns::{ReverseDns, look_up};
use crate::clock::boot_time;
use crate::config::{Config, Mode};
use crate::enforce::file_helper::FileHelper;
use crate::enforce::implementation;
use crate::events::channel::Sender;
use crate::events::classic_log::Wording;
use crate::events::event::{Event, EventKind};
use crate::events::json::EventRecord;
use crate::events::json_log::{self, LineFile, OpenFile};
use crate::events::log;
use crate::events::log_limiter::LogLimiter;
use crate::types::{Protocol, Response};

mod daily_count;
mod naming;

use daily_count::DailyCount;
use naming::Naming;

pub(super) struct LogWriter {
    log_limit: LogLimiter,
    /// Separate, because single probes that have no line in the log still have one in the file.
    file_limit: LogLimiter,
    /// `None` if lines have no names.
    naming: Option<Naming>,
    /// The modes of TCP and UDP, which decide the wording of their lines.
    modes: [Mode; 2],
    /// Counts single probes if they are not logged one by one.
    daily: Option<DailyCount>,
    /// Text about the bans while the program does not run.
    after_stop: Option<String>,
    file: Option<LineFile>,
    /// The file that another process opens, because it is in a directory of root.
    opened_by: Option<(PathBuf, FileHelper)>,
    events: Sender,
}

impl LogWriter {
    /// Creates a writer for `config`. Failures are sent as events.
    pub(super) fn new(config: &Config, events: Sender, opened_by: Option<(PathBuf, FileHelper)>) -> Self {
        let mut lines = Self {
            log_limit: LogLimiter::default(),
            file_limit: LogLimiter::default(),
            naming: None,
            modes: [Mode::Off; 2],
            daily: None,
            after_stop: None,
            file: None,
            opened_by,
            events,
        };
        lines.reconfigure(config);
        lines
    }

    /// Applies a new `config`; the file is reopened in any case. `report.log` needs a restart.
    pub(super) fn reconfigure(&mut self, config: &Config) {
        let report = &config.report;
        self.modes = [config.tcp.mode, config.udp.mode];
        match report.single_probes {
            true => self.daily = None,
            false => drop(self.daily.get_or_insert_with(|| DailyCount::from(boot_time()))),
        }
        self.after_stop = after_stop(config);
        match (&mut self.naming, report.resolve_host) {
            (None, true) => self.naming = Some(Naming::new(ReverseDns::new(look_up))),
            (Some(naming), false) => {
                naming.write_all();
                self.naming = None;
            }
            _ => {}
        }
        if let Some(file) = &self.file
            && report.json_file.as_deref() == Some(file.path())
        {
            file.reopen();
            return;
        }
        self.file = None;
        let Some(path) = &report.json_file else { return };
        let open: OpenFile = match self.opened_by.clone() {
            Some((file, helper)) if file == *path => Box::new(move || helper.open_log()),
            _ => {
                let path = path.clone();
                Box::new(move || json_log::open(&path))
            }
        };
        match LineFile::start(path, open, self.events.clone()) {
            Ok(file) => self.file = Some(file),
            Err(error) => {
                let text = format!("report.json_file: cannot start the writer thread: {error}");
                self.events.emit(EventKind::Error(text));
            }
        }
    }

    /// Writes an event of now.
    pub(super) fn emit(&mut self, kind: EventKind) {
        self.write(&Event::now(kind));
    }

    /// Writes `event`, if the line limit permits.
    pub(super) fn write(&mut self, event: &Event) {
        self.turn_minute();
        if matches!(event.kind, EventKind::Stopped) {
            let (log, file) = (self.log_limit.summary(), self.file_limit.summary());
            self.write_summaries(log, file);
            let daily = self.daily.take().and_then(|daily| daily.sentence(boot_time())).map(EventKind::Note);
            let after_stop = self.after_stop.take().map(EventKind::Note);
            daily.into_iter().chain(after_stop).for_each(|kind| self.write_both(kind));
        }
        if self.file.is_some() && self.file_limit.admit(&event.kind, boot_time()) {
            self.write_file(event);
        }
        if let Some(daily) = &mut self.daily {
            daily.count(&event.kind);
            if matches!(event.kind, EventKind::Probe(_)) {
                return;
            }
        }
        if self.log_limit.admit(&event.kind, boot_time()) {
            self.write_log(event);
        }
    }

    /// Writes the number of lines suppressed in the last minute, once it is over.
    pub(super) fn turn_minute(&mut self) {
        let (log, file) = (self.log_limit.turn_minute(boot_time()), self.file_limit.turn_minute(boot_time()));
        self.write_summaries(log, file);
        if let Some(summary) = self.daily.as_mut().and_then(|daily| daily.take_summary(boot_time())) {
            self.write_both(EventKind::Note(summary));
        }
    }

    /// Waits until lines that waited for a name can be written, and writes them; never returns if none waits. Cancel
    /// safe.
    pub(super) async fn write_named(&mut self) {
        or_never(self.naming.as_mut().map(Naming::process_next)).await;
    }

    /// Writes the summaries of suppressed lines, each to its own output. They do not count as lines.
    fn write_summaries(&mut self, log: Option<EventKind>, file: Option<EventKind>) {
        file.into_iter().for_each(|kind| self.write_file(&Event::now(kind)));
        log.into_iter().for_each(|kind| self.write_log(&Event::now(kind)));
    }

    fn write_both(&mut self, kind: EventKind) {
        let event = Event::now(kind);
        self.write_file(&event);
        self.write_log(&event);
    }

    fn write_file(&self, event: &Event) {
        if let Some(file) = &self.file {
            file.send(EventRecord::from(event).to_json());
        }
    }

    fn write_log(&mut self, event: &Event) {
        let wording = wording(self.modes, &event.kind);
        match &mut self.naming {
            Some(naming) => naming.send(event, Instant::now(), wording),
            None => log::write(event, None, wording),
        }
    }
}

fn wording([tcp, udp]: [Mode; 2], kind: &EventKind) -> Wording {
    let EventKind::Repeated { protocol, .. } = kind else { return Wording::default() };
    let (own, other) = if protocol.is_some_and(Protocol::uses_udp_settings) { (udp, tcp) } else { (tcp, udp) };
    // A ban applies to all protocols, also to one that is not monitored.
    let mode = if own == Mode::Off { other } else { own };
    if mode == Mode::Connect { Wording::Connect } else { Wording::Stealth }
}

/// Describes the bans of each backend while the program does not run.
fn after_stop(config: &Config) -> Option<String> {
    if [&config.tcp, &config.udp].iter().all(|protocol| protocol.block == Response::Log) {
        return None;
    }
    let sentences = config.block.method.iter().map(|backend| implementation(*backend).after_stop(config));
    let sentences: Vec<&str> = sentences.collect();
    Some(format!("while portsentry is stopped, {}", sentences.join("; ")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::BanTarget;

    /// A writer to a file in a temporary directory.
    fn writing(single_probes: bool) -> (tempfile::TempDir, PathBuf, LogWriter) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let (events, _received) = crate::events::channel::bounded(1);
        let mut config = Config::default();
        config.report.json_file = Some(path.clone());
        config.report.single_probes = single_probes;
        let log = LogWriter::new(&config, events, None);
        (directory, path, log)
    }

    #[test]
    fn flood_of_scans_leaves_json_file_bounded() {
        let (_directory, path, mut log) = writing(true);
        let ban = crate::engine::Ban::example();
        let flood = Event::now(EventKind::Scan(ban));
        (0..100_000).for_each(|_| log.write(&flood));
        let blocked = EventKind::Blocked { ban, backend: crate::types::Backend::Nft, reaction: Duration::ZERO };
        log.emit(blocked);
        log.emit(EventKind::Stopped);
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        let of = |kind: &str| text.lines().filter(|line| line.starts_with(&format!("{{\"event\":\"{kind}\""))).count();
        assert_eq!(
            [of("scan"), of("block"), of("note"), of("stop")],
            [150, 1, 2, 1],
            "each scan has two lines; summaries count the others and report their bans"
        );
    }

    #[test]
    fn unlogged_probes_use_no_lines() {
        let (_directory, path, mut log) = writing(false);
        let probe = Event::now(EventKind::Probe(crate::engine::Ban::example().probe));
        (0..1_000).for_each(|_| log.write(&probe));
        let target: BanTarget = "192.0.2.7".parse().unwrap();
        let repeated =
            Event::now(EventKind::Repeated { target, response: Response::Block, protocol: None, packets: 1 });
        let lines = (0..1_000).filter(|_| log.log_limit.admit(&repeated.kind, boot_time())).count();
        assert_eq!(lines, 300, "all lines that probes may have are left");
        log.write(&repeated);
        log.emit(EventKind::Stopped);
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches("\"event\":\"probe\"").count(), 300, "the file has them within its own limit");
        assert_eq!(text.matches("lines suppressed above 600 per minute: 701 (probe 700, repeat 1)").count(), 1);
        assert!(!text.contains("per minute: 701 (repeat"), "the summary of the log is not in the file");
    }

    #[test]
    fn repeated_line_follows_mode_of_protocol() {
        use Protocol::{Icmp, Sctp, Tcp, Udp};
        let target: BanTarget = "192.0.2.7".parse().unwrap();
        let (connect, stealth) = (Wording::Connect, Wording::Stealth);
        for (tcp, udp, protocol, expected) in [
            (Mode::Connect, Mode::Connect, Some(Tcp), connect),
            (Mode::Connect, Mode::Stealth, Some(Tcp), connect),
            (Mode::Connect, Mode::Stealth, Some(Udp), stealth),
            (Mode::Connect, Mode::Stealth, None, connect),
            (Mode::Advanced, Mode::Connect, Some(Tcp), stealth),
            (Mode::Advanced, Mode::Connect, Some(Sctp), stealth),
            (Mode::Advanced, Mode::Connect, Some(Udp), connect),
            (Mode::Advanced, Mode::Connect, Some(Icmp), connect),
            (Mode::Connect, Mode::Off, Some(Udp), connect),
            (Mode::Off, Mode::Stealth, Some(Tcp), stealth),
        ] {
            let repeated = EventKind::Repeated { target, response: Response::Block, protocol, packets: 1 };
            let mut config = Config::default();
            (config.tcp.mode, config.udp.mode) = (tcp, udp);
            let log = LogWriter::new(&config, crate::events::channel::bounded(1).0, None);
            assert_eq!(wording(log.modes, &repeated), expected, "{protocol:?} packet with TCP {tcp} and UDP {udp}");
        }
    }

    #[test]
    fn shutdown_reports_bans_kept_per_backend() {
        let after = |text: &str| after_stop(&Config::parse("test", text).unwrap());
        let days = "while portsentry is stopped, bans in nftables stay until they expire or are lifted";
        assert_eq!(after("").as_deref(), Some(days));
        let never = after("expire = \"never\"\n[block]\nmethod = [\"nft\", \"route\"]").unwrap();
        assert!(!never.contains("expire or"), "{never}");
        assert!(never.contains("; routes of bans stay until the next start"), "{never}");
        assert_eq!(after("[tcp]\nblock = false"), None, "nothing is blocked");
    }
}
