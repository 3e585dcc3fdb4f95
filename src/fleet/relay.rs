//! Relays the reports of other hosts from the server to the daemon. Notices name keys, which are read in batches. It
//! passes valid reports on, counts invalid ones and logs their authors.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::authors::{KnownAuthors, NoticeOrder};
use super::daemon::Daemon;
use super::key::{FleetAuthor, ValkeyKey};
use super::protocol::{FleetReport, FleetRequest, MAX_REPORTS};
use super::random::chance;
use super::scan::{Pass, Scan, ScanState, Schedule};
use super::server::{Incoming, KeyContents, ServerConnection, ServerError};
use crate::clock::boot_time;
use crate::types::{BanTarget, Timestamp};

/// Maximum number of keys that notices have named and that are not read yet. Further keys are left to a scan.
const MAX_PENDING: usize = 4096;

/// Maximum number of remembered lifts.
const MAX_LIFTS: usize = 65_536;

/// Maximum number of keys per second that all hosts together read because of one notice. The reads are spread over time
/// to stay below it.
const READS_PER_SECOND: u32 = 20_000;

pub(super) struct Relay {
    own: FleetAuthor,
    pub(super) authors: KnownAuthors,
    /// Targets whose reports are not passed on, each with the end of its lift.
    lifts: HashMap<BanTarget, Timestamp>,
    /// True once the lifts on the server are known. Before that no report is passed on.
    knows_lifts: bool,
    waiting: Vec<ValkeyKey>,
    named: HashSet<ValkeyKey>,
    due: Timestamp,
}

impl Relay {
    pub(super) fn new(own: FleetAuthor) -> Self {
        Self {
            own,
            authors: KnownAuthors::default(),
            lifts: HashMap::new(),
            knows_lifts: false,
            waiting: Vec::new(),
            named: HashSet::new(),
            due: Timestamp::ZERO,
        }
    }

