//! Writes events to the log and to the JSON file, in order and within the line limit. With `report.resolve_host`, a
//! limited number of lines wait up to two seconds for the name of their source. Bans are in force before their events
//! arrive here.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::deadline;
use super::reverse_dns::ReverseDns;
use crate::clock::boot_time;
use crate::config::{BlockPolicy, Config, Mode};
use crate::enforce::file_helper::FileHelper;
use crate::events::channel::Sender;
use crate::events::classic_log::{self, Wording};
use crate::events::event::{Event, EventKind};
use crate::events::json::EventRecord;
use crate::events::json_log::{FileEvent, LineFile};
use crate::events::log;
use crate::events::log_limiter::LogLimiter;
use crate::types::{Backend, BanTarget, DAY, Expiry, LineLimiter, MINUTE, Protocol, Span, Timestamp, counted};

/// Maximum time for which a line waits for a name. Most name servers answer within a tenth of it.
const NAME_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of waiting lines. Beyond it the oldest one is written without a name.
const MAX_PENDING: usize = 1_024;
/// Maximum number of targets whose single probes are counted separately.
const MAX_TARGETS: usize = 16_384;

pub(super) struct LogWriter {
    log_limit: LogLimiter,
    /// Separate, because single probes that have no line in the log still have one in the file.
    file_limit: LogLimiter,
    /// Number of events dropped by the channel since the last report, and the rate limit of that report.
    lost: (u64, LineLimiter),
    /// `None` if lines have no names.
    naming: Option<Naming>,
    modes: Modes,
    /// Counts single probes if they have no lines of their own.
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
            lost.into_iter().for_each(|kind| self.write_both(kind));
            let (log, file) = (self.log_limit.summary(), self.file_limit.summary());
            self.write_summaries(log, file);
            let daily = self.daily.take().and_then(|daily| daily.sentence(boot_time())).map(EventKind::Note);
            let after_stop = self.after_stop.take().map(EventKind::Note);
            daily.into_iter().chain(after_stop).for_each(|kind| self.write_both(kind));
        }
        if self.file.is_some() && self.file_limit.admit(&event.what, boot_time()) {
            self.write_file(event);
        }
        if let Some(daily) = &mut self.daily {
            daily.count(&event.what);
            if matches!(event.what, EventKind::Probe(_)) {
                return;
            }
        }
        if self.log_limit.admit(&event.what, boot_time()) {
            self.write_log(event);
        }
    }

    /// Writes the number of lines suppressed in the last minute, once it is over.
    pub(super) fn turn_minute(&mut self) {
        let (log, file) = (self.log_limit.turn_minute(boot_time()), self.file_limit.turn_minute(boot_time()));
        self.write_summaries(log, file);
        if let Some(summary) = self.daily.as_mut().and_then(|daily| daily.turn(boot_time())) {
            self.write_both(EventKind::Note(summary));
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
        let wording = self.modes.wording(&event.what);
        match &mut self.naming {
            Some(naming) => naming.send(event, Instant::now(), wording),
            None => log::write(event, None, wording),
        }
    }
}

/// Number of single probes of a day: those of sources without enough evidence for a ban.
struct DailyCount {
    by_target: HashMap<BanTarget, u64>,
    /// Probes of further targets, beyond [`MAX_TARGETS`].
    others: u64,
    since: Timestamp,
}

impl DailyCount {
    fn from(since: Timestamp) -> Self {
        Self { by_target: HashMap::new(), others: 0, since }
    }

    fn count(&mut self, what: &EventKind) {
        match what {
            EventKind::Probe(probe) => {
                let is_full = self.by_target.len() >= MAX_TARGETS;
                match self.by_target.entry(probe.target) {
                    Entry::Occupied(mut probes) => *probes.get_mut() += 1,
                    Entry::Vacant(_) if is_full => self.others += 1,
                    Entry::Vacant(place) => drop(place.insert(1)),
                }
            }
            // Its probes were no single ones.
            EventKind::Scan(ban) | EventKind::Blocked { ban, .. } => self.forget(ban.probe.target),
            EventKind::Wrapped { target, .. }
            | EventKind::Ran { target, ban: Some(_), .. }
            | EventKind::BlockFailed { target, .. }
            | EventKind::Shortened { target, .. } => self.forget(*target),
            _ => {}
        }
    }

