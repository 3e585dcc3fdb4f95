//! Queues the additions and removals of hosts.deny lines, one per ban, and writes all of them in one replacement of the
//! file. A failure concerns the file, not one ban, so all entries are retried together.
//!
//! Other programs write the file too. An editor that saves an old copy, or a tool that writes its own version, removes
//! entries by accident. Therefore the file is checked every two seconds, and entries missing in a changed file are
//! written again. To lift a ban, use `portsentry unblock`.
//!
//! Many programs first empty the file and then write it. Replacing it in between would lose everything that they write,
//! so a write waits until others have left the file unchanged for [`SETTLING_TIME`], but at most for
//! [`MAX_SETTLING_TIME`].

use std::collections::{HashMap, HashSet};
use std::io;
use std::mem;
use std::time::Duration;

use crate::enforce::file_helper::FileHelper;
use crate::enforce::hosts_deny::{HostsDeny, MAX_FILE_LEN};
use crate::enforce::slow_backends::{
    Adopted, BACKOFF, BackendEvent, BanQueue, MAX_BANS, QueuedBan, SlowBackend, SlowTask,
};
use crate::enforce::{BanContext, ExemptPrefixes};
use crate::file::FileStamp;
use crate::types::{Backend, Backoff, BanTarget, Timestamp, update};

/// Pending changes.
pub struct HostsDenyQueue {
    file: HostsDeny,
    /// Set if the daemon cannot write the file itself.
    helper: Option<FileHelper>,
    add: HashMap<BanTarget, Add>,
    remove: HashSet<BanTarget>,
    /// True if entries that belong to no ban are removed.
    removes_stale: bool,
    backoff: Backoff,
    /// Stamp of the file at the start, after the last own write, or at the last check.
    last_stamp: Option<FileStamp>,
    /// The last changes by other programs.
    changes: Option<Changes>,
    /// True if the program ends: then writes wait for nothing.
    is_ending: bool,
    /// Stamp of the file when it contained all entries; `None` before the first check.
    seen: Option<Option<FileStamp>>,
    look_at: Timestamp,
}

/// Interval between checks of the file.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Time for which the file must be unchanged by other programs before it is written.
const SETTLING_TIME: Duration = Duration::from_secs(1);

/// Maximum delay of a write, for a file that other programs change all the time.
const MAX_SETTLING_TIME: Duration = Duration::from_secs(10);

/// Changes of the file by other programs that follow each other closely.
#[derive(Clone, Copy)]
struct Changes {
    /// When the first and the last of them were noticed.
    first: Timestamp,
    last: Timestamp,
}

impl Changes {
    /// Time at which the file counts as unchanged.
    fn settled_at(self) -> Timestamp {
        self.last.after(SETTLING_TIME).min(self.first.after(MAX_SETTLING_TIME))
    }
}

/// An entry to write.
struct Add {
    /// Identifier of its ban.
    id: u64,
    context: BanContext,
    tried: bool,
    /// True if it was written before.
    again: bool,
}

impl HostsDenyQueue {
    /// Uses the lines in `file`, which `helper` writes if there is one.
    pub fn new(file: HostsDeny, helper: Option<FileHelper>) -> Self {
        Self {
            last_stamp: file.stamp(),
            changes: None,
            is_ending: false,
            file,
            helper,
            add: HashMap::new(),
            remove: HashSet::new(),
            removes_stale: false,
            backoff: BACKOFF,
            seen: None,
            look_at: Timestamp::ZERO,
        }
    }

    /// The targets that have an entry now.
    fn targets(&self) -> io::Result<HashSet<BanTarget>> {
        let targets = match &self.helper {
            Some(helper) => helper.read(MAX_FILE_LEN)?.map_or(Vec::new(), |bytes| HostsDeny::targets_in(&bytes)),
            None => self.file.targets().map_err(io::Error::other)?,
        };
        Ok(targets.into_iter().collect())
    }

