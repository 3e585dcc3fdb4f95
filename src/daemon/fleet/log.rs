//! Collects the log lines of the fleet, and limits how many of each topic are written per minute.

use crate::clock::boot_time;
use crate::events::event::EventKind;
use crate::types::{LineLimiter, MINUTE, counted};

/// What a log line is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    /// Bans and lifts, and errors of the kernel's sets.
    Bans,
    /// Refused reports, and authors above their limit.
    Authors,
    /// The connection to the server.
    Link,
    /// Refused requests of the fleet process.
    Refusals,
}

/// Maximum number of log lines per minute. The limits are separate, so that a flood of one kind does not suppress the
/// others.
const MAX_LINES: [(Topic, u32); 4] = [(Topic::Bans, 20), (Topic::Authors, 20), (Topic::Link, 10), (Topic::Refusals, 4)];

pub(super) struct FleetLog {
    lines: [(Topic, LineLimiter); 4],
    /// The events that are not logged yet.
    events: Vec<EventKind>,
}

impl Default for FleetLog {
    fn default() -> Self {
        Self { lines: MAX_LINES.map(|(topic, most)| (topic, LineLimiter::new(most, MINUTE))), events: Vec::new() }
    }
}

impl FleetLog {
    /// Adds `event`, unless there were too many of its topic in this minute.
    pub(super) fn add(&mut self, topic: Topic, event: Option<EventKind>) {
        let Some((_, lines)) = self.lines.iter_mut().find(|(one, _)| *one == topic) else { return };
        self.events.extend(event.filter(|_| lines.admit(boot_time())));
    }

    /// Adds `event` without a limit.
    pub(super) fn add_always(&mut self, event: Option<EventKind>) {
        self.events.extend(event);
    }

    /// Reports the lines that were suppressed in the last minute.
    pub(super) fn turn_minute(&mut self) {
        let left_out: u64 = self.lines.iter_mut().filter_map(|(_, lines)| lines.take_suppressed(boot_time())).sum();
        if left_out > 0 {
            let left_out = counted(left_out, "line");
            self.events.push(EventKind::Note(format!("fleet: {left_out} suppressed in the last minute")));
        }
    }

    /// Takes the events to log.
    pub(super) fn take(&mut self) -> Vec<EventKind> {
        std::mem::take(&mut self.events)
    }
}
