//! Bans from before the start: what the ledger remembers against what the kernel holds, to orders for the sensor and
//! changes for the ledger.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;

use super::record::{Remembered, lifted};
use super::{DaemonError, system};
use crate::endure;
use crate::enforce::Case;
use crate::enforce::hands::{Adopted, Orders, Task, Way as Slow};
use crate::enforce::nft::{BlockError, Mark, Nft};
use crate::engine::StandingBan;
use crate::engine::subject::{Expiry, Subject};
use crate::ledger::{Author, Banned, Change, Method, Recorder};
use crate::report::event::{Event, Way, What};
use crate::report::queue;
use crate::sensor::{Inbox, Order, Wish};

/// Bans from before the start that the sensor takes over between two looks at the packets.
const ADOPTED_AT_ONCE: usize = 256;

/// Bans from the ledger that go to the kernel between two looks at the packets: some 40 ms.
const RESTORED_AT_ONCE: usize = 10_000;

/// How often the kernel's sets are read where that fails, and how long between two attempts.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(500);

/// What there is to adopt, and who wants to know.
pub(super) struct Adoption {
    pub(super) inbox: Inbox,
    pub(super) events: queue::Sender,
    pub(super) recorder: Option<Recorder>,
    pub(super) remembered: Vec<Remembered>,
    /// The ways to block, in their order.
    pub(super) ways: Vec<Way>,
    /// Who has a route from an earlier run, and was never heard of.
    pub(super) unheard: Vec<Subject>,
    /// The table was not there: whom it holds has been blocked since the start.
    pub(super) laid_anew: bool,
    /// A file that is there while bans are put back: where a start is killed over it, the next one knows.
    pub(super) marker: PathBuf,
    /// How long a ban lasts of which nobody knows the end.
    pub(super) expire: Expiry,
    pub(super) hands: Option<Orders>,
    /// The kernel's sets, for this thread; `None` where nobody is blocked there.
    pub(super) nft: Option<Nft>,
}

impl Adoption {
    /// Does it on a thread of its own: a full set takes the kernel seconds to show.
    pub(super) fn start(mut self) -> Result<(), DaemonError> {
        let thread = std::thread::Builder::new().name("adopt".to_owned());
        let work = move || {
            endure::again(|| self.hand_over());
            // What a panic has cut off half-way is found by the marker.
            endure::again(|| self.adopt());
        };
        thread.spawn(work).map(drop).map_err(system("start a thread"))
    }

    fn adopt(&mut self) {
        let mut bans: Vec<StandingBan> = self.remembered.iter().map(Remembered::standing).collect();
        if self.ways.contains(&Way::Nft) {
            match self.adopt_elements(&bans) {
                Some(gone) => bans.retain(|ban| !gone.contains(&ban.subject)),
                // What cannot be read cannot be compared; what is there goes on being enforced.
                None => return,
            }
        }
        if self.ways.contains(&Way::Route) {
            // A crash before the ledger, or the loss of it, must free nobody. Noted, or each start would give them the whole time
            // again.
            for subject in &self.unheard {
                bans.push(StandingBan::whole(*subject, self.expire));
                let ban = Banned::wanted_by(Author::Import, *subject, SystemTime::now(), self.expire, Method::Route);
                if let Some(recorder) = &self.recorder {
                    recorder.put_patiently(ban.into());
                }
                self.write_line(*subject, self.expire);
            }
            for part in bans.chunks(RESTORED_AT_ONCE) {
                self.send(Order::Restore(part.to_vec(), &[Way::Route]));
            }
            self.send(Order::Sweep);
        } else if !self.ways.contains(&Way::Nft) {
            // Those who are slow hold the bans; the sensor has to recognise the sources.
            bans.chunks(ADOPTED_AT_ONCE).for_each(|part| self.send(Order::Adopt(part.to_vec())));
        }
    }

    /// Takes the kernel's elements over, and puts back those that it should have; who was lifted meanwhile. `None` where the
    /// kernel's sets cannot be read.
    fn adopt_elements(&mut self, remembered: &[StandingBan]) -> Option<HashSet<Subject>> {
        let (elements, swept) = match self.elements(remembered) {
            Ok(elements) => (elements, self.laid_anew),
            // Somebody has deleted it since it was laid; the guard has it laid again.
            Err(BlockError::Gone) => (Vec::new(), true),
            Err(error) => {
                let text = format!("the bans in the kernel cannot be read: {error}");
                self.events.send(Event::now(What::Error(text)));
                return None;
            }
        };
        let bans = elements.len();
        let interrupted = self.marker.exists();
        let reconciled = reconcile(&elements, remembered, interrupted || swept, SystemTime::now());
        let expiry = |remaining: Option<Duration>| remaining.map_or(Expiry::Never, Expiry::After);
        let held = |(subject, remaining)| StandingBan { subject, length: None, left: expiry(remaining) };
        let held: Vec<StandingBan> = elements.into_iter().map(held).collect();
        held.chunks(ADOPTED_AT_ONCE).for_each(|part| self.send(Order::Adopt(part.to_vec())));
        let mark = self.nft.as_mut().and_then(Nft::mark);
        if !reconciled.restore.is_empty() {
            // Where even this cannot be written, the next start takes what is missing for lifted, as it would without.
            let _ = std::fs::write(&self.marker, b"");
            for part in reconciled.restore.chunks(RESTORED_AT_ONCE) {
                self.restore(part);
                endure::trip("adopt");
            }
            // An answer comes behind all of them.
            let (sent, done) = oneshot::channel();
            self.send(Order::Wish(Wish::Count { answer: sent }));
            if done.blocking_recv().is_err() {
                return None;
            }
            self.look_again(mark, &reconciled.restore);
        }
        if interrupted || !reconciled.restore.is_empty() {
            let _ = std::fs::remove_file(&self.marker);
        }
        for (subject, left) in &reconciled.unknown {
            self.write_line(*subject, *left);
        }
        let mut gone = HashSet::new();
        for change in reconciled.changes {
            if let Change::Ended { subject, .. } = &change {
                gone.insert(*subject);
            }
            if let Some(recorder) = &self.recorder {
                recorder.put_patiently(change);
            }
        }
        if bans > 0 {
            self.events.send(Event::now(What::Adopted { bans }));
        }
        Some(gone)
    }

