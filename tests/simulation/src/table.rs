//! The outcome as a table for people.

use std::fmt::Write as _;

use crate::outcome::{Outcome, median};

/// The honest bans that are listed one by one.
const LISTED: usize = 20;

/// The whole outcome as text.
#[must_use]
pub fn text(outcome: &Outcome) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:.2} host-years on {} hosts, {} packets\n\
         honest bans a host-year: {:.2} ({} in all), and {} in the name of honest sources by forgers\n",
        outcome.host_years,
        outcome.hosts,
        outcome.packets,
        outcome.honest_bans_per_year(),
        outcome.count_honest_bans(false),
        outcome.count_honest_bans(true),
    );
    honest(&mut text, outcome);
    dishonest(&mut text, outcome);
    if !outcome.honest_bans.is_empty() {
        let _ = writeln!(text, "\nhonest bans (make simulate REPLAY=… shows how one came about)");
    }
    for ban in outcome.honest_bans.iter().take(LISTED) {
        let forged = if ban.forged { ", forged" } else { "" };
        let _ = writeln!(text, "  {}  {} on {}{forged}: {}", ban.replay, ban.behaviour, ban.profile, ban.ports);
    }
    if let Some(more) = outcome.honest_bans.len().checked_sub(LISTED).filter(|more| *more > 0) {
        let _ = writeln!(text, "  and {more} more; JSON=FILE writes all of them");
    }
    text
}

fn honest(text: &mut String, outcome: &Outcome) {
    let _ = writeln!(
        text,
        "{:<34} {:>9} {:>10} {:>7} {:>10} {:>8} {:>10}",
        "honest behaviour", "sources", "packets", "bans", "bans/year", "refused", "hold s/src"
    );
    for (behaviour, seen) in &outcome.honest {
        let _ = writeln!(
            text,
            "{behaviour:<34} {:>9} {:>10} {:>7} {:>10.2} {:>8} {:>10.2}",
            seen.sources,
            seen.packets,
            seen.bans,
            seen.bans as f64 / outcome.host_years,
            seen.refused,
            seen.hold_seconds / (seen.sources.max(1) as f64),
        );
    }
    let _ = writeln!(text, "bans of the kernel's trap that the program lifted: {}\n", outcome.let_go);
}

fn dishonest(text: &mut String, outcome: &Outcome) {
    let _ = writeln!(
        text,
        "{:<34} {:>9} {:>7} {:>15} {:>15}",
        "dishonest behaviour", "sources", "found", "ports till ban", "ports learned"
    );
    for (behaviour, seen) in &outcome.dishonest {
        let share = if seen.sources == 0 { 0.0 } else { 100.0 * seen.found as f64 / seen.sources as f64 };
        let before = median(&seen.ports_before_ban).map_or("-".to_owned(), |ports| ports.to_string());
        let _ = writeln!(
            text,
            "{behaviour:<34} {:>9} {share:>6.0}% {before:>15} {:>15.2}",
            seen.sources,
            seen.mean_learned()
        );
    }
}
