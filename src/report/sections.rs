//! Renders the sections of the page: a chart, a table of hours, and lists with a bar under each name. Every number in a
//! drawing is also written next to it or in a table, so that the page is readable without colour or sight.

use maud::{Markup, display, html};

use super::calendar::{WEEKDAYS, label, unit};
use super::format::{counted, format_number, fraction, length, share, short, time, untrusted};
use super::services;
use super::stats::{RecentBan, ReportStats, Top};
use crate::engine::{Class, Grade};
use crate::ledger::BanAuthor;
use crate::types::{BanTarget, Protocol, spaced};

/// All sections, for a period that contains bans.
pub(super) fn sections(stats: &ReportStats) -> Markup {
    let shares = |all, id, class, title, head, caption, items: &[(&str, u64)]| {
        let rows = items.iter().map(|(name, bans)| (html! { (name) }, *bans, share(*bans, all)));
        section(id, class, title, &list(caption, [head, "Bans", "Share"], rows.collect()))
    };
    // Bans without a probe have a separate section.
    let probed = stats.classes.iter().filter(|(class, _)| class.is_some());
    let classes: Vec<_> = probed.map(|(class, bans)| (class_title(*class), *bans)).collect();
    let evidence: Vec<_> =
        stats.evidence.iter().filter_map(|(grade, bans)| Some((evidence_title((*grade)?), *bans))).collect();
    let sum = |items: &[(&str, u64)]| items.iter().map(|(_, bans)| bans).sum();
    let ends = [
        ("still in force", stats.ends.in_force),
        ("expired", stats.ends.expired),
        ("lifted", stats.ends.lifted),
        ("replaced by a newer ban", stats.ends.replaced),
    ];
    let authors: Vec<_> = stats.authors.iter().map(|(author, bans)| (author_title(*author), *bans)).collect();
    let methods: Vec<_> = stats.methods.iter().map(|(method, bans)| (method.title(), *bans)).collect();
    html! {
        (section("time", "wide", "Bans over time", &over_time(stats)))
        (section("ports", "", "Ports", &ports(stats)))
        (section("networks", "", "Networks", &networks(stats)))
        (section("recent", "wide", "Recent bans", &recent(&stats.recent, "Kind", "The newest bans by the detector.")))
        (section("sources", "", "Sources", &sources(stats)))
        (section("offenders", "wide", "Repeat offenders", &offenders(stats)))
        @if !stats.by_hand.is_empty() {
            (section("by-hand", "wide", "Manual and imported",
                &recent(&stats.by_hand, "Reason", "The newest bans by operators and by imports.")))
        }
        (section("hours", "hours", "Hours of the week", &hours(stats)))
        (shares(sum(&classes), "classes", "", "Kinds of scans", "Kind", "Class of the probe that caused the ban.", &classes))
        (shares(sum(&evidence), "evidence", "", "Evidence", "Grade", "Whether the source can be forged.", &evidence))
        (shares(stats.bans, "ends", "third", "Ends of the bans", "End", "State of the bans that began in this period.", &ends))
        (shares(stats.bans, "authors", "third", "Origin", "By", "What created the ban.", &authors))
        (shares(stats.bans, "methods", "third", "Backends", "Method", "What enforces the ban.", &methods))
    }
}

fn section(id: &str, class: &str, title: &str, content: &Markup) -> Markup {
    html! {
        section class={ "card " (class) } aria-labelledby=(id) { h2 id=(id) { (title) } (content) }
    }
}

/// Height of the chart's plot, and of the space above it, in pixels.
const PLOT: u64 = 150;
const TOP: u64 = 8;

