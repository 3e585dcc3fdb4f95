//! A ban in the answer to `bans` and in the JSON of `list`: the fields of the ledger, and the state of the kernel.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::engine::{Class, Grade};
use crate::events::json::{NEVER, PortRecord, expires, rfc3339};
use crate::ledger::{BanRecord, LedgerEntry};
use crate::types::{BanTarget, Expiry, Protocol, nullable};

/// Maximum number of bans in one answer.
pub const MAX_BANS: usize = 64;

/// Maximum length of the bans in one answer, which must fit into a line.
const MAX_PAGE_LEN: usize = 48 << 10;

/// The answer to `bans`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanPage {
    /// At most [`MAX_BANS`].
    pub bans: Vec<BanInfo>,
    /// Number of invalid rows of the ledger.
    pub unreadable: u64,
    /// Where the next page begins; `None` after the last one.
    #[serde(deserialize_with = "nullable")]
    pub next: Option<String>,
}

impl BanPage {
    /// Builds the answer from `found`, which a query for at most [`MAX_BANS`] has returned.
    pub fn new<P: ToString>(found: Vec<(P, Option<LedgerEntry>)>, now: SystemTime) -> Self {
        let mut page = Self::default();
        let (mut left, all) = (MAX_PAGE_LEN, found.len());
        for (place, (position, entry)) in found.into_iter().enumerate() {
            let info = entry.map(|entry| BanInfo::from_entry(&entry, entry.ban.left(now).unwrap_or(SECOND), now));
            let length = info.as_ref().map_or(0, |info| serde_json::to_string(info).map_or(0, |text| text.len()));
            match (info, left.checked_sub(length)) {
                (Some(_), None) if !page.bans.is_empty() => return page,
                (Some(info), Some(rest)) => {
                    page.bans.push(info);
                    left = rest;
                }
                // No ban of this program is as long as a page.
                (None, _) | (Some(_), None) => page.unreadable += 1,
            }
            page.next = (place + 1 < all || all >= MAX_BANS).then(|| position.to_string());
        }
        page
    }
}

/// Remaining time of a ban that has just expired.
const SECOND: Expiry = Expiry::After(std::time::Duration::from_secs(1));

/// A ban in force; fields from the ledger are null if it does not contain the ban.
#[serde_with::apply(Option => #[serde(deserialize_with = "nullable")])]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanInfo {
    #[serde(rename = "subject")]
    pub target: String,
    pub source: Option<String>,
    pub class: Option<String>,
    pub evidence: Option<String>,
    pub ports: Option<Vec<PortRecord>>,
    pub probes: Option<u32>,
    pub since: Option<String>,
    /// A time, or "never".
    pub expires: String,
    pub left_s: Option<u64>,
    /// Number of bans of this target, including this one.
    pub strikes: Option<u32>,
    pub author: Option<String>,
    /// The operator's note, if there is one.
    pub note: Option<String>,
    pub method: Option<String>,
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
    /// A ban that only the kernel has.
    pub fn unknown(target: BanTarget, left: Expiry, now: SystemTime) -> Self {
        Self { target: target.to_string(), expires: expires(left, now), left_s: left.seconds(), ..Self::default() }
    }

    /// A ban of the ledger, of which `left` remains at `now`.
    pub fn from_entry(LedgerEntry { ban, strikes, .. }: &LedgerEntry, left: Expiry, now: SystemTime) -> Self {
        Self {
            source: Some(ban.source.to_string()),
            class: ban.class.map(|class| class.key().to_owned()),
            evidence: ban.grade.map(|grade| grade.key().to_owned()),
            ports: Some(ban.ports.iter().map(PortRecord::from).collect()),
            probes: Some(ban.probes),
            since: Some(rfc3339(ban.since)),
            strikes: Some(strikes.saturating_add(1)),
            author: Some(ban.author.key().to_owned()),
            note: ban.note.clone(),
            method: Some(ban.methods.to_string()),
            capped: Some(ban.capped),
            in_ledger: true,
            ..Self::unknown(ban.target, left, now)
        }
    }

    /// The ban of the ledger; `None` if a field is missing or unknown to this version.
    pub fn to_entry(&self) -> Option<LedgerEntry> {
        let time = |text: &str| humantime::parse_rfc3339(text).ok();
        let port = |port: &PortRecord| Some((Protocol::from_key(&port.proto)?, port.port));
        let ban = BanRecord {
            target: self.target.parse().ok()?,
            source: self.source.as_ref()?.parse().ok()?,
            since: time(self.since.as_ref()?)?,
            until: if self.expires == NEVER { None } else { Some(time(&self.expires)?) },
            class: self.class.as_ref().map_or(Some(None), |key| Class::from_key(key).map(Some))?,
            grade: self.evidence.as_ref().map_or(Some(None), |key| Grade::from_key(key).map(Some))?,
            ports: self.ports.as_ref()?.iter().map(port).collect::<Option<_>>()?,
            probes: self.probes?,
            interface: None,
            guest_port: None,
            methods: self.method.as_ref()?.parse().ok()?,
            author: self.author.as_ref()?.parse().ok()?,
            note: self.note.clone(),
            capped: self.capped?,
        };
        Some(LedgerEntry { ban, strikes: self.strikes?.checked_sub(1)?, ended: None })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ledger::BanAuthor;
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
        BanPage::new(entries.into_iter().enumerate().map(|(place, entry)| (place, Some(entry))).collect(), now())
    }

    #[test]
    fn ban_reads_back_as_written() {
        let mut never = entry(1);
        (never.ban.until, never.ban.class, never.ban.grade) = (None, None, None);
        (never.ban.author, never.ban.note) = (BanAuthor::Operator, Some("a \"word\"".to_owned()));
        for entry in [entry(2), never] {
            let text = serde_json::to_string(&page([entry.clone()])).unwrap();
            let read: BanPage = serde_json::from_str(&text).unwrap();
            assert_eq!(read.bans.iter().map(BanInfo::to_entry).collect::<Vec<_>>(), [Some(entry)], "{text}");
            assert_eq!(read.next, None);
        }
    }

    #[test]
    fn ban_with_unknown_field_is_left_out() {
        let ban = BanInfo::from_entry(&entry(1), SECOND, now());
        for wrong in [
            BanInfo { class: Some("new".to_owned()), ..ban.clone() },
            BanInfo { expires: "soon".to_owned(), ..ban.clone() },
            BanInfo { strikes: Some(0), ..ban.clone() },
            BanInfo { target: "192.0.2.0/33".to_owned(), ..ban.clone() },
            BanInfo { author: None, ..ban },
        ] {
            assert_eq!(wrong.to_entry(), None, "{wrong:?}");
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
        assert_eq!(full.next, Some((full.bans.len() - 1).to_string()), "the next page begins after the last ban");
        assert_eq!(page((0..64).map(entry)).bans.len(), 64, "usual bans fill a page");
        assert_eq!((page((0..64).map(entry)).next, page((0..63).map(entry)).next), (Some("63".to_owned()), None));
    }

    #[test]
    fn ban_longer_than_page_is_skipped() {
        let mut long = entry(1);
        long.ban.note = Some("x".repeat(100_000));
        let page = page([long, entry(2)]);
        assert_eq!((page.bans.len(), page.unreadable, page.next), (1, 1, None));
    }
}
