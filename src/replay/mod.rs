//! A capture file through the engine: what the program would have done, with the capture's clock, without privileges and
//! without touching anything. Two passes: the first learns which ports are in use, the second judges.
//!
//! Results go to the writer that the caller gives, as they come; the summary follows the last packet, also where the
//! file breaks before its end.

mod clock;
mod learn;
mod packet;
mod print;
mod progress;
mod summary;

use std::collections::HashSet;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub use clock::Clock;
pub use learn::{Learner, Used};
pub use packet::decode;
pub use summary::{Judged, Left, Protected, Summary};

use crate::capture::file::{FileError, Reader};
use crate::cli::ReplayOptions;
use crate::config::{Config, ConfigErrors};
use crate::engine::{
    Engine, HashKey, Host, IgnoreReason, Local, NoLookup, Notice, Protection, Repeated, Settings, Verdict,
};
use crate::events::event::{Event, EventKind};
use crate::types::Backend;
use crate::wire::{LinkType, Packet, Transport};
use crate::{daemon, events};
use progress::Progress;

/// Why a replay did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The capture, named first.
    #[error("{}: {error}", path.display())]
    File {
        /// The capture.
        path: PathBuf,
        /// What is wrong with it.
        error: FileError,
    },
    /// A file that the settings name is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The results cannot be written.
    #[error("the results cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// Reads the capture that `options` names and writes events and summary to `out`. A reader of `out` that has had enough
