//! Handles the daemon's side of a fleet: receives reports of other hosts from the fleet process, judges each, and
//! blocks accepted targets in separate kernel sets. Runs in the event loop, without the sensor thread.

mod acceptance;
mod authors;
mod faulty;
mod kernel;
mod lifts;
mod link;
mod log;
mod own_bans;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;

use super::allow_sources::protected;
use super::ban_recorder::RememberedBan;
use super::optional::deadline_reached;
use crate::clock::boot_time;
use crate::config::Fleet as FleetConfig;
use crate::control::fleet_info::{
    FleetBan, FleetBanState, FleetBans, FleetReportInfo, FleetStatus, MAX_FLEET_BANS, MAX_FLEET_REPORTS,
};
use crate::control::fleet_server::{FleetServer, IncomingFleetRequest};
use crate::enforce::nft::FleetSets;
use crate::engine::Host;
use crate::events::event::{Event, EventKind};
use crate::fleet::protocol::{
    FleetReply, FleetReport, FleetRequest, IgnoredAuthor, MAX_IGNORED, MAX_REPORTS, ReportOutcome,
};
use crate::ledger::{FleetLift, LedgerChange, LiftedBy, Recorder};
use crate::types::printable::quotable;
use crate::types::{BanTarget, Expiry, Timestamp, counted};
use acceptance::{Acceptance, ReportedTarget};
use authors::Ignored;
use faulty::FaultyAuthors;
use kernel::{KernelSets, REFILL_DELAY};
use link::FleetConnection;
use log::{FleetLog, Topic};
use own_bans::OwnBans;
use verdict::{BanChange, ReportVerdict};

/// Maximum length of the quoted part of a refused request, in bytes.
const MAX_REFUSAL_LEN: usize = 160;

/// Interval at which expired entries are dropped.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(5);

