//! Reconciles the bans in force with the kernel, one sample per second, to find bans that were lost without a
//! notification. Queries single bans, never a whole set.
//!
//! Also follows route notifications. A single deleted route lifts its ban, like a deleted element of nftables. If
//! several are deleted at once (`ip route flush`), all missing ones are restored.

use std::collections::HashSet;
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::{Instant, timeout_at};

use super::error::DaemonError;
use super::sensor_thread::SensorHandle;
use super::table_monitor::BulkChanges;
use crate::clock::boot_time;
use crate::enforce::nft::Table;
use crate::enforce::route::{RouteError, missing_routes, swept_routes};
use crate::netlink::routes::RouteSocket;
use crate::netlink::routes::monitor::{Gone, RouteMonitor};
use crate::panic_guard;
use crate::sensor::{Sample, SensorCommand, SensorRequest};
use crate::types::{Backend, BanTarget, RouteKind};

/// Bans per sample: about 2 ms of this thread, and 9 minutes for a set of 131,072.
const SAMPLE: usize = 256;

/// Interval between two samples.
const INTERVAL: Duration = Duration::from_secs(1);

/// Routes deleted within this time after one another count as deleted together.
const COALESCE_DELAY: Duration = Duration::from_millis(100);

/// Maximum time for collecting routes that were deleted together.
const MAX_COALESCE: Duration = Duration::from_millis(500);

/// Bans that the sensor repairs between two batches of packets: about 20 ms.
const MAX_REPAIRS: usize = 1_000;

pub(super) struct Reconciler {
    sensor: SensorHandle,
    bulk: BulkChanges,
    /// True if nftables is used.
    uses_nft: bool,
    /// Kind of the own routes, if routes are used.
    routes: Option<RouteKind>,
    /// `None` after a panic, until they are opened again.
    sockets: Option<Sockets>,
}

/// Separate sockets for the comparison. They stay open: closing one to nftables can delay a ban in the kernel.
struct Sockets {
    table: Option<Table>,
    routes: Option<(RouteSocket, RouteKind)>,
}

impl Reconciler {
    /// # Errors
    /// Netlink cannot be opened.
    pub(super) fn open(
        sensor: SensorHandle,
        bulk: BulkChanges,
        uses_nft: bool,
        routes: Option<RouteKind>,
    ) -> Result<Self, DaemonError> {
        Ok(Self { sensor, bulk, uses_nft, routes, sockets: Some(Sockets::open(uses_nft, routes)?) })
    }

    /// Runs the comparison until the sensor has ended. For a separate task.
    pub(super) async fn run(mut self) {
        while panic_guard::catch_panic(self.rounds()).await.is_none() {
            tokio::time::sleep(panic_guard::RESTART_DELAY).await;
        }
    }

    async fn rounds(&mut self) {
        let (mut elements, mut routes): (HashSet<BanTarget>, HashSet<BanTarget>) = Default::default();
        loop {
            tokio::time::sleep(INTERVAL).await;
            if self.bulk.are_under_way(boot_time()) {
                continue;
            }
            let again = elements.drain().collect();
            let routes_again = routes.drain().collect();
            let request = |answer| SensorRequest::Sample { most: SAMPLE, again, routes_again, answer };
            // A full inbox means that the sensor is busy, so this round is skipped.
            let Some(sample) = self.sensor.try_ask(request) else { continue };
            let Ok(sample) = sample.await else { return };
            if sample.is_empty() {
                continue;
            }
            let opened = self.sockets.take().or_else(|| Sockets::open(self.uses_nft, self.routes).ok());
            let Some(mut sockets) = opened else { continue };
            let compared = tokio::task::spawn_blocking(move || {
                panic_guard::failpoint("comparison");
                let missing = sockets.missing(&sample);
                (sockets, missing)
            });
            let Ok((sockets, missing)) = compared.await else { continue };
            self.sockets = Some(sockets);
            // If a ban is missing once, a notification may still arrive: lifted, expired, flushed. If it is missing
            // twice, none will.
            elements.extend(missing.fresh);
            routes.extend(missing.routes);
            for (backend, again) in [(Backend::Nft, missing.again), (Backend::Route, missing.routes_again)] {
                if !again.is_empty() {
                    self.sensor.send(SensorCommand::Repair(backend, again));
                }
            }
        }
    }
}

