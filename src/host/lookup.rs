//! Looks up names in a pool of limited size, because each look-up needs a thread, which an unreachable name server
//! blocks for half a minute. Neither the event loop nor a command waits for all of them.
//!
//! References: getaddrinfo(3), getnameinfo(3), nsswitch.conf(5), resolv.conf(5).

use std::collections::BTreeSet;
use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use tokio::task::{Id, JoinError, JoinSet};

use super::file_watch::foreign;

/// Running look-ups, each with its key.
pub struct LookupPool<K, A> {
    max_concurrent: usize,
    running: Vec<Running<K>>,
    tasks: JoinSet<A>,
}

struct Running<K> {
    task: Id,
    key: K,
    since: Instant,
    is_overdue: bool,
}

impl<K: Clone + PartialEq, A: Send + 'static> LookupPool<K, A> {
    /// Creates a pool of at most `max_concurrent` look-ups.
    pub fn new(max_concurrent: usize) -> Self {
        Self { max_concurrent, running: Vec::new(), tasks: JoinSet::new() }
    }

    /// Number of look-ups that can be started now.
    pub fn room(&self) -> usize {
        self.max_concurrent.saturating_sub(self.running.len())
    }

    /// True if no look-up runs.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// True if the look-up for `key` runs.
    pub fn contains(&self, key: &K) -> bool {
        self.running.iter().any(|one| one.key == *key)
    }

    /// Starts a look-up on a separate thread. Does nothing if there is no [`LookupPool::room`].
    pub fn start(&mut self, key: K, now: Instant, lookup: impl FnOnce() -> A + Send + 'static) {
        if self.room() > 0 {
            let task = self.tasks.spawn_blocking(lookup).id();
            self.running.push(Running { task, key, since: now, is_overdue: false });
        }
    }

    /// The keys whose look-ups have run for `limit` and still run; each is returned once.
    pub fn overdue(&mut self, now: Instant, limit: Duration) -> Vec<K> {
        let late = |one: &&mut Running<K>| !one.is_overdue && now.saturating_duration_since(one.since) >= limit;
        let mark = |one: &mut Running<K>| {
            one.is_overdue = true;
            one.key.clone()
        };
        self.running.iter_mut().filter(late).map(mark).collect()
    }

    /// Waits until a look-up ends; returns its answer, or `None` if it panicked. Never returns if none runs. Cancel
    /// safe.
    pub async fn next(&mut self) -> (K, Option<A>) {
        loop {
            let Some(ended) = self.tasks.join_next_with_id().await else { return pending().await };
            if let Some(ended) = self.ended(ended) {
                return ended;
            }
        }
    }

    /// Returns a look-up that has ended since the last call.
    pub fn try_next(&mut self) -> Option<(K, Option<A>)> {
        let ended = self.tasks.try_join_next_with_id()?;
        self.ended(ended)
    }

    fn ended(&mut self, ended: Result<(Id, A), JoinError>) -> Option<(K, Option<A>)> {
        let (task, answer) = match ended {
            Ok((task, answer)) => (task, Some(answer)),
            Err(error) => (error.id(), None),
        };
        let place = self.running.iter().position(|one| one.task == task)?;
        Some((self.running.swap_remove(place).key, answer))
    }
}

/// Looks up all `keys`, `max_concurrent` at one time; returns the answers that arrive within `limit`. Look-ups cannot
/// be aborted: those that still run are abandoned. For commands, which have no event loop.
///
/// # Errors
/// The event loop cannot be created.
pub fn look_up_all<K: Clone + PartialEq + Send + 'static, A: Send + 'static>(
    keys: impl IntoIterator<Item = K>,
    (max_concurrent, limit): (usize, Duration),
    lookup: fn(&K) -> A,
) -> io::Result<Vec<(K, A)>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let mut answers = Vec::new();
    let mut keys = keys.into_iter();
    let mut pool = LookupPool::new(max_concurrent);
    let all = async {
        loop {
            while pool.room() > 0
                && let Some(key) = keys.next()
            {
                let lookup_key = key.clone();
                pool.start(key, Instant::now(), move || lookup(&lookup_key));
            }
            if pool.is_empty() {
                return;
            }
            let (key, answer) = pool.next().await;
            answers.extend(answer.map(|answer| (key, answer)));
        }
    };
    // A look-up that does not end in time has no answer.
    let _ = runtime.block_on(async { tokio::time::timeout(limit, all).await });
    runtime.shutdown_background();
    Ok(answers)
}

/// Maximum number of addresses used from one answer. Each becomes a protected address, and the name server could list
/// the whole Internet. The first ones in sorted order are used, so that a long list always gives the same addresses.
pub const MAX_ADDRESSES: usize = 64;

/// Resolves `name` with the system's resolver. Blocks until the answer arrives.
///
/// # Errors
/// The system's error.
pub fn resolve(name: &str) -> io::Result<Vec<SocketAddr>> {
    // The port is irrelevant.
    (name, 0).to_socket_addrs().map(Iterator::collect)
}

/// The system's name for `address`, which its owner chooses. Blocks until the answer arrives.
pub fn name_of(address: &IpAddr) -> Option<String> {
    dns_lookup::lookup_addr(address).ok()
}

/// The addresses in an answer that other hosts can have, sorted, without duplicates, and the number of addresses beyond
/// [`MAX_ADDRESSES`].
pub fn usable_addresses(answer: &[SocketAddr]) -> (Vec<IpAddr>, usize) {
    let usable: BTreeSet<IpAddr> = answer.iter().filter_map(|found| usable(*found)).collect();
    let left_out = usable.len().saturating_sub(MAX_ADDRESSES);
    (usable.into_iter().take(MAX_ADDRESSES).collect(), left_out)
}

/// Returns the address if another host can use it as source. A link-local address without a zone is ambiguous.
fn usable(found: SocketAddr) -> Option<IpAddr> {
    let address = foreign(found.ip())?;
    let ambiguous = match (address, found) {
        // 0.0.0.0/8 is "this network" (RFC 1122).
        (IpAddr::V4(v4), _) => v4.is_link_local() || v4.octets().starts_with(&[0]),
        (IpAddr::V6(v6), SocketAddr::V6(scoped)) => v6.is_unicast_link_local() && scoped.scope_id() == 0,
        (IpAddr::V6(_), SocketAddr::V4(_)) => false,
    };
    (!ambiguous).then_some(address)
}
