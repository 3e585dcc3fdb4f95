//! Handles control requests: passes each to the components that own what it reads or changes. What the sensor thread
//! must answer is awaited in a separate task.

mod queries;
mod status;

pub(super) use status::warnings;

use std::future::ready;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Instant, SystemTime};

use tokio::net::unix::UCred;
use tokio::sync::oneshot::{self, Receiver};

use super::allow_sources::protected;
use super::allowances::now;
use super::ban_recorder::lifted;
use super::command_helper::CommandHelper;
use super::config_source::{ConfigSource, summary};
use super::decoys::FirewallWatch;
use super::event_sink::EventSink;
use super::fleet::Fleet;
use super::host_state::HostState;
use super::sensor_thread::SensorHandle;
use super::service_tracker::ServiceState;
use super::systemd;
use super::trial::Trial;
use crate::clock::{BanEnd, WallTime};
use crate::config::{parse_expiry, parse_network};
use crate::control::address_info::AddressInfo;
use crate::control::protocol::{
    Allowed, AllowedEntry, AllowedList, Answer, Blocked, Disallowed, ErrorKind, Failure, MAX_LISTED, Reloaded, Reply,
    Request, ServiceForgotten, ServicePort, Unblocked,
};
use crate::control::scoped_network::{parse_address, parse_target};
use crate::control::server::IncomingRequest;
use crate::engine::Protection;
use crate::events::event::EventKind;
use crate::ledger::{Allowance, LedgerChange, LiftedBy};
use crate::sandbox::Sandbox;
use crate::sensor::SensorRequest;
use crate::types::printable::masked;
use crate::types::{BanTarget, Expiry, plain};

/// Maximum length of a ban's note, in characters.
const MAX_NOTE_LEN: usize = 200;

/// A reply that may still wait for the sensor.
type Pending = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// Waits for the sensor's answer, which fails while the daemon is shutting down.
async fn of_sensor<T>(answer: Receiver<T>) -> Result<T, Failure> {
    answer.await.map_err(|_| Failure::failed("the daemon is shutting down"))
}

/// The components of the daemon, shared by the control requests and the event loop.
pub(super) struct ControlHandler {
    pub(super) config: ConfigSource,
    pub(super) trial: Trial,
    pub(super) state_dir: PathBuf,
    /// True if the nftables backend is open.
    pub(super) uses_nft: bool,
    pub(super) host_state: HostState,
    pub(super) sensor: SensorHandle,
    /// `None` if this host is not in a fleet.
    pub(super) fleet: Option<Fleet>,
    pub(super) sink: EventSink,
    pub(super) sandbox: Sandbox,
    pub(super) command_helper: Option<CommandHelper>,
    pub(super) firewall_watch: FirewallWatch,
    /// Start time of the daemon by both clocks.
    pub(super) started: (SystemTime, Instant),
}

impl ControlHandler {
    /// True if sources are blocked.
    fn enforces(&self) -> bool {
        self.trial.only_logs(&self.config.current).is_none()
    }

    /// The fleet, with the current state of the daemon; `None` if this host is not in a fleet.
    fn fleet(&mut self) -> Option<&mut Fleet> {
        let (host, enforces) = (self.host_state.host(), self.enforces());
        let fleet = self.fleet.as_mut()?;
        fleet.update(host, enforces);
        Some(fleet)
    }

    /// Runs `act` on the fleet and emits the resulting events.
    pub(super) fn with_fleet(&mut self, act: impl FnOnce(&mut Fleet) -> Vec<EventKind>) {
        let events = self.fleet().map(act);
        events.into_iter().flatten().for_each(|kind| self.sink.emit(kind));
    }

