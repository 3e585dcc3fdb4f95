//! Replays the cause of a ban, or a scan that was not detected. The run is repeated up to one packet, and the events of
//! its source are recorded.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use portsentry::types::{BanTarget, Timestamp};
use portsentry::wire::{Packet, Transport};

use crate::detector::PacketVerdict;
use crate::kernel::Passage;
use crate::world::{Role, World};
use crate::{Options, populate};

/// A packet in a run: `SEED:PACE:HOST:STEP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub seed: u64,
    pub pace: u32,
    pub host: u64,
    pub step: u64,
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<Option<u64>> = text.split(':').map(|part| part.parse().ok()).collect();
        let position = match parts.as_slice() {
            [Some(seed), Some(pace), Some(host), Some(step)] => {
                let pace = u32::try_from(*pace).ok().filter(|pace| *pace > 0);
                pace.map(|pace| Self { seed: *seed, pace, host: *host, step: *step })
            }
            _ => None,
        };
        position.ok_or_else(|| format!("\"{text}\" is not SEED:PACE:HOST:STEP; copy it from the table"))
    }
}

/// Records the events of one source and of the host.
pub struct Trace {
    step: u64,
    /// The source whose events are recorded; `None` until the packet at `step` is reached.
    target: Option<BanTarget>,
    lines: VecDeque<(Timestamp, String)>,
    /// True after the packet at `step`.
    reached: bool,
}

/// Maximum number of recorded lines; the oldest are discarded.
const MAX_LINES: usize = 400;

/// Maximum age of the listed events at the last packet.
const BEFORE: Duration = Duration::from_secs(2 * 3_600);

impl Trace {
    fn until(step: u64, target: Option<BanTarget>) -> Self {
        Self { step, target, lines: VecDeque::new(), reached: false }
    }

    /// The source of the packet at `step`, after that packet.
    pub(crate) fn reached(&self) -> Option<BanTarget> {
        self.target.filter(|_| self.reached)
    }

    pub(crate) fn is_about(&self, target: BanTarget) -> bool {
        self.target == Some(target)
    }

    pub(crate) fn note(&mut self, now: Timestamp, text: String) {
        if self.lines.len() == MAX_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back((now, text));
    }

    pub(crate) fn packet(
        &mut self,
        now: Timestamp,
        step: u64,
        role: Role,
        packet: &Packet,
        seen: Option<(Passage, &PacketVerdict)>,
    ) {
        let source = BanTarget::containing(packet.source);
        if step == self.step {
            self.target = Some(source);
            self.reached = true;
        }
        if self.target != Some(source) {
            return;
        }
        let sent_by = match role {
            Role::Honest(behaviour) | Role::Dishonest(behaviour) | Role::Authorised(behaviour) => behaviour,
            Role::Backstage => "the host",
        };
        let Some((passage, verdict)) = seen else {
            return self.note(now, format!("{} [{sent_by}] lost: the host is off", Shown(packet)));
        };
        let passage = match passage {
            Passage::Passed => "passed",
            Passage::Blocked => "dropped: blocked",
            Passage::Held => "dropped: the source is held",
            Passage::Illegal => "dropped: no TCP stack sends such flags",
            Passage::Trapped => "dropped: the trap blocks the source",
        };
        let text = format!("{} [{sent_by}] kernel: {passage}; engine: {}", Shown(packet), shown(verdict));
        self.note(now, text);
    }

    /// The lines, each with its time since the start of the simulation.
    #[must_use]
    pub fn text(&self) -> String {
        let last = self.lines.back().map_or(Timestamp::ZERO, |(at, _)| *at);
        let recent = self.lines.iter().filter(|(at, _)| last.since(*at) <= BEFORE);
        recent.map(|(at, text)| format!("{:>14.3} s  {text}\n", at.since_origin().as_secs_f64())).collect()
    }
}

struct Shown<'a>(&'a Packet<'a>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = self.0.source;
        match self.0.transport {
            Transport::Tcp { source_port, destination_port, flags, .. } => {
                write!(f, "{source} port {source_port} -> TCP {destination_port} {flags:?}")
            }
            Transport::Udp { source_port, destination_port } => {
                write!(f, "{source} port {source_port} -> UDP {destination_port}")
            }
            other => write!(f, "{source} -> {other:?}"),
        }
    }
}

pub(crate) fn shown(verdict: &PacketVerdict) -> String {
    match verdict {
        PacketVerdict::Ignored(reason) => format!("ignored ({reason:?})"),
        PacketVerdict::Probe(distinct) => format!("probe, {distinct} distinct"),
        PacketVerdict::Exempt => "exempt".to_owned(),
        PacketVerdict::Repeated => "has a ban already".to_owned(),
        PacketVerdict::LogOnly => "only logged".to_owned(),
        PacketVerdict::Ban { target, ports, .. } => format!("BAN of {target} for {ports}"),
    }
}

/// Repeats the run of `position` up to its packet, and to the verdict on its source. Returns the events of the packet's
/// source, line by line. `options` are those of the run; seed and pace come from `position`.
#[must_use]
pub fn replay(options: &Options, position: Position) -> String {
    let options = Options { seed: position.seed, pace: position.pace, ..options.clone() };
    let run = |target| {
        let mut world = World::new(&options, position.host);
        world.trace = Some(Trace::until(position.step, target));
        populate(&mut world);
        let (_, trace) = world.run(Duration::from_secs(u64::from(u32::MAX)), &|| ());
        trace
    };
    let target = run(None).and_then(|trace| trace.target);
    run(target).map_or_else(String::new, |trace| trace.text())
}
