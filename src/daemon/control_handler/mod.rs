//! Handles control requests: passes each to the components that own what it reads or changes. What the sensor thread
//! must answer is awaited in a separate task.

mod queries;
mod status;

pub(super) use status::scrape;

use std::future::ready;
use std::net::IpAddr;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use tokio::net::unix::UCred;

use super::allow_sources::protected;
use super::components::Components;
use super::service_tracker::ServiceState;
use crate::clock::{BanEnd, WallTime, end_time};
use crate::control::address_info::AddressInfo;
use crate::control::protocol::{
    Allowed, AllowedEntry, AllowedList, Answer, Blocked, Disallowed, Failure, MAX_LISTED, Reply, Request,
    ServiceForgotten, ServicePort, Unblocked,
};
use crate::control::scoped_network::ScopedNetwork;
use crate::control::server::IncomingRequest;
use crate::engine::Protection;
use crate::events::event::EventKind;
use crate::ledger::{Allowance, LedgerChange, LiftedBy};
use crate::sandbox::Sandbox;
use crate::sensor::SensorRequest;
use crate::types::printable::masked;
use crate::types::{BanTarget, Expiry, plain};
use queries::of_sensor;
use status::status;

/// Maximum length of a ban's note, in characters.
const MAX_NOTE_LEN: usize = 200;

/// A reply that may still wait for the sensor.
type Pending = Pin<Box<dyn Future<Output = Reply> + Send>>;

pub(super) async fn handle(components: &mut Components, IncomingRequest { request, peer, reply }: IncomingRequest) {
    let by = author(peer, &components.sandbox);
    let pending = start(components, request, by).await;
    tokio::spawn(async move {
        let result = match pending {
            Ok(pending) => pending.await,
            Err(failure) => Err(failure),
        };
        // The client may have disconnected.
        let _ = reply.send(result);
    });
}

async fn start(components: &mut Components, request: Request, by: String) -> Result<Pending, Failure> {
    Ok(match request {
        Request::Status => Box::pin(status(components)),
        Request::Block { target, expire, reason, force } => {
            let (target, expiry) = admit(components, target, expire, force).await?;
            let note = reason.map(|text| masked(&text, ' ').take(MAX_NOTE_LEN).collect());
            let done = components.sensor.ask(|answer| SensorRequest::Block { target, expiry, by, note, answer });
            Box::pin(async move {
                of_sensor(done).await?.map_err(Failure::failed)?;
                Ok(Answer::Blocked(Blocked { target, expires: BanEnd::new(expiry, SystemTime::now()) }))
            })
        }
        Request::Unblock { target, all } => Box::pin(unblock(components, by, target, all).await?),
        Request::Explain { address } => Box::pin(explain(components, address)),
        Request::Bans { after } => Box::pin(queries::bans(components.sink.ban_recorder.recorder(), after)?),
        Request::Allow { target, span, force } => {
            Box::pin(ready(allow(components, by, target, span.and_then(Expiry::span), force).await))
        }
        Request::Disallow { target } => Box::pin(ready(disallow(components, &by, target).await)),
        Request::Allowed => {
            let mut allowed = components.host_state.allow_sources().entries();
            let more = allowed.len().saturating_sub(MAX_LISTED);
            allowed.truncate(MAX_LISTED);
            Box::pin(ready(Ok(Answer::Allowances(AllowedList { allowed, more }))))
        }
        Request::Fleet { after } => {
            let bans = components.fleet().map(|fleet| fleet.list(after)).unwrap_or_default();
            Box::pin(ready(Ok(Answer::FleetBans(bans))))
        }
        Request::ForgetService { port } => Box::pin(ready(forget_service(components, &by, port).await)),
        Request::Trial { span, end } => {
            let request = (span, end);
            Box::pin(ready(
                components.trial.request(&by, request, &components.config.current, &mut components.sink).await,
            ))
        }
        Request::Confirm => {
            Box::pin(ready(components.trial.confirm(&by, &components.config.current, &mut components.sink)))
        }
        Request::Reload => Box::pin(ready(components.reload(&by).await)),
        Request::Subscribe => return Err(Failure::usage("subscriptions are served by the socket itself")),
    })
}

