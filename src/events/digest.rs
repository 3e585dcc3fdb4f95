//! Collects digests for `notify.command`: changes of bans in a period, as one JSON object. The counts are complete;
//! only a limited number of bans is listed, so that the object stays small. Bans on forgeable evidence are listed
//! separately, so that a flood of forged packets neither makes a digest long nor displaces a proven ban.

use std::borrow::Cow;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::event::{Event, EventKind};
use super::json::EventRecord;
use crate::clock::WallTime;
use crate::engine::Grade;
use crate::types::counted;
use crate::types::printable::masked_to;

/// Maximum number of listed bans on forgeable evidence, of other bans, and of lifted ones.
const MAX_NAMED: usize = 20;

/// Maximum length of a text of an event, in bytes.
const MAX_TEXT_LEN: usize = 1 << 10;

/// Maximum length of the JSON object in bytes. A datagram of this length fits into the default send buffer of Linux.
pub const MAX_DIGEST_LEN: usize = 128 << 10;

/// A digest, as the command reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestMessage {
    host: String,
    from: WallTime,
    until: WallTime,
    /// One line for the subject of a message.
    summary: String,
    count: u64,
    proven: u64,
    forgeable: u64,
    by_hand: u64,
    capped: u64,
    bans: Vec<EventRecord>,
    /// Number of bans that are not in `bans`.
    unnamed: u64,
    lifted: Named,
    not_banned: NotBanned,
    lost_events: u64,
}

