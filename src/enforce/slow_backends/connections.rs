//! Connections of blocked sources that are to be ended: one dump of the kernel's table for all that wait.

use std::collections::HashSet;
use std::time::Duration;

use super::backoff::Backoff;
use super::{BackendEvent, MAX_BANS, SlowTask};
use crate::netlink::sock_diag::{Ended, SockDiag, SockDiagError};
use crate::types::BanTarget;

/// A source that is blocked is heard no more in any case, so that this is not worth trying for long.
const ATTEMPTS: u32 = 5;

/// Whose connections are to be ended.
#[derive(Default)]
pub(super) struct Connections {
    diag: Option<SockDiag>,
    waiting: HashSet<BanTarget>,
    pause: Backoff,
    unable: bool,
}

impl Connections {
    pub(super) fn end(&mut self, subject: BanTarget) {
        if !self.unable && self.waiting.len() < MAX_BANS {
            self.waiting.insert(subject);
            self.pause.shorten();
        }
    }

    /// When to ask, if there is anybody.
    pub(super) fn next(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(self.pause.until())
    }

    /// Ends what waits, if its time has come.
    pub(super) fn flush(&mut self, now: Duration, tell: &mut dyn FnMut(BackendEvent)) {
        if self.next().is_none_or(|next| next > now) {
            return;
        }
        let task = SlowTask::EndConnections;
        match self.try_to_end() {
            Ok(Ended { connections, more }) => {
                self.pause = Backoff::default();
                connections.into_iter().for_each(|(subject, ended)| tell(BackendEvent::Connections { subject, ended }));
                if !more {
                    self.waiting.clear();
                }
            }
            Err(error @ SockDiagError::NoDestroy(_)) => {
                self.unable = true;
                self.waiting.clear();
                tell(BackendEvent::Unable { task, reason: error.to_string() });
            }
            Err(error) => {
                let pause = self.pause.extend(now);
                let attempt = self.pause.failures;
                let again = (attempt < ATTEMPTS).then_some(pause);
                let subjects = self.waiting.iter().copied().collect();
                tell(BackendEvent::Failed { subjects, task, reason: error.to_string(), attempt, again });
                if again.is_none() {
                    self.waiting.clear();
                    self.pause = Backoff::default();
                }
            }
        }
    }

    fn try_to_end(&mut self) -> Result<Ended, SockDiagError> {
        let diag = match &mut self.diag {
            Some(diag) => diag,
            none => none.insert(SockDiag::open()?),
        };
        diag.end_connections(&self.waiting)
    }
}
