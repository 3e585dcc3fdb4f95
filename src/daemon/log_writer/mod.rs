//! Writes events to the log and to the JSON file, in order and within the line limit. With `report.resolve_host`, a
//! limited number of lines wait up to two seconds for the name of their source. Bans are in force before their events
//! arrive here.

use std::borrow::Cow;
use std::future::pending;
use std::path::PathBuf;
use std::time::Instant;

use super::reverse_dns::ReverseDns;
use crate::clock::boot_time;
use crate::config::{BlockPolicy, Config, Mode};
use crate::enforce::file_helper::FileHelper;
use crate::events::channel::Sender;
use crate::events::classic_log::Wording;
use crate::events::event::{Event, EventKind};
use crate::events::json::EventRecord;
use crate::events::json_log::{FileEvent, LineFile};
use crate::events::log;
use crate::events::log_limiter::LogLimiter;
use crate::types::{Backend, Expiry, LineLimiter, MINUTE, Protocol, counted};

mod daily_count;
mod naming;

use daily_count::DailyCount;
use naming::Naming;

pub(super) struct LogWriter {
    budget: LogLimiter,
    /// Number of events dropped by the channel since the last report, and the rate limit of that report.
    lost: (u64, LineLimiter),
    /// `None` if lines have no names.
    naming: Option<Naming>,
    modes: Modes,
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
            budget: LogLimiter::default(),
            lost: (0, LineLimiter::new(1, MINUTE)),
            naming: None,
            modes: Modes::from_config(config),
            daily: None,
            after_stop: after_stop(config),
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
        self.modes = Modes::from_config(config);
        match report.single_probes {
            true => self.daily = None,
            false => drop(self.daily.get_or_insert_with(|| DailyCount::from(boot_time()))),
        }
        self.after_stop = after_stop(config);
        match (&mut self.naming, report.resolve_host) {
            (None, true) => self.naming = Some(Naming::new(ReverseDns::new())),
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
        let events = self.events.clone();
        let tell = move |notice| {
            events.send(Event::now(match notice {
                FileEvent::Failed(text) => EventKind::Error(text),
                FileEvent::Recovered(text) => EventKind::Note(text),
            }));
        };
        let started = match self.opened_by.clone() {
            Some((file, helper)) if file == *path => LineFile::start_with(path, move || helper.open_log(), tell),
            _ => LineFile::start(path, tell),
        };
        match started {
            Ok(file) => self.file = Some(file),
            Err(error) => {
                let text = format!("report.json_file: cannot start the writer thread: {error}");
                self.events.send(Event::now(EventKind::Error(text)));
            }
        }
    }

    /// Writes `event`, if the line limit permits.
    pub(super) fn write(&mut self, event: &Event) {
        self.turn_minute();
        if matches!(event.what, EventKind::Stopped) {
            let lost = (self.lost.0 > 0).then(|| lost_events(self.lost.0));
            let daily = self.daily.take().and_then(|daily| daily.sentence(boot_time())).map(EventKind::Note);
            let after_stop = self.after_stop.take().map(EventKind::Note);
            let last = lost.into_iter().chain(self.budget.summary()).chain(daily).chain(after_stop);
            last.for_each(|kind| self.send(&Event::now(kind)));
        }
        if let Some(daily) = &mut self.daily {
            daily.count(&event.what);
        }
        if self.budget.admit(&event.what, boot_time()) {
            self.send(event);
        }
    }

    /// Writes the number of lines suppressed in the last minute, once it is over.
    pub(super) fn turn_minute(&mut self) {
        if let Some(summary) = self.budget.turn_minute(boot_time()) {
            self.send(&Event::now(summary));
        }
        if let Some(summary) = self.daily.as_mut().and_then(|daily| daily.turn(boot_time())) {
            self.send(&Event::now(EventKind::Note(summary)));
        }
    }

    /// Adds the number of events dropped by the channel; returns the error event, at most once a minute.
    pub(super) fn count_lost(&mut self, events: u64) -> Option<EventKind> {
        self.lost.0 += events;
        if self.lost.0 == 0 || !self.lost.1.admit(boot_time()) {
            return None;
        }
        Some(lost_events(std::mem::take(&mut self.lost.0)))
    }

    /// Waits until lines that waited for a name can be written, and writes them; never returns if none waits. Cancel
    /// safe.
    pub(super) async fn write_named(&mut self) {
        match &mut self.naming {
            Some(naming) => naming.turn().await,
            None => pending().await,
        }
    }