pub(super) struct Fleet {
    config: FleetConfig,
    acceptance: Acceptance,
    own_bans: OwnBans,
    recorder: Recorder,
    server: FleetServer,
    kernel: KernelSets,
    link: FleetConnection,
    faulty: FaultyAuthors,
    log: FleetLog,
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
            recorder: Recorder::default(),
            server,
            kernel: KernelSets::new(sets),
            link: FleetConnection::default(),
            faulty: FaultyAuthors::default(),
            log: FleetLog::default(),
            host,
            enforces,
            expired_at: Instant::now(),
            accepted: 0,
            refused: 0,
        }
    }

    /// Restores the state from the ledger, if there is one, and adopts the contents of the kernel's sets, or empties
    /// them in shadow mode. Called before the first request.
    pub(super) async fn restore(&mut self, recorder: Recorder, remembered: &[RememberedBan], lifts: &[FleetLift]) {
        self.own_bans.restore(&recorder, remembered).await;
        self.recorder = recorder;
        self.acceptance.lifts.restore(boot_time(), SystemTime::now(), lifts);
        if self.is_shadow() {
            self.kernel.clear();
        } else if let Some(found) = self.kernel.adopt() {
            let refused = self.acceptance.adopt(boot_time(), found.into_iter(), exempt(&self.host));
            self.kernel.lift(&refused);
        }
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
        if !dropped.is_empty() {
            self.kernel.lift(&dropped);
        }
    }

    fn is_shadow(&self) -> bool {
        self.config.shadow || !self.enforces
    }

    /// Waits for the next request, or, with `None`, until the kernel's sets have to be filled. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<IncomingFleetRequest> {
        tokio::select! {
            request = self.server.next_request() => Some(request),
            () = deadline_reached(self.kernel.refill_at()) => None,
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
                let outcomes = self.judge_reports(&reports);
                if scan_ends {
                    self.acceptance.end_scan();
                }
                FleetReply::Reports { outcomes }
            }
            FleetRequest::Lift { target } => {
                let lifted = self.lift(target, LiftedBy::Fleet);
                if lifted {
                    let text = format!("fleet: an operator of the fleet has lifted the ban of {target}");
                    self.log.add(Topic::Bans, Some(EventKind::Note(text)));
                }
                FleetReply::Lifted { lifted }
            }
            FleetRequest::Link { state, ignored } => {
                let event = self.link.update(state, &ignored, &self.config.name);
                self.log.add(Topic::Link, event);
                self.follow_link();
                FleetReply::Noted
            }
            FleetRequest::Watch {} => return Err("subscriptions are served by the socket itself".to_owned()),
        })
    }

    /// Judges `reports` and applies the resulting bans.
    fn judge_reports(&mut self, reports: &[FleetReport]) -> Vec<ReportOutcome> {
        let (now, shadow) = (boot_time(), self.is_shadow());
        let mut bans = BTreeMap::new();
        let mut fresh = BTreeSet::new();
        let mut outcomes = Vec::with_capacity(reports.len());
        for report in reports {
            let verdict = self.acceptance.judge_report(now, report, exempt(&self.host));
            outcomes.push(match verdict {
                Ok(ReportVerdict::Blocks { target, until, step }) => {
                    if step.is_some() {
                        bans.insert(target, Expiry::After(until.since(now).max(Duration::from_secs(1))));
                    }
                    if step == Some(BanChange::New) {
                        fresh.insert(target);
                    }
                    if shadow { ReportOutcome::Shadowed } else { ReportOutcome::Accepted }
                }
                Ok(ReportVerdict::Waits { authors }) => ReportOutcome::Waiting { authors },
                Err(refusal) => {
                    let reason = refusal.to_string();
                    let event = self.faulty.count(&report.author, refusal);
                    self.log.add(Topic::Authors, event);
                    ReportOutcome::Refused { reason }
                }
            });
        }
        let refused = outcomes.iter().filter(|one| matches!(one, ReportOutcome::Refused { .. })).count();
        self.refused += refused as u64;
        self.accepted += (outcomes.len() - refused) as u64;
        if !shadow && !bans.is_empty() {
            self.kernel.block(&bans.into_iter().collect::<Vec<_>>());
        }
        for target in fresh {
            let text = self.acceptance.entry(target).map(|entry| {
                let ban = self.describe(now, target, entry);
                let verb = if ban.state == FleetBanState::Blocked { "is " } else { "" };
                format!("fleet: {target} {verb}{ban}")
            });
            self.log.add(Topic::Bans, text.map(EventKind::Note));
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
            self.log.add(Topic::Authors, Some(event));
        }
        outcomes
    }

    /// Logs a refused request of the fleet process.
    fn log_refusal(&mut self, reason: &str) {
        let text = format!("fleet: a request of the fleet process was {}", quotable(reason, MAX_REFUSAL_LEN));
        self.log.add(Topic::Refusals, Some(EventKind::Error(text)));
    }

    /// Records a lost connection, because reports of other hosts accumulate until it is back.
    fn follow_link(&mut self) {
        if self.link.is_away() {
            self.acceptance.lose_link();
        }
    }

    /// Lifts the ban of `target`, which stays lifted as long as reports of it exist. Returns true if it was blocked.
    pub(super) fn lift(&mut self, target: BanTarget, by: LiftedBy) -> bool {
        if target.is_prefix() {
            return false;
        }
        let lifted = self.acceptance.lift(boot_time(), target, by);
        self.kernel.lift(&[target]);
        lifted
    }

    /// Lifts all bans; returns their number.
    pub(super) fn lift_all(&mut self) -> usize {
        let lifted = self.acceptance.lift_all(boot_time());
        if self.kernel.is_filled() {
            self.kernel.clear();
        }
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
        self.kernel.refill_after(REFILL_DELAY);
    }

    /// Fills the kernel's sets with the bans and their remaining times. In shadow mode, the sets are emptied.
    fn refill(&mut self) {
        if !self.is_shadow() {
            return self.kernel.fill(&self.acceptance.bans(boot_time()).collect());
        }
        self.kernel.leave();
        // A trial keeps the bans in force, as it does for this host's own bans.
        if self.config.shadow {
            self.kernel.clear();
        }
    }

    /// Takes the events to log, with the last error of the kernel.
    fn take_events(&mut self) -> Vec<EventKind> {
        self.log.add(Topic::Bans, self.kernel.take_error());
        self.log.take()
    }

    /// Applies another configuration.
    pub(super) fn reconfigure(&mut self, config: &FleetConfig) {
        if *config == self.config {
            return;
        }
        self.acceptance.rules = config.accept.clone();
        self.config = config.clone();
        self.kernel.refill_after(Duration::ZERO);
    }

    /// Writes changed lifts to the ledger; at the end of the process (`is_last`) without a delay.
    pub(super) fn write_lifts(&mut self, is_last: bool) {
        if !self.recorder.is_open() {
            return;
        }
        let Some(lifts) = self.acceptance.lifts.take_unwritten(boot_time(), SystemTime::now(), is_last) else { return };
        if !self.recorder.send(LedgerChange::FleetLifts(lifts)) {
            self.acceptance.lifts.keep_unwritten();
        }
    }

    /// Does the work that is due every second; returns the events to log.
    pub(super) fn tick(&mut self) -> Vec<EventKind> {
        self.log.add_always(self.link.check(&self.config.name));
        self.follow_link();
        if self.kernel.is_filled() == self.is_shadow() && self.kernel.refill_at().is_none() {
            self.kernel.refill_after(Duration::ZERO);
        }
        if self.expired_at.elapsed() >= EXPIRE_INTERVAL {
            self.expired_at = Instant::now();
            self.acceptance.expire(boot_time());
            self.faulty.expire();
        }
        self.write_lifts(false);
        self.log.turn_minute();
        self.take_events()
    }

    pub(super) fn status(&self) -> FleetStatus {
        let (bans, waiting) = self.acceptance.counts();
        let (link, reason) = self.link.status();
        let limit = self.config.accept.max_per_author_per_hour;
        let above = self.acceptance.authors.ignored(boot_time()).map(|one| {
            let excess = counted(one.excess, "report");
            let effect = match one.for_s {
                0 => format!("{excess} postponed"),
                left => format!("ignored for {left} s more, {excess} ignored"),
            };
            let reason = format!("reported more than {limit} targets in an hour; {effect}");
            IgnoredAuthor { author: one.author.to_string(), reason }
        });
        let faulty = self.faulty.iter();
        FleetStatus {
            name: self.config.name.clone(),
            host: self.config.host.clone(),
            shadow: self.is_shadow(),
            link,
            reason,
            bans,
            waiting,
            accepted: self.accepted,
            refused: self.refused,
            ignored: above.chain(faulty).chain(self.link.ignored.iter().cloned()).take(MAX_IGNORED).collect(),
        }
    }

    /// The reports of other hosts about `target`.
    pub(super) fn explain(&self, target: BanTarget) -> Option<FleetBan> {
        let now = boot_time();
        if let Some(until) = self.acceptance.lifts.until(target) {
            return Some(FleetBan {
                target,
                state: FleetBanState::Lifted,
                left_s: Some(until.since(now).as_secs()),
                lacking: 0,
                reports: Vec::new(),
                more: 0,
            });
        }
        let entry = self.acceptance.entry(target)?;
        Some(self.describe(now, target, entry))
    }

    /// The reports of other hosts about the targets after `last`.
    pub(super) fn list(&self, last: Option<BanTarget>) -> FleetBans {
        let now = boot_time();
        let mut entries = self.acceptance.entries(last);
        let bans = entries.by_ref().take(MAX_FLEET_BANS);
        let bans = bans.map(|(target, entry)| self.describe(now, target, entry)).collect();
        FleetBans { joined: true, bans, more: entries.next().is_some() }
    }

    fn describe(&self, now: Timestamp, target: BanTarget, entry: &ReportedTarget) -> FleetBan {
        let left = entry.until.filter(|until| *until > now).map(|until| until.since(now).as_secs());
        let reports = entry.reports.iter().take(MAX_FLEET_REPORTS).map(|report| FleetReportInfo {
            author: report.author.to_string(),
            evidence: report.grade,
            distinct_ports: report.distinct_ports,
            class: report.class,
            left_s: report.until.since(now).as_secs(),
        });
        FleetBan {
            target,
            state: match (left, self.is_shadow()) {
                (None, _) => FleetBanState::Waiting,
                (Some(_), true) => FleetBanState::WouldBeBlocked,
                (Some(_), false) => FleetBanState::Blocked,
            },
            left_s: left,
            lacking: self.acceptance.lacking(now, entry),
            reports: reports.collect(),
            more: entry.reports.len().saturating_sub(MAX_FLEET_REPORTS),
        }
    }
}

/// Returns the reason why a network is never blocked, by the same rules as for an operator's ban.
fn exempt(host: &Host) -> impl Fn(IpNet) -> Option<String> + '_ {
    |network| protected(host, network).map(|(_, why)| why.to_string())
}
