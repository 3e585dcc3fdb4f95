//! Defines the counters and gauges of the sensor. Each has one writing thread; readers take no lock, and may see one
//! metric slightly older than another.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::engine::{Class, Counters, Grade};
use crate::types::Backend;

/// Upper bounds of the reaction-time buckets in microseconds; an additional last bucket holds longer times.
pub const REACTIONS: [u64; 10] = [50, 100, 200, 300, 500, 1_000, 2_500, 10_000, 100_000, 1_000_000];

/// A counter or gauge.
#[derive(Debug, Default)]
pub struct Metric(AtomicU64);

impl Metric {
    pub fn add(&self, more: u64) {
        // With a single writer no locked instruction is needed.
        self.set(self.get().wrapping_add(more));
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Metrics of the sensor since its start.
#[derive(Debug, Default)]
pub struct SensorMetrics {
    /// Frames that came through the BPF filter.
    pub frames: Metric,
    /// Frames lost because the ring buffer was full.
    pub dropped: Metric,
    /// Connections and datagrams that decoys accepted.
    pub connections: Metric,
    /// Frames that could not be decoded.
    pub undecoded: Metric,
    /// Gauge: sources with evidence against them.
    pub sources_tracked: Metric,
    /// Packets from sources with a standing verdict.
    pub repeated: Metric,
    /// Probes that counted as evidence.
    pub probes: Metric,
    probes_of: [Metric; Class::ALL.len()],
    bans: [[[Metric; Grade::ALL.len()]; Class::ALL.len()]; Backend::ALL.len()],
    failures: [Metric; Backend::ALL.len()],
    /// Bans shortened because a ceiling was reached.
    pub capped: Metric,
    /// Sources not banned because a ceiling was reached.
    pub withheld: Metric,
    /// Sources evicted from the full source table.
    pub evicted: Metric,
    /// Look-ups in the kernel's socket table.
    pub lookups: Metric,
    /// Gauge: bans that were missing in the kernel at the last comparison.
    pub missing: Metric,
    /// Bans that were missing in the kernel and were put back.
    pub repaired: Metric,
    /// Missing hosts.deny lines that were written again. Written by the slow-backends thread.
    pub entries_restored: Metric,
    /// Gauge: TCP ports whose connections the kernel redirects to the decoy listener.
    pub decoy_ports: Metric,
    /// SYNs redirected to the decoy listener, and SYNs that it answered.
    pub decoy_syns: Metric,
    pub decoy_answers: Metric,
    /// Gauge: TCP ports that the kernel's trap monitors.
    pub trapped: Metric,
    /// Gauge: UDP ports that the kernel's trap monitors.
    pub trapped_udp: Metric,
    /// Gauge: ports lost by the trap, if more than a quarter of them; otherwise 0.
    pub trap_lost: Metric,
    /// Gauge: probed ports in the trap's sets.
    pub trap_probed: Metric,
    /// Gauge: sources in the trap's sets.
    pub trap_suspects: Metric,
    /// Sources blocked by the trap and by the sensor as well.
    pub trap_banned: Metric,
    /// Sources blocked by the trap and unblocked by the sensor.
    pub trap_let_go: Metric,
    /// SYNs of held sources that the kernel dropped.
    pub held: Metric,
    /// Packets whose source was not held because a set was full.
    pub hold_full: Metric,
    /// Sources blocked by the trap whose bans the sensor shortened.
    pub trap_shortened: Metric,
    /// Heartbeats answered, for the watchdog.
    pub beats: Metric,
    /// Notified when a flood begins.
    pub flood: Notify,
    reactions: [Metric; REACTIONS.len() + 1],
    reaction_sum: Metric,
}

impl SensorMetrics {
    /// Copies the metrics of the engine.
    pub(super) fn update(&self, (suspects, _): (usize, usize), counters: Counters) {
        self.sources_tracked.set(suspects as u64);
        self.repeated.set(counters.repeated);
        self.probes.set(counters.probes);
        self.capped.set(counters.capped);
        self.withheld.set(counters.withheld);
        self.evicted.set(counters.evicted);
        self.lookups.set(counters.lookups);
    }

    /// Bans that were missing in any backend and were restored.
    pub fn bans_repaired(&self) -> u64 {
        self.repaired.get() + self.entries_restored.get()
    }

    pub(super) fn probed(&self, class: Class) {
        increment(of_class(&self.probes_of, class));
    }

    pub fn probes_of(&self, class: Class) -> u64 {
        of_class(&self.probes_of, class).map_or(0, Metric::get)
    }

    /// Counts a ban that came into force. Only the thread of `backend` may call this.
    pub fn blocked(&self, backend: Backend, class: Class, grade: Grade) {
        increment(self.bans_metric(backend, class, grade));
    }

    fn bans_metric(&self, backend: Backend, class: Class, grade: Grade) -> Option<&Metric> {
        of_class(self.bans.get(backend as usize)?, class)?.get(grade as usize)
    }

    /// Bans that came into force with `backend` on evidence of this class and grade.
    pub fn bans_by(&self, backend: Backend, class: Class, grade: Grade) -> u64 {
        self.bans_metric(backend, class, grade).map_or(0, Metric::get)
    }

    /// Bans that came into force, however many backends enforce each. Every ban goes to all backends, so the one that
    /// enforced most bans of a kind counts.
    pub fn bans(&self) -> u64 {
        let kinds = Class::ALL.iter().flat_map(|class| Grade::ALL.map(|grade| (*class, grade)));
        let most = |(class, grade)| Backend::ALL.map(|backend| self.bans_by(backend, class, grade)).into_iter().max();
        kinds.filter_map(most).sum()
    }

    /// Counts a ban that `backend` refused. Only the thread of `backend` may call this.
    pub fn failed(&self, backend: Backend) {
        increment(self.failures.get(backend as usize));
    }

    /// Bans that `backend` refused.
    pub fn failed_by(&self, backend: Backend) -> u64 {
        self.failures.get(backend as usize).map_or(0, Metric::get)
    }

    /// Records the time from the capture of a packet to its ban.
    pub(super) fn reacted(&self, reaction: Duration) {
        let micros = u64::try_from(reaction.as_micros()).unwrap_or(u64::MAX);
        let bucket = REACTIONS.iter().position(|bound| micros <= *bound).unwrap_or(REACTIONS.len());
        increment(self.reactions.get(bucket));
        self.reaction_sum.add(micros);
    }

    /// Number of reaction times per bucket of the histogram, and their sum in microseconds.
    pub fn reactions(&self) -> ([u64; REACTIONS.len() + 1], u64) {
        (self.reactions.each_ref().map(Metric::get), self.reaction_sum.get())
    }
}

fn of_class<T>(metrics: &[T], class: Class) -> Option<&T> {
    metrics.get(Class::ALL.iter().position(|one| *one == class)?)
}

fn increment(metric: Option<&Metric>) {
    if let Some(metric) = metric {
        metric.add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ban_by_two_backends_counts_once() {
        let metrics = SensorMetrics::default();
        for backend in [Backend::Nft, Backend::HostsDeny] {
            metrics.blocked(backend, Class::Syn, Grade::Forgeable);
            metrics.blocked(backend, Class::Connect, Grade::Proven);
        }
        metrics.blocked(Backend::HostsDeny, Class::Syn, Grade::Forgeable);
        metrics.blocked(Backend::Command, Class::Udp, Grade::Forgeable);
        assert_eq!(metrics.bans(), 4, "nft failed once, and scans over UDP only run the command");
        assert_eq!(metrics.bans_by(Backend::HostsDeny, Class::Syn, Grade::Forgeable), 2);
    }

    #[test]
    fn reaction_falls_into_its_bucket() {
        let metrics = SensorMetrics::default();
        [1, 50, 51, 2_000_000].iter().for_each(|micros| metrics.reacted(Duration::from_micros(*micros)));
        let (counts, sum) = metrics.reactions();
        assert_eq!((counts[0], counts[1], counts[REACTIONS.len()]), (2, 1, 1));
        assert_eq!(sum, 2_000_102);
    }
}
