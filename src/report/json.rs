//! Renders [`ReportStats`] as one JSON object, with the same names as the JSON events.

use serde::Serialize;
use serde_json::Value;

use super::stats::ReportStats;

#[derive(Serialize)]
struct Report<'a> {
    event: &'static str,
    host: Option<&'a str>,
    #[serde(flatten)]
    stats: &'a ReportStats,
}

/// Renders the report about `host`.
pub fn json(stats: &ReportStats, host: Option<&str>) -> Value {
    // Cannot fail: all keys are strings.
    serde_json::to_value(Report { event: "report", host, stats }).unwrap_or_default()
}
