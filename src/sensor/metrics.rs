//! Figures for whoever asks while the sensor runs: written by the sensor alone, read by anybody. Nobody waits for
//! anybody, and a reader may see one figure a little older than another.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::engine::{Class, Counters};
use crate::types::Backend;

/// Upper bounds of the classes of reaction times, in microseconds; what is longer falls into one more.
pub const REACTIONS: [u64; 10] = [50, 100, 200, 300, 500, 1_000, 2_500, 10_000, 100_000, 1_000_000];

/// One figure.
#[derive(Debug, Default)]
pub struct Metric(AtomicU64);

impl Metric {
    pub(super) fn add(&self, more: u64) {
        // One writer: no locked instruction is needed on the packet's way.
        self.set(self.get().wrapping_add(more));
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The figure as it is now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the sensor counts since its start.
#[derive(Debug, Default)]
pub struct SensorMetrics {
    /// Frames that came through the filter.
    pub frames: Metric,
    /// Frames that the kernel could not hand over in time.
    pub dropped: Metric,
    /// Connections and datagrams that decoys took.
    pub connections: Metric,
    /// Frames that could not be decoded.
    pub undecoded: Metric,
    /// Sources with evidence against them, now.
    pub suspects: Metric,
    /// Sources that are recognised as judged, now.
    pub judged: Metric,
    /// Packets from judged sources.
    pub repeated: Metric,
    /// Probes that counted against somebody.
    pub probes: Metric,
    probes_of: [Metric; Class::ALL.len()],
    bans: [[Metric; Class::ALL.len()]; Backend::ALL.len()],
    failures: [Metric; Backend::ALL.len()],
    /// Bans above the ceiling, made short.
    pub capped: Metric,
    /// Sources whose evidence had to go for another's.
    pub evicted: Metric,
    /// Look-ups in the kernel's socket table.
    pub lookups: Metric,
    /// Bans that the last look at the kernel did not find, and that should be there.
    pub missing: Metric,
    /// Bans that were missing in the kernel and were put back.
    pub repaired: Metric,
    /// Lines of hosts.deny that were missing and were written again; by the thread that writes them.
    pub relined: Metric,
    /// TCP ports that the kernel's trap watches, now.
    pub trapped: Metric,
    /// UDP ports that it watches, now.
    pub trapped_udp: Metric,
    /// Touched ports of sources in the trap's memory, now.
    pub trap_touched: Metric,
    /// Sources in the trap's memory, now.
    pub trap_suspects: Metric,
    /// Sources that the trap blocked and that were condemned here as well.
    pub trap_caught: Metric,
    /// Sources that the trap blocked and that were let go.
    pub trap_let_go: Metric,
    /// Signs of life that it was asked for.
    pub beats: Metric,
    /// Rung when a flood begins.
    pub flood: Notify,
    reactions: [Metric; REACTIONS.len() + 1],
    reaction_sum: Metric,
}

/// Reaction times as they were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// How many took at most as long as the bound of the same place in [`REACTIONS`] and longer than the one before.
    pub counts: [u64; REACTIONS.len() + 1],
    /// All of them together, in microseconds.
    pub sum: u64,
}

impl SensorMetrics {
    /// Takes over what the engine counts.
    pub(super) fn take(&self, (suspects, judged): (usize, usize), counters: Counters) {
        self.suspects.set(suspects as u64);
        self.judged.set(judged as u64);
        self.repeated.set(counters.repeated);
        self.probes.set(counters.probes);
        self.capped.set(counters.capped);
        self.evicted.set(counters.evicted);
        self.lookups.set(counters.lookups);
    }

    /// So many lines of hosts.deny were missing and are there again. For one thread only.
    pub fn restored_lines(&self, lines: u64) {
        self.relined.add(lines);
    }

    /// Bans that were missing, in whatever way, and were put back.
    #[must_use]
    pub fn put_back(&self) -> u64 {
        self.repaired.get() + self.relined.get()
    }

    /// Another probe of this class counts.
    pub(super) fn probed(&self, class: Class) {
        if let Some(metric) = place(class).and_then(|place| self.probes_of.get(place)) {
            metric.add(1);
        }
    }

    /// Probes of this class.
    #[must_use]
    pub fn probes_of(&self, class: Class) -> u64 {
        place(class).and_then(|place| self.probes_of.get(place)).map_or(0, Metric::get)
    }

    /// A ban on evidence of this class came into force. Each way is counted by one thread only.
    pub fn blocked(&self, way: Backend, class: Class) {
        if let Some(metric) = place(class).and_then(|place| self.bans.get(way as usize)?.get(place)) {
            metric.add(1);
        }
    }

    /// Bans on evidence of this class that came into force in this way.
    #[must_use]
    pub fn bans_by(&self, way: Backend, class: Class) -> u64 {
        place(class).and_then(|place| self.bans.get(way as usize)?.get(place)).map_or(0, Metric::get)
    }

    /// Bans that came into force; one that several ways carry out counts once for each.
    #[must_use]
    pub fn bans(&self) -> u64 {
        self.bans.iter().flatten().map(Metric::get).sum()
    }

    /// A way did not take a ban. Each way is counted by one thread only.
    pub fn failed(&self, way: Backend) {
        if let Some(metric) = self.failures.get(way as usize) {
            metric.add(1);
        }
    }

    /// Bans that this way did not take.
    #[must_use]
    pub fn failed_by(&self, way: Backend) -> u64 {
        self.failures.get(way as usize).map_or(0, Metric::get)
    }

    /// A ban came into force so long after the packet that it is for.
    pub(super) fn reacted(&self, reaction: Duration) {
        let micros = u64::try_from(reaction.as_micros()).unwrap_or(u64::MAX);
        let class = REACTIONS.iter().position(|bound| micros <= *bound).unwrap_or(REACTIONS.len());
        if let Some(count) = self.reactions.get(class) {
            count.add(1);
        }
        self.reaction_sum.add(micros);
    }

    /// The reaction times.
    #[must_use]
    pub fn reactions(&self) -> Read {
        let mut read = Read { sum: self.reaction_sum.get(), ..Read::default() };
        read.counts.iter_mut().zip(&self.reactions).for_each(|(count, metric)| *count = metric.get());
        read
    }
}

/// The place of a class among all.
fn place(class: Class) -> Option<usize> {
    Class::ALL.iter().position(|one| *one == class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reaction_falls_into_the_class_of_its_bound() {
        let metrics = SensorMetrics::default();
        [1, 50, 51, 2_000_000].iter().for_each(|micros| metrics.reacted(Duration::from_micros(*micros)));
        let read = metrics.reactions();
        assert_eq!((read.counts[0], read.counts[1], read.counts[REACTIONS.len()]), (2, 1, 1));
        assert_eq!(read.sum, 2_000_102);
    }
}
