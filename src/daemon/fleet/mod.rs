//! Handles the daemon's side of a fleet: receives reports of other hosts from the fleet process, judges each, and
//! blocks accepted targets in separate kernel sets. Runs in the event loop, without the sensor thread.

mod acceptance;
mod answers;
mod authors;
mod faulty;
mod lifts;
mod link;
mod own_bans;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;

use super::allow_sources::protected;
use super::ban_recorder::Remembered;
use super::optional::deadline_reached;
use crate::clock::boot_time;
use crate::config::{Fleet as FleetConfig, parse_network};
use crate::control::fleet_info::FleetBanState;
use crate::control::fleet_server::{FleetServer, IncomingFleetRequest};
use crate::enforce::nft::{BlockError, FleetSets};
use crate::engine::Host;
use crate::events::event::{Event, EventKind};
use crate::fleet::protocol::{FleetReply, FleetReport, FleetRequest, MAX_REPORTS, ReportOutcome};
use crate::ledger::{FleetLift, LedgerChange, LiftedBy, Recorder};
use crate::types::printable::quotable;
use crate::types::{BanTarget, Expiry, LineLimiter, MINUTE, counted};
use acceptance::Acceptance;
use authors::Ignored;
use faulty::FaultyAuthors;
use link::Link;
use own_bans::OwnBans;
use verdict::{Step, Verdict};

/// Maximum number of log lines per minute about bans, authors, the connection and refused requests. The limits are
/// separate, so that a flood of one kind does not suppress the others.
const MAX_BAN_LINES: u32 = 20;
const MAX_AUTHOR_LINES: u32 = 20;
const MAX_LINK_LINES: u32 = 10;
const MAX_REFUSAL_LINES: u32 = 4;

/// Maximum length of the quoted part of a refused request, in bytes.
const MAX_REFUSAL_LEN: usize = 160;

/// Delay before the sets are filled again after the table changed or could not be written.
const REFILL_DELAY: Duration = Duration::from_millis(50);
const REFILL_BACKOFF: Duration = Duration::from_secs(5);

/// Interval at which expired entries are dropped.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(5);

pub(super) struct Fleet {
    config: FleetConfig,
    acceptance: Acceptance,
    own_bans: OwnBans,
    /// `None` if there is no ledger.
    recorder: Option<Recorder>,
    server: FleetServer,
    sets: FleetSets,
    /// True if the kernel's sets contain the bans.
    in_kernel: bool,
    refill_at: Option<Instant>,
    last_error: Option<String>,
    link: Link,
    faulty: FaultyAuthors,
    ban_lines: LineLimiter,
    author_lines: LineLimiter,
    link_lines: LineLimiter,
    refusal_lines: LineLimiter,
    /// The events that are not logged yet.
    events: Vec<EventKind>,
    host: Arc<Host>,
    /// False if scans are only logged.
    enforces: bool,
    expired_at: Instant,
    accepted: u64,
    refused: u64,
}

impl Fleet {
    pub(super) fn new(
        config: &FleetConfig,
        server: FleetServer,
        sets: FleetSets,
        host: Arc<Host>,
        enforces: bool,
    ) -> Self {
        Self {
            acceptance: Acceptance::new(config.accept.clone(), config.host.clone()),
            config: config.clone(),
            own_bans: OwnBans::default(),
            recorder: None,
            server,
            sets,
            in_kernel: false,
            refill_at: None,
            last_error: None,
            link: Link::default(),
            faulty: FaultyAuthors::default(),
            ban_lines: LineLimiter::new(MAX_BAN_LINES, MINUTE),
            author_lines: LineLimiter::new(MAX_AUTHOR_LINES, MINUTE),
            link_lines: LineLimiter::new(MAX_LINK_LINES, MINUTE),
            refusal_lines: LineLimiter::new(MAX_REFUSAL_LINES, MINUTE),
            events: Vec::new(),
            host,
            enforces,
            expired_at: Instant::now(),
            accepted: 0,
            refused: 0,
        }
    }

