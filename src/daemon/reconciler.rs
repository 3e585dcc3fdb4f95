//! Reconciles the bans in force with the kernel, one sample per second, to find bans that were lost without a
//! notification. Queries single bans, never a whole set.
//!
//! Also follows route notifications. A single deleted route lifts its ban, like a deleted element of nftables. If
//! several are deleted at once (`ip route flush`), all missing ones are restored.

use std::time::Duration;

use ipnet::IpNet;
use tokio::time::{Instant, timeout_at};

use super::backends;
use super::error::DaemonError;
use super::sensor_thread::SensorHandle;
use super::table_monitor::BulkChanges;
use crate::clock::boot_time;
use crate::config::Config;
use crate::enforce::BackendHandles;
use crate::enforce::route::without_own_route;
use crate::netlink::routes::monitor::{RouteDeletion, RouteMonitor};
use crate::panic_guard;
use crate::sensor::{BanSample, SensorCommand, SensorRequest};
use crate::types::{Backend, BanTarget};

/// Bans per sample: about 2 ms of this thread, and 9 minutes for a set of 131,072.
const SAMPLE: usize = 256;

/// Interval between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Routes deleted within this time after one another count as deleted together.
const COALESCE_DELAY: Duration = Duration::from_millis(100);

/// Maximum time for collecting routes that were deleted together.
const MAX_COALESCE: Duration = Duration::from_millis(500);

/// Bans that the sensor repairs between two batches of packets: about 20 ms.
const MAX_REPAIRS: usize = 1_000;

pub(super) struct Reconciler {
    sensor: SensorHandle,
    bulk: BulkChanges,
    config: Config,
    /// Separate handles of the inline backends, for the comparison. They stay open: closing a socket to nftables can
    /// delay a ban in the kernel. `None` after a panic, until they are opened again.
    handles: Option<BackendHandles>,
}

impl Reconciler {
    /// # Errors
    /// Netlink cannot be opened.
    pub(super) fn open(sensor: SensorHandle, bulk: BulkChanges, config: Config) -> Result<Self, DaemonError> {
        let handles = Some(backends::open_again(&config)?);
        Ok(Self { sensor, bulk, config, handles })
    }

    /// Runs the comparison until the sensor has ended. For a separate task.
    pub(super) async fn run(mut self) {
        while panic_guard::catch_panic(self.rounds()).await.is_none() {
            tokio::time::sleep(panic_guard::RESTART_DELAY).await;
        }
    }

    async fn rounds(&mut self) {
        let mut missing = Vec::new();
        loop {
            tokio::time::sleep(SAMPLE_INTERVAL).await;
            if self.bulk.are_under_way(boot_time()) {
                continue;
            }
            let again = std::mem::take(&mut missing);
            let request = |answer| SensorRequest::Sample { most: SAMPLE, again, answer };
            // A full inbox means that the sensor is busy, so this round is skipped.
            let Some(samples) = self.sensor.try_ask(request) else { continue };
            let Ok(samples) = samples.await else { return };
            if samples.iter().all(BanSample::is_empty) {
                continue;
            }
            let opened = self.handles.take().or_else(|| backends::open_again(&self.config).ok());
            let Some(mut handles) = opened else { continue };
            let compared = tokio::task::spawn_blocking(move || {
                panic_guard::failpoint("comparison");
                let compared = compare(&mut handles, samples);
                (handles, compared)
            });
            let Ok((handles, compared)) = compared.await else { continue };
            self.handles = Some(handles);
            // If a ban is missing once, a notification may still arrive: lifted, expired, flushed. If it is missing
            // twice, none will.
            for BanSample { backend, fresh, again } in compared {
                missing.push((backend, fresh));
                if !again.is_empty() {
                    self.sensor.send(SensorCommand::Repair(backend, again));
                }
            }
        }
    }
}

/// Those targets of `samples` that should be blocked but are not. A target that cannot be queried now is in a later
/// sample. The table monitor handles a missing table.
fn compare(handles: &mut BackendHandles, samples: Vec<BanSample>) -> Vec<BanSample> {
    let missing = |BanSample { backend, fresh, again }| {
        let (_, handle) = handles.iter_mut().find(|(one, _)| *one == backend)?;
        Some(BanSample { backend, fresh: handle.missing(&fresh), again: handle.missing(&again) })
    };
    samples.into_iter().filter_map(missing).collect()
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
        let (first, mut is_single) = (network(first), true);
        let end = Instant::now() + MAX_COALESCE;
        // Continuous notifications must not prevent the end.
        while Instant::now() < end {
            let quiet = Instant::now() + COALESCE_DELAY;
            let Ok(next) = timeout_at(quiet.min(end), monitor.next()).await else { break };
            let Ok(next) = next else { return };
            is_single &= network(next) == first;
        }
        match first.and_then(BanTarget::exactly) {
            Some(target) if is_single => sensor.send(SensorCommand::ObjectRemoved(Backend::Route, target)),
            _ if repair_all(sensor).await.is_none() => return,
            _ => {}
        }
    }
}

/// The network of the route; `None` if the kernel does not tell.
fn network(gone: RouteDeletion) -> Option<IpNet> {
    match gone {
        RouteDeletion::Route(network) => Some(network),
        RouteDeletion::Unsaid => None,
    }
}

/// Restores all missing routes. `None` if the sensor has ended.
async fn repair_all(sensor: &SensorHandle) -> Option<()> {
    let all = |answer| SensorRequest::Sample { most: usize::MAX, again: Vec::new(), answer };
    let Some(samples) = sensor.try_ask(all) else { return Some(()) };
    let mut samples = samples.await.ok()?.into_iter();
    let Some(wanted) = samples.find(|sample| sample.backend == Backend::Route) else { return Some(()) };
    let missing = tokio::task::spawn_blocking(move || without_own_route(&wanted.fresh));
    // If the routes cannot be read now, the next comparison finds the missing ones.
    let missing = missing.await.ok().and_then(Result::ok).unwrap_or_default();
    for part in missing.chunks(MAX_REPAIRS) {
        sensor.send_waiting(SensorCommand::Repair(Backend::Route, part.to_vec())).await;
    }
    Some(())
}
