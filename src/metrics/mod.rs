//! Exposes the sensor's metrics in the OpenMetrics text format over HTTP. Counts nothing itself.
//!
//! References: <https://prometheus.io/docs/practices/naming/>.

pub mod http;

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::engine::{Class, Grade};
use crate::sensor::{REACTIONS, SensorMetrics};
use crate::types::Backend;

/// Metrics that the sensor does not count itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Start time of the program, in seconds since 1970.
    pub started: f64,
    /// Bans that should be in force.
    pub intended: u64,
    /// Maximum number of elements in each of the two sets; `None` if nothing is blocked with nftables.
    pub capacity: Option<u64>,
    /// Number of events that were lost because they arrived faster than they could be logged.
    pub events_lost: u64,
    /// Number of prefixes that are never blocked.
    pub allowed: u64,
    /// `None` if this host is in no fleet.
    pub fleet: Option<FleetSnapshot>,
}

/// Metrics of the daemon's part in a fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FleetSnapshot {
    /// True while there is a connection to the server.
    pub connected: bool,
    /// Number of targets that are blocked, or would be without shadow mode.
    pub bans: u64,
    /// Number of targets that need a report of another author.
    pub waiting: u64,
    /// Number of accepted reports.
    pub accepted: u64,
    /// Number of refused reports.
    pub refused: u64,
}

