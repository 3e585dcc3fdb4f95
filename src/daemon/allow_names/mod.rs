//! Names on the allow-list to addresses. Looked up beside the packets' way, each name again and again, because addresses
//! change; a name server that is down takes nobody's protection away. Whom the addresses protect is for the snapshot.
//!
//! What a name server answers is somebody else's word: addresses that no other host can have are left out, and how many
//! there may be has an end.
//!
//! Read with: getaddrinfo(3), nsswitch.conf(5), resolv.conf(5).

mod known;

use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::task::{Id, JoinError, JoinSet};

use crate::events::event::EventKind;
use crate::host::file_watch::FileWatch;
use known::Known;

/// How often a name is looked up: as long as DNS zones let caches keep what may change soon, and so seldom that no name
/// server minds.
const INTERVAL: Duration = Duration::from_secs(300);

/// How soon a name is looked up again that has no address yet: at the start of a host the network is often not there.
const RETRY: Duration = Duration::from_secs(30);

/// After so long a look-up has failed, whether it ends or not: glibc asks three name servers twice, 5 seconds each.
const LIMIT: Duration = Duration::from_secs(30);

/// Look-ups at one time. Each takes a thread, and name servers that are down hold it for [`LIMIT`].
const AT_ONCE: usize = 8;

/// Names are looked up in here before DNS is asked.
const HOSTS: &str = "/etc/hosts";

type Answer = io::Result<Vec<SocketAddr>>;

struct Name {
    text: String,
    known: Known,
    due: Instant,
    /// A look-up that has not ended, and since when it runs; `None` in place of the time once its failure is told.
    looking: Option<(Id, Option<Instant>)>,
}

/// The names, with what is known of each.
pub(super) struct AllowNames {
    names: Vec<Name>,
    lookup: fn(&str) -> Answer,
    lookups: JoinSet<Answer>,
    hosts: FileWatch<PathBuf>,
    said: Vec<EventKind>,
}

impl AllowNames {
    /// These names, of which nothing is known before the first [`AllowNames::tick`].
    pub(super) fn new(names: &[String], now: Instant) -> Self {
        Self::with(names, now, resolve)
    }

    fn with(names: &[String], now: Instant, lookup: fn(&str) -> Answer) -> Self {
        let mut texts = names.to_vec();
        texts.sort_unstable();
        texts.dedup();
        let name = |text| Name { text, known: Known::default(), due: now, looking: None };
        let names = texts.into_iter().map(name).collect();
        Self { names, lookup, lookups: JoinSet::new(), hosts: FileWatch::new(HOSTS.into()), said: Vec::new() }
    }

    /// The addresses that the names stand for.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.names.iter().flat_map(|name| name.known.addresses())
    }

    /// What there is to say since the last call.
    pub(super) fn said(&mut self) -> Vec<EventKind> {
        std::mem::take(&mut self.said)
    }

    /// Begins the look-ups that are due, all of them where there are other name servers (`elsewhere`) or /etc/hosts has
    /// changed, and lets go of what is over. Waits for nothing. True where the addresses are others than before.
    pub(super) fn tick(&mut self, now: Instant, elsewhere: bool) -> bool {
        if self.hosts.poll() || elsewhere {
            self.names.iter_mut().for_each(|name| name.due = now);
        }
        let mut changed = false;
        while let Some(ended) = self.lookups.try_join_next_with_id() {
            changed |= self.absorb(now, ended);
        }
        for name in &mut self.names {
            if let Some((_, since)) = &mut name.looking
                && since.is_some_and(|since| now.duration_since(since) >= LIMIT)
            {
                *since = None;
                let late = format!("no answer within {} s", LIMIT.as_secs());
                self.said.extend(name.known.fail(&name.text, &late));
            }
            let gone = name.known.forget(now);
            changed |= !gone.is_empty();
            self.said.extend(known::farewell(&name.text, &gone));
        }
        self.begin(now);
        changed
    }

    /// Waits until a look-up ends; true where the addresses are others than before. Safe to cancel.
    pub(super) async fn answered(&mut self) -> bool {
        let Some(ended) = self.lookups.join_next_with_id().await else { return pending().await };
        let now = Instant::now();
        let changed = self.absorb(now, ended);
        self.begin(now);
        changed
    }

    fn begin(&mut self, now: Instant) {
        let lookup = self.lookup;
        let waiting = self.names.iter_mut().filter(|name| name.looking.is_none() && name.due <= now);
        for name in waiting.take(AT_ONCE.saturating_sub(self.lookups.len())) {
            let text = name.text.clone();
            let task = self.lookups.spawn_blocking(move || lookup(&text));
            name.looking = Some((task.id(), Some(now)));
            name.due = now + INTERVAL;
        }
    }

    fn absorb(&mut self, now: Instant, ended: Result<(Id, Answer), JoinError>) -> bool {
        let (id, answer) = match ended {
            Ok((id, answer)) => (id, answer),
            Err(error) => (error.id(), Err(io::Error::other("the look-up broke off"))),
        };
        let Some(name) = self.names.iter_mut().find(|name| name.looking.is_some_and(|(task, _)| task == id)) else {
            return false;
        };
        name.looking = None;
        match answer {
            Ok(answer) => {
                let (changed, said) = name.known.learn(&name.text, now, &answer);
                self.said.extend(said);
                changed
            }
            Err(error) => {
                if name.known.addresses().next().is_none() {
                    name.due = name.due.min(now + RETRY);
                }
                self.said.extend(name.known.fail(&name.text, &error.to_string()));
                false
            }
        }
    }
}

