//! Renders [`ReportStats`] as a self-contained HTML page. The page is well-formed XML too, so that tools can check it.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::format::{counted, format_number, time, untrusted};
use super::sections::{sections, would_block};
use super::stats::ReportStats;
use crate::types::spaced;

const STYLE: &str = include_str!("style.css");

/// A policy with which the browser fetches and runs nothing, regardless of the contents of the page. It is a
/// separate file, because the template would not close these elements as XML requires.
const META: &str = include_str!("head.html");

/// Renders the page about `host`, or about an unnamed host.
pub fn html(stats: &ReportStats, host: Option<&str>) -> String {
    let title = html! { "Blocked port scans" @if let Some(host) = host { " on " (untrusted(host)) } };
    let page = html! {
        (DOCTYPE) "\n"
        html lang="en" {
            head {
                (PreEscaped(META))
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (title) }
                    p {
                        "From " (time(stats.from)) " to " (time(stats.to)) " UTC, "
                        (spaced(stats.to.duration_since(stats.from).unwrap_or_default()))
                    }
                }
                main {
                    (tiles(stats))
                    @if stats.bans > 0 { (sections(stats)) } @else if stats.would_block.items.is_empty() { (quiet(stats)) }
                    (would_block(stats))
                }
                footer {
                    (remarks(stats))
                    p { "portsentry " (env!("CARGO_PKG_VERSION")) }
                }
            }
        }
        "\n"
    };
    page.into_string()
}

fn tiles(stats: &ReportStats) -> Markup {
    let tiles = [
        ("Bans", stats.bans, "began in this period"),
        ("Sources", stats.sources, "IPv4 addresses and IPv6 /64 networks"),
        ("In force now", stats.in_force, "also those that began earlier"),
        ("Repeat offenders", stats.repeaters, "sources that had been banned before"),
        ("Probes", stats.probes, "before the bans"),
    ];
    html! {
        dl.tiles {
            @for (name, value, note) in tiles {
                div { dt { (name) } dd { (format_number(value)) } dd.note { (note) } }
            }
        }
    }
}

fn quiet(stats: &ReportStats) -> Markup {
    html! {
        section class="card quiet" {
            @if stats.kept == 0 {
                h2 { "No source has been blocked yet" }
                p {
                    "The ledger is empty. If portsentry is running, no source has scanned this host; " code { "systemctl status portsentry" }
                    " shows whether it is running."
                }
            } @else {
                h2 { "All quiet" }
                p {
                    "No ban began in this period. The ledger has older bans: a longer " code { "--since" } " shows them."
                }
            }
        }
    }
}

fn remarks(stats: &ReportStats) -> Markup {
    html! {
        p {
            "All times are UTC. A source is identified by its address, which can be forged unless a connection was \
             completed, and which many users may share."
        }
        @if stats.ahead > 0 {
            p {
                "Not counted: " (counted(stats.ahead, "ban begins", "bans begin"))
                " after the time of this page, because the clock was set back."
            }
        }
        @if stats.unreadable > 0 {
            p {
                "Not counted: " (counted(stats.unreadable, "row of the ledger is", "rows of the ledger are"))
                " unreadable. Check the disk, and whether another program writes to the ledger."
            }
        }
    }
}