    /// Queues the entries of `bans` that another program has removed, if the file has changed. Does nothing while other
    /// entries are pending: the file is checked afterwards.
    fn restore_lost(&mut self, now: Timestamp, bans: &BanQueue) {
        if now < self.look_at || self.is_ending || self.removes_stale || self.unfinished() > 0 {
            return;
        }
        self.look_at = now.after(CHECK_INTERVAL);
        // Takes the stamp before it reads the content, so that a concurrent write is detected.
        let is_settled = self.is_settled(now);
        let stamp = self.last_stamp;
        if self.seen == Some(stamp) {
            return;
        }
        // Entries that are missing from a half-written file do not count as lost.
        if !is_settled {
            self.look_at = self.settled_at();
            return;
        }
        let Ok(present) = self.targets() else { return };
        let lost: Vec<BanTarget> =
            bans.done_by(Backend::HostsDeny).filter(|target| !present.contains(target)).collect();
        if lost.is_empty() {
            self.seen = Some(stamp);
        }
        for ban in lost.into_iter().filter_map(|target| bans.get(target)) {
            self.restore(ban.id, ban.context);
        }
    }

    /// Queues a lost entry for writing.
    fn restore(&mut self, id: u64, context: BanContext) {
        self.add.insert(context.target, Add { id, context, tried: true, again: true });
        self.backoff.shorten();
    }

    /// Time of the next write, if a change is pending.
    fn next_write(&self) -> Option<Timestamp> {
        (self.removes_stale || self.unfinished() > 0).then_some(self.backoff.until().max(self.settled_at()))
    }

    /// Time from which the file may be written.
    fn settled_at(&self) -> Timestamp {
        self.changes.filter(|_| !self.is_ending).map_or(Timestamp::ZERO, Changes::settled_at)
    }

    /// False if other programs have just changed the file: it is then settled at [`HostsDenyQueue::settled_at`], unless
    /// they change it again.
    fn is_settled(&mut self, now: Timestamp) -> bool {
        if update(&mut self.last_stamp, self.file.stamp()) {
            // The file is checked when the settling time ends. A change that is noticed much later starts a new series.
            let earlier = self.changes.filter(|changes| now.since(changes.last) <= 2 * SETTLING_TIME);
            self.changes = Some(Changes { first: earlier.map_or(now, |changes| changes.first), last: now });
        }
        now >= self.settled_at()
    }

    /// Writes the pending changes into the file; returns the targets whose entries were removed.
    fn write(&self, bans: &BanQueue) -> io::Result<Vec<BanTarget>> {
        let add: Vec<BanContext> = self.add.values().map(|add| add.context).collect();
        let mut remove: Vec<BanTarget> = self.remove.iter().copied().collect();
        if self.removes_stale {
            let stays: HashSet<BanTarget> = bans.done_by(Backend::HostsDeny).collect();
            remove.extend(self.targets()?.into_iter().filter(|target| !stays.contains(target)));
        }
        match &self.helper {
            Some(helper) => helper.edit(&add, &remove).map(|()| remove),
            None => self.file.apply(&add, &remove).map_err(io::Error::other),
        }
    }
}

impl SlowBackend for HostsDenyQueue {
    /// The file helper reports its own.
    fn warning(&self) -> Option<String> {
        if self.helper.is_some() { None } else { self.file.warning() }
    }

    /// Also removes the entries of other targets.
    fn adopt(&mut self, adopted: &[Adopted], bans: &mut BanQueue, exempt: &ExemptPrefixes) {
        let present = self.targets().ok();
        for Adopted { context, .. } in adopted.iter().filter(|ban| ban.backends.contains(Backend::HostsDeny)) {
            let Some(ban) = bans.get_mut(context.target) else { continue };
            let is_present = present.as_ref().map(|present| present.contains(&context.target));
            if exempt.check(context.target).is_err() && is_present != Some(true) {
                continue;
            }
            ban.done.insert(Backend::HostsDeny);
            // Another backend blocked it until now, or the entry was removed in the meantime.
            if is_present == Some(false) {
                self.restore(ban.id, ban.context);
            }
        }
        self.removes_stale = true;
        self.backoff.shorten();
    }