fn over_time(stats: &ReportStats) -> Markup {
    let (width, bars) = (stats.over_time.bucket, &stats.over_time.bans);
    let most = bars.iter().map(|(_, bans)| *bans).max().unwrap_or_default();
    let (unit, scale, count) = (unit(width), round_up(most), u64::try_from(bars.len()).unwrap_or(u64::MAX));
    // Three labels fit on the screen of a telephone.
    let (middle, last) = (bars.len() / 2, bars.len().saturating_sub(1));
    let labels = [
        (0, "start", "0".to_owned()),
        (middle, "middle", length(count / 2 * 2 + 1, count * 2)),
        (last, "end", "100%".to_owned()),
    ];
    let is_apart = |index, anchor| anchor == "start" || index > 0 && (anchor == "end" || index < last);
    html! {
        p.caption { "Each bar stands for " (unit) "; the first and the last are shortened by the period." }
        svg.chart role="img" aria-labelledby="chart-title chart-desc" {
            title #chart-title { "Bans over time, each bar for " (unit) }
            desc #chart-desc {
                "The highest bar stands for " (counted(most, "ban", "bans")) ". The table below has every number."
            }
            @for value in [Some(0), Some(scale / 2).filter(|half| *half > 0), Some(scale)].into_iter().flatten() {
                @let y = TOP + PLOT - fraction(value, scale, PLOT);
                line.grid x1="0" x2="100%" y1=(y) y2=(y) {}
                text x="-8" y=(y + 4) text-anchor="end" { (short(value)) }
            }
            @for (index, (start, bans)) in (0_u64..).zip(bars) {
                // The minimum height keeps a bar of one ban among thousands visible.
                @let height = fraction(*bans, scale, PLOT).max(u64::from(*bans > 0) * 2);
                rect x=(length(index * 10 + 1, count * 10)) y=(TOP + PLOT - height) width=(length(8, count * 10))
                    height=(height) { title { (label(*start, width)) ": " (counted(*bans, "ban", "bans")) } }
            }
            @for (index, anchor, x) in labels {
                @if let Some((start, _)) = bars.get(index).filter(|_| is_apart(index, anchor)) {
                    text x=(x) y=(TOP + PLOT + 18) text-anchor=(anchor) { (label(*start, width)) }
                }
            }
        }
        details {
            summary { "As a table" }
            table {
                caption { "Bans that began within " (unit) " from the given time on, UTC." }
                thead { tr { th scope="col" { "From" } th.n scope="col" { "Bans" } } }
                tbody {
                    @for (start, bans) in bars {
                        tr { th scope="row" { (time(*start)) } td.n { (format_number(*bans)) } }
                    }
                }
            }
        }
    }
}

/// The smallest end of the axis that is at least `value` and has a round half.
fn round_up(value: u64) -> u64 {
    let mut ends =
        (0..).flat_map(|power| [2, 4, 6, 8, 10].map(|step| 10_u64.saturating_pow(power).saturating_mul(step)));
    ends.find(|end| *end >= value).unwrap_or(u64::MAX)
}

fn hours(stats: &ReportStats) -> Markup {
    let most = stats.hours.iter().flatten().copied().max().unwrap_or_default();
    let level = |bans| if bans == 0 { 0 } else { 1 + fraction(bans, most, 4) };
    html! {
        table {
            caption { "Bans by weekday and hour (UTC): a stronger colour means more bans." }
            thead {
                tr {
                    th scope="col" { "Hour" }
                    @for day in WEEKDAYS { th scope="col" { abbr title=(day) { (day.get(..3).unwrap_or(day)) } } }
                }
            }
            tbody {
                @for hour in 0..24 {
                    tr {
                        th scope="row" { (format!("{hour:02}")) }
                        @for bans in stats.hours.iter().filter_map(|hours| hours.get(hour)) {
                            td class={ "l" (level(*bans)) } { (short(*bans)) }
                        }
                    }
                }
            }
        }
    }
}

fn offenders(stats: &ReportStats) -> Markup {
    let Top { items, more } = &stats.offenders;
    if items.is_empty() {
        return html! { p.caption { "None: every source was banned for the first time." } };
    }
    let caption = "Sources banned in this period that had been banned before, with all their bans in the ledger.";
    let rows = items.iter().map(|offender| {
        let (bans, blocked) = (format_number(offender.strikes), spaced(offender.blocked));
        (offender.target, [html! { (bans) }, html! { (blocked) }, time(offender.first), time(offender.last)])
    });
    html! {
        (cards(caption, ["Bans", "Blocked for", "First", "Last"], rows)) (and_more(*more, "source", "sources"))
    }
}

/// The sources that a host in log-only mode would have blocked; empty if there are none.
pub(super) fn would_block(stats: &ReportStats) -> Markup {
    let Top { items, more } = &stats.would_block;
    let caption = "Sources that would have been banned while scans were only logged, newest first.";
    let rows = items.iter().map(|source| {
        let times = html! { (format_number(u64::from(source.times))) };
        (source.target, [untrusted(&source.reason), times, time(source.last)])
    });
    let content = html! {
        (cards(caption, ["Reason", "Times", "Last"], rows)) (and_more(*more, "source", "sources"))
    };
    html! { @if !items.is_empty() { (section("would-block", "wide", "Would have been blocked", &content)) } }
}

/// A table of single bans. Bans without a class show the operator's reason.
fn recent(bans: &[RecentBan], what: &str, caption: &str) -> Markup {
    if bans.is_empty() {
        return html! { p.caption { "None in this period." } };
    }
    let rows = bans.iter().map(|ban| {
        let reason = match (ban.class, &ban.note) {
            (Some(class), _) => html! { (class_title(Some(class))) },
            (None, Some(note)) => untrusted(note),
            (None, None) => html! { (author_title(ban.author)) },
        };
        (ban.target, [time(ban.since), reason, html! { (if ban.in_force { "in force" } else { "over" }) }])
    });
    cards(caption, ["Since", what, "Now"], rows)
}

