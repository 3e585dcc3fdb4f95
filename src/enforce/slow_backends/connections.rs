//! Ends connections of blocked sources, with one dump of the kernel's socket table for all waiting sources.

use std::collections::HashSet;

use super::events::{BackendEvent, SlowTask};
use super::task::{BACKOFF, MAX_BANS};
use crate::enforce::ExemptPrefixes;
use crate::netlink::sock_diag::{DestroyedCount, SockDiag, SockDiagError, end_connections};
use crate::types::{Backoff, BanTarget, Timestamp};

/// Packets of a blocked source are dropped in any case, so more attempts are not useful.
const MAX_ATTEMPTS: u32 = 5;

pub(super) struct Connections {
    diag: Option<SockDiag>,
    waiting: HashSet<BanTarget>,
    backoff: Backoff,
    unable: bool,
}

impl Default for Connections {
    fn default() -> Self {
        Self { diag: None, waiting: HashSet::new(), backoff: BACKOFF, unable: false }
    }
}

impl Connections {
    pub(super) fn end(&mut self, target: BanTarget) {
        if !self.unable && self.waiting.len() < MAX_BANS {
            self.waiting.insert(target);
            self.backoff.shorten();
        }
    }

    /// Time of the next attempt, if a source waits.
    pub(super) fn next(&self) -> Option<Timestamp> {
        (!self.waiting.is_empty()).then_some(self.backoff.until())
    }

    /// Ends the connections of waiting sources, except those of `exempt` addresses, if the attempt is due.
    pub(super) fn flush(&mut self, now: Timestamp, exempt: &ExemptPrefixes, report: &mut dyn FnMut(BackendEvent)) {
        if self.next().is_none_or(|next| next > now) {
            return;
        }
        let task = SlowTask::EndConnections;
        match self.try_to_end(exempt) {
            Ok(DestroyedCount { connections, more }) => {
                self.backoff.reset();
                connections.into_iter().for_each(|(target, ended)| report(BackendEvent::Connections { target, ended }));
                if !more {
                    self.waiting.clear();
                }
            }
            Err(error @ SockDiagError::NoDestroy(_)) => {
                self.unable = true;
                self.waiting.clear();
                report(BackendEvent::Unable { task, reason: error.to_string() });
            }
            Err(error) => {
                let pause = self.backoff.extend(now);
                let attempt = self.backoff.failures();
                let again = (attempt < MAX_ATTEMPTS).then_some(pause);
                let targets = self.waiting.iter().copied().collect();
                report(BackendEvent::Failed { targets, task, reason: error.to_string(), attempt, again });
                if again.is_none() {
                    self.waiting.clear();
                    self.backoff.reset();
                }
            }
        }
    }

    fn try_to_end(&mut self, exempt: &ExemptPrefixes) -> Result<DestroyedCount, SockDiagError> {
        let diag = match &mut self.diag {
            Some(diag) => diag,
            none => none.insert(SockDiag::open()?),
        };
        end_connections(diag, &self.waiting, |peer| exempt.contains(peer))
    }
}