    fn begin(&mut self, ban: &mut QueuedBan) -> bool {
        let QueuedBan { context, id, .. } = *ban;
        ban.done.insert(Backend::HostsDeny);
        self.remove.remove(&context.target);
        self.add.insert(context.target, Add { id, context, tried: false, again: false });
        self.backoff.shorten();
        true
    }

    /// If the queue is full, the entry is removed at the next start.
    fn end(&mut self, target: BanTarget, ban: Option<&QueuedBan>) {
        if ban.is_some_and(|ban| !ban.done.contains(Backend::HostsDeny)) {
            return;
        }
        self.add.remove(&target);
        if self.remove.len() < MAX_BANS {
            self.remove.insert(target);
        }
        self.backoff.shorten();
    }

    /// Writes the changes that are due. If stale entries are to be removed, only the targets of `bans` keep theirs.
    fn run_due(&mut self, now: Timestamp, bans: &mut BanQueue, report: &mut dyn FnMut(BackendEvent)) -> Vec<BanTarget> {
        self.restore_lost(now, bans);
        if self.next_write().is_none_or(|next| next > now) {
            return Vec::new();
        }
        let tried_first = |add: &mut Add| {
            let is_first = !mem::replace(&mut add.tried, true) && bans.is_current(add.context.target, add.id);
            is_first.then_some(add.context.target)
        };
        if !self.is_settled(now) {
            // A ban's next backend does not wait for other programs.
            return self.add.values_mut().filter_map(tried_first).collect();
        }
        match self.write(bans) {
            Ok(targets) => {
                (self.last_stamp, self.changes) = (self.file.stamp(), None);
                let (again, new): (Vec<&Add>, Vec<&Add>) = self.add.values().partition(|add| add.again);
                for Add { context, .. } in new {
                    let entry = self.file.entry(context);
                    report(BackendEvent::Done { context: *context, backend: Backend::HostsDeny, entry });
                }
                if !again.is_empty() {
                    report(BackendEvent::Restored {
                        targets: again.into_iter().map(|add| add.context.target).collect(),
                        backend: Backend::HostsDeny,
                    });
                }
                if !targets.is_empty() {
                    report(BackendEvent::Released { targets, backend: Backend::HostsDeny });
                }
                self.backoff.reset();
                self.remove.clear();
                self.removes_stale = false;
                self.add.drain().filter_map(|(_, mut add)| tried_first(&mut add)).collect()
            }
            Err(error) => {
                let again = Some(self.backoff.extend(now));
                let targets = self.add.keys().chain(&self.remove).copied().collect();
                let attempt = self.backoff.failures();
                report(BackendEvent::Failed {
                    targets,
                    task: SlowTask::Ban(Backend::HostsDeny),
                    reason: error.to_string(),
                    attempt,
                    again,
                });
                self.add.values_mut().filter_map(tried_first).collect()
            }
        }
    }

    /// Time of the next write, or of the next check for the entries of `bans`.
    fn next_due(&self, bans: &BanQueue) -> Option<Timestamp> {
        // While a write is pending, the file is not checked for lost entries.
        self.next_write().or_else(|| bans.done_by(Backend::HostsDeny).next().map(|_| self.look_at))
    }

    fn end_waits(&mut self) {
        self.backoff.end_wait();
        self.is_ending = true;
    }

