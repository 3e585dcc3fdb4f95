//! Replays a capture file through the engine and reports what the daemon would have done, with the capture's clock and
//! without privileges. The first of two passes infers the data that a running host has: ports in use, refusals and
//! gateways. The second pass judges the packets.
//!
//! Results are written immediately; the summary follows the last packet, even if the file is damaged before its end.

mod clock;
mod gateway_inference;
mod packet;
mod port_inference;
mod refusals;
mod summary;
mod text;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ipnet::IpNet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub use clock::Clock;

use crate::capture::file::{FileError, Reader};
use crate::clock::WallTime;
use crate::config::{Config, ConfigErrors, parse_network};
use crate::engine::{Engine, HashKey, Host, IgnoreReason, Local, NoLookup, Observation, Protection, Settings, Verdict};
use crate::events;
use crate::events::event::{Event, EventKind};
use crate::types::{Backend, BanTarget, Protocol, shared64};
use crate::wire::{self, Delivery, LinkType, Packet, Transport};
use gateway_inference::GatewayInference;
use packet::LinkAddresses;
use port_inference::{PortInference, Used};
use refusals::Refusals;
use summary::{NoEvidence, Summary};

/// Options of `replay`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ReplayOptions {
    /// Capture file to read (pcap or pcapng)
    pub file: PathBuf,
    /// Configuration file [default: /etc/portsentry/portsentry.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Judge only packets to this address or network (repeatable) [default: every address]
    #[arg(long, value_name = "PREFIX", value_parser = parse_network)]
    pub local: Vec<IpNet>,
    /// Print events as JSON, one object per line
    #[arg(long)]
    pub json: bool,
}

/// Why a replay did not complete.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: FileError },
    #[error("{}: the file has only packets of the unsupported link type {link}; capture on an Ethernet interface, a raw IP interface, or \"any\"", path.display())]
    UnreadLink {
        path: PathBuf,
        /// The numbers of its link types.
        link: String,
    },
    /// A file that the configuration names is invalid.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error("cannot write the results: {0}")]
    Write(#[from] io::Error),
}