/// Formats all metrics in the format OpenMetrics 1.0.
pub fn text(metrics: &Arc<SensorMetrics>, snapshot: Snapshot) -> String {
    let mut registry = Registry::with_prefix("portsentry");
    registry.register_collector(Box::new(All { metrics: Arc::clone(metrics), snapshot }));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct All {
    metrics: Arc<SensorMetrics>,
    snapshot: Snapshot,
}

type Labels = Vec<(&'static str, &'static str)>;

/// The values of one metric family, with their labels.
struct Family {
    kind: MetricType,
    values: Vec<(Labels, f64)>,
}

impl EncodeMetric for Family {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (labels, value) in &self.values {
            let encoder = encoder.encode_family(labels)?;
            match self.kind {
                MetricType::Counter => ConstCounter::new(*value).encode(encoder)?,
                _ => ConstGauge::new(*value).encode(encoder)?,
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        self.kind
    }
}

/// The histogram of reaction times.
struct Reactions<'a>(&'a SensorMetrics);

impl EncodeMetric for Reactions<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let (counts, sum) = self.0.reactions();
        let bounds = REACTIONS.iter().map(|micros| seconds(*micros)).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        encoder.encode_histogram::<Labels>(seconds(sum), counts.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

fn seconds(micros: u64) -> f64 {
    std::time::Duration::from_micros(micros).as_secs_f64()
}

/// Exact up to 2^53, which no metric here reaches.
#[expect(clippy::cast_precision_loss, reason = "more than 2^53 packets take a century")]
fn float(value: u64) -> f64 {
    value as f64
}

/// Writes families one after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn encode(&mut self, name: &str, help: &str, family: &impl EncodeMetric) -> fmt::Result {
        family.encode(self.0.encode_descriptor(name, help, None, family.metric_type())?)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.encode(name, help, &ConstCounter::new(float(value)))
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.encode(name, help, &ConstGauge::new(float(value)))
    }

    /// A family with one `label`.
    fn by(
        &mut self,
        kind: MetricType,
        (name, label): (&str, &'static str),
        help: &str,
        values: impl IntoIterator<Item = (&'static str, u64)>,
    ) -> fmt::Result {
        let values = values.into_iter().map(|(of, value)| (vec![(label, of)], float(value))).collect();
        self.encode(name, help, &Family { kind, values })
    }
}

impl Collector for All {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        use MetricType::{Counter, Gauge};
        let (metrics, snapshot, mut all) = (&*self.metrics, &self.snapshot, Families(encoder));
        let started = ConstGauge::new(snapshot.started);
        all.encode("start_time_seconds", "Start time of the daemon, in seconds since 1970", &started)?;
        all.counter("packets", "Packets that passed the capture filter", metrics.frames.get())?;
        all.counter(
            "packets_dropped",
            "Packets lost because the capture's ring buffer was full",
            metrics.dropped.get(),
        )?;
        all.counter("packets_malformed", "Packets that could not be decoded", metrics.undecoded.get())?;
        all.counter("packets_judged", "Packets from sources that already had a verdict", metrics.repeated.get())?;
        all.counter("decoy_connections", "Connections and datagrams accepted by decoys", metrics.connections.get())?;
        all.gauge("decoy_ports", "TCP ports served by the shared decoy listener", metrics.decoy_ports.get())?;
        all.counter(
            "decoy_syns",
            "SYNs that the kernel redirected to the shared decoy listener",
            metrics.decoy_syns.get(),
        )?;
        all.counter("decoy_answers", "SYNs that the shared decoy listener answered", metrics.decoy_answers.get())?;
        let classes = Class::ALL.iter().map(|class| (class.key(), metrics.probes_of(*class)));
        all.by(Counter, ("probes", "class"), "Probes that count as evidence", classes)?;
        let pairs = Backend::ALL.into_iter().flat_map(|backend| Class::ALL.iter().map(move |class| (backend, *class)));
        let kinds = pairs.flat_map(|(backend, class)| Grade::ALL.map(|grade| (backend, class, grade)));
        let bans = kinds.map(|(backend, class, grade)| {
            let labels = vec![("method", backend.name()), ("reason", class.key()), ("evidence", grade.key())];
            (labels, float(metrics.bans_by(backend, class, grade)))
        });
        let values = bans.filter(|(_, count)| *count > 0.0).collect();
        all.encode("bans", "Bans that were enforced", &Family { kind: Counter, values })?;
        let failed = Backend::ALL.map(|backend| (backend.name(), metrics.failed_by(backend)));
        all.by(Counter, ("ban_failures", "method"), "Bans that a backend failed to enforce", failed)?;
        all.counter(
            "bans_capped",
            "Bans shortened because the ceilings of new bans were reached",
            metrics.capped.get(),
        )?;
        all.counter(
            "bans_withheld",
            "Sources not banned because the ceilings of new bans were reached",
            metrics.withheld.get(),
        )?;
        all.gauge("bans_intended", "Bans that should be in force", snapshot.intended)?;
        all.gauge("bans_missing", "Bans that should be in force but are missing in the kernel", metrics.missing.get())?;
        all.counter(
            "bans_repaired",
            "Bans that were missing in a backend and have been restored",
            metrics.bans_repaired(),
        )?;
        if let Some(capacity) = snapshot.capacity {
            let sets = ["blocked", "blocked6"].map(|set| (set, capacity));
            all.by(Gauge, ("set_capacity", "set"), "Maximum number of elements of an nftables set", sets)?;
        }
        if let Some(fleet) = snapshot.fleet {
            all.gauge(
                "fleet_connected",
                "1 if the fleet process is connected to the server, else 0",
                fleet.connected.into(),
            )?;
            all.gauge(
                "fleet_bans",
                "Targets that reports of other hosts block, or would block with fleet.shadow",
                fleet.bans,
            )?;
            all.gauge("fleet_waiting", "Targets not blocked until further hosts report them", fleet.waiting)?;
            let outcomes = [("counted", fleet.accepted), ("refused", fleet.refused)];
            all.by(Counter, ("fleet_reports", "outcome"), "Reports of other hosts, by outcome", outcomes)?;
        }
        all.gauge("sources_tracked", "Sources with evidence in the source table", metrics.sources_tracked.get())?;
        all.counter("sources_evicted", "Sources evicted because the source table was full", metrics.evicted.get())?;
        all.counter("socket_lookups", "Queries of the kernel's socket table", metrics.lookups.get())?;
        all.counter(
            "events_lost",
            "Events lost because they came faster than they could be logged",
            snapshot.events_lost,
        )?;
        all.gauge("allowed_prefixes", "Prefixes on the allow-list", snapshot.allowed)?;
        let ports = [("tcp", metrics.trapped.get()), ("udp", metrics.trapped_udp.get())];
        all.by(Gauge, ("trap_ports", "protocol"), "Ports that the kernel's trap monitors", ports)?;
        let help = "Ports that have left the kernel's trap, if more than a quarter left within ten minutes, else 0";
        all.gauge("trap_ports_lost", help, metrics.trap_lost.get())?;
        let filling = [("touched", metrics.trap_probed.get()), ("suspects", metrics.trap_suspects.get())];
        let help = "Elements in the sets of the kernel's trap (Linux 6.15 and later)";
        all.by(Gauge, ("trap_elements", "set"), help, filling)?;
        let verdicts = [
            ("condemned", metrics.trap_banned.get()),
            ("let-go", metrics.trap_let_go.get()),
            ("shortened", metrics.trap_shortened.get()),
        ];
        let help = "Bans by the kernel's trap, by the verdict of the sensor";
        all.by(Counter, ("trap_bans", "verdict"), help, verdicts)?;
        all.counter("hold_dropped", "SYNs of held sources that the kernel dropped", metrics.held.get())?;
        let help = "Packets of sources that were not held because a set was full";
        all.counter("hold_full", help, metrics.hold_full.get())?;
        let help = "Time from the capture of a packet until the kernel has acknowledged the ban";
        all.encode("reaction_seconds", help, &Reactions(metrics))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_text_follows_prometheus_conventions() {
        let metrics = Arc::new(SensorMetrics::default());
        let snapshot = Snapshot { started: 1.5, intended: 7, capacity: Some(131_072), ..Snapshot::default() };
        let text = text(&metrics, snapshot);
        assert!(text.ends_with("# EOF\n"), "{text}");
        for line in [
            "# TYPE portsentry_packets counter",
            "portsentry_packets_total 0.0",
            "portsentry_probes_total{class=\"xmas\"} 0.0",
            "portsentry_bans_intended 7.0",
            "portsentry_bans_missing 0.0",
            "portsentry_set_capacity{set=\"blocked6\"} 131072.0",
            "portsentry_ban_failures_total{method=\"hosts-deny\"} 0.0",
            "portsentry_trap_ports{protocol=\"udp\"} 0.0",
            "portsentry_trap_ports_lost 0.0",
            "portsentry_trap_elements{set=\"touched\"} 0.0",
            "portsentry_trap_bans_total{verdict=\"let-go\"} 0.0",
            "portsentry_reaction_seconds_bucket{le=\"0.0001\"} 0",
            "portsentry_reaction_seconds_bucket{le=\"+Inf\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
