//! Reconciles the bans in force with what the kernel holds, a sample each second: finds what was lost without a
//! notification. Asks for single bans, never for a whole set.
//!
//! Notifications of routes are followed here as well. A single deleted route lifts its ban, as with an element of nftables.
//! Where several go at once (`ip route flush`), all that are missing are restored.

use std::collections::HashSet;
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::{Instant, timeout_at};

use super::error::DaemonError;
use super::sensor_handle::SensorHandle;
use crate::enforce::nft::Nft;
use crate::enforce::route::{RouteError, missing_routes, swept_routes};
use crate::netlink::routes::RouteSocket;
use crate::netlink::routes::monitor::{Gone, RouteMonitor};
use crate::panic_guard;
use crate::sensor::{Sample, SensorCommand, SensorRequest};
use crate::types::{Backend, BanTarget, RouteKind};

/// Bans that are looked at in one go: some 2 ms of this thread, and a set of 131,072 in 9 minutes.
const SAMPLE: usize = 256;

/// How long between two of them.
const INTERVAL: Duration = Duration::from_secs(1);

/// Routes that go so shortly one after another go together.
const COALESCE_DELAY: Duration = Duration::from_millis(100);

/// How long what goes together is waited for.
const MAX_COALESCE: Duration = Duration::from_millis(500);

/// Bans that the sensor repairs between two looks at the packets: some 20 ms.
const REPAIRED_AT_ONCE: usize = 1_000;

#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) nft: bool,
    /// Own routes of this kind.
    pub(super) routes: Option<RouteKind>,
}

/// What is compared, each with a socket of its own.
pub(super) struct Compared {
    nft: Option<Nft>,
    routes: Option<(RouteSocket, RouteKind)>,
}

/// Compares, on a task of its own, until the sensor has gone.
pub(super) async fn reconcile(sensor: SensorHandle, wanted: Wanted, compared: Compared) {
    let mut compared = Some(compared);
    while panic_guard::catch_panic(rounds(&sensor, wanted, &mut compared)).await.is_none() {
        tokio::time::sleep(panic_guard::RESTART_DELAY).await;
    }
}

async fn rounds(sensor: &SensorHandle, wanted: Wanted, compared: &mut Option<Compared>) {
    let (mut elements, mut routes): (HashSet<BanTarget>, HashSet<BanTarget>) = Default::default();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let again = elements.drain().collect();
        let routes_again = routes.drain().collect();
        let request = |answer| SensorRequest::Sample { most: SAMPLE, again, routes_again, answer };
        // A sensor that is too busy to listen has no time for this either.
        let Some(sample) = sensor.try_ask(request) else { continue };
        let Ok(sample) = sample.await else { return };
        if sample.is_empty() {
            continue;
        }
        // A panic has taken the sockets along. Where there are no others now, there may be in a second.
        let Some(mut looks) = compared.take().or_else(|| Compared::open(wanted).ok()) else { continue };
        let looked = tokio::task::spawn_blocking(move || {
            panic_guard::failpoint("comparison");
            let found = looks.look(&sample);
            (looks, found)
        });
        let Ok((looks, found)) = looked.await else { continue };
        *compared = Some(looks);
        // Missing once, a notification may still come: lifted, expired, flushed. Missing twice, none will come.
        elements.extend(found.elements);
        routes.extend(found.routes);
        for (way, again) in [(Backend::Nft, found.elements_again), (Backend::Route, found.routes_again)] {
            if !again.is_empty() {
                sensor.send(SensorCommand::Repair(way, again));
            }
        }
    }
}

/// Targets that should be blocked and are not.
#[derive(Default)]
struct Found {
    elements: Vec<BanTarget>,
    elements_again: Vec<BanTarget>,
    routes: Vec<BanTarget>,
    routes_again: Vec<BanTarget>,
}

impl Compared {
    pub(super) fn open(wanted: Wanted) -> Result<Self, DaemonError> {
        let nft = wanted.nft.then(Nft::open).transpose()?;
        let routes = wanted.routes.map(|kind| RouteSocket::open().map(|socket| (socket, kind))).transpose()?;
        Ok(Self { nft, routes })
    }

    fn look(&mut self, sample: &Sample) -> Found {
        let mut found = Found::default();
        if let Some(nft) = &mut self.nft {
            // A table that is gone is the table monitor's business.
            found.elements = nft.missing(&sample.fresh).unwrap_or_default();
            found.elements_again = nft.missing(&sample.again).unwrap_or_default();
        }
        if let Some((socket, kind)) = &mut self.routes {
            let mut missing = |targets: &[BanTarget]| missing_routes(socket, *kind, targets).unwrap_or_default();
            found.routes = missing(&sample.routes);
            found.routes_again = missing(&sample.routes_again);
        }
        found
    }
}

/// Follows what others do to the own routes, on a task of its own, until the sensor has gone.
pub(super) async fn follow_routes(sensor: SensorHandle, mut monitor: RouteMonitor) {
    while panic_guard::catch_panic(follow(&sensor, &mut monitor)).await.is_none() {
        // What it had in hand is found by the comparison.
        tokio::time::sleep(panic_guard::RESTART_DELAY).await;
    }
}

async fn follow(sensor: &SensorHandle, monitor: &mut RouteMonitor) {
    while let Ok(first) = monitor.next().await {
        panic_guard::failpoint("routes");
        let mut gone: HashSet<IpNet> = HashSet::new();
        let mut unsaid = note(&mut gone, first);
        let end = Instant::now() + MAX_COALESCE;
        loop {
            let quiet = Instant::now() + COALESCE_DELAY;
            let Ok(next) = timeout_at(quiet.min(end), monitor.next()).await else { break };
            let Ok(next) = next else { return };
            unsaid |= note(&mut gone, next);
            // Notifications without a pause must not keep this from its end.
            if Instant::now() >= end {
                break;
            }
        }
        let one = gone.iter().next().copied().and_then(BanTarget::exactly);
        match one {
            Some(target) if gone.len() == 1 && !unsaid => sensor.send(SensorCommand::RouteRemoved(target)),
            _ => match repair_all(sensor).await {
                Some(()) => {}
                None => return,
            },
        }
    }
}

/// Records one; true if it is unknown which one.
fn note(gone: &mut HashSet<IpNet>, one: Gone) -> bool {
    match one {
        Gone::Route(net) => {
            // Two are as good as thousands.
            if gone.len() < 2 {
                gone.insert(net);
            }
            false
        }
        Gone::Unsaid => true,
    }
}

/// Has every route laid again that is missing. `None` where the sensor has gone.
async fn repair_all(sensor: &SensorHandle) -> Option<()> {
    let all = |answer| SensorRequest::Sample { most: usize::MAX, again: Vec::new(), routes_again: Vec::new(), answer };
    let Some(sample) = sensor.try_ask(all) else { return Some(()) };
    let sample = sample.await.ok()?;
    let missing = tokio::task::spawn_blocking(move || -> Result<Vec<BanTarget>, RouteError> {
        swept_routes(&mut RouteSocket::open()?, &sample.routes)
    });
    // What cannot be read now is found by the comparison.
    let missing = missing.await.ok().and_then(Result::ok).unwrap_or_default();
    for part in missing.chunks(REPAIRED_AT_ONCE) {
        sensor.send_waiting(SensorCommand::Repair(Backend::Route, part.to_vec())).await;
    }
    Some(())
}