    /// Restores the state from the ledger, if there is one, and adopts the contents of the kernel's sets, or empties
    /// them in shadow mode. Called before the first request.
    pub(super) async fn recall(&mut self, recorder: Option<Recorder>, remembered: &[Remembered], lifts: &[FleetLift]) {
        if let Some(recorder) = &recorder {
            self.own_bans.recall(recorder, remembered).await;
        }
        self.recorder = recorder;
        self.acceptance.lifts.restore(boot_time(), SystemTime::now(), lifts);
        let done = if self.is_shadow() {
            self.sets.clear()
        } else {
            self.in_kernel = true;
            let Ok(found) = self.sets.elements() else { return };
            let refused = self.acceptance.adopt(boot_time(), found.into_iter(), exempt(&self.host));
            self.sets.lift(&refused)
        };
        self.note_kernel(done);
    }

    /// Applies the current snapshot of the host, and whether sources are blocked. Bans of targets that have become
    /// exempt are dropped.
    pub(super) fn update(&mut self, host: Arc<Host>, enforces: bool) {
        self.enforces = enforces;
        if Arc::ptr_eq(&self.host, &host) {
            return;
        }
        self.host = host;
        let dropped = self.acceptance.drop_exempt(exempt(&self.host));
        if self.in_kernel && !dropped.is_empty() {
            let lifted = self.sets.lift(&dropped);
            self.note_kernel(lifted);
        }
    }

    fn is_shadow(&self) -> bool {
        self.config.shadow || !self.enforces
    }

