//! Detects distributed scans: many sources probe a few ports each, and together cover many. No single source reaches
//! its threshold. The scan is only logged, because the address of any source may be forged.

use std::collections::VecDeque;
use std::time::Duration;

use crate::types::{PortSet, Tick};

/// Time over which ports and sources are collected. A slower scan is indistinguishable from the background noise of the
/// Internet.
const SCAN_WINDOW: Duration = Duration::from_secs(600);
/// Number of distinct ports within the window that counts as a scan. Background noise is limited to a few dozen popular
/// ports.
const MIN_PORTS: u32 = 50;
/// Minimum number of sources. Fewer are single scanners, which reach their own threshold.
const MIN_SOURCES: u32 = 8;
/// Size of the bitmap that counts sources. Above about 10,000 sources the estimate saturates.
const BITS: usize = 16_384;

/// A distributed scan, as observed so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DistributedScan {
    /// Distinct ports that were probed.
    pub ports: u32,
    /// Approximate number of sources, accurate to a few per cent (linear counting, Whang et al., 1990).
    pub sources: u32,
    /// The time since its first probe.
    pub span: Duration,
}

pub(super) struct DistributedScans {
    ports: PortSet,
    sources: Vec<u64>,
    distinct_ports: u32,
    set_bits: u32,
    /// All probes. Sources that share a scan divide the ports among them; unrelated sources do not.
    probes: u32,
    began: Option<Tick>,
    detected: bool,
    /// Detected scans for which no notice has been returned yet.
    pub(super) found: VecDeque<DistributedScan>,
}

impl DistributedScans {
    pub(super) fn new() -> Self {
        Self {
            ports: PortSet::new(),
            sources: vec![0; BITS / 64],
            distinct_ports: 0,
            set_bits: 0,
            probes: 0,
            began: None,
            detected: false,
            found: VecDeque::with_capacity(16),
        }
    }

    /// Adds a probe of a port that is new for its source, which is below its threshold. A scan is added to `found`
    /// once, when it is detected, if there is room. Sources are counted by their keyed hash: with a known hash, an
    /// attacker could choose addresses that look like one source.
    pub(super) fn add(&mut self, hash: u64, port: u16, now: Tick) {
        if self.began.is_none_or(|began| now.since(began) > Tick::ticks(SCAN_WINDOW)) {
            self.restart(now);
        }
        self.probes = self.probes.saturating_add(1);
        if !self.ports.contains(port) {
            self.ports.insert(port);
            self.distinct_ports += 1;
        }
        let bit = usize::try_from(hash % BITS as u64).unwrap_or(0);
        if let Some(word) = self.sources.get_mut(bit / 64) {
            self.set_bits += u32::from(*word >> (bit % 64) & 1 == 0);
            *word |= 1 << (bit % 64);
        }
        // If half of all probes go to a port that no other source has probed, the sources cooperate.
        let shared = self.distinct_ports.saturating_mul(2) >= self.probes;
        if self.detected || self.distinct_ports < MIN_PORTS || self.set_bits < MIN_SOURCES || !shared {
            return;
        }
        self.detected = true;
        let span = now.since(self.began.unwrap_or(now)).duration();
        if self.found.len() < self.found.capacity() {
            self.found.push_back(DistributedScan { ports: self.distinct_ports, sources: self.estimate(), span });
        }
    }

    fn estimate(&self) -> u32 {
        let empty = BITS as f64 - f64::from(self.set_bits);
        let estimate = (BITS as f64 * (BITS as f64 / empty.max(1.0)).ln()).round();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and BITS * ln(BITS)")]
        {
            estimate as u32
        }
    }

    fn restart(&mut self, now: Tick) {
        self.ports.clear();
        self.sources.fill(0);
        (self.distinct_ports, self.set_bits, self.probes) = (0, 0, 0);
        (self.began, self.detected) = (Some(now), false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::key::Hashed;

    #[test]
    fn thirty_sources_sharing_ports_are_one_scan() {
        let mut scans = DistributedScans::new();
        (0..60_u16).for_each(|n| scans.add(Hashed::nth(u32::from(n) / 2).hash, 100 + n, Tick(1 + u32::from(n))));
        assert_eq!(scans.found.len(), 1);
        assert_eq!(scans.found[0].ports, 50);
        assert!((24..=26).contains(&scans.found[0].sources), "{:?}", scans.found[0]);
    }

    #[test]
    fn many_sources_few_ports_is_not_scan() {
        let mut scans = DistributedScans::new();
        for source in 0..5_000_u32 {
            let port = [22, 23, 80, 443, 3389, 8080][usize::try_from(source % 6).unwrap()];
            scans.add(Hashed::nth(source).hash, port, Tick(1));
        }
        assert!(scans.found.is_empty());
    }

    #[test]
    fn probes_spread_over_days_are_noise() {
        let mut scans = DistributedScans::new();
        for n in 0..1_000_u16 {
            scans.add(Hashed::nth(n.into()).hash, n + 1, Tick(u32::from(n) * 2_000));
        }
        assert!(scans.found.is_empty());
    }
}