    /// Lifts the bans of `targets`, or all bans if `None`, and records it in the ledger; the answer is their number.
    pub(super) fn lift_bans(&self, targets: Option<Vec<BanTarget>>, by: String) -> Receiver<Result<usize, String>> {
        let lifting = self.sensor.ask(|answer| SensorRequest::Unblock { targets, by: by.clone(), answer });
        let (finished, done) = oneshot::channel();
        let (recorder, events) = (self.sink.ban_recorder.recorder(), self.sink.events.clone());
        tokio::spawn(async move {
            let Ok(result) = lifting.await else { return };
            let result = result.map(|targets| {
                let count = targets.len();
                if count > 1 {
                    // One line per ban would fill the log. A single ban has its usual event.
                    events.emit(EventKind::Note(format!("bans lifted by {by}: {count}")));
                    let at = SystemTime::now();
                    let changes = targets.into_iter().map(move |target| lifted(target, &by, at));
                    if let Some(recorder) = recorder {
                        tokio::task::spawn_blocking(move || changes.for_each(|change| recorder.put_patiently(change)));
                    }
                }
                count
            });
            let _ = finished.send(result);
        });
        done
    }

    pub(super) async fn handle_request(&mut self, IncomingRequest { request, peer, reply }: IncomingRequest) {
        let pending = self.start(request, author(peer, &self.sandbox)).await;
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
                let note = reason.map(|text| masked(&text, ' ').take(MAX_NOTE_LEN).collect());
                let done = self.sensor.ask(|answer| SensorRequest::Block { target, expiry, by, note, answer });
                Box::pin(async move {
                    of_sensor(done).await?.map_err(Failure::failed)?;
                    Ok(Answer::Blocked(Blocked { target, expires: BanEnd::of(expiry, SystemTime::now()) }))
                })
            }
            Request::Unblock { target, all } => Box::pin(self.unblock(by, target.as_deref(), all).await?),
            Request::Explain { address } => Box::pin(self.explain(&address)?),
            Request::Bans { after } => Box::pin(queries::bans(self.sink.ban_recorder.recorder(), after.as_deref())?),
            Request::Allow { target, span, force } => {
                Box::pin(ready(self.allow(by, &target, span.as_deref(), force).await))
            }
            Request::Disallow { target } => Box::pin(ready(self.disallow(&by, &target).await)),
            Request::Allowed => {
                let mut allowed = self.host_state.allow.entries();
                let more = allowed.len().saturating_sub(MAX_LISTED);
                allowed.truncate(MAX_LISTED);
                Box::pin(ready(Ok(Answer::Allowances(AllowedList { allowed, more }))))
            }
            Request::Fleet { after } => {
                let after = after
                    .map(|text| text.parse().map_err(|_| Failure::usage("`after` is not an address or prefix")))
                    .transpose()?;
                let bans = self.fleet().map(|fleet| fleet.list(after)).unwrap_or_default();
                Box::pin(ready(Ok(Answer::FleetBans(bans))))
            }
            Request::ForgetService { port } => Box::pin(ready(self.forget_service(&by, port).await)),
            Request::Trial { span, end } => {
                let request = (span.as_deref(), end);
                Box::pin(ready(self.trial.request(&by, request, &self.config.current, &mut self.sink).await))
            }
            Request::Confirm => Box::pin(ready(self.trial.confirm(&by, &self.config.current, &mut self.sink))),
            Request::Reload => Box::pin(ready(self.reload(&by).await)),
            Request::Subscribe => return Err(Failure::usage("subscriptions are served by the socket itself")),
        })
    }

    /// Checks whether an operator may block `target`; returns the target of the ban and its expiry. With `force`, a
    /// protected target loses its protection.
    async fn admit(&mut self, target: &str, expire: Option<&str>, force: bool) -> Result<(BanTarget, Expiry), Failure> {
        let asked = parse_network(target).map_err(Failure::usage)?;
        let expiry =
            expire.map_or(Ok(self.config.current.expire), |text| parse_expiry(text).map_err(Failure::usage))?;
        let target = BanTarget::of_prefix(asked).map_err(Failure::usage)?;
        if let Some(why) = no_source(asked.addr()) {
            return Err(Failure::refused(format!(
                "refused to block {}: {why}, which cannot be the source of a packet",
                plain(asked)
            )));
        }
        if let Some(why) = self.trial.only_logs(&self.config.current) {
            return Err(Failure::refused(format!("refused to block: scans are only logged, because {why}")));
        }
        let Some((network, protection)) = protected(&self.host_state.host(), asked) else {
            return Ok((target, expiry));
        };
        let own = matches!(protection, Protection::OwnAddress | Protection::Loopback);
        if own || !force {
            let remedy = if own { "" } else { "; use --force to block it anyway" };
            return Err(Failure::refused(format!(
                "refused to block {}: {} is {protection}{remedy}",
                plain(asked),
                if asked == network { "it".to_owned() } else { plain(network).to_string() }
            )));
        }
        let network = target.network();
        self.host_state.allow.by_hand.force(network, expiry.span(), now()).map_err(Failure::failed)?;
        self.host_state.renew().await.map_err(Failure::failed)?;
        self.sink.ban_recorder.write(LedgerChange::Disallowed { network });
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
            (Some(target), false) => Some(parse_target(target).map_err(Failure::usage)?),
            _ => return Err(Failure::usage("give an address or prefix, or --all")),
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
        let lifted = self.lift_bans(target.map(|target| vec![target]), by);
        let known = target.map(|target| {
            self.sensor.ask(|answer| SensorRequest::Explain { address: target.element(), link: None, answer })
        });
        // Sent after the request: the new snapshot makes the sensor lift the bans of protected sources, and the request
        // would then find no ban.
        if self.host_state.allow.by_hand.unforce(target.map(BanTarget::network))
            && let Err(error) = self.host_state.renew().await
        {
            self.sink.emit(EventKind::Error(error.to_string()));
        }
        Ok(async move {
            let unblocked = of_sensor(lifted).await?.map_err(Failure::failed)? + by_fleet;
            if let (0, Some(target), Some(known)) = (unblocked, target, known) {
                // `target` may be a network inside another blocked network.
                let around = of_sensor(known).await.ok().and_then(|known| known.network);
                return Err(Failure::refused(not_blocked(target, around.filter(|network| *network != target))));
            }
            Ok(Answer::Unblocked(Unblocked { unblocked }))
        })
    }

    fn explain(&mut self, address: &str) -> Result<impl Future<Output = Reply> + use<>, Failure> {
        let asked = parse_address(address).map_err(Failure::usage)?;
        let (address, link) = (asked.network.addr(), asked.link);
        let known = self.sensor.ask(|answer| SensorRequest::Explain { address, link, answer });
        let states = self.host_state.memory.services.states().into_iter().filter(|state| !state.is_served);
        let mut unserved: Vec<_> =
            states.map(|ServiceState { service, .. }| format!("{}/{}", service.port, service.protocol.key())).collect();
        unserved.dedup();
        let (recorder, hold) = (self.sink.ban_recorder.recorder(), self.trial.hold(&self.config.current));
        let fleet = self.fleet().and_then(|fleet| fleet.explain(BanTarget::containing(address)));
        Ok(async move {
            let info = queries::explain(asked, of_sensor(known).await?, recorder, hold).await;
            Ok(Answer::Explained(Box::new(AddressInfo { unserved, fleet, ..info })))
        })
    }

    async fn forget_service(&mut self, by: &str, named: ServicePort) -> Reply {
        let ServicePort { port, protocol } = named;
        let forgotten = self.host_state.memory.services.forget(port, protocol);
        self.host_state.renew().await.map_err(Failure::failed)?;
        if forgotten == 0 {
            return Err(Failure::refused(format!(
                "refused: no service on port {named} is remembered; `portsentry status` lists the remembered services"
            )));
        }
        self.sink.emit(EventKind::Note(format!(
            "{by} has removed the service on port {named} from the remembered services"
        )));
        Ok(Answer::ServiceForgotten(ServiceForgotten { forgotten }))
    }

    async fn allow(&mut self, by: String, target: &str, span: Option<&str>, force: bool) -> Reply {
        let span = span.map(parse_expiry).transpose().map_err(Failure::usage)?.and_then(Expiry::span);
        let network = parse_network(target).map_err(Failure::usage)?;
        let allowed = plain(network);
        let is_too_wide = network.prefix_len() < if network.addr().is_ipv4() { 8 } else { 16 };
        if is_too_wide && !force {
            return Err(Failure::refused(format!(
                "refused to allow {allowed}: such a large network would disable most blocking. Use --force to allow \
                 it anyway; `portsentry trial 1h` suspends blocking for an hour"
            )));
        }
        let bans = self.sensor.ask(|answer| SensorRequest::BansIn { network, most: MAX_LISTED, answer });
        let (bans, lifted) = of_sensor(bans).await?;
        let since = SystemTime::now();
        let allowance = Allowance { network, since, until: span.and_then(|span| since.checked_add(span)), by };
        self.host_state.allow.by_hand.add(allowance.clone(), now()).map_err(Failure::failed)?;
        self.host_state.renew_waiting().await.map_err(Failure::failed)?;
        let until = allowance.until.map(WallTime);
        let how_long =
            until.map_or("until this is revoked".to_owned(), |until| format!("until {}", until.to_seconds()));
        let lifts = if lifted > 0 { format!("; lifted bans: {lifted}") } else { String::new() };
        self.sink.emit(EventKind::Note(format!("{} has allowed {allowed} {how_long}{lifts}", allowance.by)));
        self.sink.ban_recorder.write(LedgerChange::Allowed(allowance));
        Ok(Answer::Allowed(Allowed { allowed, until, lifted, bans }))
    }

    async fn disallow(&mut self, by: &str, target: &str) -> Reply {
        let network = parse_network(target).map_err(Failure::usage)?;
        let disallowed = plain(network);
        let is_revoked = self.host_state.allow.by_hand.remove(network);
        if is_revoked {
            self.host_state.renew_waiting().await.map_err(Failure::failed)?;
        }
        let still = self.host_state.host().allow.covers(network).map(|why| why.to_string());
        if !is_revoked {
            let contains = |entry: &AllowedEntry| parse_network(&entry.network).is_ok_and(|it| it.contains(&network));
            let around = self.host_state.allow.entries().into_iter().find(contains);
            return Err(Failure::refused(match (around, still) {
                (Some(AllowedEntry { network, since: Some(_), .. }), _) => {
                    format!("{disallowed} is allowed as part of {network}; run `portsentry disallow {network}`")
                }
                (Some(AllowedEntry { network, by, .. }), _) => {
                    format!("{disallowed} is allowed by {by} ({network}); remove it there and run `portsentry reload`")
                }
                (None, Some(why)) => format!("{disallowed} is protected without an allowance: it is {why}"),
                (None, None) => format!("{disallowed} is not allowed; `portsentry allowed` lists the allowed networks"),
            }));
        }
        self.sink.ban_recorder.write(LedgerChange::Disallowed { network });
        self.sink.emit(EventKind::Note(format!("{by} has revoked the allowance of {disallowed}")));
        Ok(Answer::Disallowed(Disallowed { disallowed, still }))
    }

    /// Reads the configuration again, requested by `by`.
    pub(super) async fn reload(&mut self, by: &str) -> Reply {
        systemd::reloading();
        let result = self.replace_config().await;
        self.sink.emit(match &result {
            Ok(reloaded) => EventKind::Note(format!("{by}: {}", summary(reloaded))),
            Err(error) => {
                EventKind::Error(format!("the new configuration is refused, the old one stays in force: {error}"))
            }
        });
        systemd::ready("watching");
        result.map(Answer::Reloaded).map_err(|error| Failure::new(ErrorKind::Configuration, error))
    }

    /// Replaces the configuration in force.
    ///
    /// # Errors
    /// Why the configuration in force is kept.
    async fn replace_config(&mut self) -> Result<Reloaded, String> {
        let (config, reloaded) = self.config.read(&self.sandbox, self.sink.notifier.can_notify())?;
        let settings = self.trial.settings(&config);
        self.host_state.reconfigure(&config, settings).await.map_err(|error| error.to_string())?;
        self.trial.reconfigure(&config);
        self.sink.log.reconfigure(&config);
        self.sink.notifier.reconfigure(&config.notify);
        if let Some(fleet) = &mut self.fleet {
            fleet.reconfigure(&config.fleet);
        }
        self.config.current = config;
        Ok(reloaded)
    }

    /// Ends an expired trial.
    pub(super) async fn end_trial(&mut self) {
        if self.trial.end(&self.config.current, &mut self.sink).await {
            drop(self.lift_bans(None, "the end of the trial".to_owned()));
        }
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
