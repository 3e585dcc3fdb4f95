//! Tracks the connection to the fleet's server, as reported by the fleet process. Logs one line when it is lost, and
//! one when it is back.

use std::time::{Duration, Instant};

use crate::config::parse_fleet_name;
use crate::control::fleet_info::FleetLink;
use crate::events::event::EventKind;
use crate::fleet::protocol::{IgnoredAuthor, LINK_INTERVAL_S, LinkState, MAX_IGNORED, MAX_TEXT_LEN};
use crate::types::printable::quotable;

/// Time without a message after which the fleet process counts as dead.
const DEAD_TIMEOUT: Duration = Duration::from_secs(3 * LINK_INTERVAL_S);

pub(super) struct FleetConnection {
    /// `None` before the first message of a fleet process.
    state: Option<LinkState>,
    heard: Instant,
    /// Authors whose reports the fleet process ignores.
    pub(super) ignored: Vec<IgnoredAuthor>,
}

impl Default for FleetConnection {
    fn default() -> Self {
        Self { state: None, heard: Instant::now(), ignored: Vec::new() }
    }
}

impl FleetConnection {
    /// Applies the fleet process's report about its connection to the server of `fleet`. Returns the event to log.
    pub(super) fn update(&mut self, mut state: LinkState, ignored: &[IgnoredAuthor], fleet: &str) -> Option<EventKind> {
        self.heard = Instant::now();
        let text = |text: &str| quotable(text, 4 * MAX_TEXT_LEN);
        let ignored = ignored.iter().filter(|one| parse_fleet_name(&one.author).is_ok()).take(MAX_IGNORED);
        self.ignored =
            ignored.map(|one| IgnoredAuthor { author: one.author.clone(), reason: text(&one.reason) }).collect();
        if let LinkState::Away(reason) = &mut state {
            *reason = text(reason);
        }
        self.change(state, fleet)
    }

    /// Treats a silent fleet process as dead; returns the event to log.
    pub(super) fn check(&mut self, fleet: &str) -> Option<EventKind> {
        if self.heard.elapsed() < DEAD_TIMEOUT || self.is_away() {
            return None;
        }
        self.ignored.clear();
        let reason = "the fleet process sends no messages; see `systemctl status portsentry-fleet`".to_owned();
        self.change(LinkState::Away(reason), fleet)
    }

    fn change(&mut self, state: LinkState, fleet: &str) -> Option<EventKind> {
        let before = self.state.replace(state);
        match (&before, &self.state) {
            (Some(LinkState::Connected), Some(LinkState::Connected)) => None,
            (_, Some(LinkState::Connected)) => {
                Some(EventKind::Note(format!("fleet: connected to the server of {fleet}")))
            }
            (None | Some(LinkState::Connected), Some(LinkState::Away(reason))) => Some(EventKind::Error(format!(
                "fleet: not connected to the server of {fleet}: {reason}; local bans are not affected, and bans of the \
                 fleet expire"
            ))),
            _ => None,
        }
    }

    pub(super) fn is_away(&self) -> bool {
        matches!(self.state, Some(LinkState::Away(_)))
    }

    /// State of the connection, with its error.
    pub(super) fn status(&self) -> (FleetLink, Option<String>) {
        match &self.state {
            Some(LinkState::Connected) => (FleetLink::Connected, None),
            Some(LinkState::Away(reason)) => (FleetLink::Away, Some(reason.clone())),
            None => (FleetLink::Away, None),
        }
    }
}