/// Checks whether an operator may block `asked`; returns the target of the ban and its expiry. With `force`, a
/// protected target loses its protection.
async fn admit(
    components: &mut Components,
    asked: IpNet,
    expire: Option<Expiry>,
    force: bool,
) -> Result<(BanTarget, Expiry), Failure> {
    let expiry = expire.unwrap_or(components.config.current.expire);
    let target = BanTarget::from_prefix(asked).map_err(Failure::usage)?;
    if let Some(why) = no_source(asked.addr()) {
        return Err(Failure::refused(format!(
            "refused to block {}: {why}, which cannot be the source of a packet",
            plain(asked)
        )));
    }
    if let Some(why) = components.trial.only_logs(&components.config.current) {
        return Err(Failure::refused(format!("refused to block: scans are only logged, because {why}")));
    }
    let Some((network, protection)) = protected(&components.host_state.host(), asked) else {
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
    components.host_state.force(network, expiry.span()).await.map_err(Failure::failed)?;
    components.sink.ban_recorder.write(LedgerChange::Disallowed { network });
    Ok((target, expiry))
}

async fn unblock(
    components: &mut Components,
    by: String,
    target: Option<ScopedNetwork>,
    all: bool,
) -> Result<impl Future<Output = Reply> + use<>, Failure> {
    let target = match (target, all) {
        (None, true) => None,
        (Some(target), false) => Some(target.target().map_err(Failure::usage)?),
        _ => return Err(Failure::usage("give an address or prefix, or --all")),
    };
    let by_fleet = match (&mut components.fleet, target) {
        (Some(fleet), Some(target)) => usize::from(fleet.lift(target, LiftedBy::Host)),
        (Some(fleet), None) => fleet.lift_all(),
        (None, _) => 0,
    };
    if by_fleet > 0 {
        let lifted = target.map_or_else(
            || format!("all bans of the fleet ({by_fleet})"),
            |target| format!("the fleet's ban of {target}"),
        );
        components.sink.emit(EventKind::Note(format!(
            "{by} has lifted {lifted} on this host, until the reports of the fleet expire"
        )));
    }
    let lifted = components.lift_bans(target.map(|target| vec![target]), by);
    let known = target.map(|target| {
        components.sensor.ask(|answer| SensorRequest::Explain { address: target.element(), link: None, answer })
    });
    // Sent after the request: the new snapshot makes the sensor lift the bans of protected sources, and the request
    // would then find no ban.
    if let Err(error) = components.host_state.unforce(target.map(BanTarget::network)).await {
        components.sink.emit(EventKind::Error(error.to_string()));
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

fn explain(components: &mut Components, asked: ScopedNetwork) -> impl Future<Output = Reply> + use<> {
    let (address, link) = (asked.network.addr(), asked.link);
    let known = components.sensor.ask(|answer| SensorRequest::Explain { address, link, answer });
    let states = components.host_state.services().into_iter().filter(|state| !state.is_served);
    let port = |ServiceState { service, .. }| ServicePort { port: service.port, protocol: Some(service.protocol) };
    let mut unserved: Vec<_> = states.map(port).collect();
    unserved.dedup();
    let (recorder, hold) = (components.sink.ban_recorder.recorder(), components.trial.hold(&components.config.current));
    let fleet = components.fleet().and_then(|fleet| fleet.explain(BanTarget::containing(address)));
    async move {
        let info = queries::explain(asked, of_sensor(known).await?, recorder, hold).await;
        Ok(Answer::Explained(Box::new(AddressInfo { unserved, fleet, ..info })))
    }
}

async fn forget_service(components: &mut Components, by: &str, named: ServicePort) -> Reply {
    let ServicePort { port, protocol } = named;
    let forgotten = components.host_state.forget_service(port, protocol).await.map_err(Failure::failed)?;
    if forgotten == 0 {
        return Err(Failure::refused(format!(
            "refused: no service on port {named} is remembered; `portsentry status` lists the remembered services"
        )));
    }
    components
        .sink
        .emit(EventKind::Note(format!("{by} has removed the service on port {named} from the remembered services")));
    Ok(Answer::ServiceForgotten(ServiceForgotten { forgotten }))
}

async fn allow(components: &mut Components, by: String, network: IpNet, span: Option<Duration>, force: bool) -> Reply {
    let allowed = plain(network);
    let is_too_wide = network.prefix_len() < if network.addr().is_ipv4() { 8 } else { 16 };
    if is_too_wide && !force {
        return Err(Failure::refused(format!(
            "refused to allow {allowed}: such a large network would disable most blocking. Use --force to allow \
             it anyway; `portsentry trial 1h` suspends blocking for an hour"
        )));
    }
    let bans = components.sensor.ask(|answer| SensorRequest::BansIn { network, most: MAX_LISTED, answer });
    let (bans, lifted) = of_sensor(bans).await?;
    let since = SystemTime::now();
    let allowance = Allowance { network, since, until: end_time(span, since), by };
    components.host_state.allow(allowance.clone()).await.map_err(Failure::failed)?;
    let until = allowance.until.map(WallTime);
    let how_long =
        until.map_or("until this is revoked".to_owned(), |until| format!("until {}", until.without_fraction()));
    let lifts = if lifted > 0 { format!("; lifted bans: {lifted}") } else { String::new() };
    components.sink.emit(EventKind::Note(format!("{} has allowed {allowed} {how_long}{lifts}", allowance.by)));
    components.sink.ban_recorder.write(LedgerChange::Allowed(allowance));
    Ok(Answer::Allowed(Allowed { allowed: network, until, lifted, bans }))
}

async fn disallow(components: &mut Components, by: &str, network: IpNet) -> Reply {
    let disallowed = plain(network);
    let is_revoked = components.host_state.disallow(network).await.map_err(Failure::failed)?;
    let still = components.host_state.host().allow.covers(network).map(|why| why.to_string());
    if !is_revoked {
        let contains = |entry: &AllowedEntry| entry.network.contains(&network);
        let around = components.host_state.allow_sources().entries().into_iter().find(contains);
        return Err(Failure::refused(match (around, still) {
            (Some(AllowedEntry { network, since: Some(_), .. }), _) => {
                let network = plain(network);
                format!("{disallowed} is allowed as part of {network}; run `portsentry disallow {network}`")
            }
            (Some(AllowedEntry { network, by, .. }), _) => {
                format!(
                    "{disallowed} is allowed by {by} ({}); remove it there and run `portsentry reload`",
                    plain(network)
                )
            }
            (None, Some(why)) => format!("{disallowed} is protected without an allowance: it is {why}"),
            (None, None) => format!("{disallowed} is not allowed; `portsentry allowed` lists the allowed networks"),
        }));
    }
    components.sink.ban_recorder.write(LedgerChange::Disallowed { network });
    components.sink.emit(EventKind::Note(format!("{by} has revoked the allowance of {disallowed}")));
    Ok(Answer::Disallowed(Disallowed { disallowed: network, still }))
}

/// The operator's name for the log and the ledger.
fn author(peer: UCred, sandbox: &Sandbox) -> String {
    let user = match (peer.uid(), &sandbox.state.user) {
        (0, _) => "root".to_owned(),
        (own, Some(name)) if own == sandbox.state.uid => name.clone(),
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