/// Reads the capture of `options` and writes events and summary to `out`. If the reader of `out` closes it, the replay
/// ends without an error.
///
/// # Errors
/// The capture is damaged, after the readable part has been judged and summarised; or another operation fails.
pub fn run(options: &ReplayOptions, config: &Config, out: &mut impl Write) -> Result<(), ReplayError> {
    shared64::set_nat64(&config.nat64);
    let result = Replay::new(options, config).and_then(|mut replay| replay.run(out));
    match result {
        Err(ReplayError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// SCTP's INIT chunk, which requests an association (RFC 9260).
const INIT: u8 = 1;

struct Replay<'a> {
    options: &'a ReplayOptions,
    settings: Settings,
    host: Host,
    engine: Engine,
    clock: Clock,
    summary: Summary,
    used: Used,
    /// The refusals in the capture; `None` if `--local` names the hosts. Then every port that is not in use is closed.
    refusals: Option<Refusals>,
}

/// Fixed, so that a replay gives the same result each time. A crafted capture that fills one bucket harms only its own
/// replay.
const HASH_KEY: HashKey = HashKey(0x706f_7274_7365_6e74, 0x7265_706c_6179_2121);

impl<'a> Replay<'a> {
    fn new(options: &'a ReplayOptions, config: &Config) -> Result<Self, ReplayError> {
        let mut settings = Settings::from_config(config);
        // In connect mode the daemon judges connections to its decoys. A capture has only the packets to their ports.
        settings.tcp.ports = config.tcp.monitored();
        settings.udp.ports = config.udp.monitored();
        let mut host = Host::new(local(options));
        for network in config.allow.read()? {
            host.allow.insert(network, Protection::Listed);
        }
        let engine = Engine::new(settings.clone(), HASH_KEY);
        let file = Config::source(options.config.as_deref());
        let configuration = file.map_or_else(|| "built-in values".to_owned(), |file| file.display().to_string());
        let summary = Summary::new(&settings, configuration, &options.local);
        let refusals = options.local.is_empty().then(|| Refusals::new(settings.scan_trigger));
        Ok(Self { options, settings, host, engine, clock: Clock::default(), summary, used: Used::default(), refusals })
    }

    fn run(&mut self, out: &mut impl Write) -> Result<(), ReplayError> {
        let mut progress = ProgressDisplay::new(&self.options.file);
        let inferred = self.infer(&mut progress);
        if let Err(error @ (FileError::Open(_) | FileError::NotAFile | FileError::Empty)) = inferred {
            return Err(self.about(error));
        }
        let judged = self.run_detection(&mut progress, out);
        progress.finish();
        // Without a packet there is nothing to summarise.
        if matches!(judged, Err(ReplayError::Write(_))) || judged.is_err() && self.summary.packets == 0 {
            return judged;
        }
        if self.options.json {
            serde_json::to_writer(&mut *out, &self.summary).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            text::write(&self.summary, out)?;
        }
        out.flush()?;
        judged?;
        match self.summary.unread_link() {
            Some(link) => Err(ReplayError::UnreadLink { path: self.options.file.clone(), link }),
            None => Ok(()),
        }
    }

    fn about(&self, error: FileError) -> ReplayError {
        ReplayError::File { path: self.options.file.clone(), error }
    }

    /// Runs the first pass. If the file is damaged, the results up to that point are valid, because the second pass
    /// stops there too.
    fn infer(&mut self, progress: &mut ProgressDisplay) -> Result<(), FileError> {
        let mut ports = PortInference::new(&self.host.local, &self.settings.tcp.ports, &self.settings.udp.ports);
        let mut gateways = GatewayInference::default();
        let result = Reader::open(&self.options.file).and_then(|mut reader| {
            while let Some(frame) = reader.next_frame()? {
                progress.update("reading", frame.end);
                let Some(link) = LinkType::from_dlt(frame.link) else { continue };
                let Ok(packet) = packet::decode(link, frame.bytes) else { continue };
                ports.inspect(&packet);
                if let Some(addresses) = LinkAddresses::from_frame(link, frame.bytes) {
                    gateways.inspect(addresses, &packet);
                }
                if let Some(refusals) = &mut self.refusals {
                    let is_icmp = matches!(packet.transport, Transport::Icmp { .. });
                    let quote = is_icmp.then(|| wire::icmp_quote(link, frame.bytes)).flatten();
                    let probe = Observation::from_packet(&packet)
                        .filter(|probe| !probe.hides_port() && self.settings.monitors(probe));
                    refusals.inspect(&packet, probe, quote, &ports.used);
                }
            }
            Ok(())
        });
        self.used = ports.finish();
        if let Some(refusals) = &mut self.refusals {
            refusals.keep_scans(&self.used);
        }
        for (protocol, address, port) in self.used.ports.keys() {
            match protocol {
                Protocol::Tcp => self.host.tcp.insert(*address, *port),
                Protocol::Udp => self.host.udp.insert(*address, *port),
                Protocol::Sctp | Protocol::Icmp => {}
            }
        }
        self.host.find_related();
        for gateway in gateways.finish() {
            self.host.allow.insert(gateway.into(), Protection::Gateway);
            self.summary.gateways.insert(gateway);
        }
        self.summary.forgot_ports = self.used.overflowed;
        result
    }

    /// Runs the second pass, in which the engine judges every packet.
    fn run_detection(&mut self, progress: &mut ProgressDisplay, out: &mut impl Write) -> Result<(), ReplayError> {
        let mut reader = Reader::open(&self.options.file).map_err(|error| self.about(error))?;
        while let Some(frame) = reader.next_frame().map_err(|error| self.about(error))? {
            progress.update("judging", progress.size + frame.end);
            let time = SystemTime::UNIX_EPOCH + frame.time;
            self.summary.count_packet(time);
            let Some(link) = LinkType::from_dlt(frame.link) else {
                *self.summary.unknown_links.entry(frame.link).or_default() += 1;
                continue;
            };
            match packet::decode(link, frame.bytes) {
                Ok(mut packet) => {
                    packet::deliver(&mut packet, &self.host.local);
                    if let Some(kind) = self.process_packet(frame.time, &packet) {
                        progress.hide(|| self.write_event(out, time, kind))?;
                    }
                }
                Err(why) => self.summary.count_undecoded(why),
            }
            while let Some(notice) = self.engine.notice(self.clock.now()) {
                self.write_event(out, time, notice.into())?;
            }
        }
        Ok(())
    }

    /// Judges one packet; returns the event to report.
    fn process_packet(&mut self, time: Duration, packet: &Packet) -> Option<EventKind> {
        let now = self.clock.tick(time);
        let observation = Observation::from_packet(packet);
        if let Transport::Sctp { destination_port, chunk: INIT, .. } = packet.transport
            && self.used.contains((Protocol::Sctp, packet.destination, destination_port))
        {
            self.note_open(observation);
            self.summary.count_no_evidence(NoEvidence::Engine(IgnoreReason::Open));
            return None;
        }
        if observation.is_some_and(|observation| self.is_unconfirmed(packet, &observation)) {
            self.summary.count_no_evidence(NoEvidence::Unanswered);
            return None;
        }
        let verdict = self.engine.observe(now, packet, &self.host, &mut NoLookup);
        self.summary.add_verdict(&verdict, SystemTime::UNIX_EPOCH + time, now);
        match verdict {
            Verdict::Ignored(IgnoreReason::Open) => {
                self.note_open(observation);
                None
            }
            Verdict::Block(ban) => Some(EventKind::Blocked { ban, backend: Backend::Nft, reaction: Duration::ZERO }),
            verdict => EventKind::from_verdict(verdict),
        }
    }

    /// True for a probe that would count, unless the capture shows that it found a closed port.
    fn is_unconfirmed(&self, packet: &Packet, observation: &Observation) -> bool {
        let Some(refusals) = &self.refusals else { return false };
        let Observation { source, destination, protocol, port, .. } = *observation;
        let to_one_host = !matches!(packet.delivery, Delivery::Broadcast | Delivery::Multicast);
        self.settings.monitors(observation)
            && !observation.hides_port()
            && to_one_host
            && !destination.is_multicast()
            && !self.used.contains((protocol, destination, port))
            && self.host.allow.protects(source).is_none()
            && !self.summary.has_judged(BanTarget::containing(source))
            && !refusals.confirm(observation)
    }

    /// Records a packet that is not evidence because its port is considered open.
    fn note_open(&mut self, observation: Option<Observation>) {
        let Some(Observation { protocol, destination, port, .. }) = observation else { return };
        if let Some(sign) = self.used.ports.get(&(protocol, destination, port)) {
            self.summary.add_open((protocol, destination, port), *sign);
        }
    }

    fn write_event(&self, out: &mut impl Write, time: SystemTime, kind: EventKind) -> io::Result<()> {
        let event = Event { time, kind };
        if !self.options.json {
            let Some(line) = text::line(&event.kind) else { return Ok(()) };
            return writeln!(out, "{} {line}", WallTime(time));
        }
        // Nothing was blocked, so there is no reaction time.
        let record = events::json::EventRecord { reaction_us: None, ..(&event).into() };
        writeln!(out, "{}", record.to_json())
    }
}

/// The hosts whose ports are judged. Single addresses form one host and are judged like a running one; a network has
/// many hosts.
fn local(options: &ReplayOptions) -> Local {
    let is_host = |prefix: &ipnet::IpNet| prefix.prefix_len() == prefix.max_prefix_len();
    match options.local.as_slice() {
        [] => Local::Any,
        hosts if hosts.iter().all(is_host) => Local::own(hosts.iter().map(ipnet::IpNet::addr)),
        prefixes => Local::Prefixes(prefixes.to_vec()),
    }
}

/// Number of bytes between two updates of the bar. An update costs more than a packet.
const UPDATE_BYTES: u64 = 1 << 20;

/// Minimum size of a capture for which a bar is shown, in bytes. Smaller ones finish before the bar could be read.
const WORTH_A_BAR: u64 = 32 << 20;

/// One progress bar for both passes, on standard error if that is a terminal.
struct ProgressDisplay {
    bar: ProgressBar,
    /// Length of the capture in bytes.
    size: u64,
    next: u64,
}

impl ProgressDisplay {
    /// Creates a bar for reading the file `path` twice.
    fn new(path: &Path) -> Self {
        let size = std::fs::metadata(path).map_or(0, |about| about.len());
        let target = if size < WORTH_A_BAR { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(size * 2), target);
        // If the template is invalid, the default bar is shown.
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {percent}% {eta}") {
            bar.set_style(style);
        }
        Self { bar, size, next: 0 }
    }

    /// Updates the bar after `position` bytes of both passes.
    #[inline]
    fn update(&mut self, doing: &'static str, position: u64) {
        if position >= self.next {
            self.bar.set_message(doing);
            self.bar.set_position(position);
            self.next = position + UPDATE_BYTES;
        }
    }

    /// Hides the bar while `work` writes, because both may use the same terminal.
    fn hide<T>(&self, work: impl FnOnce() -> T) -> T {
        self.bar.suspend(work)
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
