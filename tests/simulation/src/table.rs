//! Formats the outcome as a table.

use std::fmt::Write as _;

use crate::outcome::{Outcome, median};

/// Maximum number of honest bans that are listed.
const LISTED: usize = 20;

/// The whole outcome as text.
#[must_use]
pub fn text(outcome: &Outcome, pace: u32) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:.2} host-years on {} hosts, {} packets\n\
         honest bans a host-year: {:.2} ({} in all), and {} in the name of honest sources by forgers\n\
         bans of authorised scanners a host-year: {:.2} ({} in all), counted apart\n",
        outcome.host_years,
        outcome.hosts,
        outcome.packets,
        outcome.honest_bans_per_year(),
        outcome.count_honest_bans(false),
        outcome.count_honest_bans(true),
        outcome.count_authorised_bans() as f64 / outcome.host_years,
        outcome.count_authorised_bans(),
    );
    if pace != 1 {
        let _ = writeln!(
            text,
            "at pace {pace}: restarts, mistakes and scans are so many times as frequent as in a real year\n"
        );
    }
    honest(&mut text, outcome);
    authorised(&mut text, outcome);
    dishonest(&mut text, outcome);
    let own: Vec<_> = outcome.honest_bans.iter().filter(|ban| !ban.forged).collect();
    if !own.is_empty() {
        let _ = writeln!(text, "\nhonest bans (make simulate REPLAY=… shows how one came about)");
    }
    for ban in own.iter().take(LISTED) {
        let _ = writeln!(text, "  {}  {} on {}: {}", ban.replay, ban.behaviour, ban.profile, ban.ports);
    }
    if let Some(more) = own.len().checked_sub(LISTED).filter(|more| *more > 0) {
        let _ =
            writeln!(text, "  and {more} more; JSON=FILE writes all of them, and those in the name of honest sources");
    }
    text
}

fn honest(text: &mut String, outcome: &Outcome) {
    let _ = writeln!(
        text,
        "{:<42} {:>9} {:>10} {:>7} {:>10} {:>7} {:>8} {:>8} {:>10} {:>10}",
        "honest behaviour",
        "sources",
        "packets",
        "bans",
        "bans/year",
        "trapped",
        "alarms",
        "refused",
        "hold s/src",
        "forged s"
    );
    for (behaviour, seen) in &outcome.honest {
        let _ = writeln!(
            text,
            "{behaviour:<42} {:>9} {:>10} {:>7} {:>10.2} {:>7} {:>8} {:>8} {:>10.2} {:>10.2}",
            seen.sources,
            seen.packets,
            seen.bans,
            seen.bans as f64 / outcome.host_years,
            seen.trapped,
            seen.alarms,
            seen.refused,
            seen.hold_seconds / (seen.sources.max(1) as f64),
            seen.forged_hold_seconds / (seen.sources.max(1) as f64),
        );
    }
    let _ = writeln!(
        text,
        "bans of the kernel's trap that the program lifted: {}, made short: {}; bans lifted for too little evidence: {}\n",
        outcome.let_go, outcome.shortened, outcome.lifted
    );
}

fn authorised(text: &mut String, outcome: &Outcome) {
    let _ = writeln!(
        text,
        "{:<42} {:>9} {:>10} {:>7} {:>10} {:>8}",
        "authorised scanners, not allow-listed", "sources", "packets", "bans", "bans/year", "refused"
    );
    for (behaviour, seen) in &outcome.authorised {
        let a_year = seen.bans as f64 / outcome.host_years;
        let _ = writeln!(
            text,
            "{behaviour:<42} {:>9} {:>10} {:>7} {a_year:>10.2} {:>8}",
            seen.sources, seen.packets, seen.bans, seen.refused
        );
    }
    text.push('\n');
}

fn dishonest(text: &mut String, outcome: &Outcome) {
    let _ = writeln!(
        text,
        "{:<48} {:>9} {:>7} {:>15} {:>15}  one that was not found (REPLAY=…)",
        "dishonest behaviour", "sources", "found", "ports till ban", "ports learned"
    );
    for (behaviour, seen) in &outcome.dishonest {
        let share = if seen.sources == 0 { 0.0 } else { 100.0 * seen.found as f64 / seen.sources as f64 };
        let before = median(&seen.ports_before_ban).map_or("-".to_owned(), |ports| ports.to_string());
        let _ = writeln!(
            text,
            "{behaviour:<48} {:>9} {share:>6.0}% {before:>15} {:>15.2}  {}",
            seen.sources,
            seen.mean_learned(),
            seen.missed.first().map_or("", String::as_str)
        );
    }
}