    /// Waits for the next request, or, with `None`, until the kernel's sets have to be filled. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<IncomingFleetRequest> {
        tokio::select! {
            request = self.server.next_request() => Some(request),
            () = deadline_reached(self.refill_at) => None,
        }
    }

    /// Does the work that [`Fleet::next`] has returned; returns the events to log.
    pub(super) fn work(&mut self, work: Option<IncomingFleetRequest>) -> Vec<EventKind> {
        match work {
            None => self.refill(),
            Some(IncomingFleetRequest::OwnBans { reply }) => {
                let _ = reply.send(self.own_bans.in_force(SystemTime::now()));
            }
            Some(IncomingFleetRequest::Refused { reason }) => self.log_refusal(&reason),
            Some(IncomingFleetRequest::Request { request, reply }) => {
                let answer = self.handle(request).unwrap_or_else(|reason| {
                    self.log_refusal(&reason);
                    FleetReply::Refused { reason }
                });
                // The client may have disconnected.
                let _ = reply.send(answer);
            }
        }
        self.take_events()
    }

    /// Handles a request; returns the reason if it is refused as a whole.
    fn handle(&mut self, request: FleetRequest) -> Result<FleetReply, String> {
        Ok(match request {
            FleetRequest::Reports { reports, .. } if reports.len() > MAX_REPORTS => {
                return Err(format!("refused: more than {MAX_REPORTS} reports in one request"));
            }
            FleetRequest::Reports { reports, scan_ends } => {
                let outcomes = self.judge(&reports);
                if scan_ends {
                    self.acceptance.end_scan();
                }
                FleetReply::Reports { outcomes }
            }
            FleetRequest::Lift { target } => {
                let target = parse_network(&target).and_then(BanTarget::of_prefix);
                let target = target.map_err(|_| "refused: the target of a lift is not an address or a /64")?;
                let lifted = self.lift(target, LiftedBy::Fleet);
                if lifted {
                    let text = format!("fleet: an operator of the fleet has lifted the ban of {target}");
                    self.events.extend(limited(&mut self.ban_lines, Some(EventKind::Note(text))));
                }
                FleetReply::Lifted { lifted }
            }
            FleetRequest::Link { state, ignored } => {
                let event = self.link.update(state, &ignored, &self.config.name);
                self.events.extend(limited(&mut self.link_lines, event));
                self.follow_link();
                FleetReply::Noted
            }
            FleetRequest::Watch {} => return Err("subscriptions are served by the socket itself".to_owned()),
        })
    }

    /// Judges `reports` and applies the resulting bans.
    fn judge(&mut self, reports: &[FleetReport]) -> Vec<ReportOutcome> {
        let (now, shadow) = (boot_time(), self.is_shadow());
        let mut bans = BTreeMap::new();
        let mut fresh = BTreeSet::new();
        let mut outcomes = Vec::with_capacity(reports.len());
        for report in reports {
            let verdict = self.acceptance.judge(now, report, exempt(&self.host));
            outcomes.push(match verdict {
                Ok(Verdict::Blocks { target, until, step }) => {
                    self.accepted += 1;
                    if step.is_some() {
                        bans.insert(target, Expiry::After(until.since(now).max(Duration::from_secs(1))));
                    }
                    if step == Some(Step::New) {
                        fresh.insert(target);
                    }
                    if shadow { ReportOutcome::Shadowed } else { ReportOutcome::Accepted }
                }
                Ok(Verdict::Waits { authors }) => {
                    self.accepted += 1;
                    ReportOutcome::Waiting { authors }
                }
                Err(refusal) => {
                    self.refused += 1;
                    let reason = refusal.to_string();
                    let event = self.faulty.count(&report.author, refusal);
                    self.events.extend(limited(&mut self.author_lines, event));
                    ReportOutcome::Refused { reason }
                }
            });
        }
        if !shadow && !bans.is_empty() {
            let bans: Vec<_> = bans.into_iter().collect();
            let done = self.sets.block(&bans);
            self.note_kernel(done);
        }
        for target in fresh {
            let text = self.acceptance.entry(target).map(|entry| {
                let ban = self.describe(now, target, entry);
                let verb = if ban.state == FleetBanState::Blocked { "is " } else { "" };
                format!("fleet: {target} {verb}{ban}")
            });
            self.events.extend(limited(&mut self.ban_lines, text.map(EventKind::Note)));
        }
        for Ignored { author, for_s, .. } in self.acceptance.authors.newly_above_limit(now) {
            let limit = self.config.accept.max_per_author_per_hour;
            let event = match for_s {
                0 => EventKind::Note(format!(
                    "fleet: {author} has reported more than {limit} targets in an hour; its other reports are postponed"
                )),
                _ => EventKind::Error(format!(
                    "fleet: {author} has reported more than {limit} targets in an hour and is ignored for an hour; \
                     check that host, it may be compromised"
                )),
            };
            self.events.extend(limited(&mut self.author_lines, Some(event)));
        }
        outcomes
    }

    /// Logs a refused request of the fleet process.
    fn log_refusal(&mut self, reason: &str) {
        let text = format!("fleet: a request of the fleet process was {}", quotable(reason, MAX_REFUSAL_LEN));
        self.events.extend(limited(&mut self.refusal_lines, Some(EventKind::Error(text))));
    }

    /// Records a lost connection, because reports of other hosts accumulate until it is back.
    fn follow_link(&mut self) {
        if self.link.is_away() {
            self.acceptance.lose_link();
        }
    }

    /// Lifts the ban of `target`, which stays lifted as long as reports of it exist. Returns true if it was blocked.
    pub(super) fn lift(&mut self, target: BanTarget, by: LiftedBy) -> bool {
        if matches!(target, BanTarget::Prefix(_)) {
            return false;
        }
        let lifted = self.acceptance.lift(boot_time(), target, by);
        let done = if self.in_kernel { self.sets.lift(&[target]) } else { Ok(()) };
        self.note_kernel(done);
        lifted
    }

    /// Lifts all bans; returns their number.
    pub(super) fn lift_all(&mut self) -> usize {
        let lifted = self.acceptance.lift_all(boot_time());
        let done = if self.in_kernel { self.sets.clear() } else { Ok(()) };
        self.note_kernel(done);
        self.own_bans.lift_all().iter().for_each(|event| self.server.publish(event));
        lifted
    }

    /// Informs the fleet process about this host's own bans.
    pub(super) fn follow(&mut self, event: &Event) {
        if let Some(event) = self.own_bans.follow(event) {
            self.server.publish(&event);
        }
    }

    /// Schedules a refill after the table was created again or repaired.
    pub(super) fn table_changed(&mut self) {
        self.refill_at = Some(Instant::now() + REFILL_DELAY);
    }

    /// Fills the kernel's sets with the bans and their remaining times. In shadow mode, the sets are emptied.
    fn refill(&mut self) {
        self.refill_at = None;
        let done = if self.is_shadow() {
            self.in_kernel = false;
            // A trial keeps the bans in force, as it does for this host's own bans.
            if self.config.shadow { self.sets.clear() } else { Ok(()) }
        } else {
            self.in_kernel = true;
            self.fill()
        };
        self.note_kernel(done);
    }

    /// Replaces the contents of the kernel's sets with the bans, because loading a saved ruleset restores outdated
    /// ones.
    fn fill(&mut self) -> Result<(), BlockError> {
        let bans: BTreeMap<_, _> = self.acceptance.bans(boot_time()).collect();
        let found = self.sets.elements()?;
        let stale: Vec<_> =
            found.into_iter().map(|(target, _)| target).filter(|target| !bans.contains_key(target)).collect();
        self.sets.lift(&stale)?;
        self.sets.block(&bans.into_iter().collect::<Vec<_>>())
    }

    /// Schedules another fill if the last change failed.
    fn note_kernel(&mut self, done: Result<(), BlockError>) {
        let (error, delay) = match done {
            Ok(()) => return,
            // The sensor will create the table again soon.
            Err(BlockError::Gone) => (None, REFILL_DELAY * 4),
            Err(error) => (Some(error.to_string()), REFILL_BACKOFF),
        };
        self.last_error = error.or(self.last_error.take());
        self.refill_at = Some(Instant::now() + delay);
    }

    /// Takes the events to log, with the last error of the kernel.
    fn take_events(&mut self) -> Vec<EventKind> {
        let error = self
            .last_error
            .take()
            .map(|error| EventKind::Error(format!("fleet: cannot change the kernel's sets: {error}; retrying")));
        self.events.extend(limited(&mut self.ban_lines, error));
        std::mem::take(&mut self.events)
    }

    /// Applies another configuration.
    pub(super) fn reconfigure(&mut self, config: &FleetConfig) {
        if *config == self.config {
            return;
        }
        self.acceptance.rules = config.accept.clone();
        self.config = config.clone();
        self.refill_at = Some(Instant::now());
    }

    /// Writes changed lifts to the ledger; at the end of the process (`is_last`) without a delay.
    pub(super) fn write_lifts(&mut self, is_last: bool) {
        let Some(recorder) = &self.recorder else { return };
        let Some(lifts) = self.acceptance.lifts.take_unwritten(boot_time(), SystemTime::now(), is_last) else { return };
        if !recorder.send(LedgerChange::FleetLifts(lifts)) {
            self.acceptance.lifts.keep_unwritten();
        }
    }

    /// Does the work that is due every second; returns the events to log.
    pub(super) fn tick(&mut self) -> Vec<EventKind> {
        self.events.extend(self.link.check(&self.config.name));
        self.follow_link();
        if self.in_kernel == self.is_shadow() && self.refill_at.is_none() {
            self.refill_at = Some(Instant::now());
        }
        if self.expired_at.elapsed() >= EXPIRE_INTERVAL {
            self.expired_at = Instant::now();
            self.acceptance.expire(boot_time());
            self.faulty.expire();
        }
        self.write_lifts(false);
        let limiters = [&mut self.ban_lines, &mut self.author_lines, &mut self.link_lines, &mut self.refusal_lines];
        let left_out: u64 = limiters.into_iter().filter_map(|lines| lines.turn(boot_time())).sum();
        if left_out > 0 {
            let left_out = counted(left_out, "line");
            self.events.push(EventKind::Note(format!("fleet: {left_out} suppressed in the last minute")));
        }
        self.take_events()
    }
}

/// Returns `event`, unless there were too many of its kind in this minute.
fn limited(lines: &mut LineLimiter, event: Option<EventKind>) -> Option<EventKind> {
    event.filter(|_| lines.admit(boot_time()))
}

/// Returns the reason why a network is never blocked, by the same rules as for an operator's ban.
fn exempt(host: &Host) -> impl Fn(IpNet) -> Option<String> + '_ {
    |network| protected(host, network).map(|(_, why)| why.to_string())
}