/// The addresses that `name` has now and another host can have, the first ones where there are many. Waits for the system's
/// answer, however long that takes.
///
/// # Errors
/// What the system says where it has no answer.
pub(crate) fn look_up(name: &str) -> io::Result<Vec<IpAddr>> {
    resolve(name).map(|answer| known::usable_ones(&answer).0)
}

/// Asks the system. The port is of no matter.
fn resolve(name: &str) -> Answer {
    (name, 0).to_socket_addrs().map(Iterator::collect)
}

/// Any addresses as what a name stands for, twice. For the fuzzer.
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

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    fn texts(said: &[EventKind]) -> Vec<String> {
        said.iter().map(|what| format!("{what:?}")).collect()
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("h{number}.example")).collect()
    }

    #[test]
    fn a_name_that_is_listed_twice_is_looked_up_once_and_only_when_it_is_due() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let lookup = |_: &str| {
            ASKED.fetch_add(1, Ordering::Relaxed);
            Ok(vec!["192.0.2.7:0".parse().unwrap()])
        };
        run(async {
            let now = Instant::now();
            let mut names = AllowNames::with(&["a.example".to_owned(), "a.example".to_owned()], now, lookup);
            assert!(!names.tick(now, false), "nothing is known yet, and nobody waited");
            assert!(names.answered().await);
            assert_eq!(names.addresses().collect::<Vec<_>>(), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
            for seconds in 1..300 {
                assert!(!names.tick(now + Duration::from_secs(seconds), false));
            }
            assert_eq!(ASKED.load(Ordering::Relaxed), 1);
            names.tick(now + INTERVAL, false);
            assert!(!names.answered().await, "the same answer is no change");
            names.tick(now + INTERVAL + Duration::from_secs(1), true);
            assert!(!names.answered().await, "other name servers are asked at once");
            assert_eq!(ASKED.load(Ordering::Relaxed), 3);
        });
    }

    #[test]
    fn a_look_up_that_hangs_is_told_once_and_is_not_begun_a_second_time() {
        static HANGING: AtomicUsize = AtomicUsize::new(0);
        static FREE: AtomicUsize = AtomicUsize::new(0);
        let lookup = |_: &str| {
            HANGING.fetch_add(1, Ordering::Relaxed);
            while FREE.load(Ordering::Relaxed) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(vec!["192.0.2.7:0".parse().unwrap()])
        };
        run(async {
            let now = Instant::now();
            let mut names = AllowNames::with(&names(1), now, lookup);
            let mut said = Vec::new();
            for seconds in 0..1_000 {
                names.tick(now + Duration::from_secs(seconds), true);
                said.extend(names.said());
            }
            while HANGING.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(HANGING.load(Ordering::Relaxed), 1);
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(texts(&said)[0].contains("no answer within 30 s"));
            FREE.store(1, Ordering::Relaxed);
            assert!(names.answered().await, "late is better than never");
            assert!(texts(&names.said())[0].contains("192.0.2.7"));
        });
    }

    #[test]
    fn only_a_few_look_ups_run_at_one_time_and_all_have_their_turn() {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        static MOST: AtomicUsize = AtomicUsize::new(0);
        let lookup = |_: &str| {
            MOST.fetch_max(RUNNING.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            RUNNING.fetch_sub(1, Ordering::SeqCst);
            Err(io::Error::other("nobody is there"))
        };
        run(async {
            let now = Instant::now();
            let mut names = AllowNames::with(&names(64), now, lookup);
            names.tick(now, false);
            for _ in 0..64 {
                names.answered().await;
            }
            assert_eq!(names.said().len(), 64);
            assert!((2..=AT_ONCE).contains(&MOST.load(Ordering::SeqCst)));
            let nothing = tokio::time::timeout(Duration::from_millis(20), names.answered()).await;
            assert!(nothing.is_err(), "nothing is due");
        });
    }

    #[test]
    fn a_name_without_an_address_is_tried_again_sooner_and_told_once() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let lookup = |_: &str| {
            ASKED.fetch_add(1, Ordering::Relaxed);
            Err(io::Error::other("nobody is there"))
        };
        run(async {
            let now = Instant::now();
            let after = |seconds| now + Duration::from_secs(seconds);
            let mut names = AllowNames::with(&names(1), now, lookup);
            names.tick(now, false);
            while names.said.is_empty() {
                std::thread::sleep(Duration::from_millis(1));
                names.tick(after(1), false);
            }
            (2..31).for_each(|seconds| {
                names.tick(after(seconds), false);
            });
            assert_eq!((names.lookups.len(), ASKED.load(Ordering::Relaxed)), (0, 1));
            names.tick(after(31), false);
            names.answered().await;
            assert_eq!((names.said().len(), ASKED.load(Ordering::Relaxed)), (1, 2));
        });
    }
}
