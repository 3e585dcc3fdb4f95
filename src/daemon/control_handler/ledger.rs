//! Handles `bans`, which reads one page of the ledger, and `explain`, which queries the sensor and the ledger for one
//! address. For `bans` the sensor thread, which owns the table of bans, is not asked, so that no number of clients
//! delays a packet.

use std::time::SystemTime;

use super::{ControlHandler, failed, of_sensor, usage};
use crate::control::address_info::{AddressInfo, HoldInfo};
use crate::control::ban_info::{BanPage, MAX_BANS};
use crate::control::protocol::{Answer, Failure, Reply};
use crate::control::scoped_network::parse_address;
use crate::daemon::service_tracker::ServiceState;
use crate::enforce::nft::Nft;
use crate::engine::Explanation;
use crate::ledger::{LedgerEntry, Position, Recorder};
use crate::sensor::SensorRequest;
use crate::types::BanTarget;

/// The way to list the bans that needs no ledger.
const AS_ROOT: &str = "run `sudo portsentry list`, which reads the kernel's sets";

impl ControlHandler {
    pub(super) fn bans(&self, after: Option<&str>) -> Result<impl Future<Output = Reply> + use<>, Failure> {
        let wrong = |_| usage("`after` is not `next` of an earlier answer");
        let after = after.map(str::parse::<Position>).transpose().map_err(wrong)?;
        let recorder = self.sink.ban_recorder.recorder();
        let recorder = recorder.ok_or_else(|| failed(format!("the daemon has no ledger, see its log; {AS_ROOT}")))?;
        Ok(async move {
            let now = SystemTime::now();
            let page = recorder.ask(move |ledger| ledger.page(after, MAX_BANS, now)).await;
            let page = page.map_err(|_| failed(format!("the ledger cannot be read now; try again, or {AS_ROOT}")))?;
            Ok(Answer::Bans(BanPage::new(page.map_err(failed)?, now)))
        })
    }

    pub(super) fn explain(&mut self, address: &str) -> Result<impl Future<Output = Reply> + use<>, Failure> {
        let asked = parse_address(address).map_err(usage)?;
        let (address, link) = (asked.network.addr(), asked.link);
        let known = self.sensor.ask(|answer| SensorRequest::Explain { address, link, answer });
        let states = self.host_state.memory.services.states().into_iter().filter(|state| !state.is_served);
        let mut unserved: Vec<_> =
            states.map(|ServiceState { service, .. }| format!("{}/{}", service.port, service.protocol.key())).collect();
        unserved.dedup();
        let recorder = self.sink.ban_recorder.recorder();
        let trap = self.ruleset().trap.filter(|_| self.hold().is_some());
        let target = BanTarget::containing(address);
        let fleet = self.fleet().and_then(|fleet| fleet.explain(target));
        Ok(async move {
            let known = of_sensor(known).await?;
            let past = match recorder {
                Some(recorder) => past(&recorder, &known).await,
                // The ledger could not be opened.
                None => None,
            };
            let mut info = AddressInfo::new(asked, &known, past.as_deref(), SystemTime::now());
            info.unserved = unserved;
            info.fleet = fleet;
            if let Some((length, window)) = trap.and_then(|trap| Some((trap.hold?, trap.window))) {
                let target = known.target;
                let hold = tokio::task::spawn_blocking(move || Nft::open().ok()?.hold(target).ok()).await;
                info.hold = Some(HoldInfo::new(hold.ok().flatten().unwrap_or_default(), length, window));
            }
            Ok(Answer::Explained(Box::new(info)))
        })
    }
}

/// The bans of an address, and of the network that blocks it, oldest first.
async fn past(recorder: &Recorder, known: &Explanation) -> Option<Vec<LedgerEntry>> {
    let mut past = history(recorder, known.target).await?;
    if let Some(network) = known.network {
        past.extend(history(recorder, network).await?);
        past.sort_by_key(|entry| entry.ban.since);
    }
    Some(past)
}

/// The ledger's entries for `target`; `None` if they cannot be read.
async fn history(recorder: &Recorder, target: BanTarget) -> Option<Vec<LedgerEntry>> {
    Some(recorder.ask(move |ledger| ledger.bans_of(target)).await.ok()?.ok()?.items)
}
