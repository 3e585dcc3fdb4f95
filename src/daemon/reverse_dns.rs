//! Looks up the host names of addresses for log lines: a few at a time, cached for a few minutes, without blocking.
//!
//! The owner of an address chooses what its reverse look-up returns. A name is used only if it consists of letters,
//! digits, ".", "-" and "_", cannot be mistaken for an address, and resolves back to the same address.
//!
//! References: getnameinfo(3), getaddrinfo(3), RFC 1912 section 2.1.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::config::parse_name;
use crate::host::lookup::{LookupPool, name_of, resolve};

/// Lifetime of a cached answer, including negative ones.
const CACHE_LIFETIME: Duration = Duration::from_secs(300);
/// Maximum number of cached answers; the oldest is dropped first.
const MAX_KNOWN: usize = 4_096;
/// Maximum number of addresses that wait for a look-up.
const MAX_PENDING: usize = 1_024;
const MAX_CONCURRENT: usize = 4;

/// The system's name for an address.
type Lookup = fn(IpAddr) -> Option<String>;

enum NameState {
    /// Waits for a look-up, or is being looked up.
    Asked,
    /// Its name, if it has one.
    Known(Option<String>),
}

/// Known names. The number of requests is limited, and keys are hashed with a secret.
pub(super) struct ReverseDns {
    lookup: Lookup,
    states: HashMap<IpAddr, NameState>,
    /// Known addresses with the end of their lifetime, oldest first.
    known: VecDeque<(IpAddr, Instant)>,
    /// Addresses that wait for a look-up, each with the time after which the answer is useless.
    waiting: VecDeque<(IpAddr, Instant)>,
    lookups: LookupPool<IpAddr, Option<String>>,
}

impl ReverseDns {
    pub(super) fn new(lookup: Lookup) -> Self {
        Self {
            lookup,
            states: HashMap::new(),
            known: VecDeque::new(),
            waiting: VecDeque::new(),
            lookups: LookupPool::new(MAX_CONCURRENT),
        }
    }

    /// Starts a look-up of `address`, unless it is known. After `until` the answer is not needed. Does not wait.
    pub(super) fn ask(&mut self, address: IpAddr, now: Instant, until: Instant) {
        for queue in [&mut self.known, &mut self.waiting] {
            while let Some((old, until)) = queue.front()
                && *until <= now
            {
                self.states.remove(old);
                queue.pop_front();
            }
        }
        if !self.states.contains_key(&address) && self.waiting.len() < MAX_PENDING {
            self.states.insert(address, NameState::Asked);
            self.waiting.push_back((address, until));
        }
        self.begin(now);
    }

    /// The name of `address`, or `Some(None)` if it has no name; `None` if that is not known yet.
    pub(super) fn answer(&self, address: IpAddr) -> Option<Option<&str>> {
        match self.states.get(&address) {
            Some(NameState::Known(name)) => Some(name.as_deref()),
            Some(NameState::Asked) | None => None,
        }
    }

    /// Waits until a look-up ends. Cancel safe.
    pub(super) async fn answered(&mut self) {
        let (address, name) = self.lookups.next().await;
        let now = Instant::now();
        self.handle_answer(now, address, name.flatten());
        self.begin(now);
    }

    fn begin(&mut self, now: Instant) {
        let lookup = self.lookup;
        while self.lookups.room() > 0
            && let Some((address, until)) = self.waiting.pop_front()
        {
            if until <= now {
                self.states.remove(&address);
            } else {
                self.lookups.start(address, now, move || lookup(address));
            }
        }
    }

    fn handle_answer(&mut self, now: Instant, address: IpAddr, name: Option<String>) {
        if self.known.len() >= MAX_KNOWN
            && let Some((oldest, _)) = self.known.pop_front()
        {
            self.states.remove(&oldest);
        }
        self.known.push_back((address, now + CACHE_LIFETIME));
        self.states.insert(address, NameState::Known(name));
    }
}

/// Looks up the name of the address, and the addresses of that name.
pub(super) fn look_up(address: IpAddr) -> Option<String> {
    confirmed(address, &name_of(&address)?, resolve)
}

/// The name, if it is valid and `forward` resolves it to `address`, among others.
fn confirmed(address: IpAddr, name: &str, forward: impl Fn(&str) -> io::Result<Vec<SocketAddr>>) -> Option<String> {
    let name = clean(name)?;
    let leads_back = forward(&name).ok()?.iter().any(|found| found.ip().to_canonical() == address.to_canonical());
    leads_back.then_some(name)
}

