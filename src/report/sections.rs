//! The parts of the page: a chart, a table of hours, and lists with a bar under each name. Every number that is drawn
//! stands beside it or in a table, so that neither colour nor sight is needed to read it.

use std::fmt::{self, Write};

use super::calendar::{self, WEEKDAYS, label, unit};
use super::figures::{Figures, Top};
use super::html::time;
use super::markup::{Text, counted, fraction, length, number, share, short};
use super::services;
use crate::engine::Class;
use crate::types::Protocol;

/// All of them, for a period with bans in it.
pub(super) fn write(out: &mut String, figures: &Figures) -> fmt::Result {
    over_time(out, figures)?;
    ports(out, figures)?;
    networks(out, figures)?;
    offenders(out, figures)?;
    hours(out, figures)?;
    let all = figures.bans;
    let classes = figures.classes.iter().map(|(class, bans)| (class_title(*class), *bans));
    shares(out, all, ["classes", "", "Kinds of probes", "Kind", "By the probe that decided."], classes)?;
    let ends = figures.ends;
    let ends = [
        ("still in force", ends.in_force),
        ("expired", ends.expired),
        ("lifted by somebody", ends.lifted),
        ("replaced by a newer ban", ends.replaced),
    ];
    shares(out, all, ["ends", "third", "What became of them", "End", "Of the bans that began in this period."], ends)?;
    let authors = figures.authors.iter().map(|(key, bans)| (author_title(key), *bans));
    shares(out, all, ["authors", "third", "Who wanted them", "By", "Who had the source blocked."], authors)?;
    let methods = figures.methods.iter().map(|(key, bans)| (method_title(key), *bans));
    shares(out, all, ["methods", "third", "What blocks them", "Method", "What keeps the source out."], methods)
}

fn open_section(out: &mut String, id: &str, class: &str, title: &str) -> fmt::Result {
    writeln!(out, "<section class=\"card {class}\" aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{title}</h2>")
}

/// Height of the chart's plot and where it begins, in pixels.
const PLOT: u64 = 150;
const TOP: u64 = 8;

fn over_time(out: &mut String, figures: &Figures) -> fmt::Result {
    let unit = unit(figures.bucket);
    let bars = &figures.over_time;
    let most = bars.iter().map(|(_, bans)| *bans).max().unwrap_or_default();
    let (scale, count) = (round_up(most), u64::try_from(bars.len()).unwrap_or(u64::MAX));
    open_section(out, "time", "wide", "Bans over time")?;
    writeln!(
        out,
        "<p class=\"caption\">Each bar stands for {unit}; the first and the last are cut by the period.</p>"
    )?;
    writeln!(
        out,
        "<svg class=\"chart\" role=\"img\" aria-labelledby=\"chart-title chart-desc\">\n\
         <title id=\"chart-title\">Bans over time, each bar for {unit}</title>\n\
         <desc id=\"chart-desc\">The highest bar stands for {}. The table below has every number.</desc>",
        counted(most, "ban", "bans")
    )?;
    for value in [Some(0), Some(scale / 2).filter(|half| *half > 0), Some(scale)].into_iter().flatten() {
        let y = TOP + PLOT - fraction(value, scale, PLOT);
        writeln!(out, "<line class=\"grid\" x1=\"0\" x2=\"100%\" y1=\"{y}\" y2=\"{y}\"/>")?;
        writeln!(out, "<text x=\"-8\" y=\"{}\" text-anchor=\"end\">{}</text>", y + 4, short(value))?;
    }
    for (index, (start, bans)) in (0_u64..).zip(bars) {
        // A bar of one ban among thousands is still to be seen.
        let height = fraction(*bans, scale, PLOT).max(u64::from(*bans > 0) * 2);
        writeln!(
            out,
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{height}\"><title>{}: {}</title></rect>",
            length(index * 10 + 1, count * 10),
            TOP + PLOT - height,
            length(8, count * 10),
            label(*start, figures.bucket),
            counted(*bans, "ban", "bans"),
        )?;
    }
    // Three fit on a telephone.
    let (middle, last) = (bars.len() / 2, bars.len().saturating_sub(1));
    for (index, anchor) in [(0, "start"), (middle, "middle"), (last, "end")] {
        let is_apart = index == 0 && anchor == "start" || index > 0 && (anchor == "end" || index < last);
        if let Some((start, _)) = bars.get(index).filter(|_| is_apart) {
            let x = match anchor {
                "start" => "0".to_owned(),
                "end" => "100%".to_owned(),
                _ => length(count / 2 * 2 + 1, count * 2),
            };
            let y = TOP + PLOT + 18;
            writeln!(
                out,
                "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>",
                label(*start, figures.bucket)
            )?;
        }
    }
    out.write_str("</svg>\n<details>\n<summary>The same as a table</summary>\n<table>\n")?;
    writeln!(out, "<caption>Bans that began within {unit} from the time that is given, UTC.</caption>")?;
    out.write_str(
        "<thead><tr><th scope=\"col\">From</th><th scope=\"col\" class=\"n\">Bans</th></tr></thead>\n<tbody>\n",
    )?;
    for (start, bans) in bars {
        writeln!(out, "<tr><th scope=\"row\">{}</th><td class=\"n\">{}</td></tr>", time(*start), number(*bans))?;
    }
    out.write_str("</tbody>\n</table>\n</details>\n</section>\n")
}

