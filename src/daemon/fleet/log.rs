//! Collects the log lines of the fleet, and limits how many of each topic are written per minute.

use crate::clock::boot_time;
use crate::events::event::EventKind;
use crate::types::{LineLimiter, MINUTE, counted};

/// Maximum number of log lines per minute about bans, authors, the connection and refused requests. The limits are
/// separate, so that a flood of one kind does not suppress the others.
const MAX_BAN_LINES: u32 = 20;
const MAX_AUTHOR_LINES: u32 = 20;
const MAX_LINK_LINES: u32 = 10;
const MAX_REFUSAL_LINES: u32 = 4;

/// What a log line is about.
#[derive(Clone, Copy)]
pub(super) enum Topic {
    Bans,
    Authors,
    Link,
    Refusals,
}

pub(super) struct FleetLog {
    bans: LineLimiter,
    authors: LineLimiter,
    link: LineLimiter,
    refusals: LineLimiter,
    /// The events that are not logged yet.
    events: Vec<EventKind>,
}

impl Default for FleetLog {
    fn default() -> Self {
        let [bans, authors, link, refusals] = [MAX_BAN_LINES, MAX_AUTHOR_LINES, MAX_LINK_LINES, MAX_REFUSAL_LINES]
            .map(|max| LineLimiter::new(max, MINUTE));
        Self { bans, authors, link, refusals, events: Vec::new() }
    }
}

impl FleetLog {
    /// Adds `event`, unless there were too many of its topic in this minute.
    pub(super) fn add(&mut self, topic: Topic, event: Option<EventKind>) {
        let lines = match topic {
            Topic::Bans => &mut self.bans,
            Topic::Authors => &mut self.authors,
            Topic::Link => &mut self.link,
            Topic::Refusals => &mut self.refusals,
        };
        self.events.extend(event.filter(|_| lines.admit(boot_time())));
    }

    /// Adds `event` without a limit.
    pub(super) fn add_always(&mut self, event: Option<EventKind>) {
        self.events.extend(event);
    }

    /// Reports the lines that were suppressed in the last minute.
    pub(super) fn turn_minute(&mut self) {
        let limiters = [&mut self.bans, &mut self.authors, &mut self.link, &mut self.refusals];
        let left_out: u64 = limiters.into_iter().filter_map(|lines| lines.turn(boot_time())).sum();
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
