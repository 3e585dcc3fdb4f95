//! Exposes the sensor's metrics in the OpenMetrics text format over HTTP. Counts nothing itself.
//!
//! References: <https://prometheus.io/docs/practices/naming/>.

pub mod http;

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
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
#[must_use]
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
            let put = |encoder: &mut MetricEncoder<'_>| match self.kind {
                MetricType::Counter => encoder.encode_counter::<Labels, _, f64>(value, None),
                _ => encoder.encode_gauge(value),
            };
            match labels.is_empty() {
                true => put(&mut encoder)?,
                false => put(&mut encoder.encode_family(labels)?)?,
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
        let read = self.0.reactions();
        let bounds = REACTIONS.iter().map(|micros| seconds(*micros)).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(read.counts).collect();
        encoder.encode_histogram::<Labels>(seconds(read.sum), read.counts.iter().sum(), &buckets, None)
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

impl Collector for All {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (metrics, snapshot) = (&*self.metrics, &self.snapshot);
        let mut put = |kind, name: &str, help: &str, values: Vec<(Labels, f64)>| {
            let family = Family { kind, values };
            family.encode(encoder.encode_descriptor(name, help, None, kind)?)
        };
        let one = |value: u64| vec![(Labels::new(), float(value))];
        use MetricType::{Counter, Gauge};
        put(
            Gauge,
            "start_time_seconds",
            "Start time of the daemon, in seconds since 1970",
            vec![(Labels::new(), snapshot.started)],
        )?;
        put(Counter, "packets", "Packets that passed the capture filter", one(metrics.frames.get()))?;
        put(
            Counter,
            "packets_dropped",
            "Packets lost because the capture's ring buffer was full",
            one(metrics.dropped.get()),
        )?;
        put(Counter, "packets_malformed", "Packets that could not be decoded", one(metrics.undecoded.get()))?;
        put(Counter, "packets_judged", "Packets from sources that already had a verdict", one(metrics.repeated.get()))?;
        put(
            Counter,
            "decoy_connections",
            "Connections and datagrams accepted by decoys",
            one(metrics.connections.get()),
        )?;
        put(Gauge, "decoy_ports", "TCP ports served by the shared decoy listener", one(metrics.decoy_ports.get()))?;
        put(
            Counter,
            "decoy_syns",
            "SYNs that the kernel redirected to the shared decoy listener",
            one(metrics.decoy_syns.get()),
        )?;
        put(
            Counter,
            "decoy_answers",
            "SYNs that the shared decoy listener answered",
            one(metrics.decoy_answers.get()),
        )?;
        let classes = Class::ALL.map(|class| (vec![("class", class.key())], float(metrics.probes_of(class))));
        put(Counter, "probes", "Probes that count as evidence", classes.to_vec())?;
        let ways = Backend::ALL.into_iter().flat_map(|way| Class::ALL.map(|class| (way, class)));
        let kinds = ways.flat_map(|(way, class)| Grade::ALL.map(|grade| (way, class, grade)));
        let bans = kinds.map(|(way, class, grade)| {
            let labels = vec![("method", way.name()), ("reason", class.key()), ("evidence", grade.key())];
            (labels, float(metrics.bans_by(way, class, grade)))
        });
        put(Counter, "bans", "Bans that were enforced", bans.filter(|(_, count)| *count > 0.0).collect())?;
        let failed = Backend::ALL.map(|way| (vec![("method", way.name())], float(metrics.failed_by(way))));
        put(Counter, "ban_failures", "Bans that a backend failed to enforce", failed.to_vec())?;
        put(
            Counter,
            "bans_capped",
            "Bans shortened because the ceilings of new bans were reached",
            one(metrics.capped.get()),
        )?;
        put(
            Counter,
            "bans_withheld",
            "Sources not banned because the ceilings of new bans were reached",
            one(metrics.withheld.get()),
        )?;
        put(Gauge, "bans_intended", "Bans that should be in force", one(snapshot.intended))?;
        put(
            Gauge,
            "bans_missing",
            "Bans that should be in force but are missing in the kernel",
            one(metrics.missing.get()),
        )?;
        put(
            Counter,
            "bans_repaired",
            "Bans that were missing in the kernel and have been restored",
            one(metrics.put_back()),
        )?;
        if let Some(capacity) = snapshot.capacity {
            let sets = ["blocked", "blocked6"].map(|set| (vec![("set", set)], float(capacity)));
            put(Gauge, "set_capacity", "Maximum number of elements of an nftables set", sets.to_vec())?;
        }
        if let Some(fleet) = snapshot.fleet {
            put(
                Gauge,
                "fleet_connected",
                "1 if the fleet process is connected to the server, else 0",
                one(fleet.connected.into()),
            )?;
            put(
                Gauge,
                "fleet_bans",
                "Targets that reports of other hosts block, or would block with fleet.shadow",
                one(fleet.bans),
            )?;
            put(Gauge, "fleet_waiting", "Targets not blocked until further hosts report them", one(fleet.waiting))?;
            let outcomes = [("counted", fleet.accepted), ("refused", fleet.refused)];
            let outcomes = outcomes.map(|(outcome, count)| (vec![("outcome", outcome)], float(count)));
            put(Counter, "fleet_reports", "Reports of other hosts, by outcome", outcomes.to_vec())?;
        }
        put(Gauge, "sources_tracked", "Sources with evidence in the source table", one(metrics.suspects.get()))?;
        put(
            Counter,
            "sources_evicted",
            "Sources evicted because the source table was full",
            one(metrics.evicted.get()),
        )?;
        put(Counter, "socket_lookups", "Queries of the kernel's socket table", one(metrics.lookups.get()))?;
        put(
            Counter,
            "events_lost",
            "Events lost because they came faster than they could be logged",
            one(snapshot.events_lost),
        )?;
        put(Gauge, "allowed_prefixes", "Prefixes on the allow-list", one(snapshot.allowed))?;
        let ports = [("tcp", &metrics.trapped), ("udp", &metrics.trapped_udp)];
        let ports = ports.map(|(protocol, metric)| (vec![("protocol", protocol)], float(metric.get())));
        put(Gauge, "trap_ports", "Ports that the kernel's trap monitors", ports.to_vec())?;
        let help = "Ports that have left the kernel's trap, if more than a quarter left within ten minutes, else 0";
        put(Gauge, "trap_ports_lost", help, one(metrics.trap_lost.get()))?;
        let filling = [("touched", &metrics.trap_touched), ("suspects", &metrics.trap_suspects)];
        let filling = filling.map(|(set, metric)| (vec![("set", set)], float(metric.get())));
        put(
            Gauge,
            "trap_elements",
            "Elements in the sets of the kernel's trap (Linux 6.15 and later)",
            filling.to_vec(),
        )?;
        let verdicts = [
            ("condemned", &metrics.trap_caught),
            ("let-go", &metrics.trap_let_go),
            ("shortened", &metrics.trap_shortened),
        ];
        let verdicts = verdicts.map(|(verdict, metric)| (vec![("verdict", verdict)], float(metric.get())));
        put(Counter, "trap_bans", "Bans by the kernel's trap, by the verdict of the sensor", verdicts.to_vec())?;
        put(Counter, "hold_dropped", "SYNs of held sources that the kernel dropped", one(metrics.held.get()))?;
        let help = "Packets of sources that were not held because a set was full";
        put(Counter, "hold_full", help, one(metrics.hold_full.get()))?;
        let reactions = Reactions(metrics);
        let help = "Time from the capture of a packet until the kernel has acknowledged the ban";
        reactions.encode(encoder.encode_descriptor("reaction_seconds", help, None, MetricType::Histogram)?)
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