    /// Puts these back, and has the sensor know of them. Very many at once from here, because the sensor may not run yet; where
    /// anything comes between, and the networks, by the sensor, which makes room for those and says what went wrong.
    fn restore(&mut self, bans: &[StandingBan]) {
        let (wide, narrow): (Vec<StandingBan>, Vec<StandingBan>) =
            bans.iter().partition(|ban| matches!(ban.subject, Subject::Wide(_)));
        let elements: Vec<_> = narrow.iter().map(|ban| (ban.subject, ban.length, ban.left)).collect();
        if self.nft.as_mut().is_some_and(|nft| matches!(nft.put_back_unheard(&elements), Ok(true))) {
            self.events.send(Event::now(What::Restored { bans: narrow.len(), way: Way::Nft }));
            narrow.chunks(ADOPTED_AT_ONCE).for_each(|part| self.send(Order::Adopt(part.to_vec())));
            if !wide.is_empty() {
                self.send(Order::Restore(wide, &[Way::Nft]));
            }
        } else {
            self.send(Order::Restore(bans.to_vec(), &[Way::Nft]));
        }
    }

    /// The sensor knows all of these now. Where others changed something since `mark`, they may have swept the sets before it
    /// knew of some, and it has filled them again without those.
    fn look_again(&mut self, mark: Option<Mark>, bans: &[StandingBan]) {
        let Some(nft) = &mut self.nft else { return };
        if mark.is_some_and(|mark| nft.is_undisturbed_since(mark)) {
            return;
        }
        let subjects: Vec<Subject> = bans.iter().map(|ban| ban.subject).collect();
        // A table that is gone is laid again with all whom the sensor knows.
        let missing = nft.missing(&subjects).unwrap_or_default();
        missing.chunks(ADOPTED_AT_ONCE).for_each(|part| self.send(Order::Repair(Way::Nft, part.to_vec())));
    }

    /// What the kernel holds, and until when. Sets that change faster than they can be read are read again.
    fn elements(&self, remembered: &[StandingBan]) -> Result<Vec<(Subject, Option<Duration>)>, BlockError> {
        let read = || {
            let mut nft = Nft::open()?;
            let mut elements = nft.elements()?;
            // While the kernel makes a set's table larger or smaller, a dump leaves out some without a word.
            let seen: HashSet<Subject> = elements.iter().map(|(subject, _)| *subject).collect();
            let unseen = remembered.iter().filter(|ban| !seen.is_empty() && !seen.contains(&ban.subject));
            for StandingBan { subject, .. } in unseen {
                elements.extend(nft.holds(*subject)?.map(|remaining| (*subject, remaining)));
            }
            Ok(elements)
        };
        let mut attempt = 1;
        loop {
            match read() {
                Err(BlockError::Socket(_)) if attempt < ATTEMPTS => {
                    attempt += 1;
                    std::thread::sleep(PAUSE);
                }
                done => return done,
            }
        }
    }

