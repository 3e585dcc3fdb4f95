//! Handles control requests. Requests that need engine state are forwarded to the sensor thread, and answered from a
//! separate task when it has replied.

mod bans;
mod explain;
mod status;

pub(super) use status::warnings;

use std::future::ready;
use std::net::IpAddr;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime};

use humantime::format_rfc3339_seconds;
use ipnet::IpNet;
use tokio::net::unix::UCred;
use tokio::sync::oneshot;

use super::command_helper::CommandHelper;
use super::config_source::ConfigSource;
use super::event_sink::EventSink;
use super::fleet::{Fleet, Surroundings};
use super::host_state::HostState;
use super::protection::protected;
use super::sensor_handle::SensorHandle;
use super::trial::{MAX_TRIAL, Trial};
use super::unban;
use crate::config::{parse_expiry, parse_network, parse_span};
use crate::control::protocol::{
    Allowances, Allowed, AllowedEntry, Answer, Blocked, Disallowed, ErrorKind, Failure, MAX_LISTED, Reply, Request,
    ServiceForgotten, ServicePort, TrialState, Unblocked,
};
use crate::control::scoped_network::parse_target;
use crate::control::server::IncomingRequest;
use crate::engine::{Protection, Settings};
use crate::events::event::EventKind;
use crate::events::json::{expires, rfc3339};
use crate::ledger::{Allowance, Change, LiftedBy};
use crate::sandbox::Sandbox;
use crate::sensor::{SensorCommand, SensorRequest};
use crate::types::printable::masked;
use crate::types::{BanTarget, Expiry, plain};

/// Maximum length of a ban's note, in characters.
const MAX_NOTE_LEN: usize = 200;

/// A reply that may still wait for the sensor.
type Pending = Pin<Box<dyn Future<Output = Reply> + Send>>;

fn usage(error: impl ToString) -> Failure {
    Failure::new(ErrorKind::Usage, error)
}

fn refused(error: impl ToString) -> Failure {
    Failure::new(ErrorKind::Refused, error)
}

fn failed(error: impl ToString) -> Failure {
    Failure::new(ErrorKind::Failed, error)
}

/// Waits for the sensor's answer, which fails while the daemon is shutting down.
async fn of_sensor<T>(answer: oneshot::Receiver<T>) -> Result<T, Failure> {
    answer.await.map_err(|_| failed("the daemon is shutting down"))
}

/// Start time of the daemon by both clocks.
#[derive(Clone, Copy)]
pub(super) struct Uptime {
    pub(super) started: SystemTime,
    pub(super) since: Instant,
}

/// The components that requests need.
pub(super) struct ControlHandler<'a> {
    pub(super) config: &'a mut ConfigSource,
    pub(super) host_state: &'a mut HostState,
    pub(super) sensor: &'a SensorHandle,
    pub(super) fleet: Option<&'a mut Fleet>,
    pub(super) sink: &'a mut EventSink,
    pub(super) trial: &'a mut Trial,
    pub(super) sandbox: &'a Sandbox,
    pub(super) command_helper: Option<&'a CommandHelper>,
    pub(super) uptime: Uptime,
    /// Why decoys cannot answer; `None` if they can.
    pub(super) silent_decoys: Option<&'a str>,
}