/// The name without its final dot, if it is safe for a log line.
pub(super) fn clean(name: &str) -> Option<String> {
    let name = parse_name(name.strip_suffix('.').unwrap_or(name)).ok()?;
    (!name.ends_with('.')).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    #[test]
    fn name_has_only_valid_characters() {
        let long = format!("{}.example", "a.".repeat(120).trim_end_matches('.'));
        for (given, expected) in [
            ("Scanner-1.Example.ORG.", Some("scanner-1.example.org")),
            ("_x.example", Some("_x.example")),
            ("10-0-0-1.dyn.example", Some("10-0-0-1.dyn.example")),
            (long.as_str(), Some(long.as_str())),
            ("", None),
            (".", None),
            ("a..", None),
            ("a..b", None),
            ("1.2.3.4", None),
            ("1.2.3.4.", None),
            ("127.1", None),
            ("0x7f.1", None),
            ("2130706433", None),
            ("::ffff:1.2.3.4", None),
            ("a.1", None),
            ("a/10.0.0.1", None),
            ("a 10.0.0.1", None),
            ("a\n b", None),
            ("\u{1b}[2J", None),
            ("a\\032b", None),
            ("bücher.example", None),
            ("$(id).example", None),
            (&"a".repeat(64), None),
            (&format!("{}.example", "abcdefgh.".repeat(40)), None),
        ] {
            assert_eq!(clean(given).as_deref(), expected, "{given:?}");
        }
    }

    #[test]
    fn name_without_forward_match_is_dropped() {
        let found = |address| SocketAddr::new(address, 0);
        let forward = |name: &str| match name {
            "good.example" => Ok(vec![found(address(9)), found(address(1))]),
            "mapped.example" => Ok(vec![found("::ffff:10.0.0.1".parse().unwrap())]),
            "other.example" => Ok(vec![found(address(2))]),
            "empty.example" => Ok(Vec::new()),
            _ => Err(io::Error::other("no such name")),
        };
        let name = |name: &str| confirmed(address(1), name, forward);
        assert_eq!(name("good.example.").as_deref(), Some("good.example"));
        assert_eq!(name("mapped.example").as_deref(), Some("mapped.example"));
        for other in ["other.example", "empty.example", "none.example"] {
            assert_eq!(name(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn address_is_looked_up_every_five_minutes() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        static RAN: AtomicUsize = AtomicUsize::new(0);
        let lookup = |_: IpAddr| {
            RAN.fetch_max(RUNNING.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            ASKED.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            RUNNING.fetch_sub(1, Ordering::SeqCst);
            Some("a.example".to_owned())
        };
        let now = Instant::now();
        let until = now + Duration::from_secs(60);
        let mut hosts = ReverseDns::new(lookup);
        (0..64).chain(0..64).for_each(|number| hosts.ask(address(number), now, until));
        assert_eq!(hosts.answer(address(1)), None);
        while hosts.states.values().any(|state| matches!(state, NameState::Asked)) {
            hosts.answered().await;
        }
        assert_eq!(hosts.answer(address(1)), Some(Some("a.example")));
        hosts.ask(address(1), now + CACHE_LIFETIME / 2, until);
        assert_eq!(ASKED.load(Ordering::SeqCst), 64);
        hosts.ask(address(1), now + CACHE_LIFETIME * 2, now + CACHE_LIFETIME * 3);
        hosts.answered().await;
        assert_eq!((ASKED.load(Ordering::SeqCst), hosts.states.len()), (65, 1), "the others are forgotten");
        assert!((2..=MAX_CONCURRENT).contains(&RAN.load(Ordering::SeqCst)));
    }

    #[tokio::test]
    async fn reverse_dns_cache_is_bounded() {
        static FREE: AtomicUsize = AtomicUsize::new(0);
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let lookup = |_: IpAddr| {
            ASKED.fetch_add(1, Ordering::SeqCst);
            while FREE.load(Ordering::SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            None
        };
        let now = Instant::now();
        let mut hosts = ReverseDns::new(lookup);
        (0..100_000).for_each(|number| hosts.ask(address(number), now, now + Duration::from_secs(2)));
        assert_eq!(hosts.states.len(), MAX_PENDING + MAX_CONCURRENT);
        FREE.store(1, Ordering::SeqCst);
        // Only look-ups in progress are still useful.
        hosts.begin(now + Duration::from_secs(2));
        for _ in 0..MAX_CONCURRENT {
            hosts.answered().await;
        }
        hosts.begin(now + Duration::from_secs(2));
        while !hosts.lookups.is_empty() {
            hosts.answered().await;
        }
        assert!(hosts.waiting.is_empty());
        let before = ASKED.load(Ordering::SeqCst);
        for number in 0..u32::try_from(MAX_KNOWN).unwrap() + 10 {
            hosts.lookups.start(address(200_000 + number), now, || None);
            hosts.answered().await;
        }
        assert_eq!((hosts.states.len(), hosts.known.len()), (MAX_KNOWN, MAX_KNOWN));
        assert_eq!(ASKED.load(Ordering::SeqCst), before);
    }
}