/// The next number that an axis can end with and be halved.
fn round_up(value: u64) -> u64 {
    let mut unit = 1_u64;
    loop {
        for step in [2, 4, 6, 8, 10] {
            let end = unit.saturating_mul(step);
            if end >= value {
                return end;
            }
        }
        unit = unit.saturating_mul(10);
    }
}

fn hours(out: &mut String, figures: &Figures) -> fmt::Result {
    let most = figures.hours.iter().flatten().copied().max().unwrap_or_default();
    open_section(out, "hours", "hours", "Hours of the week")?;
    out.write_str(
        "<table>\n<caption>Bans by weekday and hour (UTC): the stronger the colour, the more.</caption>\n<thead><tr>",
    )?;
    out.write_str("<th scope=\"col\">Hour</th>")?;
    for day in WEEKDAYS {
        write!(out, "<th scope=\"col\"><abbr title=\"{day}\">{}</abbr></th>", day.get(..3).unwrap_or(day))?;
    }
    out.write_str("</tr></thead>\n<tbody>\n")?;
    for hour in 0..24 {
        write!(out, "<tr><th scope=\"row\">{hour:02}</th>")?;
        for bans in figures.hours.iter().filter_map(|hours| hours.get(hour)) {
            let level = if *bans == 0 { 0 } else { 1 + fraction(*bans, most, 4) };
            write!(out, "<td class=\"l{level}\">{}</td>", short(*bans))?;
        }
        out.write_str("</tr>\n")?;
    }
    out.write_str("</tbody>\n</table>\n</section>\n")
}

fn offenders(out: &mut String, figures: &Figures) -> fmt::Result {
    let Top { items, more } = &figures.offenders;
    open_section(out, "offenders", "wide", "Who came back")?;
    if items.is_empty() {
        return out
            .write_str("<p class=\"caption\">Nobody: every source was banned for the first time.</p>\n</section>\n");
    }
    // The roles keep it a table for those who hear it, where the style lays its rows out as cards.
    out.write_str(
        "<table role=\"table\" class=\"cards\">\n<caption>Sources that were banned in this period and had been before, with all \
         that the ledger remembers of them.</caption>\n<thead role=\"rowgroup\"><tr role=\"row\">",
    )?;
    let heads = ["Source", "Bans", "Blocked for", "First", "Last"];
    for head in heads {
        write!(out, "<th role=\"columnheader\" scope=\"col\">{head}</th>")?;
    }
    out.write_str("</tr></thead>\n<tbody role=\"rowgroup\">\n")?;
    for offender in items {
        let [_, bans, blocked, first, last] = heads;
        let cells = [
            (bans, number(offender.strikes)),
            (blocked, calendar::span(offender.blocked)),
            (first, time(offender.first)),
            (last, time(offender.last)),
        ];
        let subject = Text(offender.subject);
        write!(out, "<tr role=\"row\"><th role=\"rowheader\" scope=\"row\"><code>{subject}</code></th>")?;
        for (head, cell) in cells {
            write!(out, "<td role=\"cell\" data-head=\"{head}\">{cell}</td>")?;
        }
        out.write_str("</tr>\n")?;
    }
    out.write_str("</tbody>\n</table>\n")?;
    and_more(out, *more, "source", "sources")?;
    out.write_str("</section>\n")
}