impl ControlHandler<'_> {
    /// True if sources are blocked.
    fn enforces(&self) -> bool {
        self.config.config.blocks() && !self.trial.only_logs()
    }

    /// Runs `ask` on the fleet; `None` if this host is not in a fleet.
    fn ask_fleet<T>(&self, ask: impl FnOnce(&Fleet, Surroundings<'_>) -> T) -> Option<T> {
        let fleet = self.fleet.as_ref()?;
        Some(ask(fleet, Surroundings { host: &self.host_state.host(), enforces: self.enforces() }))
    }

    /// Duration of a hold in the kernel; `None` if no source is held.
    fn hold(&self) -> Option<Duration> {
        self.config.ruleset().trap.filter(|_| self.enforces())?.hold
    }

    /// Reads the configuration again, requested by `by`.
    pub(super) async fn reload(&mut self, by: &str) -> Reply {
        let targets = (&mut *self.host_state, self.sensor, &mut *self.sink);
        let reloaded = self.config.reload(by, targets, self.sandbox, *self.trial).await;
        if let Some(fleet) = &mut self.fleet {
            fleet.reconfigure(&self.config.config.fleet);
        }
        reloaded.map(Answer::Reloaded).map_err(|error| Failure::new(ErrorKind::Configuration, error))
    }

    fn confirm(&mut self, by: &str) -> Reply {
        self.trial.confirm().map_err(refused)?;
        self.config.on_trial = false;
        if self.hold().is_some() {
            self.sensor.send(SensorCommand::Ruleset(Box::new(self.config.ruleset())));
        }
        self.sink.emit(EventKind::Note(format!("{by} has confirmed the trial: blocking continues")));
        Ok(Answer::Confirmed {})
    }

    /// Starts a log-only trial of length `span`, or with `end` resumes blocking.
    async fn trial(&mut self, by: &str, span: Option<&str>, end: bool) -> Reply {
        let span = match (span, end) {
            (Some(span), false) => parse_span(span).map_err(usage)?,
            (None, true) => {
                let Trial::LogOnly(_) = self.trial else {
                    return Err(refused("refused: no trial is running; `portsentry trial 1h` starts one"));
                };
                self.end_log_only(by).await;
                return Ok(Answer::Trial(TrialState { until: None }));
            }
            _ => return Err(usage("give a duration, or --end to end the trial")),
        };
        if span > MAX_TRIAL {
            return Err(usage(
                "a trial lasts at most 30 days; to log for longer, set block = false in the configuration",
            ));
        }
        match *self.trial {
            Trial::None | Trial::LogOnly(_) if self.config.config.blocks() => {}
            Trial::None | Trial::LogOnly(_) | Trial::Expired => {
                return Err(refused("refused: the configuration only logs scans, so there is no blocking to suspend"));
            }
            Trial::Unconfirmed(_) => {
                return Err(refused("refused: the trial of --confirm is running; run `portsentry confirm` first"));
            }
        }
        *self.trial = Trial::log_only(span);
        self.sensor.send_waiting(SensorCommand::StartTrial).await;
        let until = SystemTime::now() + span;
        self.sink.ban_recorder.write(Change::Trial { until: Some(until) });
        self.sink.emit(EventKind::Note(format!(
            "{by} has started a trial: until {} scans are only logged. Bans in force stay; `portsentry trial \
             --end` resumes blocking",
            format_rfc3339_seconds(until)
        )));
        Ok(Answer::Trial(TrialState { until: Some(rfc3339(until)) }))
    }

    pub(super) async fn end_log_only(&mut self, by: &str) {
        *self.trial = Trial::None;
        let settings = Settings::from_config(&self.config.config);
        self.sensor.send_waiting(SensorCommand::EndTrial(Box::new(settings))).await;
        // A pending `--confirm` no longer has a meaning.
        if std::mem::take(&mut self.config.on_trial) && self.hold().is_some() {
            self.sensor.send(SensorCommand::Ruleset(Box::new(self.config.ruleset())));
        }
        self.sink.ban_recorder.write(Change::Trial { until: None });
        self.sink.emit(EventKind::Note(format!("the trial has ended ({by}): scans are blocked again")));
    }

    pub(super) async fn handle_request(&mut self, IncomingRequest { request, peer, reply }: IncomingRequest) {
        let pending = self.start(request, author(peer, self.sandbox)).await;
        tokio::spawn(async move {
            let result = match pending {
                Ok(pending) => pending.await,
                Err(failure) => Err(failure),
            };
            // The client may have disconnected.
            let _ = reply.send(result);
        });
    }

    async fn start(&mut self, request: Request, by: String) -> Result<Pending, Failure> {
        Ok(match request {
            Request::Status => Box::pin(self.status()),
            Request::Block { target, expire, reason, force } => {
                let (target, expiry) = self.admit(&target, expire.as_deref(), force).await?;
                Box::pin(self.block(target, expiry, by, reason.as_deref()))
            }
            Request::Unblock { target, all } => Box::pin(self.unblock(by, target.as_deref(), all).await?),
            Request::Explain { address } => Box::pin(self.explain(&address)?),
            Request::Bans { after } => Box::pin(self.bans(after.as_deref())?),
            Request::Allow { target, span, force } => {
                Box::pin(ready(Ok(self.allow(by, &target, span.as_deref(), force).await?)))
            }
            Request::Disallow { target } => Box::pin(ready(Ok(self.disallow(&by, &target).await?))),
            Request::Allowed => Box::pin(ready(Ok(self.allowed()))),
            Request::Fleet { after } => {
                let after = after
                    .map(|text| text.parse().map_err(|_| usage("`after` is not an address or prefix")))
                    .transpose()?;
                let bans = self.ask_fleet(|fleet, surroundings| fleet.list(after, surroundings)).unwrap_or_default();
                Box::pin(ready(Ok(Answer::FleetBans(bans))))
            }
            Request::ForgetService { port } => Box::pin(ready(Ok(self.forget_service(&by, port).await?))),
            Request::Trial { span, end } => Box::pin(ready(self.trial(&by, span.as_deref(), end).await)),
            Request::Confirm => Box::pin(ready(self.confirm(&by))),
            Request::Reload => Box::pin(ready(self.reload(&by).await)),
            Request::Subscribe => return Err(usage("subscriptions are served by the socket itself")),
        })
    }

    fn block(
        &mut self,
        target: BanTarget,
        expiry: Expiry,
        by: String,
        reason: Option<&str>,
    ) -> impl Future<Output = Reply> + use<> {
        let note = reason.map(|text| masked(text, ' ').take(MAX_NOTE_LEN).collect());
        let done = self.sensor.ask(|answer| SensorRequest::Block { target, expiry, by, note, answer });
        async move {
            of_sensor(done).await?.map_err(failed)?;
            let expires = expires(expiry, SystemTime::now());
            Ok(Answer::Blocked(Blocked { target: target.to_string(), expires }))
        }
    }

    /// Checks whether an operator may block `target`; returns the target of the ban and its expiry. With `force`, a
    /// protected target loses its protection.
    async fn admit(&mut self, target: &str, expire: Option<&str>, force: bool) -> Result<(BanTarget, Expiry), Failure> {
        let asked = parse_network(target).map_err(usage)?;
        let expiry = expire.map_or(Ok(self.config.config.expire), |text| parse_expiry(text).map_err(usage))?;
        let target = BanTarget::of_prefix(asked).map_err(usage)?;
        if let Some(why) = no_source(asked.addr()) {
            return Err(refused(format!(
                "refused to block {}: {why}, which cannot be the source of a packet",
                plain(asked)
            )));
        }
        if !self.enforces() {
            let why = match self.trial {
                _ if !self.config.config.blocks() => {
                    "of block = false under [tcp] and [udp], or of --log-only; `portsentry check` shows the configuration"
                }
                Trial::LogOnly(_) => "a trial is running; `portsentry trial --end` resumes blocking",
                _ => "--confirm was not confirmed in time; restart portsentry to block again",
            };
            return Err(refused(format!("refused to block: scans are only logged, because {why}")));
        }
        let Some((network, protection)) = protected(&self.host_state.host(), asked) else {
            return Ok((target, expiry));
        };
        let own = matches!(protection, Protection::OwnAddress | Protection::Loopback);
        if own || !force {
            let remedy = if own { "" } else { "; use --force to block it anyway" };
            return Err(refused(format!(
                "refused to block {}: {} is {protection}{remedy}",
                plain(asked),
                if asked == network { "it".to_owned() } else { plain(network).to_string() }
            )));
        }
        let hole = target.network();
        let commands = self.host_state.force(hole, expiry.span()).await.map_err(failed)?;
        self.sink.ban_recorder.write(Change::Disallowed { network: hole });
        self.sensor.send_all(commands);
        Ok((target, expiry))
    }

    async fn unblock(
        &mut self,
        by: String,
        target: Option<&str>,
        all: bool,
    ) -> Result<impl Future<Output = Reply> + use<>, Failure> {
        let target = match (target, all) {
            (None, true) => None,
            (Some(target), false) => Some(parse_target(target).map_err(usage)?),
            _ => return Err(usage("give an address or prefix, or --all")),
        };
        let by_fleet = match (&mut self.fleet, target) {
            (Some(fleet), Some(target)) => usize::from(fleet.lift(target, LiftedBy::Host)),
            (Some(fleet), None) => fleet.lift_all(),
            (None, _) => 0,
        };
        if by_fleet > 0 {
            let lifted = target.map_or_else(
                || format!("all bans of the fleet ({by_fleet})"),
                |target| format!("the fleet's ban of {target}"),
            );
            self.sink.emit(EventKind::Note(format!(
                "{by} has lifted {lifted} on this host, until the reports of the fleet expire"
            )));
        }
        let lifted = unban::lift(self.sensor, self.sink, target.map(|target| vec![target]), by);
        let known = target.map(|target| {
            self.sensor.ask(|answer| SensorRequest::Explain { address: target.element(), link: None, answer })
        });
        // After the request: a source that is protected again has no ban left for the sensor to lift.
        match self.host_state.unforce(target.map(BanTarget::network)).await {
            Ok(commands) => self.sensor.send_all(commands),
            Err(error) => self.sink.emit(EventKind::Error(error)),
        }
        Ok(async move {
            let unblocked = of_sensor(lifted).await?.map_err(failed)? + by_fleet;
            if let (0, Some(target), Some(known)) = (unblocked, target, known) {
                // `target` may be a network inside another blocked network.
                let around = of_sensor(known).await.ok().and_then(|known| known.network);
                return Err(refused(not_blocked(target, around.filter(|network| *network != target))));
            }
            Ok(Answer::Unblocked(Unblocked { unblocked }))
        })
    }

    async fn forget_service(&mut self, by: &str, named: ServicePort) -> Reply {
        let ServicePort { port, protocol } = named;
        let (forgotten, commands) = self.host_state.forget_service(port, protocol).await.map_err(failed)?;
        self.sensor.send_all(commands);
        if forgotten == 0 {
            return Err(refused(format!(
                "refused: no service on port {named} is remembered; `portsentry status` lists the remembered services"
            )));
        }
        self.sink.emit(EventKind::Note(format!(
            "{by} has removed the service on port {named} from the remembered services"
        )));
        Ok(Answer::ServiceForgotten(ServiceForgotten { forgotten }))
    }

    async fn allow(&mut self, by: String, target: &str, span: Option<&str>, force: bool) -> Reply {
        let span = span.map(parse_expiry).transpose().map_err(usage)?.and_then(Expiry::span);
        let network = parse_network(target).map_err(usage)?;
        let allowed = plain(network);
        if !force && is_too_wide(network) {
            return Err(refused(format!(
                "refused to allow {allowed}: such a large network would disable most blocking. Use --force to allow \
                 it anyway; `portsentry trial 1h` suspends blocking for an hour"
            )));
        }
        let bans = self.sensor.ask(|answer| SensorRequest::BansIn { network, most: MAX_LISTED, answer });
        let (bans, lifted) = of_sensor(bans).await?;
        let since = SystemTime::now();
        let allowance = Allowance { network, since, until: span.and_then(|span| since.checked_add(span)), by };
        let commands = self.host_state.allow(allowance.clone()).await.map_err(failed)?;
        for command in commands {
            self.sensor.send_waiting(command).await;
        }
        let until = allowance.until;
        let how_long = until
            .map_or("until this is revoked".to_owned(), |until| format!("until {}", format_rfc3339_seconds(until)));
        let lifts = if lifted > 0 { format!("; lifted bans: {lifted}") } else { String::new() };
        self.sink.emit(EventKind::Note(format!("{} has allowed {allowed} {how_long}{lifts}", allowance.by)));
        self.sink.ban_recorder.write(Change::Allowed(allowance));
        let bans = bans.iter().map(ToString::to_string).collect();
        Ok(Answer::Allowed(Allowed { allowed, until: until.map(rfc3339), lifted, bans }))
    }

    async fn disallow(&mut self, by: &str, target: &str) -> Reply {
        let network = parse_network(target).map_err(usage)?;
        let disallowed = plain(network);
        let revoked = self.host_state.disallow(network).await.map_err(failed)?;
        let still = self.host_state.host().allow.covers(network).map(|why| why.to_string());
        let Some(commands) = revoked else {
            let contains = |entry: &AllowedEntry| parse_network(&entry.network).is_ok_and(|it| it.contains(&network));
            let around = self.host_state.allowed().into_iter().find(contains);
            return Err(refused(match (around, still) {
                (Some(AllowedEntry { network, since: Some(_), .. }), _) => {
                    format!("{disallowed} is allowed as part of {network}; run `portsentry disallow {network}`")
                }
                (Some(AllowedEntry { network, by, .. }), _) => {
                    format!("{disallowed} is allowed by {by} ({network}); remove it there and run `portsentry reload`")
                }
                (None, Some(why)) => format!("{disallowed} is protected without an allowance: it is {why}"),
                (None, None) => format!("{disallowed} is not allowed; `portsentry allowed` lists the allowed networks"),
            }));
        };
        for command in commands {
            self.sensor.send_waiting(command).await;
        }
        self.sink.ban_recorder.write(Change::Disallowed { network });
        self.sink.emit(EventKind::Note(format!("{by} has revoked the allowance of {disallowed}")));
        Ok(Answer::Disallowed(Disallowed { disallowed, still }))
    }

    fn allowed(&self) -> Answer {
        let mut allowed = self.host_state.allowed();
        let more = allowed.len().saturating_sub(MAX_LISTED);
        allowed.truncate(MAX_LISTED);
        Answer::Allowances(Allowances { allowed, more })
    }
}