    fn unfinished(&self) -> usize {
        self.add.len() + self.remove.len()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::config::DEFAULT_DENY_LINE;
    use crate::types::at;

    fn queue(path: &Path) -> HostsDenyQueue {
        HostsDenyQueue::new(HostsDeny::new(path, DEFAULT_DENY_LINE).unwrap(), None)
    }

    /// Begins a ban of `source`.
    fn begin(queue: &mut HostsDenyQueue, bans: &mut BanQueue, source: &str) {
        let context = BanContext::example(source.parse().unwrap());
        assert!(queue.begin(bans.insert(at(0), context, context.expiry).unwrap()));
    }

    /// True if the pending entries are written at this time.
    fn writes(queue: &mut HostsDenyQueue, bans: &mut BanQueue, seconds: u64) -> bool {
        queue.run_due(at(seconds), bans, &mut |_| ());
        queue.unfinished() == 0
    }

    #[test]
    fn write_waits_until_file_is_unchanged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts.deny");
        fs::write(&path, "sshd: old\n").unwrap();
        let (mut queue, mut bans) = (queue(&path), BanQueue::default());
        begin(&mut queue, &mut bans, "192.0.2.1");
        assert!(writes(&mut queue, &mut bans, 100), "the file is unchanged since the start");
        begin(&mut queue, &mut bans, "192.0.2.2");
        assert!(writes(&mut queue, &mut bans, 100), "a write by the daemon causes no wait");

        // Another program empties the file, and writes it when the first wait is over.
        fs::write(&path, "").unwrap();
        begin(&mut queue, &mut bans, "192.0.2.3");
        let tried = queue.run_due(at(101), &mut bans, &mut |_| ());
        assert_eq!((tried.len(), queue.unfinished()), (1, 1), "the next backend of the ban does not wait");
        assert_eq!(queue.next_due(&bans), Some(at(102)));
        fs::write(&path, "sshd: new\n").unwrap();
        assert!(!writes(&mut queue, &mut bans, 102));
        assert!(writes(&mut queue, &mut bans, 103));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("sshd: new\n") && text.contains("192.0.2.3"), "{text}");
    }

    #[test]
    fn half_written_file_has_lost_no_entry() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts.deny");
        let (mut queue, mut bans) = (queue(&path), BanQueue::default());
        begin(&mut queue, &mut bans, "192.0.2.1");
        assert!(writes(&mut queue, &mut bans, 100));
        let text = fs::read_to_string(&path).unwrap();
        queue.restore_lost(at(101), &bans);
        fs::write(&path, "").unwrap();
        queue.restore_lost(at(103), &bans);
        assert_eq!((queue.unfinished(), queue.next_due(&bans)), (0, Some(at(104))));
        fs::write(&path, text + "sshd: new\n").unwrap();
        queue.restore_lost(at(104), &bans);
        queue.restore_lost(at(105), &bans);
        assert_eq!((queue.unfinished(), queue.next_due(&bans)), (0, Some(at(107))), "the entry is there again");

        fs::write(&path, "sshd: new\n").unwrap();
        queue.restore_lost(at(107), &bans);
        queue.restore_lost(at(108), &bans);
        assert!(queue.unfinished() == 1 && writes(&mut queue, &mut bans, 108), "the entry is lost");
    }

    #[test]
    fn constant_changes_delay_write_for_ten_seconds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts.deny");
        let (mut queue, mut bans) = (queue(&path), BanQueue::default());
        begin(&mut queue, &mut bans, "192.0.2.1");
        for second in 100..110 {
            fs::write(&path, format!("sshd: {}\n", "x".repeat(second))).unwrap();
            assert!(!writes(&mut queue, &mut bans, second.try_into().unwrap()), "at {second} s");
        }
        fs::write(&path, "sshd: last\n").unwrap();
        assert!(writes(&mut queue, &mut bans, 110));
        assert!(fs::read_to_string(&path).unwrap().starts_with("sshd: last\n"));
    }

    #[test]
    fn shutdown_writes_without_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts.deny");
        let (mut queue, mut bans) = (queue(&path), BanQueue::default());
        begin(&mut queue, &mut bans, "192.0.2.1");
        fs::write(&path, "sshd: x\n").unwrap();
        assert!(!writes(&mut queue, &mut bans, 100));
        queue.end_waits();
        fs::write(&path, "sshd: xy\n").unwrap();
        assert!(writes(&mut queue, &mut bans, 100));
    }
}