/// ends it without an error.
///
/// # Errors
/// A broken capture, after what could be read of it has been judged and summed up; and whatever else fails.
pub fn run(options: &ReplayOptions, config: &Config, out: &mut impl Write) -> Result<(), ReplayError> {
    let result = Replay::new(options, config).and_then(|mut replay| replay.run(out));
    match result {
        Err(ReplayError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// SCTP's INIT, the chunk that asks for an association (RFC 9260).
const INIT: u8 = 1;

struct Replay<'a> {
    path: &'a Path,
    json: bool,
    settings: Settings,
    host: Host,
    engine: Engine,
    clock: Clock,
    summary: Summary,
    sctp: HashSet<(IpAddr, u16)>,
}

/// Fixed: a replay gives the same answer each time, and who made the capture cannot harm anybody by filling a bucket.
const HASH_KEY: HashKey = HashKey(0x706f_7274_7365_6e74, 0x7265_706c_6179_2121);

impl<'a> Replay<'a> {
    fn new(options: &'a ReplayOptions, config: &Config) -> Result<Self, ReplayError> {
        let mut settings = daemon::settings(config);
        // Connect mode judges what its decoys accept; a capture has no decoys, but the packets to their ports.
        settings.tcp.ports = config.tcp.watched();
        settings.udp.ports = config.udp.watched();
        let mut host = Host::new(local(options));
        for network in config.allow.read()? {
            host.allow.insert(network, Protection::Listed);
        }
        let engine = Engine::new(settings.clone(), HASH_KEY);
        let summary = Summary::new(settings.scan_trigger);
        let clock = Clock::default();
        Ok(Self {
            path: &options.file,
            json: options.json,
            settings,
            host,
            engine,
            clock,
            summary,
            sctp: HashSet::new(),
        })
    }

    fn run(&mut self, out: &mut impl Write) -> Result<(), ReplayError> {
        let mut progress = Progress::over(self.path);
        let learned = self.learn(&mut progress);
        if let Err(error @ (FileError::Open(_) | FileError::NotAFile | FileError::Empty)) = learned {
            return Err(self.about(error));
        }
        let judged = self.judge(&mut progress, out)?;
        progress.finish();
        match judged {
            // Nothing came of it: there is nothing to sum up.
            Err(error) if self.summary.packets == 0 => Err(self.about(error)),
            judged => {
                if self.json {
                    writeln!(out, "{}", print::object(&self.summary))?;
                } else {
                    print::text(&self.summary, out)?;
                }
                out.flush()?;
                judged.map_err(|error| self.about(error))
            }
        }
    }

    fn about(&self, error: FileError) -> ReplayError {
        ReplayError::File { path: self.path.to_owned(), error }
    }

    /// The first pass. Where the file breaks, what was learned until there holds: the second one comes no further.
    fn learn(&mut self, progress: &mut Progress) -> Result<(), FileError> {
        let mut learner = Learner::new(&self.host.local, &self.settings.tcp.ports, &self.settings.udp.ports);
        let result = Reader::open(self.path).and_then(|mut reader| {
            while let Some(frame) = reader.next_frame()? {
                progress.first_pass(frame.end);
                if let Some(link) = LinkType::from_dlt(frame.link)
                    && let Ok(packet) = packet::decode(link, frame.bytes)
                {
                    learner.look(&packet);
                }
            }
            Ok(())
        });
        let used = learner.finish();
        for (address, port) in used.tcp {
            self.host.tcp.insert_at(address, port);
        }
        for (address, port) in used.udp {
            self.host.udp.insert_at(address, port);
        }
        self.sctp = used.sctp;
        self.summary.forgot_ports = used.overflowed;
        result
    }

    /// The second pass: every packet through the engine. The inner error is the capture's, the outer one the writer's.
    fn judge(&mut self, progress: &mut Progress, out: &mut impl Write) -> io::Result<Result<(), FileError>> {
        let mut reader = match Reader::open(self.path) {
            Ok(reader) => reader,
            Err(error) => return Ok(Err(error)),
        };
        loop {
            let frame = match reader.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(Ok(())),
                Err(error) => return Ok(Err(error)),
            };
            progress.second_pass(frame.end);
            let time = SystemTime::UNIX_EPOCH + frame.time;
            self.summary.packet(time);
            let Some(link) = LinkType::from_dlt(frame.link) else {
                self.summary.unknown_link(frame.link);
                continue;
            };
            match packet::decode(link, frame.bytes) {
                Ok(packet) => {
                    if let Some(what) = self.observe(frame.time, &packet) {
                        progress.hide(|| self.say(out, time, what))?;
                    }
                }
                Err(why) => self.summary.undecoded(why),
            }
            self.notices(out, time)?;
        }
    }

    /// Judges one packet; what there is to say about it.
    fn observe(&mut self, time: Duration, packet: &Packet) -> Option<EventKind> {
        let now = self.clock.tick(time);
        if let Transport::Sctp { destination_port, chunk: INIT, .. } = packet.transport
            && self.sctp.contains(&(packet.destination, destination_port))
        {
            self.summary.innocent(IgnoreReason::Open);
            return None;
        }
        let verdict = self.engine.observe(now, packet, &self.host, &mut NoLookup);
        self.summary.verdict(&verdict, SystemTime::UNIX_EPOCH + time, now);
        match verdict {
            Verdict::Block(ban) => Some(EventKind::Blocked { ban, way: Backend::Nft, reaction: Duration::ZERO }),
            Verdict::LogOnly(ban) => Some(EventKind::Scan(ban)),
            Verdict::Probe(probe) => probe.fresh.then_some(EventKind::Probe(probe)),
            Verdict::Exempt(spared) => spared.report.map(|probes| EventKind::Exempt { spared, probes }),
            Verdict::Repeated(Repeated { subject, standing, report, .. }) => {
                report.map(|packets| EventKind::Repeated { subject, standing, packets })
            }
            Verdict::Ignored(_) => None,
        }
    }
}

impl Replay<'_> {
    fn notices(&mut self, out: &mut impl Write, time: SystemTime) -> io::Result<()> {
        let now = self.clock.now();
        while let Some(notice) = self.engine.notice(now) {
            let what = match notice {
                Notice::DistributedScan(sweep) => EventKind::DistributedScan(sweep),
                Notice::Repeated { subject, standing, packets } => EventKind::Repeated { subject, standing, packets },
                Notice::Capped { bans } => EventKind::Capped { bans },
            };
            self.say(out, time, what)?;
        }
        Ok(())
    }

    fn say(&self, out: &mut impl Write, time: SystemTime, what: EventKind) -> io::Result<()> {
        let event = Event { time, what };
        if !self.json {
            let Some(line) = events::classic_log::of(&event.what) else { return Ok(()) };
            return writeln!(out, "{} {line}", events::json::rfc3339(time));
        }
        let mut object = events::json::of(&event);
        if let Some(object) = object.as_object_mut() {
            // Nobody was blocked, so nothing took any time.
            object.remove("reaction_us");
        }
        writeln!(out, "{object}")
    }
}

/// Whose ports are judged. Whole addresses are one host, and judged like a running one; a network is many hosts.
fn local(options: &ReplayOptions) -> Local {
    let is_host = |prefix: &ipnet::IpNet| prefix.prefix_len() == prefix.max_prefix_len();
    match options.local.as_slice() {
        [] => Local::Any,
        hosts if hosts.iter().all(is_host) => Local::Addresses(hosts.iter().map(ipnet::IpNet::addr).collect()),
        prefixes => Local::Prefixes(prefixes.to_vec()),
    }
}