/// True for a network so large that allowing it is probably a mistake.
fn is_too_wide(network: IpNet) -> bool {
    match network {
        IpNet::V4(v4) => v4.prefix_len() < 8,
        IpNet::V6(v6) => v6.prefix_len() < 16,
    }
}

/// The operator's name for the log and the ledger.
fn author(peer: UCred, sandbox: &Sandbox) -> String {
    let user = match (peer.uid(), &sandbox.user) {
        (0, _) => "root".to_owned(),
        (own, Some(name)) if own == sandbox.uid => name.clone(),
        (other, _) => format!("user {other}"),
    };
    match peer.pid() {
        // `None` if the process is in a PID namespace that is not visible from here.
        Some(process) => format!("{user} (portsentry, process {process})"),
        None => format!("{user} (portsentry)"),
    }
}

/// Returns the reason if no host can send from `address`. Loopback is covered by the protection check.
fn no_source(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) if v4.octets().starts_with(&[0]) => Some("it is an unspecified address"),
        IpAddr::V6(v6) if v6.is_unspecified() => Some("it is the unspecified address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("it is the broadcast address"),
        address if address.is_multicast() => Some("it is a multicast address"),
        _ => None,
    }
}

/// Explains why there is no ban of `target` to lift, and which ban blocks it instead.
fn not_blocked(target: BanTarget, wider: Option<BanTarget>) -> String {
    match wider {
        Some(wider) => format!(
            "refused: {target} is blocked by the ban of {wider}; unblock that network, or exempt only {target} with \
             `portsentry allow {target}`"
        ),
        None => {
            let network = match target {
                BanTarget::Prefix(_) => format!(" {target}"),
                _ => String::new(),
            };
            format!("refused: {target} is not blocked; `portsentry list{network}` shows the bans")
        }
    }
}