    fn forget(&mut self, banned: BanTarget) {
        match banned {
            BanTarget::Prefix(_) => self.by_target.retain(|target, _| !banned.covers(target.element())),
            _ => drop(self.by_target.remove(&banned)),
        }
    }

    /// The line for the last day, once it is over, if there were any probes.
    fn turn(&mut self, now: Timestamp) -> Option<String> {
        if now.since(self.since) < DAY {
            return None;
        }
        std::mem::replace(self, Self::from(now)).sentence(now)
    }

    fn sentence(&self, now: Timestamp) -> Option<String> {
        let probes = self.others + self.by_target.values().sum::<u64>();
        let span = Span(now.since(self.since).max(Duration::from_secs(1)));
        let probes = (probes > 0).then(|| counted(probes, "single probe"))?;
        Some(format!("{probes} within {span} without log lines of their own (report.single_probes = false)"))
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
    let sentences: Vec<&str> = config
        .block
        .method
        .iter()
        .map(|backend| match backend {
            Backend::Nft if config.expire == Expiry::Never => "bans in nftables stay until they are lifted",
            // A ban by hand may have no end, whatever the configuration says.
            Backend::Nft => "bans in nftables stay until they expire or are lifted",
            Backend::Route => "routes of bans stay until the next start removes the expired ones",
            Backend::HostsDeny => "lines in hosts.deny stay until the next start removes the expired ones",
            Backend::Command => "expire_command is not run before the next start",
        })
        .collect();
    Some(format!("while portsentry is stopped, {}", sentences.join("; ")))
}

fn lost_events(lost: u64) -> EventKind {
    EventKind::Error(format!("{} lost, because they came faster than they could be logged", counted(lost, "event")))
}

struct Naming {
    hosts: ReverseDns,
    waiting: VecDeque<Waiting>,
    write: fn(&Event, Option<&str>, Wording),
}

struct Waiting {
    event: Event,
    wording: Wording,
    address: Option<IpAddr>,
    until: Instant,
}

impl Naming {
    fn new(hosts: ReverseDns) -> Self {
        Self { hosts, waiting: VecDeque::new(), write: log::write }
    }

    fn send(&mut self, event: &Event, now: Instant, wording: Wording) {
        if matches!(&event.what, EventKind::Probe(probe) if !probe.fresh) {
            // It has no line, and must not displace one.
            return;
        }
        let (address, until) = (classic_log::names(&event.what), now + NAME_TIMEOUT);
        if let Some(address) = address {
            self.hosts.ask(address, now, until);
        }
        self.waiting.push_back(Waiting { event: event.clone(), wording, address, until });
        if matches!(event.what, EventKind::Stopped) {
            self.write_all();
            return;
        }
        if self.waiting.len() > MAX_PENDING {
            self.write_first();
        }
        self.write_ready(now);
    }

    /// Waits until a name arrives or a line has waited long enough.
    async fn turn(&mut self) {
        let until = self.waiting.front().map(|line| line.until);
        tokio::select! {
            () = self.hosts.answered() => {}
            () = deadline::reached(until) => {}
        }
        self.write_ready(Instant::now());
    }

    /// Writes the lines at the front of the queue that no longer need to wait.
    fn write_ready(&mut self, now: Instant) {
        let hosts = &self.hosts;
        let ready =
            |line: &Waiting| line.until <= now || line.address.is_none_or(|address| hosts.answer(address).is_some());
        let ready = self.waiting.iter().take_while(|line| ready(line)).count();
        (0..ready).for_each(|_| self.write_first());
    }

