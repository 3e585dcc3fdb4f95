//! A ban in the answer to `bans` and in the JSON of `list`: the fields of the ledger, and the state of the kernel.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::clock::{BanEnd, WallTime};
use crate::engine::{Class, Grade};
use crate::events::json::PortRecord;
use crate::ledger::{BanAuthor, LedgerEntry, Page, PageCursor};
use crate::types::{Backends, BanTarget, Expiry, Protocol, nullable};

/// Maximum number of bans in one answer.
pub const MAX_BANS: usize = 64;

/// Maximum length of the bans in one answer, which must fit into a line.
const MAX_PAGE_LEN: usize = 48 << 10;

/// The answer to `bans`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanPage {
    /// At most [`MAX_BANS`]; `None` for one that this version cannot read.
    #[serde(deserialize_with = "readable")]
    pub bans: Vec<Option<BanInfo>>,
    /// Number of invalid rows of the ledger.
    pub unreadable: u64,
    /// Where the next page begins; `None` after the last one.
    #[serde(deserialize_with = "nullable")]
    pub next: Option<PageCursor>,
}

impl BanPage {
    /// Builds the answer from `found`, which a query for at most [`MAX_BANS`] has returned.
    pub fn new(found: Page, now: SystemTime) -> Self {
        let mut page = Self::default();
        let (mut left, all) = (MAX_PAGE_LEN, found.len());
        for (place, (position, entry)) in found.into_iter().enumerate() {
            let info = entry.map(|entry| BanInfo::new(entry.ban.target, Some(&entry), None, now));
            let length = info.as_ref().map_or(0, |info| serde_json::to_string(info).map_or(0, |text| text.len()));
            match (info, left.checked_sub(length)) {
                (Some(_), None) if !page.bans.is_empty() => return page,
                (Some(info), Some(rest)) => {
                    page.bans.push(Some(info));
                    left = rest;
                }
                // No ban of this program is as long as a page.
                (None, _) | (Some(_), None) => page.unreadable += 1,
            }
            page.next = (place + 1 < all || all >= MAX_BANS).then_some(position);
        }
        page
    }
}

/// Reads each ban on its own, so that one of another version does not hide the others.
fn readable<'de, D: Deserializer<'de>>(bans: D) -> Result<Vec<Option<BanInfo>>, D::Error> {
    let bans = Vec::<Value>::deserialize(bans)?;
    Ok(bans.into_iter().map(|ban| serde_json::from_value(ban).ok().filter(BanInfo::is_complete)).collect())
}

/// A ban in force; fields from the ledger are null if it does not contain the ban.
#[serde_with::apply(Option => #[serde(deserialize_with = "nullable")])]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanInfo {
    #[serde(rename = "subject")]
    pub target: BanTarget,
    pub source: Option<IpAddr>,
    pub class: Option<Class>,
    pub evidence: Option<Grade>,
    pub ports: Option<Vec<PortRecord>>,
    pub probes: Option<u32>,
    pub since: Option<WallTime>,
    pub expires: BanEnd,
    pub left_s: Option<u64>,
    /// Number of bans of this target, including this one.
    pub strikes: Option<NonZeroU32>,
    pub author: Option<BanAuthor>,
    /// The operator's note, if there is one.
    pub note: Option<String>,
    pub method: Option<Backends>,
    pub capped: Option<bool>,
    /// `None`: not queried.
    pub in_kernel: Option<bool>,
    pub in_ledger: bool,
    /// Only with `list --names`; null if the address has none.
    #[serde_with(skip_apply)]
    #[serde(skip_serializing_if = "Option::is_none", skip_deserializing)]
    pub name: Option<Option<String>>,
}

impl BanInfo {
    /// A ban with its entry in the ledger and its remaining time in the kernel, if it has them.
    pub fn new(target: BanTarget, entry: Option<&LedgerEntry>, kernel: Option<Expiry>, now: SystemTime) -> Self {
        let ban = entry.map(|entry| &entry.ban);
        let left = match (kernel, ban) {
            (Some(left), _) => left,
            // A ban that has just expired shows its last second.
            (None, Some(ban)) => ban.left(now).unwrap_or(Expiry::After(Duration::from_secs(1))),
            (None, None) => Expiry::Never,
        };
        Self {
            target,
            source: ban.map(|ban| ban.source),
            class: ban.and_then(|ban| ban.class),
            evidence: ban.and_then(|ban| ban.grade),
            ports: ban.map(|ban| ban.ports.iter().map(PortRecord::from).collect()),
            probes: ban.map(|ban| ban.probes),
            since: ban.map(|ban| WallTime(ban.since)),
            expires: BanEnd::new(left, now),
            left_s: left.seconds(),
            strikes: entry.map(|entry| NonZeroU32::MIN.saturating_add(entry.strikes)),
            author: ban.map(|ban| ban.author),
            note: ban.and_then(|ban| ban.note.clone()),
            method: ban.map(|ban| ban.backends),
            capped: ban.map(|ban| ban.capped),
            in_kernel: kernel.map(|_| true),
            in_ledger: entry.is_some(),
            name: None,
        }
    }

