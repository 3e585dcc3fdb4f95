//! Resolves the names on the allow-list to addresses, repeatedly, because addresses change. Failed look-ups do not end
//! any protection. Answers are untrusted: addresses that no other host can have are ignored, and their number is
//! limited.

mod known;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::events::event::EventKind;
use crate::host::file_watch::FileWatch;
use crate::host::lookup::LookupPool;
use known::{Known, LOOKUP_INTERVAL, LOOKUP_TIMEOUT};

/// Interval between look-ups of a name that has no address yet: during a boot the network is often not available.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

const MAX_CONCURRENT: usize = 8;

/// Names are looked up in this file before DNS.
const HOSTS: &str = "/etc/hosts";

type Resolved = io::Result<Vec<SocketAddr>>;

struct Name {
    text: String,
    known: Known,
    due: Instant,
}

pub(super) struct AllowNames {
    names: Vec<Name>,
    lookup: fn(&str) -> Resolved,
    lookups: LookupPool<String, Resolved>,
    hosts: FileWatch<PathBuf>,
}

impl AllowNames {
    /// Creates the list with these names, which `lookup` resolves. They have no addresses before the first
    /// [`AllowNames::tick`].
    pub(super) fn new(names: &[String], now: Instant, lookup: fn(&str) -> Resolved) -> Self {
        let mut texts = names.to_vec();
        texts.sort_unstable();
        texts.dedup();
        let names = texts.into_iter().map(|text| Name { text, known: Known::default(), due: now }).collect();
        let lookups = LookupPool::new(MAX_CONCURRENT);
        Self { names, lookup, lookups, hosts: FileWatch::new(HOSTS.into()) }
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.names.iter().flat_map(|name| name.known.addresses())
    }

    /// Starts the look-ups that are due, or all of them if `resolvers_changed` or /etc/hosts changed, and drops expired
    /// addresses. Does not block. Adds the events to report to `messages`. True if the addresses changed.
    pub(super) fn tick(&mut self, now: Instant, resolvers_changed: bool, messages: &mut Vec<EventKind>) -> bool {
        if self.hosts.poll() || resolvers_changed {
            self.names.iter_mut().for_each(|name| name.due = now);
        }
        let mut changed = false;
        while let Some((text, answer)) = self.lookups.try_next() {
            changed |= self.handle_answer(now, &text, answer, messages);
        }
        let overdue = self.lookups.overdue(now, LOOKUP_TIMEOUT);
        for name in &mut self.names {
            if overdue.contains(&name.text) {
                let late = format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs());
                messages.extend(name.known.fail(&name.text, &late));
            }
            let gone = name.known.forget(now);
            changed |= !gone.is_empty();
            messages.extend(known::addresses_gone(&name.text, &gone));
        }
        self.begin(now);
        changed
    }

    /// Waits until a look-up ends, and adds the events to report to `messages`; true if the addresses changed. Cancel
    /// safe.
    pub(super) async fn answered(&mut self, messages: &mut Vec<EventKind>) -> bool {
        let (text, answer) = self.lookups.next().await;
        let now = Instant::now();
        let changed = self.handle_answer(now, &text, answer, messages);
        self.begin(now);
        changed
    }

    fn begin(&mut self, now: Instant) {
        let lookup = self.lookup;
        for name in &mut self.names {
            if self.lookups.room() > 0 && name.due <= now && !self.lookups.contains(&name.text) {
                let text = name.text.clone();
                self.lookups.start(name.text.clone(), now, move || lookup(&text));
                name.due = now + LOOKUP_INTERVAL;
            }
        }
    }

    fn handle_answer(
        &mut self,
        now: Instant,
        text: &str,
        answer: Option<Resolved>,
        messages: &mut Vec<EventKind>,
    ) -> bool {
        let Some(name) = self.names.iter_mut().find(|name| name.text == text) else { return false };
        match answer.unwrap_or_else(|| Err(io::Error::other("the look-up was aborted"))) {
            Ok(answer) => {
                let (changed, message) = name.known.learn(&name.text, now, &answer);
                messages.extend(message);
                changed
            }
            Err(error) => {
                if name.known.addresses().next().is_none() {
                    name.due = name.due.min(now + RETRY_INTERVAL);
                }
                messages.extend(name.known.fail(&name.text, &error.to_string()));
                false
            }
        }
    }
}