impl Sockets {
    fn open(uses_nft: bool, routes: Option<RouteKind>) -> Result<Self, DaemonError> {
        let routes = routes.map(|kind| RouteSocket::open().map(|socket| (socket, kind))).transpose()?;
        Ok(Self { table: uses_nft.then(Table::open).transpose()?, routes })
    }

    /// The targets of `sample` that should be blocked but are not. A target that cannot be queried now is in a later
    /// sample.
    fn missing(&mut self, sample: &Sample) -> Sample {
        let mut missing = Sample::default();
        if let Some(table) = &mut self.table {
            // The table monitor handles a missing table.
            missing.fresh = table.missing(&sample.fresh).unwrap_or_default();
            missing.again = table.missing(&sample.again).unwrap_or_default();
        }
        if let Some((socket, kind)) = &mut self.routes {
            let mut without_route = |targets: &[BanTarget]| missing_routes(socket, *kind, targets).unwrap_or_default();
            missing.routes = without_route(&sample.routes);
            missing.routes_again = without_route(&sample.routes_again);
        }
        missing
    }
}

/// Follows changes by others to the own routes, on a separate task, until the sensor has ended.
pub(super) async fn follow_routes(sensor: SensorHandle, mut monitor: RouteMonitor) {
    while panic_guard::catch_panic(follow(&sensor, &mut monitor)).await.is_none() {
        // After a panic, the comparison finds changes that were not handled.
        tokio::time::sleep(panic_guard::RESTART_DELAY).await;
    }
}

async fn follow(sensor: &SensorHandle, monitor: &mut RouteMonitor) {
    while let Ok(first) = monitor.next().await {
        panic_guard::failpoint("routes");
        // `None` stands for an unknown route.
        let mut gone: HashSet<Option<IpNet>> = [network(first)].into();
        let end = Instant::now() + MAX_COALESCE;
        loop {
            let quiet = Instant::now() + COALESCE_DELAY;
            let Ok(next) = timeout_at(quiet.min(end), monitor.next()).await else { break };
            let Ok(next) = next else { return };
            // From two routes on, all missing ones are restored, so no more are stored.
            if gone.len() < 2 {
                gone.insert(network(next));
            }
            // Continuous notifications must not prevent the end.
            if Instant::now() >= end {
                break;
            }
        }
        let is_single = gone.len() == 1;
        match gone.into_iter().next().flatten().and_then(BanTarget::exactly) {
            Some(target) if is_single => sensor.send(SensorCommand::RouteRemoved(target)),
            _ if repair_all(sensor).await.is_none() => return,
            _ => {}
        }
    }
}

fn network(gone: Gone) -> Option<IpNet> {
    match gone {
        Gone::Route(network) => Some(network),
        Gone::Unsaid => None,
    }
}

/// Restores all missing routes. `None` if the sensor has ended.
async fn repair_all(sensor: &SensorHandle) -> Option<()> {
    let all = |answer| SensorRequest::Sample { most: usize::MAX, again: Vec::new(), routes_again: Vec::new(), answer };
    let Some(sample) = sensor.try_ask(all) else { return Some(()) };
    let sample = sample.await.ok()?;
    let missing = tokio::task::spawn_blocking(move || -> Result<Vec<BanTarget>, RouteError> {
        swept_routes(&mut RouteSocket::open()?, &sample.routes)
    });
    // If the routes cannot be read now, the next comparison finds the missing ones.
    let missing = missing.await.ok().and_then(Result::ok).unwrap_or_default();
    for part in missing.chunks(MAX_REPAIRS) {
        sensor.send_waiting(SensorCommand::Repair(Backend::Route, part.to_vec())).await;
    }
    Some(())
}
