//! Models the kernel's hash sets whose elements have timeouts and limits.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use portsentry::types::{Expiry, Timestamp};

/// The expression `limit rate over`: a token bucket that is initially full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    /// The time that one packet costs.
    cost: Duration,
    most: Duration,
    tokens: Duration,
    last: Timestamp,
}

impl Limit {
    pub(crate) fn new(packets: u32, per: Duration, burst: u32, now: Timestamp) -> Self {
        let cost = per / packets.max(1);
        Self { cost, most: cost * burst, tokens: cost * burst, last: now }
    }

    /// Counts a packet; true if it exceeds the limit.
    pub(crate) fn is_over(&mut self, now: Timestamp) -> bool {
        let tokens = (self.tokens + now.since(self.last)).min(self.most);
        self.last = now;
        let over = tokens < self.cost;
        self.tokens = if over { tokens } else { tokens - self.cost };
        over
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Element {
    /// `None`: no timeout.
    pub(crate) expires: Option<Timestamp>,
    pub(crate) limit: Option<Limit>,
}

impl Element {
    fn is_live(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|at| at > now)
    }
}

/// A hash set of the table whose elements have timeouts.
pub(crate) struct TimedSet<K> {
    size: usize,
    pub(crate) elements: HashMap<K, Element>,
}

impl<K: Copy + Eq + Hash> TimedSet<K> {
    pub(crate) fn new(size: usize) -> Self {
        Self { size, elements: HashMap::new() }
    }

    pub(crate) fn contains(&self, now: Timestamp, key: K) -> bool {
        self.elements.get(&key).is_some_and(|element| element.is_live(now))
    }

    /// The rule statement `add @set { key timeout … }`, which does not change an existing element. Returns `None` if
    /// the set is full, in which case the rule ends.
    pub(crate) fn add(&mut self, now: Timestamp, key: K, timeout: Expiry) -> Option<&mut Element> {
        let fresh = Element { expires: end(now, timeout), limit: None };
        if !self.contains(now, key) {
            if self.elements.len() >= self.size {
                // The kernel removes expired elements within about a second.
                self.elements.retain(|_, element| element.is_live(now));
            }
            if self.elements.len() >= self.size {
                return None;
            }
            self.elements.insert(key, fresh);
        }
        self.elements.get_mut(&key)
    }

    /// The rule statement `update @set { key timeout … }`: extends an existing element.
    pub(crate) fn update(&mut self, now: Timestamp, key: K, timeout: Expiry) -> Option<&mut Element> {
        let element = self.add(now, key, timeout)?;
        element.expires = end(now, timeout);
        Some(element)
    }

    /// Sets the element as the daemon does, even if it exists.
    pub(crate) fn replace(&mut self, now: Timestamp, key: K, timeout: Expiry) {
        self.elements.remove(&key);
        self.add(now, key, timeout);
    }

    pub(crate) fn live(&self, now: Timestamp) -> Vec<K>
    where
        K: Ord,
    {
        let mut keys: Vec<K> =
            self.elements.iter().filter(|(_, element)| element.is_live(now)).map(|(key, _)| *key).collect();
        keys.sort();
        keys
    }
}

fn end(now: Timestamp, timeout: Expiry) -> Option<Timestamp> {
    match timeout {
        Expiry::Never => None,
        Expiry::After(span) => Some(now.after(span)),
    }
}