/// Applies any addresses as answers for a name, twice. For the fuzzer.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(now: Instant, answer: &[SocketAddr]) {
    let mut known = Known::default();
    let (first, second) = answer.split_at(answer.len() / 2);
    for answer in [answer, first, second] {
        known.learn("name.example", now, answer);
        assert!(known.addresses().count() <= known::MAX_KEPT);
        assert!(known.addresses().all(|address| !address.is_loopback() && !address.is_unspecified()));
    }
    known.fail("name.example", "no answer");
    known.forget(now);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn texts(messages: &[EventKind]) -> Vec<String> {
        messages.iter().map(|event| format!("{event:?}")).collect()
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("h{number}.example")).collect()
    }

    #[tokio::test]
    async fn name_listed_twice_is_resolved_once() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let lookup = |_: &str| {
            ASKED.fetch_add(1, Ordering::Relaxed);
            Ok(vec!["192.0.2.7:0".parse().unwrap()])
        };
        let now = Instant::now();
        let (mut names, messages) =
            (AllowNames::new(&["a.example", "a.example"].map(str::to_owned), now, lookup), &mut vec![]);
        assert!(!names.tick(now, false, messages), "nothing is known yet, and no lookup has ended");
        assert!(names.answered(messages).await);
        assert_eq!(names.addresses().collect::<Vec<_>>(), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        for seconds in 1..300 {
            assert!(!names.tick(now + Duration::from_secs(seconds), false, messages));
        }
        assert_eq!(ASKED.load(Ordering::Relaxed), 1);
        names.tick(now + LOOKUP_INTERVAL, false, messages);
        assert!(!names.answered(messages).await, "the same answer is no change");
        names.tick(now + LOOKUP_INTERVAL + Duration::from_secs(1), true, messages);
        assert!(!names.answered(messages).await, "other name servers are queried at once");
        assert_eq!(ASKED.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn hanging_lookup_is_reported_once() {
        static HANGING: AtomicUsize = AtomicUsize::new(0);
        static FREE: AtomicUsize = AtomicUsize::new(0);
        let lookup = |_: &str| {
            HANGING.fetch_add(1, Ordering::Relaxed);
            while FREE.load(Ordering::Relaxed) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(vec!["192.0.2.7:0".parse().unwrap()])
        };
        let now = Instant::now();
        let (mut names, messages) = (AllowNames::new(&names(1), now, lookup), &mut vec![]);
        for seconds in 0..1_000 {
            names.tick(now + Duration::from_secs(seconds), true, messages);
        }
        while HANGING.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(HANGING.load(Ordering::Relaxed), 1);
        assert_eq!(messages.len(), 1, "{messages:?}");
        assert!(texts(messages)[0].contains("no answer within 30 s"));
        FREE.store(1, Ordering::Relaxed);
        assert!(names.answered(messages).await, "a late answer is still used");
        assert!(texts(messages)[1].contains("192.0.2.7"));
    }

    #[tokio::test]
    async fn lookups_are_limited_and_fair() {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        static HIGHEST: AtomicUsize = AtomicUsize::new(0);
        let lookup = |_: &str| {
            HIGHEST.fetch_max(RUNNING.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            RUNNING.fetch_sub(1, Ordering::SeqCst);
            Err(io::Error::other("no name server"))
        };
        let now = Instant::now();
        let (mut names, messages) = (AllowNames::new(&names(64), now, lookup), &mut vec![]);
        names.tick(now, false, messages);
        for _ in 0..64 {
            names.answered(messages).await;
        }
        assert_eq!(messages.len(), 64);
        assert!((2..=MAX_CONCURRENT).contains(&HIGHEST.load(Ordering::SeqCst)));
        let nothing = tokio::time::timeout(Duration::from_millis(20), names.answered(messages)).await;
        assert!(nothing.is_err(), "nothing is due");
    }

    #[tokio::test]
    async fn name_without_address_is_retried_sooner() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let lookup = |_: &str| {
            ASKED.fetch_add(1, Ordering::Relaxed);
            Err(io::Error::other("no name server"))
        };
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let (mut names, messages) = (AllowNames::new(&names(1), now, lookup), &mut vec![]);
        names.tick(now, false, messages);
        while messages.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
            names.tick(after(1), false, messages);
        }
        (2..31).for_each(|seconds| {
            names.tick(after(seconds), false, messages);
        });
        assert_eq!((names.lookups.is_empty(), ASKED.load(Ordering::Relaxed)), (true, 1));
        names.tick(after(31), false, messages);
        names.answered(messages).await;
        assert_eq!((messages.len(), ASKED.load(Ordering::Relaxed)), (1, 2), "the second failure is not reported");
    }
}
