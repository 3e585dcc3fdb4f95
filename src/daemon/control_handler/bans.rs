//! Handles `bans`: reads one page of the ledger. The sensor thread, which owns the table of bans, is not asked, so that no
//! number of clients delays a packet.

use std::time::SystemTime;

use super::{ControlHandler, failed, usage};
use crate::control::ban_info::{BanPage, MAX_BANS};
use crate::control::protocol::{Answer, Failure, Reply};
use crate::ledger::Position;

/// The way to list the bans that needs no ledger.
const AS_ROOT: &str = "run `sudo portsentry list`, which reads the kernel's sets";

impl ControlHandler<'_> {
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
}
