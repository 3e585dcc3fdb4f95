//! What should be in force against what the kernel holds, a few bans a second, for ever: notifications tell what others do,
//! and this finds what nobody told. Asks for single bans, never for a whole set.
//!
//! Of routes it hears the notifications as well. One that somebody deletes is a ban that he lifted, as with an element of
//! nftables. Several that go at once were swept away (`ip route flush`), and all that are missing are laid again.

use std::collections::HashSet;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::DaemonError;
use crate::enforce::nft::Nft;
use crate::enforce::route::{Kind, RouteError, missing_routes, swept_routes};
use crate::netlink::routes::RouteSocket;
use crate::netlink::routes::monitor::{Gone, RouteMonitor};
use crate::panic_guard;
use crate::sensor::{Inbox, Sample, SensorCommand, SensorRequest};
use crate::types::{Backend, BanTarget};

/// Bans that are looked at in one go: some 2 ms of this thread, and a set of 131,072 in 9 minutes.
const SAMPLE: usize = 256;

/// How long between two of them.
const PAUSE: Duration = Duration::from_secs(1);

/// Routes that go so shortly one after another go together.
const TOGETHER: Duration = Duration::from_millis(100);

/// How long what goes together is waited for.
const SWEEP: Duration = Duration::from_millis(500);

/// Bans that the sensor repairs between two looks at the packets: some 20 ms.
const REPAIRED_AT_ONCE: usize = 1_000;

/// What there is to compare.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    /// The sets of nftables.
    pub(super) nft: bool,
    /// Own routes of this kind.
    pub(super) routes: Option<Kind>,
}

/// What is compared, each with a socket of its own.
pub(super) struct Compared {
    nft: Option<Nft>,
    routes: Option<(RouteSocket, Kind)>,
}

/// Compares, on a task of its own, until the sensor has gone.
pub(super) async fn compare(inbox: Inbox, wanted: Wanted, compared: Compared) {
    let mut compared = Some(compared);
    while panic_guard::catch_panic(rounds(&inbox, wanted, &mut compared)).await.is_none() {
        tokio::time::sleep(panic_guard::PAUSE).await;
    }
}

async fn rounds(inbox: &Inbox, wanted: Wanted, compared: &mut Option<Compared>) {
    let (mut elements, mut routes): (HashSet<BanTarget>, HashSet<BanTarget>) = Default::default();
    loop {
        tokio::time::sleep(PAUSE).await;
        let (sent, sample) = oneshot::channel();
        let again = elements.drain().collect();
        let routes_again = routes.drain().collect();
        // A sensor that is too busy to listen has no time for this either.
        if inbox
            .put(SensorCommand::Request(SensorRequest::Sample { most: SAMPLE, again, routes_again, answer: sent }))
            .is_err()
        {
            continue;
        }
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
        // Missed once, it may be about to be told of: lifted, expired, swept away. Missed twice, nobody will tell.
        elements.extend(found.elements);
        routes.extend(found.routes);
        for (way, again) in [(Backend::Nft, found.elements_again), (Backend::Route, found.routes_again)] {
            if !again.is_empty() {
                drop(inbox.put(SensorCommand::Repair(way, again)));
            }
        }
    }
}

/// Who is not blocked although he should be.
#[derive(Default)]
struct Found {
    elements: Vec<BanTarget>,
    elements_again: Vec<BanTarget>,
    routes: Vec<BanTarget>,
    routes_again: Vec<BanTarget>,
}

impl Compared {
    /// Opens the sockets.
    pub(super) fn open(wanted: Wanted) -> Result<Self, DaemonError> {
        let nft = wanted.nft.then(Nft::open).transpose()?;
        let routes = wanted.routes.map(|kind| RouteSocket::open().map(|socket| (socket, kind))).transpose()?;
        Ok(Self { nft, routes })
    }

    fn look(&mut self, sample: &Sample) -> Found {
        let mut found = Found::default();
        if let Some(nft) = &mut self.nft {
            // A table that is gone is the guard's business.
            found.elements = nft.missing(&sample.fresh).unwrap_or_default();
            found.elements_again = nft.missing(&sample.again).unwrap_or_default();
        }
        if let Some((socket, kind)) = &mut self.routes {
            let mut missing = |subjects: &[BanTarget]| missing_routes(socket, *kind, subjects).unwrap_or_default();
            found.routes = missing(&sample.routes);
            found.routes_again = missing(&sample.routes_again);
        }
        found
    }
}

/// Follows what others do to the own routes, on a task of its own, until the sensor has gone.
pub(super) async fn follow_routes(inbox: Inbox, mut monitor: RouteMonitor) {
    while panic_guard::catch_panic(follow(&inbox, &mut monitor)).await.is_none() {
        // What it had in hand is found by the comparison.
        tokio::time::sleep(panic_guard::PAUSE).await;
    }
}

async fn follow(inbox: &Inbox, monitor: &mut RouteMonitor) {
    while let Ok(first) = monitor.next().await {
        panic_guard::failpoint("routes");
        let mut gone: HashSet<IpNet> = HashSet::new();
        let mut unsaid = note(&mut gone, first);
        let end = Instant::now() + SWEEP;
        loop {
            let quiet = Instant::now() + TOGETHER;
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
            Some(subject) if gone.len() == 1 && !unsaid => drop(inbox.put(SensorCommand::RouteRemoved(subject))),
            _ => match repair_all(inbox).await {
                Some(()) => {}
                None => return,
            },
        }
    }
}

/// Notes one; true where nobody has said which.
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
async fn repair_all(inbox: &Inbox) -> Option<()> {
    let (sent, sample) = oneshot::channel();
    let request = SensorRequest::Sample { most: usize::MAX, again: Vec::new(), routes_again: Vec::new(), answer: sent };
    if inbox.put(SensorCommand::Request(request)).is_err() {
        return Some(());
    }
    let sample = sample.await.ok()?;
    let missing = tokio::task::spawn_blocking(move || -> Result<Vec<BanTarget>, RouteError> {
        swept_routes(&mut RouteSocket::open()?, &sample.routes)
    });
    // What cannot be read now is found by the comparison.
    let missing = missing.await.ok().and_then(Result::ok).unwrap_or_default();
    for part in missing.chunks(REPAIRED_AT_ONCE) {
        let mut order = SensorCommand::Repair(Backend::Route, part.to_vec());
        while let Err(back) = inbox.put(order) {
            order = back;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Some(())
}
