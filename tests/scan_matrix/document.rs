//! Tests that docs/scan-matrix.md contains the tested rows.

use crate::cell::{Family, Outcome, Row};
use crate::table::ROWS;

#[test]
fn documented_scan_matrix_equals_tested_matrix() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/scan-matrix.md")).unwrap();
    let written: Vec<_> = page.lines().filter(|line| line.starts_with("| `") || line.starts_with("| raw: ")).collect();
    let tested: Vec<_> = ROWS.iter().map(line).collect();
    assert!(written == tested, "docs/scan-matrix.md must hold these rows:\n{}\n", tested.join("\n"));
}

fn line(row: &Row) -> String {
    let scan = match row.scan.split_once(' ') {
        Some(("nmap" | "masscan" | "zmap" | "hping3", _)) => format!("`{}`", row.scan),
        _ => format!("raw: {}", row.scan),
    };
    let family = |family| if row.families.contains(&family) { "seen" } else { "–" };
    let settings = row.settings.lines().filter(|line| !line.starts_with('[')).map(|line| {
        let section = row.settings.split(line).next().and_then(|before| before.rsplit('[').next()).unwrap_or_default();
        format!("`{}.{line}`", section.trim_end().trim_end_matches(']'))
    });
    format!(
        "| {scan} | {} | {} | {} | {} | {} | {} |",
        family(Family::V4),
        family(Family::V6),
        row.class,
        upon(row.forgiving),
        upon(row.strict),
        settings.collect::<Vec<_>>().join(", ")
    )
}

fn upon(outcome: Outcome) -> String {
    match outcome {
        Outcome::Blocked(1) => "at the 1st".to_owned(),
        Outcome::Blocked(3) => "at the 3rd".to_owned(),
        Outcome::Logged(1) => "logged at the 1st".to_owned(),
        Outcome::Logged(3) => "logged at the 3rd".to_owned(),
        other => panic!("{other:?} has no wording yet"),
    }
}
