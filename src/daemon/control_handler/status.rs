//! Handles `status`, and serves the metrics; both show the same counters.

use std::sync::Arc;
use std::time::SystemTime;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio::sync::oneshot;

use super::queries::of_sensor;
use crate::clock::WallTime;
use crate::config::ProtocolConfig;
use crate::control::fleet_info::FleetLink;
use crate::control::protocol::{Answer, Reply};
use crate::control::status::{
    AddressFamily, BanCounts, DaemonState, MonitoredPorts, PacketCounts, RememberedService, Status, TrapCounts,
};
use crate::daemon::command_helper::CommandHelper;
use crate::daemon::components::Components;
use crate::daemon::config_source::warnings;
use crate::daemon::service_tracker::ServiceState;
use crate::enforce::nft::Table;
use crate::engine::{Host, Service};
use crate::metrics::{self, FleetSnapshot, Snapshot};
use crate::sensor::SensorRequest;
use crate::types::{Backend, PortSet, Response};

/// Maximum number of bans for which `status` counts the kernel's elements: about 20 ms. The time grows with the square.
const MAX_COUNTED: usize = 20_000;

/// Sends the metrics as soon as the sensor has counted its bans.
pub(in crate::daemon) fn scrape(components: &mut Components, place: oneshot::Sender<String>) {
    let since = components.started.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let snapshot = Snapshot {
        started: since.as_secs_f64(),
        capacity: components.uses_nft.then(|| components.config.current.block.nft.size.into()),
        events_lost: components.sink.lost.total,
        allowed: components.host_state.host().allow.prefixes().count() as u64,
        fleet: components.fleet().map(|fleet| fleet.status()).map(|fleet| FleetSnapshot {
            connected: fleet.link == FleetLink::Connected,
            bans: fleet.bans as u64,
            waiting: fleet.waiting as u64,
            accepted: fleet.accepted,
            refused: fleet.refused,
        }),
        ..Snapshot::default()
    };
    let counted = components.sensor.ask(|answer| SensorRequest::Count { answer });
    let metrics = Arc::clone(&components.sensor.metrics);
    tokio::spawn(async move {
        if let Ok(intended) = counted.await {
            let snapshot = Snapshot { intended: intended as u64, ..snapshot };
            let _ = place.send(metrics::text(&metrics, snapshot));
        }
    });
}

pub(super) fn status(components: &mut Components) -> impl Future<Output = Reply> + use<> {
    let fleet = components.fleet().map(|fleet| fleet.status());
    let (config, host, metrics) =
        (&components.config.current, components.host_state.host(), &components.sensor.metrics);
    let (allowed, protected_networks) = host.allow.counts();
    let mut status = Status {
        running: true,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        process: std::process::id(),
        since: WallTime(components.started.0),
        uptime_s: components.started.1.elapsed().as_secs(),
        state: match (components.enforces(), components.trial.left()) {
            (false, _) => DaemonState::OnlyLogging,
            (true, Some(_)) => DaemonState::OnTrial,
            (true, None) => DaemonState::Blocking,
        },
        trial_left_s: components.trial.left().map(|left| left.as_secs()),
        expire_s: config.expire.seconds(),
        methods: config.block.method.clone(),
        interfaces: config.interfaces.clone(),
        tcp: monitored(&config.tcp, &host.tcp.everywhere(), components.enforces()),
        udp: monitored(&config.udp, &host.udp.everywhere(), components.enforces()),
        packets: PacketCounts {
            seen: metrics.frames.get(),
            dropped: metrics.dropped.get(),
            malformed: metrics.undecoded.get(),
            from_judged: metrics.repeated.get(),
            connections: metrics.connections.get(),
        },
        probes: metrics.probes.get(),
        sources_tracked: metrics.sources_tracked.get(),
        bans: BanCounts {
            made: metrics.bans(),
            failed: Backend::ALL.iter().map(|backend| metrics.failed_by(*backend)).sum(),
            capped: metrics.capped.get(),
            withheld: metrics.withheld.get(),
            repaired: metrics.bans_repaired(),
            ..BanCounts::default()
        },
        trap: TrapCounts {
            ports: metrics.trapped.get(),
            udp_ports: metrics.trapped_udp.get(),
            lost_ports: metrics.trap_lost.get(),
            condemned: metrics.trap_banned.get(),
            let_go: metrics.trap_let_go.get(),
            hold_ms: components
                .trial
                .hold(config)
                .map_or(0, |(length, _)| u64::try_from(length.as_millis()).unwrap_or(0)),
            held: metrics.held.get(),
            hold_full: metrics.hold_full.get(),
        },
        services: components.host_state.services().iter().map(RememberedService::from).collect(),
        allows_all: allows_all(&host),
        warnings: warnings(config, &components.config.path, &host)
            .into_iter()
            .chain(components.firewall_watch.notice.clone())
            .collect(),
        allowed,
        protected_networks,
        ledger: components.state_dir.display().to_string(),
        metrics: config.metrics.listen,
        sandbox: components.sandbox.state.clone(),
        commands: components.command_helper.as_ref().map(CommandHelper::status),
        fleet,
        last_event: components.sink.last_event.as_ref().map(Into::into),
    };
    let counted = components.sensor.ask(|answer| SensorRequest::Count { answer });
    let uses_nft = components.uses_nft;
    async move {
        status.bans.intended = of_sensor(counted).await?;
        if uses_nft && status.bans.intended <= MAX_COUNTED {
            let elements = tokio::task::spawn_blocking(|| Some(Table::open().ok()?.elements().ok()?.len())).await;
            status.bans.enforced = elements.ok().flatten();
        }
        Ok(Answer::Status(Box::new(status)))
    }
}

impl From<&ServiceState> for RememberedService {
    fn from(state: &ServiceState) -> Self {
        let Service { protocol, port, address } = state.service;
        Self { proto: protocol, port, address, served: state.is_served, last_served: WallTime(state.served) }
    }
}

/// The address families that the allow-list covers completely.
fn allows_all(host: &Host) -> Vec<AddressFamily> {
    let families =
        [(AddressFamily::IPv4, IpNet::V4(Ipv4Net::default())), (AddressFamily::IPv6, IpNet::V6(Ipv6Net::default()))];
    let is_allowed = |all| host.allow.covers(all).is_some();
    families.into_iter().filter_map(|(family, all)| is_allowed(all).then_some(family)).collect()
}

fn monitored(protocol: &ProtocolConfig, in_use: &PortSet, enforces: bool) -> MonitoredPorts {
    // Nothing is blocked during a log-only trial, or after --confirm has timed out.
    MonitoredPorts::new(protocol, in_use, if enforces { protocol.block } else { Response::Log })
}