fn ports(out: &mut String, figures: &Figures) -> fmt::Result {
    let Top { items, more } = &figures.ports;
    open_section(out, "ports", "", "Ports")?;
    if items.is_empty() {
        return out
            .write_str("<p class=\"caption\">None: no ban of this period had a probe before it.</p>\n</section>\n");
    }
    let caption = "Ports that were touched before a ban, and in how many of all bans. One ban may name several.";
    let rows = items.iter().map(|((protocol, port), bans)| {
        let mut name = match protocol {
            Protocol::Icmp => format!("{} type {port}", protocol.name()),
            _ => format!("{} {port}", protocol.name()),
        };
        if let Some(service) = services::name(*protocol, *port) {
            // Writing to a string cannot fail.
            let _ = write!(name, " <span class=\"soft\">{}</span>", Text(service));
        }
        (name, *bans, share(*bans, figures.bans))
    });
    list(out, caption, ["Port", "Bans", "Share"], rows)?;
    and_more(out, *more, "port", "ports")?;
    out.write_str("</section>\n")
}

fn networks(out: &mut String, figures: &Figures) -> fmt::Result {
    let Top { items, more } = &figures.networks;
    open_section(out, "networks", "", "Networks")?;
    let caption = "Where they came from: /24 of IPv4, /48 of IPv6.";
    let rows = items
        .iter()
        .map(|network| (format!("<code>{}</code>", Text(network.prefix)), network.bans, number(network.sources)));
    list(out, caption, ["Network", "Bans", "Sources"], rows)?;
    and_more(out, *more, "network", "networks")?;
    out.write_str("</section>\n")
}

/// A section of few rows, and how much each is of `all`. `words`: id, class of the section, title, head of the names,
/// caption.
fn shares(
    out: &mut String,
    all: u64,
    words: [&str; 5],
    items: impl IntoIterator<Item = (impl fmt::Display, u64)>,
) -> fmt::Result {
    let [id, class, title, head, caption] = words;
    open_section(out, id, class, title)?;
    let rows = items.into_iter().map(|(name, bans)| (Text(name).to_string(), bans, share(bans, all)));
    list(out, caption, [head, "Bans", "Share"], rows)?;
    out.write_str("</section>\n")
}

/// A table of names, markup already, each with its bans, a bar as long as they are many, and one thing more.
fn list(
    out: &mut String,
    caption: &str,
    heads: [&str; 3],
    rows: impl Iterator<Item = (String, u64, String)>,
) -> fmt::Result {
    let rows: Vec<_> = rows.collect();
    let most = rows.iter().map(|(_, bans, _)| *bans).max().unwrap_or_default();
    let [name, bans, last] = heads;
    writeln!(
        out,
        "<table class=\"list\">\n<caption>{caption}</caption>\n<thead><tr><th scope=\"col\">{name}</th>\
         <th scope=\"col\" class=\"n\">{bans}</th><th scope=\"col\" class=\"n\">{last}</th></tr></thead>\n<tbody>",
    )?;
    for (name, bans, last) in rows {
        writeln!(
            out,
            "<tr><th scope=\"row\">{name}<svg class=\"bar\" aria-hidden=\"true\"><rect width=\"{}\" height=\"100%\"/></svg></th>\
             <td class=\"n\">{}</td><td class=\"n\">{last}</td></tr>",
            length(bans, most),
            number(bans)
        )?;
    }
    out.write_str("</tbody>\n</table>\n")
}

fn and_more(out: &mut String, more: u64, one: &str, many: &str) -> fmt::Result {
    match more {
        0 => Ok(()),
        more => writeln!(
            out,
            "<p class=\"caption more\">And {} that are not listed.</p>",
            counted(more, &format!("more {one}"), &format!("more {many}"))
        ),
    }
}

fn class_title(class: Option<Class>) -> &'static str {
    match class {
        None => "none: by hand or imported",
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

/// Keys that nobody has given a title here stand for themselves.
fn author_title(key: &'static str) -> &'static str {
    match key {
        "detector" => "the detector, on evidence",
        "operator" => "a person, by hand",
        "import" => "an imported list",
        key => key,
    }
}

fn method_title(key: &'static str) -> &'static str {
    match key {
        "nft" => "nftables set",
        "route" => "route",
        "hosts-deny" => "hosts.deny",
        "run" => "command",
        key => key,
    }
}