    fn write_first(&mut self) {
        let Some(Waiting { event, wording, address, .. }) = self.waiting.pop_front() else { return };
        (self.write)(&event, address.and_then(|address| self.hosts.answer(address)).flatten(), wording);
    }

    fn write_all(&mut self) {
        while !self.waiting.is_empty() {
            self.write_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::engine::{Ban, Probe, Standing};

    thread_local! {
        static WRITTEN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    fn naming(lookup: fn(IpAddr) -> Option<String>) -> Naming {
        let write = |event: &Event, name: Option<&str>, wording: Wording| {
            let line = classic_log::line_with_name(&event.what, name, wording).unwrap();
            let part = |line: &str| line.split_whitespace().find(|word| word.contains('/')).map(str::to_owned);
            WRITTEN.with_borrow_mut(|written| written.push(part(&line).unwrap_or(line)));
        };
        Naming { write, ..Naming::new(ReverseDns::with(lookup)) }
    }

    fn written() -> Vec<String> {
        WRITTEN.with_borrow_mut(std::mem::take)
    }

    fn repeated(target: &str) -> Event {
        let target: BanTarget = target.parse().unwrap();
        Event::now(EventKind::Repeated { target, standing: Standing::Blocked, protocol: None, packets: 1 })
    }

    fn note_event(text: &str) -> Event {
        Event::now(EventKind::Note(text.to_owned()))
    }

    #[tokio::test]
    async fn lines_keep_order_and_wait_briefly() {
        static FREE: AtomicUsize = AtomicUsize::new(0);
        let lookup = |address: IpAddr| match address.to_string().as_str() {
            "10.0.0.1" => {
                while FREE.load(Ordering::SeqCst) == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Some("late.example".to_owned())
            }
            "10.0.0.2" => Some("quick.example".to_owned()),
            _ => None,
        };
        let mut naming = naming(lookup);
        let begin = Instant::now();
        naming.send(&note_event("first"), begin, Wording::Stealth);
        assert_eq!(written(), ["adminalert: first"], "the line needs no lookup");
        for event in [repeated("10.0.0.1"), note_event("second"), repeated("10.0.0.2"), repeated("10.0.0.3")] {
            naming.send(&event, Instant::now(), Wording::Stealth);
        }
        while begin.elapsed() < Duration::from_millis(1_500) {
            let _ = tokio::time::timeout(Duration::from_millis(20), naming.turn()).await;
        }
        assert_eq!(written(), [""; 0], "quick lines wait for their turn");
        naming.turn().await;
        let took = begin.elapsed();
        assert_eq!(
            written(),
            ["10.0.0.1/10.0.0.1", "adminalert: second", "quick.example/10.0.0.2", "10.0.0.3/10.0.0.3"]
        );
        assert!((NAME_TIMEOUT..NAME_TIMEOUT * 2).contains(&took), "{took:?}");
        FREE.store(1, Ordering::SeqCst);
        naming.turn().await;
        naming.send(&repeated("10.0.0.1"), Instant::now(), Wording::Stealth);
        assert_eq!(written(), ["late.example/10.0.0.1"], "a late answer is used from then on");
    }

    #[tokio::test]
    async fn waiting_lines_are_bounded_without_loss() {
        let mut naming = naming(|_| {
            std::thread::sleep(Duration::from_millis(500));
            None
        });
        let now = Instant::now();
        for number in 0..5_000_u32 {
            naming.send(&repeated(&std::net::Ipv4Addr::from(0x0a00_0000 + number).to_string()), now, Wording::Stealth);
            assert!(naming.waiting.len() <= MAX_PENDING);
        }
        assert_eq!(written().len(), 5_000 - MAX_PENDING);
        naming.send(&Event::now(EventKind::Stopped), now, Wording::Stealth);
        let rest = written();
        assert_eq!(rest.len(), MAX_PENDING + 1, "shutdown does not wait for names");
        assert!(rest.last().unwrap().starts_with("securityalert:"));
    }

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
    fn unlogged_probes_use_no_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let (events, _received) = crate::events::channel::bounded(1);
        let mut config = Config::default();
        config.report.json_file = Some(path.clone());
        config.report.single_probes = false;
        let mut log = LogWriter::new(&config, events, None);
        let probe = Event::now(EventKind::Probe(Ban::example().probe));
        (0..1_000).for_each(|_| log.write(&probe));
        let repeated = repeated("192.0.2.7");
        let lines = (0..1_000).filter(|_| log.log_limit.admit(&repeated.what, boot_time())).count();
        assert_eq!(lines, 300, "all lines that probes may have are left");
        log.write(&repeated);
        log.write(&Event::now(EventKind::Stopped));
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

    #[tokio::test]
    async fn banned_network_is_not_resolved() {
        let mut naming = naming(|_| Some("chosen.example".to_owned()));
        naming.send(&repeated("2001:db8::/64"), Instant::now(), Wording::Stealth);
        assert_eq!(written(), ["2001:db8::/2001:db8::"]);
    }

    #[test]
    fn single_probes_become_a_daily_line() {
        let at = |seconds| Timestamp::at(Duration::from_secs(seconds));
        let line = |text: &str| format!("{text} without log lines of their own (report.single_probes = false)");
        let probe_of = |address: [u8; 4]| {
            let target = BanTarget::containing(IpAddr::from(address));
            EventKind::Probe(Probe { target, ..Ban::example().probe })
        };
        let mut daily = DailyCount::from(at(100));
        assert_eq!(daily.turn(at(100 + 86_400)), None, "a quiet day has no line");
        for last in 0..20_000_u16 {
            let [high, low] = last.to_be_bytes();
            daily.count(&probe_of([10, 0, high, low]));
        }
        assert!(daily.by_target.len() <= MAX_TARGETS);
        let stopped = daily.sentence(at(100 + 86_400 + 90));
        assert_eq!(stopped, Some(line("20000 single probes within 1m 30s")), "the true span");
        assert_eq!(daily.turn(at(100 + 2 * 86_400 - 1)), None);
        assert_eq!(daily.turn(at(100 + 2 * 86_400)), Some(line("20000 single probes within 1d")));
        assert_eq!(daily.sentence(at(100 + 2 * 86_400)), None, "the count restarts");
    }

    #[test]
    fn probes_of_scan_are_not_single() {
        let at = |seconds| Timestamp::at(Duration::from_secs(seconds));
        let ban = Ban::example();
        let (target, probe) = (ban.probe.target, EventKind::Probe(ban.probe));
        let text = String::new;
        for end in [
            EventKind::Scan(ban),
            EventKind::Blocked { ban, backend: Backend::Nft, reaction: Duration::ZERO },
            EventKind::Wrapped { target, ban: Some(ban), line: text() },
            EventKind::Ran {
                target,
                ban: Some(ban),
                command: text().into(),
                outcome: text().into(),
                well: true,
                undone: None,
            },
            EventKind::BlockFailed { target, reason: text(), backend: Backend::Route },
            EventKind::Shortened { target, expiry: Expiry::Never, ports: Vec::new() },
            EventKind::Blocked {
                ban: Ban { probe: Probe { target: "192.0.2.0/24".parse().unwrap(), ..ban.probe }, ..ban },
                backend: Backend::Nft,
                reaction: Duration::ZERO,
            },
        ] {
            let mut daily = DailyCount::from(at(0));
            let other = EventKind::Probe(Probe { target: "198.51.100.7".parse().unwrap(), ..ban.probe });
            [&probe, &other, &probe, &probe, &end].into_iter().for_each(|what| daily.count(what));
            let line = daily.sentence(at(60)).unwrap_or_default();
            assert!(line.starts_with("1 single probe within 1m "), "only the other source's: {line} {end:?}");
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