    /// Records whether the kernel blocks the target now.
    pub fn set_kernel(&mut self, kernel: Option<Expiry>, now: SystemTime) {
        self.in_kernel = Some(kernel.is_some());
        if let Some(left) = kernel {
            (self.expires, self.left_s) = (BanEnd::new(left, now), left.seconds());
        }
    }

    /// The ports of the evidence, as far as they are known.
    pub fn ports(&self) -> impl Iterator<Item = (Protocol, u16)> {
        self.ports.iter().flatten().map(|port| (port.proto, port.port))
    }

    /// True if it has all fields that a ban of the ledger has.
    fn is_complete(&self) -> bool {
        let Self { source, ports, probes, since, strikes, author, method, capped, in_ledger, .. } = self;
        let evidence = source.is_some() && ports.is_some() && probes.is_some() && since.is_some();
        *in_ledger && evidence && strikes.is_some() && author.is_some() && method.is_some() && capped.is_some()
    }

    /// The address whose name is looked up: the source of the probe, if known.
    pub fn named_source(&self) -> Option<IpAddr> {
        match self.target {
            BanTarget::Prefix(_) => None,
            target => Some(self.source.unwrap_or(target.element())),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ledger::BanRecord;
    use crate::types::Backend;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    fn entry(number: u32) -> LedgerEntry {
        let hour = Expiry::After(Duration::from_secs(3_600));
        let since = now() - Duration::from_micros(1_234_567);
        let ban = BanRecord::wanted_by(BanAuthor::Detector, BanTarget::V4(number.into()), since, hour, Backend::Nft);
        let ports = vec![(Protocol::Tcp, 23), (Protocol::Udp, 53)];
        LedgerEntry {
            ban: BanRecord { ports, probes: 3, class: Some(Class::Syn), grade: Some(Grade::Forgeable), ..ban },
            strikes: 2,
            ended: None,
        }
    }

    fn page(entries: impl IntoIterator<Item = LedgerEntry>) -> BanPage {
        BanPage::new((0..).map(position).zip(entries.into_iter().map(Some)).collect(), now())
    }

    fn position(place: usize) -> PageCursor {
        format!("never.{place}").parse().unwrap()
    }

    fn info(entry: &LedgerEntry) -> BanInfo {
        BanInfo::new(entry.ban.target, Some(entry), None, now())
    }

    #[test]
    fn ban_reads_back_as_written() {
        let mut never = entry(1);
        (never.ban.until, never.ban.class, never.ban.grade) = (None, None, None);
        (never.ban.author, never.ban.note) = (BanAuthor::Operator, Some("a \"word\"".to_owned()));
        for entry in [entry(2), never] {
            let text = serde_json::to_string(&page([entry.clone()])).unwrap();
            let read: BanPage = serde_json::from_str(&text).unwrap();
            assert_eq!(read.next, None);
            assert_eq!(read.bans, [Some(info(&entry))], "{text}");
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
    }

    #[test]
    fn ban_with_unknown_field_is_left_out() {
        for (key, value) in [
            ("class", json!("new")),
            ("expires", json!("soon")),
            ("strikes", json!(0)),
            ("subject", json!("192.0.2.0/33")),
            ("author", json!(null)),
        ] {
            let mut wrong = serde_json::to_value(page([entry(1), entry(2)])).unwrap();
            wrong["bans"][0][key] = value;
            let read: BanPage = serde_json::from_value(wrong).unwrap();
            assert_eq!(read.bans[0], None, "{key}");
            assert_eq!(read.bans[1..], page([entry(2)]).bans);
        }
    }

    #[test]
    fn page_of_long_bans_fits_line() {
        let long = |number| {
            let mut entry = entry(number);
            entry.ban.ports = (0..100).map(|port| (Protocol::Sctp, 10_000 + port)).collect();
            entry.ban.note = Some("\u{1f980}\"".repeat(100));
            entry
        };
        let full = page((0..64).map(long));
        let length = serde_json::to_string(&full).unwrap().len();
        assert!(length < super::super::protocol::MAX_LINE_LEN - 100, "{length}");
        assert!((2..64).contains(&full.bans.len()), "{}", full.bans.len());
        assert_eq!(full.next, Some(position(full.bans.len() - 1)), "the next page begins after the last ban");
        assert_eq!(page((0..64).map(entry)).bans.len(), 64, "usual bans fill a page");
        assert_eq!((page((0..64).map(entry)).next, page((0..63).map(entry)).next), (Some(position(63)), None));
    }

    #[test]
    fn ban_longer_than_page_is_skipped() {
        let mut long = entry(1);
        long.ban.note = Some("x".repeat(100_000));
        let page = page([long, entry(2)]);
        assert_eq!((page.bans.len(), page.unreadable, page.next), (1, 1, None));
    }
}
