//! Name look-ups in a bounded pool: each takes a thread, which a name server that is down holds for half a minute, so only
//! so many run at one time, and neither the event loop nor a command ever waits for all of them.
//!
//! References: getaddrinfo(3), getnameinfo(3), nsswitch.conf(5), resolv.conf(5).

use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use tokio::task::{Id, JoinError, JoinSet};

use super::file_watch::foreign;

/// Look-ups that run, each for a key.
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
    /// A pool of at most `max_concurrent` look-ups.
    pub fn new(max_concurrent: usize) -> Self {
        Self { max_concurrent, running: Vec::new(), tasks: JoinSet::new() }
    }

    /// How many more look-ups may begin now.
    pub fn room(&self) -> usize {
        self.max_concurrent.saturating_sub(self.running.len())
    }

    /// True where no look-up runs.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// True where the look-up for `key` runs.
    pub fn contains(&self, key: &K) -> bool {
        self.running.iter().any(|one| one.key == *key)
    }

    /// Begins a look-up on a thread of its own. Nothing happens where there is no [`LookupPool::room`].
    pub fn start(&mut self, key: K, now: Instant, lookup: impl FnOnce() -> A + Send + 'static) {
        if self.room() > 0 {
            let task = self.tasks.spawn_blocking(lookup).id();
            self.running.push(Running { task, key, since: now, is_overdue: false });
        }
    }

    /// The keys whose look-ups have run for `limit` and go on, each once.
    pub fn overdue(&mut self, now: Instant, limit: Duration) -> Vec<K> {
        let late = |one: &&mut Running<K>| !one.is_overdue && now.saturating_duration_since(one.since) >= limit;
        let mark = |one: &mut Running<K>| {
            one.is_overdue = true;
            one.key.clone()
        };
        self.running.iter_mut().filter(late).map(mark).collect()
    }

    /// Waits until a look-up ends; its answer, `None` where it panicked. Never returns if none runs. Safe to cancel.
    pub async fn next(&mut self) -> (K, Option<A>) {
        loop {
            let Some(ended) = self.tasks.join_next_with_id().await else { return pending().await };
            if let Some(ended) = self.ended(ended) {
                return ended;
            }
        }
    }

    /// A look-up that has ended since the last call.
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

/// Looks all `keys` up, `max_concurrent` at one time; the answers that come within `limit`. Look-ups cannot be broken off:
/// those that still run are left behind. For commands, which have no event loop.
///
/// # Errors
/// Where the system has no event loop to give.
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
                let asked = key.clone();
                pool.start(key, Instant::now(), move || lookup(&asked));
            }
            if pool.is_empty() {
                return;
            }
            let (key, answer) = pool.next().await;
            answers.extend(answer.map(|answer| (key, answer)));
        }
    };
    // What does not end in time has no answer.
    let _ = runtime.block_on(async { tokio::time::timeout(limit, all).await });
    runtime.shutdown_background();
    Ok(answers)
}

/// Addresses of one answer that are used. Every one becomes a protected address, and the name server could
/// list the whole Internet, so the list has an end. The first ones in their order: of a long list always the same.
pub const MAX_ADDRESSES: usize = 64;

/// The addresses of `name`, from the system's resolver. Waits for its answer, however long that takes.
///
/// # Errors
/// What the system says where it has no answer.
pub fn resolve(name: &str) -> io::Result<Vec<SocketAddr>> {
    // The port is of no matter.
    (name, 0).to_socket_addrs().map(Iterator::collect)
}

/// The addresses in an answer that other hosts can have, sorted, each once, and how many more than [`MAX_ADDRESSES`] there
/// are.
pub fn usable_addresses(answer: &[SocketAddr]) -> (Vec<IpAddr>, usize) {
    let mut usable: Vec<IpAddr> = answer.iter().filter_map(|found| usable(*found)).collect();
    usable.sort_unstable();
    usable.dedup();
    let left_out = usable.len().saturating_sub(MAX_ADDRESSES);
    usable.truncate(MAX_ADDRESSES);
    (usable, left_out)
}

/// The address, if another host can send from it. A link-local one without its link could be any host on any link.
fn usable(found: SocketAddr) -> Option<IpAddr> {
    let address = foreign(found.ip())?;
    let anybodys = match (address, found) {
        // 0.0.0.0/8 is "this network" (RFC 1122).
        (IpAddr::V4(v4), _) => v4.is_link_local() || v4.octets().starts_with(&[0]),
        (IpAddr::V6(v6), SocketAddr::V6(scoped)) => v6.is_unicast_link_local() && scoped.scope_id() == 0,
        (IpAddr::V6(_), SocketAddr::V4(_)) => false,
    };
    (!anybodys).then_some(address)
}