    fn send(&mut self, event: &Event) {
        if let Some(file) = &self.file {
            file.send(EventRecord::from(event).to_json());
        }
        if self.daily.is_some() && matches!(event.what, EventKind::Probe(_)) {
            return;
        }
        let wording = self.modes.wording(&event.what);
        match &mut self.naming {
            Some(naming) => naming.send(event, Instant::now(), wording),
            None => log::write(event, None, wording),
        }
    }
}

/// The mode of each protocol, which decides the wording of its lines.
struct Modes {
    tcp: Mode,
    udp: Mode,
}

impl Modes {
    fn from_config(config: &Config) -> Self {
        Self { tcp: config.tcp.mode, udp: config.udp.mode }
    }

    fn wording(&self, what: &EventKind) -> Wording {
        let EventKind::Repeated { protocol, .. } = what else { return Wording::default() };
        let (own, other) = match protocol {
            Some(Protocol::Udp | Protocol::Icmp) => (self.udp, self.tcp),
            Some(Protocol::Tcp | Protocol::Sctp) | None => (self.tcp, self.udp),
        };
        // A ban applies to all protocols, also to one that is not monitored.
        let mode = if own == Mode::Off { other } else { own };
        if mode == Mode::Connect { Wording::Connect } else { Wording::Stealth }
    }
}

/// Describes the bans of each backend while the program does not run.
fn after_stop(config: &Config) -> Option<String> {
    if [&config.tcp, &config.udp].iter().all(|protocol| protocol.block == BlockPolicy::No) {
        return None;
    }
    let sentences: Vec<Cow<'_, str>> = config
        .block
        .method
        .iter()
        .map(|backend| match backend {
            Backend::Nft if config.expire == Expiry::Never => "bans in nftables stay until they are lifted".into(),
            // A ban by hand may have no end, regardless of the configuration.
            Backend::Nft => "bans in nftables stay until they expire or are lifted".into(),
            Backend::Route => "routes of bans stay until the next start removes the expired ones".into(),
            Backend::Command => "expire_command is not run before the next start".into(),
            file => format!("lines in {} stay until the next start removes the expired ones", file.place()).into(),
        })
        .collect();
    Some(format!("while portsentry is stopped, {}", sentences.join("; ")))
}

fn lost_events(lost: u64) -> EventKind {
    EventKind::Error(format!("{} lost, because they came faster than they could be logged", counted(lost, "event")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::Standing;
    use crate::types::BanTarget;

    #[test]
    fn flood_of_scans_leaves_json_file_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let (events, _received) = crate::events::channel::bounded(1);
        let mut config = Config::default();
        config.report.json_file = Some(path.clone());
        let mut log = LogWriter::new(&config, events, None);
        let ban = crate::engine::Ban::example();
        let flood = Event::now(EventKind::Scan(ban));
        (0..100_000).for_each(|_| log.write(&flood));
        let blocked = EventKind::Blocked { ban, backend: crate::types::Backend::Nft, reaction: Duration::ZERO };
        log.write(&Event::now(blocked));
        log.write(&Event::now(EventKind::Stopped));
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
    fn repeated_line_follows_mode_of_protocol() {
        use Protocol::{Icmp, Sctp, Tcp, Udp};
        let target: BanTarget = "192.0.2.7".parse().unwrap();
        let (connect, stealth) = (Wording::Connect, Wording::Stealth);
        for (tcp, udp, protocol, expected) in [
            ("connect", "connect", Some(Tcp), connect),
            ("connect", "stealth", Some(Tcp), connect),
            ("connect", "stealth", Some(Udp), stealth),
            ("connect", "stealth", None, connect),
            ("advanced", "connect", Some(Tcp), stealth),
            ("advanced", "connect", Some(Sctp), stealth),
            ("advanced", "connect", Some(Udp), connect),
            ("advanced", "connect", Some(Icmp), connect),
            ("connect", "off", Some(Udp), connect),
            ("off", "stealth", Some(Tcp), stealth),
        ] {
            let text = format!("[tcp]\nmode = \"{tcp}\"\n[udp]\nmode = \"{udp}\"\n");
            let modes = Modes::from_config(&Config::parse("test", &text).unwrap());
            let repeated = EventKind::Repeated { target, standing: Standing::Blocked, protocol, packets: 1 };
            assert_eq!(modes.wording(&repeated), expected, "{protocol:?} packet with TCP {tcp} and UDP {udp}");
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