    /// Number of known hosts, including this one.
    pub(super) fn hosts(&self) -> u32 {
        u32::try_from(self.authors.len()).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// Resets the state for a new connection: earlier notices may have been missed.
    pub(super) fn connected(&mut self) {
        self.waiting.clear();
        self.named.clear();
        self.authors.forget_sequences();
    }

    /// When the next keys are due to be read.
    pub(super) fn due(&self) -> Option<Timestamp> {
        (self.knows_lifts && !self.waiting.is_empty()).then_some(self.due)
    }

    /// Handles a notice. Returns true if a scan is needed because an earlier notice was missed.
    pub(super) fn incoming(&mut self, (author, notice): Incoming, hosts: u32, now: Timestamp) -> bool {
        if author == self.own {
            return false;
        }
        let notice = match notice {
            Ok(notice) => notice,
            Err(error) => {
                self.blame(&author, &format!("a notice is invalid ({error})"), now);
                return false;
            }
        };
        let is_gap = match self.authors.record_notice(&author, notice.sequence, now) {
            NoticeOrder::Next => false,
            NoticeOrder::Gap => true,
            NoticeOrder::TooMany => {
                self.blame(&author, "more than 600 notices in a minute", now);
                return false;
            }
        };
        if self.waiting.len() >= MAX_PENDING {
            return true;
        }
        let key = ValkeyKey { author, target: notice.target };
        if self.named.insert(key.clone()) {
            if self.waiting.is_empty() {
                let spread = Duration::from_secs(1) * hosts / READS_PER_SECOND;
                self.due = now.after(spread.mul_f64(chance().unwrap_or_default()));
            }
            self.waiting.push(key);
        }
        is_gap
    }

    /// Reads the keys that notices have named, and passes their reports on to the daemon.
    pub(super) async fn deliver(
        &mut self,
        server: &mut ServerConnection,
        daemon: &mut Daemon,
    ) -> Result<(), ServerError> {
        let batch: Vec<ValkeyKey> = self.waiting.drain(..self.waiting.len().min(MAX_REPORTS)).collect();
        for key in &batch {
            self.named.remove(key);
        }
        self.hand_on(&batch, server, daemon).await
    }

    /// Reads the next page of the scan.
    pub(super) async fn scan_page(
        &mut self,
        server: &mut ServerConnection,
        daemon: &mut Daemon,
        schedule: &mut Schedule,
        spread: (u32, f64),
    ) -> Result<(), ServerError> {
        let Some((scan, begins)) = schedule.take_due(boot_time()) else { return Ok(()) };
        if begins {
            self.authors.begin_scan();
            self.lifts.retain(|_, until| *until > boot_time());
        }
        let started = Instant::now();
        let pattern = match scan.pass {
            Pass::Lifts => server.keys.lifts(),
            Pass::Reports => server.keys.reports(),
        };
        let (next, names) = match server.scan(scan.cursor, &pattern, schedule.page).await {
            Err(ServerError::TooLarge) => {
                schedule.shrink(scan);
                return Err(ServerError::TooLarge);
            }
            page => page?,
        };
        // Only the server's time counts: the time that the daemon takes says nothing about the server's load.
        let took = started.elapsed();
        let keys = self.readable(&names, &scan, server);
        for batch in keys.chunks(MAX_REPORTS) {
            self.hand_on(batch, server, daemon).await?;
        }
        self.knows_lifts |= scan.pass == Pass::Lifts && next == 0;
        let progress = schedule.advance(scan, next, names.len(), took, boot_time());
        if progress != ScanState::More {
            schedule.end(spread, boot_time());
        }
        if progress == ScanState::TooMany {
            tracing::warn!(
                "adminalert: fleet: the server has more keys than a fleet can have; the rest is not read. Use a server \
                 for the fleet alone, and remove other keys"
            );
        }
        if progress == ScanState::Done {
            daemon.ask(&FleetRequest::Reports { reports: Vec::new(), scan_ends: true }).await;
        }
        Ok(())
    }

    /// The keys of a page that have to be read.
    fn readable(&mut self, names: &[Vec<u8>], scan: &Scan, server: &ServerConnection) -> Vec<ValkeyKey> {
        let now = boot_time();
        let mut keys = Vec::with_capacity(names.len());
        for name in names {
            match server.keys.parse(name) {
                Ok(key) if key.author == self.own => {}
                Ok(key) if (scan.pass == Pass::Lifts) != (key.author == FleetAuthor::Operator) => {}
                Ok(key) if !self.authors.admit_scanned(&key.author) => {
                    self.blame(&key.author, "more than 10000 keys", now);
                }
                Ok(key) => keys.push(key),
                Err(bad) => {
                    if let Some(author) = bad.author.filter(|author| *author != self.own) {
                        self.blame(&author, &format!("a key is invalid ({})", bad.reason), now);
                    }
                }
            }
        }
        keys
    }

    /// Reads at most [`MAX_REPORTS`] keys and passes the well-formed reports on to the daemon.
    async fn hand_on(
        &mut self,
        keys: &[ValkeyKey],
        server: &mut ServerConnection,
        daemon: &mut Daemon,
    ) -> Result<(), ServerError> {
        let entries = server.read(keys).await?;
        let now = boot_time();
        let mut reports = Vec::with_capacity(keys.len());
        for (key, entry) in keys.iter().zip(entries) {
            match entry {
                KeyContents::Gone => {}
                KeyContents::Bad(error) => {
                    self.blame(&key.author, &format!("the value of a key is invalid ({error})"), now)
                }
                KeyContents::Lift(left) => self.lift(key.target, left, now, daemon).await,
                KeyContents::Report(report, left) => {
                    let is_lifted = self.lifts.get(&key.target).is_some_and(|until| *until > now);
                    if let FleetAuthor::Host(host) = &key.author
                        && !is_lifted
                        && left.as_secs() > 0
                    {
                        reports.push(FleetReport {
                            author: host.as_str().to_owned(),
                            target: key.target.to_string(),
                            remaining_s: left.as_secs(),
                            grade: report.grade,
                            distinct_ports: report.ports,
                            class: report.class.key().to_owned(),
                            sequence: report.sequence,
                        });
                    }
                }
            }
        }
        if !reports.is_empty() {
            daemon.ask(&FleetRequest::Reports { reports, scan_ends: false }).await;
        }
        Ok(())
    }

    /// Records a lift and sends it to the daemon. No report of the target is passed on during the lift.
    async fn lift(&mut self, target: BanTarget, left: Duration, now: Timestamp, daemon: &mut Daemon) {
        if self.lifts.len() >= MAX_LIFTS && !self.lifts.contains_key(&target) {
            if self.authors.lines.admit(now) {
                tracing::warn!(
                    "adminalert: fleet: the server has more than {MAX_LIFTS} lifts; the lift of {target} is ignored"
                );
                self.announce_last_line();
            }
            return;
        }
        // Also sent if the lift is already known, because the daemon may be a new process.
        daemon.ask(&FleetRequest::Lift { target }).await;
        self.lifts.insert(target, now.after(left));
    }

    fn blame(&mut self, author: &FleetAuthor, reason: &str, now: Timestamp) {
        if self.authors.blame(author, reason, now) {
            tracing::warn!(
                "adminalert: fleet: some data of {author} on the server is ignored: {reason}; check portsentry on that \
                 host"
            );
            self.announce_last_line();
        }
    }

    fn announce_last_line(&self) {
        if self.authors.lines.is_exhausted() {
            tracing::warn!(
                "adminalert: fleet: no further lines about ignored data on the server for up to an hour; see \
                 `portsentry status`"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::HostName;
    use super::super::report::FleetNotice;
    use super::*;

    #[test]
    fn reports_wait_for_lifts_of_first_scan() {
        let host = |name: &str| FleetAuthor::Host(HostName::parse(name).unwrap());
        let mut relay = Relay::new(host("own"));
        let notice = FleetNotice { sequence: 1, target: "203.0.113.7".parse().unwrap() };
        let now = Timestamp::at(Duration::from_secs(1));
        assert!(!relay.incoming((host("a"), Ok(notice)), 2, now));
        assert_eq!(relay.due(), None, "an operator may have lifted what the notice names");
        relay.knows_lifts = true;
        assert!(relay.due().is_some());
        relay.connected();
        assert!(!relay.incoming((host("a"), Ok(notice)), 2, now));
        assert!(relay.due().is_some(), "a later connection finds the lifts that are known");
    }
}