/// A table of sources, each with one cell for each of `heads`.
fn cards<const N: usize>(
    caption: &str,
    heads: [&str; N],
    rows: impl Iterator<Item = (BanTarget, [Markup; N])>,
) -> Markup {
    // The roles keep it a table for screen readers when the style renders its rows as cards.
    html! {
        table.cards role="table" {
            caption { (caption) }
            thead role="rowgroup" {
                tr role="row" {
                    th role="columnheader" scope="col" { "Source" }
                    @for head in heads { th role="columnheader" scope="col" { (head) } }
                }
            }
            tbody role="rowgroup" {
                @for (source, cells) in rows {
                    tr role="row" {
                        th role="rowheader" scope="row" { code { (display(source)) } }
                        @for (head, cell) in heads.iter().zip(cells) { td role="cell" data-head=(head) { (cell) } }
                    }
                }
            }
        }
    }
}

fn sources(stats: &ReportStats) -> Markup {
    let Top { items, more } = &stats.top_sources;
    let rows = items
        .iter()
        .map(|source| (html! { code { (display(source.target)) } }, source.bans, format_number(source.probes)));
    let caption = "Sources with the most probes before their ban.";
    html! { (list(caption, ["Source", "Bans", "Probes"], rows.collect())) (and_more(*more, "source", "sources")) }
}

fn ports(stats: &ReportStats) -> Markup {
    let Top { items, more } = &stats.ports;
    if items.is_empty() {
        return html! { p.caption { "None: no ban of this period follows a probe." } };
    }
    let caption = "Ports probed before a ban, with the share of all bans. One ban may have several ports.";
    let rows = items.iter().map(|((protocol, port), bans)| {
        let name = html! {
            (protocol.name()) @if *protocol == Protocol::Icmp { " type" } " " (port)
            @if let Some(service) = services::name(*protocol, *port) { " " span.soft { (service) } }
        };
        (name, *bans, share(*bans, stats.bans))
    });
    html! { (list(caption, ["Port", "Bans", "Share"], rows.collect())) (and_more(*more, "port", "ports")) }
}

fn networks(stats: &ReportStats) -> Markup {
    let Top { items, more } = &stats.networks;
    let caption = "Networks of the sources: IPv4 /24, IPv6 /48.";
    let rows = items
        .iter()
        .map(|network| (html! { code { (display(network.prefix)) } }, network.bans, format_number(network.sources)));
    html! { (list(caption, ["Network", "Bans", "Sources"], rows.collect())) (and_more(*more, "network", "networks")) }
}

/// A table of names, each with its bans, a bar of proportional length, and the text of a third column.
fn list(caption: &str, heads: [&str; 3], rows: Vec<(Markup, u64, String)>) -> Markup {
    let most = rows.iter().map(|(_, bans, _)| *bans).max().unwrap_or_default();
    let [name, bans, last] = heads;
    html! {
        table.list {
            caption { (caption) }
            thead { tr { th scope="col" { (name) } th.n scope="col" { (bans) } th.n scope="col" { (last) } } }
            tbody {
                @for (name, bans, last) in rows {
                    tr {
                        th scope="row" {
                            (name) svg.bar aria-hidden="true" { rect width=(length(bans, most)) height="100%" {} }
                        }
                        td.n { (format_number(bans)) }
                        td.n { (last) }
                    }
                }
            }
        }
    }
}

fn and_more(more: u64, one: &str, many: &str) -> Markup {
    html! {
        @if more > 0 {
            p class="caption more" {
                "And " (counted(more, &format!("more {one}"), &format!("more {many}"))) " that are not listed."
            }
        }
    }
}

fn evidence_title(grade: Grade) -> &'static str {
    match grade {
        Grade::Proven => "proven: completed connections",
        Grade::Forgeable => "forgeable: the source could be forged",
    }
}

fn class_title(class: Option<Class>) -> &'static str {
    match class {
        None => "none: manual or imported",
        Some(Class::Connect) => "completed connection",
        Some(Class::Syn) => "TCP SYN",
        Some(Class::Null) => "TCP NULL",
        Some(Class::Fin) => "TCP FIN",
        Some(Class::Xmas) => "TCP XMAS",
        Some(Class::Maimon) => "TCP FIN/ACK (Maimon)",
        Some(Class::Ack) => "TCP ACK or Window",
        Some(Class::Illegal) => "TCP with illegal flags",
        Some(Class::Fragment) => "TCP in fragments",
        Some(Class::Udp) => "UDP",
        Some(Class::Sctp) => "SCTP INIT",
        Some(Class::Icmp) => "ICMP",
    }
}

fn author_title(author: BanAuthor) -> &'static str {
    match author {
        BanAuthor::Detector => "the detector",
        BanAuthor::Operator => "an operator",
        BanAuthor::Import => "an import",
    }
}
