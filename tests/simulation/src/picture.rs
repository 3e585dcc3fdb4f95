//! Draws the outcome as a picture (SVG): honest bans per host-year by behaviour, and the detection rate of each kind of
//! scan.

use std::fmt::Write as _;

use crate::outcome::{Outcome, median};

const ROW: u32 = 22;
const WIDTH: u32 = 860;
/// Start of the bars, and length of the longest.
const BAR: u32 = 330;
const MAX_BAR_WIDTH: f64 = 280.0;

const HEAD: &str = r##"  <style>
    text { fill: #1f2328; }
    .word { fill: #59636e; }
    .harm { fill: #cf222e; }
    .found { fill: #1a7f37; }
    .none { fill: #d1d9e0; }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc; }
      .word { fill: #9198a1; }
      .harm { fill: #f85149; }
      .found { fill: #2ea043; }
      .none { fill: #3d444d; }
    }
  </style>
"##;

struct Chart {
    body: String,
    y: u32,
}

impl Chart {
    fn title(&mut self, text: &str) {
        self.y += 16;
        let _ = writeln!(self.body, r#"  <text x="16" y="{}" font-weight="600">{}</text>"#, self.y, escaped(text));
        self.y += 10;
    }

    /// Draws a bar between its name and its numbers. `share` is its length as a fraction of the longest.
    fn bar(&mut self, name: &str, share: f64, class: &str, numbers: &str) {
        let (top, base, width) = (self.y + 4, self.y + 16, (share * MAX_BAR_WIDTH).max(1.0));
        let class = if share > 0.0 { class } else { "none" };
        let _ = writeln!(
            self.body,
            "  <text x=\"{}\" y=\"{base}\" text-anchor=\"end\">{}</text>\n  \
             <rect class=\"{class}\" x=\"{BAR}\" y=\"{top}\" width=\"{width:.0}\" height=\"14\"/>\n  \
             <text class=\"word\" x=\"{:.0}\" y=\"{base}\">{}</text>",
            BAR - 8,
            escaped(name),
            f64::from(BAR) + width + 8.0,
            escaped(numbers),
        );
        self.y += ROW;
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// Returns the picture of an outcome.
#[must_use]
pub fn svg(outcome: &Outcome) -> String {
    let mut chart = Chart { body: String::new(), y: 12 };
    let a_year = |bans: u64| bans as f64 / outcome.host_years;
    let all = outcome.honest.values().map(|seen| seen.bans).chain(outcome.authorised.values().map(|seen| seen.bans));
    let most = all.map(a_year).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    chart.title("Bans of honest sources in a host-year");
    for (behaviour, seen) in &outcome.honest {
        let bans = a_year(seen.bans);
        let numbers = if seen.bans == 0 { "none".to_owned() } else { format!("{bans:.2}") };
        chart.bar(behaviour, bans / most, "harm", &numbers);
    }
    chart.y += ROW;
    chart.title("Bans of authorised scanners that are not on the allow-list, in a host-year");
    for (behaviour, seen) in &outcome.authorised {
        let bans = a_year(seen.bans);
        chart.bar(behaviour, bans / most, "harm", &format!("{bans:.2}"));
    }
    chart.y += ROW;
    chart.title("Share of scans that were found");
    for (behaviour, seen) in outcome.dishonest.iter().filter(|(_, seen)| seen.sources > 0) {
        let share = seen.found as f64 / seen.sources as f64;
        let ports = median(&seen.ports_before_ban).map_or(String::new(), |ports| format!(" after {ports} ports"));
        let numbers = format!("{:.0} %{ports}, {:.1} learned", 100.0 * share, seen.mean_learned());
        chart.bar(behaviour, share, "found", &numbers);
    }
    let Chart { body, y } = chart;
    let height = y + 12;
    let summary = format!(
        "{:.1} host-years: {:.2} honest bans in each, and the share of each kind of scan that was found.",
        outcome.host_years,
        outcome.honest_bans_per_year()
    );
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-labelledby=\"title description\" font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\" \
         font-size=\"13\">\n  <title id=\"title\">Simulated lives of hosts</title>\n  \
         <desc id=\"description\">{}</desc>\n{HEAD}{body}</svg>\n",
        escaped(&summary)
    )
}