impl DigestMessage {
    /// The object on one line, without a line feed.
    pub fn to_json(&self) -> String {
        // Serialisation of strings and numbers cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Collects the events of the next digest.
#[derive(Clone, Debug)]
pub struct Digest {
    from: SystemTime,
    /// Bans by kind.
    forgeable: Named,
    proven: Named,
    by_hand: Named,
    lifted: Named,
    /// Number of forgeable bans that are short: above a ceiling, or of the kernel's trap without a verdict of the
    /// sensor.
    capped: u64,
    not_banned: NotBanned,
    lost_events: u64,
}

/// Number of bans, and the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Named {
    count: u64,
    named: Vec<EventRecord>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct NotBanned {
    /// Scans that were only logged.
    only_logged: u64,
    /// Sources above the ceilings of bans on forgeable evidence.
    withheld: u64,
    /// Bans that a backend refused.
    failed: u64,
    /// Probes of protected or allowed sources.
    exempt_probes: u64,
}

impl Named {
    fn push(&mut self, event: &Event) {
        self.count += 1;
        if self.named.len() < MAX_NAMED {
            self.named.push(plain(event.into()));
        }
    }

    /// Adds the counts of a later digest.
    fn append(&mut self, later: Self) {
        self.count += later.count;
        let room = MAX_NAMED.saturating_sub(self.named.len());
        self.named.extend(later.named.into_iter().take(room));
    }
}

/// `event` with limited texts. A name or a note may contain terminal control sequences.
fn plain(event: EventRecord) -> EventRecord {
    let text = |text: Option<String>| text.map(|text| masked_to(&text, '?', MAX_TEXT_LEN));
    EventRecord {
        command: text(event.command),
        reason: text(event.reason.map(Cow::into_owned)).map(Cow::Owned),
        note: text(event.note),
        hosts_deny: text(event.hosts_deny),
        ..event
    }
}

impl Digest {
    /// Starts a digest at `from`.
    pub fn new(from: SystemTime) -> Self {
        let [forgeable, proven, by_hand, lifted] = std::array::from_fn(|_| Named::default());
        Self { from, forgeable, proven, by_hand, lifted, capped: 0, not_banned: NotBanned::default(), lost_events: 0 }
    }

    /// Adds `event`. `begins` is true for the first event that reports a ban, as several backends may report it.
    pub fn add(&mut self, event: &Event, begins: bool) {
        if let Some((ban, _)) = event.kind.reported_ban().filter(|_| begins) {
            self.capped += u64::from(ban.capped);
            match ban.grade {
                Grade::Forgeable => self.forgeable.push(event),
                Grade::Proven => self.proven.push(event),
            }
        }
        match &event.kind {
            EventKind::Shortened { .. } => {
                self.capped += 1;
                self.forgeable.push(event);
            }
            EventKind::ByHand { .. } => self.by_hand.push(event),
            EventKind::Unblocked { .. } | EventKind::BanVanished { .. } => self.lifted.push(event),
            EventKind::Scan(_) => self.not_banned.only_logged += 1,
            EventKind::Capped { withheld, .. } => self.not_banned.withheld += u64::from(*withheld),
            EventKind::BlockFailed { .. } => self.not_banned.failed += 1,
            EventKind::Exempt { probes, .. } => self.not_banned.exempt_probes += u64::from(*probes),
            _ => {}
        }
    }

    /// Adds the number of events that were lost.
    pub fn count_dropped(&mut self, events: u64) {
        self.lost_events += events;
    }

    pub fn append(&mut self, later: Self) {
        let Self { from: _, forgeable, proven, by_hand, lifted, capped, not_banned, lost_events } = later;
        self.forgeable.append(forgeable);
        self.proven.append(proven);
        self.by_hand.append(by_hand);
        self.lifted.append(lifted);
        self.capped += capped;
        self.not_banned.only_logged += not_banned.only_logged;
        self.not_banned.withheld += not_banned.withheld;
        self.not_banned.failed += not_banned.failed;
        self.not_banned.exempt_probes += not_banned.exempt_probes;
        self.lost_events += lost_events;
    }

    /// Number of new bans.
    pub fn bans(&self) -> u64 {
        self.forgeable.count + self.proven.count + self.by_hand.count
    }

    /// True if the digest contains anything to report. Probes of exempt sources alone are not reported; lost events may
    /// have been bans.
    pub fn is_worth_sending(&self) -> bool {
        let NotBanned { only_logged, withheld, failed, exempt_probes: _ } = self.not_banned;
        [self.bans(), self.lifted.count, only_logged, withheld, failed, self.lost_events].iter().any(|count| *count > 0)
    }

    /// The message of `host`, whose JSON is at most [`MAX_DIGEST_LEN`] bytes long: it lists as many bans as fit.
    pub fn to_message(&self, host: &str, until: SystemTime) -> DigestMessage {
        let host = masked_to(host, '?', MAX_TEXT_LEN);
        let kinds = [&self.proven, &self.by_hand, &self.forgeable];
        let bans: Vec<_> = kinds.iter().flat_map(|kind| kind.named.iter().cloned()).collect();
        let count = self.bans();
        let mut message = DigestMessage {
            from: WallTime(self.from),
            until: WallTime(until),
            summary: self.summary(&host),
            host,
            count,
            proven: self.proven.count,
            forgeable: self.forgeable.count,
            by_hand: self.by_hand.count,
            capped: self.capped,
            unnamed: count.saturating_sub(u64::try_from(bans.len()).unwrap_or(u64::MAX)),
            bans,
            lifted: self.lifted.clone(),
            not_banned: self.not_banned,
            lost_events: self.lost_events,
        };
        while message.to_json().len() > MAX_DIGEST_LEN && message.bans.pop().is_some() {
            message.unnamed += 1;
        }
        message
    }

    /// One line for the subject of a message.
    fn summary(&self, host: &str) -> String {
        let NotBanned { only_logged, withheld, failed, .. } = self.not_banned;
        let rest =
            [(self.lifted.count, "lifted"), (only_logged, "only logged"), (withheld, "withheld"), (failed, "failed")];
        let rest = rest.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!(", {count} {what}"));
        format!("portsentry on {host}: {}{}", counted(self.bans(), "ban"), rest.collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::Value;

    use super::*;
    use crate::engine::Ban;
    use crate::types::{Backend, Expiry};

    fn ban(grade: Grade) -> Event {
        let ban = Ban { grade, ..Ban::example() };
        Event::now(EventKind::Blocked { ban, backend: Backend::Nft, reaction: Duration::ZERO })
    }

    fn json(digest: &Digest) -> Value {
        serde_json::to_value(digest.to_message("web1", UNIX_EPOCH + Duration::from_secs(900))).unwrap()
    }

    #[test]
    fn flood_of_forged_bans_keeps_digest_short() {
        let mut digest = Digest::new(UNIX_EPOCH);
        (0..100_000).for_each(|_| digest.add(&ban(Grade::Forgeable), true));
        digest.add(&ban(Grade::Proven), true);
        (0..1_000).for_each(|_| {
            let note = Some("\u{1f600}".repeat(200));
            let target = "192.0.2.7".parse().unwrap();
            let by = "x".repeat(100);
            digest
                .add(&Event::now(EventKind::ByHand { target, expiry: Expiry::Never, by, note, backend: None }), false);
        });
        let text = digest.to_message("web1", UNIX_EPOCH).to_json();
        assert!(text.len() < 64 << 10, "{} bytes", text.len());
        let sent = json(&digest);
        assert_eq!((&sent["count"], &sent["unnamed"]), (&101_001.into(), &(101_001 - 41).into()));
        assert_eq!(sent["bans"][0]["evidence"], "proven", "a flood does not displace it");
    }

    #[test]
    fn long_texts_leave_digest_valid() {
        let mut digest = Digest::new(UNIX_EPOCH);
        let target = "2001:db8:ffff:ffff::/64".parse().unwrap();
        for _ in 0..MAX_NAMED {
            let (command, outcome) = ("\"".repeat(100_000).into(), "\u{1b}\n\u{202e}".repeat(100_000).into());
            let ban = Some(Ban::example());
            digest.add(&Event::now(EventKind::Ran { target, ban, command, outcome, well: true, undone: None }), true);
            let (by, note) = ("\\".repeat(100_000), Some("\"".repeat(100_000)));
            digest.add(&Event::now(EventKind::Unblocked { target, by: by.clone() }), false);
            digest
                .add(&Event::now(EventKind::ByHand { target, expiry: Expiry::Never, by, note, backend: None }), false);
        }
        let text = digest.to_message(&"h".repeat(100_000), UNIX_EPOCH).to_json();
        assert!(text.len() <= MAX_DIGEST_LEN && text.len() > MAX_DIGEST_LEN * 9 / 10, "{} bytes", text.len());
        assert!(!text.chars().any(crate::types::printable::is_hidden));
        let read: DigestMessage = serde_json::from_str(&text).unwrap();
        assert!(read.to_json() == text, "the helper accepts only the writer's output");
        assert_eq!((read.count, read.bans.len() as u64 + read.unnamed), (2 * MAX_NAMED as u64, read.count));
        assert_eq!(read.lifted.named.len(), MAX_NAMED);
    }

    #[test]
    fn each_ban_counts_once() {
        let mut digest = Digest::new(UNIX_EPOCH);
        assert!(!digest.is_worth_sending());
        digest.add(&ban(Grade::Proven), true);
        digest.add(&ban(Grade::Proven), false);
        assert!(digest.is_worth_sending() && digest.bans() == 1);
        let sent = json(&digest);
        assert_eq!(
            (&sent["from"], &sent["until"]),
            (&"1970-01-01T00:00:00.000000Z".into(), &"1970-01-01T00:15:00.000000Z".into())
        );
        assert!(sent["bans"][0]["reason"].is_string(), "{sent}");
        assert_eq!(sent["summary"], "portsentry on web1: 1 ban");
    }

    #[test]
    fn failed_digest_is_sent_with_next() {
        let (mut failed, mut later) = (Digest::new(UNIX_EPOCH), Digest::new(SystemTime::now()));
        failed.add(&ban(Grade::Forgeable), true);
        (0..30).for_each(|_| later.add(&ban(Grade::Forgeable), true));
        later.add(&Event::now(EventKind::Capped { bans: 0, withheld: 5 }), false);
        later.count_dropped(3);
        failed.append(later);
        let sent = json(&failed);
        assert_eq!((&sent["count"], &sent["lost_events"]), (&31.into(), &3.into()), "{sent}");
        assert_eq!(sent["from"], "1970-01-01T00:00:00.000000Z");
        assert_eq!(sent["not_banned"]["withheld"], 5);
        assert_eq!(sent["bans"].as_array().map(Vec::len), Some(MAX_NAMED));
        assert_eq!(sent["summary"], "portsentry on web1: 31 bans, 5 withheld");
    }

    #[test]
    fn exempt_probes_alone_send_nothing() {
        let mut digest = Digest::new(UNIX_EPOCH);
        digest.not_banned.exempt_probes = 9;
        digest.add(&Event::now(EventKind::Note("something".to_owned())), false);
        assert!(!digest.is_worth_sending());
        digest.count_dropped(1);
        assert!(digest.is_worth_sending(), "it may have been a ban");
    }
}