    /// Tells those who are slow which bans are still in force.
    fn hand_over(&self) {
        let Some(hands) = &self.hands else { return };
        let way = |way: &Way| match way {
            Way::HostsDeny => Some(Slow::HostsDeny),
            Way::Run => Some(Slow::Run),
            Way::Nft | Way::Route => None,
        };
        let methods: Arc<[Slow]> = self.ways.iter().filter_map(way).collect();
        if methods.is_empty() {
            return;
        }
        let adopted = |Remembered { ban, left }: &Remembered| {
            let expiry = match ban.until.and_then(|until| until.duration_since(ban.since).ok()) {
                Some(length) => Expiry::After(length),
                None => Expiry::Never,
            };
            let mut case = Case::by_hand(ban.subject, expiry, ban.since);
            (case.source, case.class) = (ban.source, ban.class);
            if let Some((protocol, port)) = ban.port {
                (case.protocol, case.port) = (protocol, port);
            }
            Adopted { case, methods: Arc::clone(&methods), left: *left }
        };
        let mut task = Task::Adopt { bans: self.remembered.iter().map(adopted).collect() };
        while let Err(back) = hands.put(task) {
            task = back;
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Has a line written for a ban that a crash has kept from having one.
    fn write_line(&self, subject: Subject, left: Expiry) {
        let Some(hands) = self.hands.as_ref().filter(|_| self.ways.contains(&Way::HostsDeny)) else { return };
        let case = Case::by_hand(subject, left, SystemTime::now());
        let mut task = Task::Block { case, methods: Arc::new([Slow::HostsDeny]) };
        while let Err(back) = hands.put(task) {
            task = back;
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Only this thread waits where the inbox is full.
    fn send(&self, mut order: Order) {
        while let Err(back) = self.inbox.put(order) {
            order = back;
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What the kernel holds at the start against what the ledger remembers, where the table had survived.
struct Reconciled {
    /// To be put back into the kernel.
    restore: Vec<StandingBan>,
    /// For the ledger.
    changes: Vec<Change>,
    /// Held by the kernel, and unknown to the ledger.
    unknown: Vec<(Subject, Expiry)>,
}

/// So many bans do not go by hand one by one: whoever put them back, or swept them away, was killed over it.
const MANY: usize = 256;

/// Compares them. Where the kernel still holds some of the remembered bans, nobody swept its sets, and what is missing was
/// lifted by somebody while the program was down, unless it is too much for that. Where it holds none, or is known to be
/// `incomplete`, because a start was interrupted that was putting bans back or whom it holds has come back since the start,
/// they were swept, and all come back.
fn reconcile(
    kernel: &[(Subject, Option<Duration>)],
    remembered: &[StandingBan],
    incomplete: bool,
    now: SystemTime,
) -> Reconciled {
    let held: HashSet<Subject> = kernel.iter().map(|(subject, _)| *subject).collect();
    // After a reboot the kernel holds nobody, and nobody is looked for.
    let sought = if kernel.is_empty() { &[] } else { remembered };
    let known: HashSet<Subject> = sought.iter().map(|ban| ban.subject).collect();
    let missing: Vec<StandingBan> = remembered.iter().filter(|ban| !held.contains(&ban.subject)).copied().collect();
    let swept = missing.len() == remembered.len();
    let unknown: Vec<(Subject, Expiry)> = kernel
        .iter()
        .filter(|(subject, _)| !known.contains(subject))
        .map(|(subject, left)| (*subject, left.map_or(Expiry::Never, Expiry::After)))
        .collect();
    let added = |(subject, expiry): &(Subject, Expiry)| {
        Banned::wanted_by(Author::Import, *subject, now, *expiry, Method::Nft).into()
    };
    let mut changes: Vec<Change> = unknown.iter().map(added).collect();
    if swept || incomplete || missing.len() >= MANY {
        return Reconciled { restore: missing, changes, unknown };
    }
    let gone = |ban: &StandingBan| lifted(ban.subject, "somebody, while portsentry was not running", now);
    changes.extend(missing.iter().map(gone));
    Reconciled { restore: Vec::new(), changes, unknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(last: u8) -> Subject {
        Subject::V4([192, 0, 2, last].into())
    }

    fn remembered() -> [StandingBan; 2] {
        [StandingBan::whole(subject(1), Expiry::After(HOUR)), StandingBan::whole(subject(2), Expiry::Never)]
    }

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_table_without_any_remembered_ban_was_swept_and_gets_all_of_them() {
        let remembered = remembered();
        let result = reconcile(&[(subject(9), Some(HOUR))], &remembered, false, SystemTime::UNIX_EPOCH);
        assert_eq!(result.restore, remembered);
        assert!(matches!(&result.changes[..], [Change::Banned(ban)] if ban.subject == subject(9)));
    }

    #[test]
    fn a_ban_missing_beside_others_was_lifted() {
        let remembered = remembered();
        let result = reconcile(&[(subject(1), Some(HOUR))], &remembered, false, SystemTime::UNIX_EPOCH);
        assert!(result.restore.is_empty());
        assert!(matches!(&result.changes[..], [Change::Ended { subject: two, .. }] if *two == subject(2)));
    }

    #[test]
    fn bans_that_an_interrupted_start_had_not_put_back_yet_come_back() {
        let result = reconcile(&[(subject(1), Some(HOUR))], &remembered(), true, SystemTime::UNIX_EPOCH);
        assert_eq!(result.restore, remembered()[1..]);
        assert!(result.changes.is_empty());
    }

    #[test]
    fn nobody_lifts_hundreds_one_by_one() {
        let ban = |n: u32| StandingBan::whole(Subject::V4(n.into()), Expiry::After(HOUR));
        let all: Vec<StandingBan> = (1..=1_000).map(ban).collect();
        let kernel: Vec<_> = all[..700].iter().map(|ban| (ban.subject, Some(HOUR))).collect();
        assert_eq!(reconcile(&kernel, &all, false, SystemTime::UNIX_EPOCH).restore, all[700..]);
    }
}
