//! [`Figures`] to one page of HTML that is complete in itself. It is well-formed XML as well, so that it can be checked.

use std::fmt::{self, Write};
use std::time::SystemTime;

use super::calendar::{minute, span, stamp};
use super::figures::Figures;
use super::markup::{Text, counted, number};
use super::sections;

const STYLE: &str = include_str!("style.css");

/// Nothing may be fetched or run, whatever should find its way into the page.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// The page about `host`, or about one that has no name.
#[must_use]
pub fn html(figures: &Figures, host: Option<&str>) -> String {
    let mut out = String::with_capacity(64 << 10);
    // Writing to a string cannot fail.
    let _ = page(&mut out, figures, host);
    out
}

fn page(out: &mut String, figures: &Figures, host: Option<&str>) -> fmt::Result {
    let title = host.map_or("Blocked port scans".to_owned(), |host| format!("Blocked port scans on {}", Text(host)));
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <meta name=\"robots\" content=\"noindex\"/>\n\
         <meta name=\"referrer\" content=\"no-referrer\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{}\"/>\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header>\n<h1>{title}</h1>\n<p>From {} to {} UTC, {}</p>\n</header>\n<main>\n",
        Text(POLICY),
        time(figures.from),
        time(figures.to),
        span(figures.to.duration_since(figures.from).unwrap_or_default()),
    )?;
    tiles(out, figures)?;
    if figures.bans == 0 {
        nothing(out, figures)?;
    } else {
        sections::write(out, figures)?;
    }
    out.write_str("</main>\n<footer>\n")?;
    remarks(out, figures)?;
    writeln!(out, "<p>portsentry {}</p>\n</footer>\n</body>\n</html>", env!("CARGO_PKG_VERSION"))
}

/// A time that machines can read as well.
pub(super) fn time(time: SystemTime) -> String {
    format!("<time datetime=\"{}\">{}</time>", stamp(time), minute(time))
}

fn tiles(out: &mut String, figures: &Figures) -> fmt::Result {
    let tiles = [
        ("Bans", figures.bans, "began in this period"),
        ("Sources", figures.sources, "addresses, of IPv6 whole /64 networks"),
        ("In force now", figures.in_force, "whenever they began"),
        ("Came back", figures.repeaters, "sources that had been banned before"),
        ("Probes", figures.probes, "until they were banned"),
    ];
    out.write_str("<dl class=\"tiles\">\n")?;
    for (name, value, note) in tiles {
        writeln!(out, "<div><dt>{name}</dt><dd>{}</dd><dd class=\"note\">{note}</dd></div>", number(value))?;
    }
    out.write_str("</dl>\n")
}

fn nothing(out: &mut String, figures: &Figures) -> fmt::Result {
    let (what, why) = if figures.kept == 0 {
        (
            "Nobody has been blocked yet",
            "The ledger is empty. That is good news if portsentry is running: nobody has touched ports that nobody has a \
             reason to touch. Whether it is running, <code>systemctl status portsentry</code> tells.",
        )
    } else {
        (
            "All quiet",
            "No ban began in this period. The ledger has older ones: a longer <code>--since</code> shows them.",
        )
    };
    writeln!(out, "<section class=\"card quiet\">\n<h2>{what}</h2>\n<p>{why}</p>\n</section>")
}

fn remarks(out: &mut String, figures: &Figures) -> fmt::Result {
    out.write_str(
        "<p>All times are UTC. Who is blocked is known by its address, which can be forged where no connection was made, \
         and many people may share one.</p>\n",
    )?;
    if figures.ahead > 0 {
        let bans = counted(figures.ahead, "ban begins", "bans begin");
        writeln!(out, "<p>Left out: {bans} after the time of this page. The clock has been set back.</p>")?;
    }
    if figures.unreadable > 0 {
        let rows = counted(figures.unreadable, "row of the ledger makes", "rows of the ledger make");
        writeln!(out, "<p>Left out: {rows} no sense. A failing disk or somebody&#8217;s hand wrote them.</p>")?;
    }
    Ok(())
}
