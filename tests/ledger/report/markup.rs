//! Tests the markup of the page: well-formed, escaped, self-contained and accessible.

use std::collections::BTreeSet;
use std::time::Duration;

use portsentry::ledger::BanRecord;
use portsentry::report::{ReportStats, html};
use portsentry::types::Protocol;
use regex::Regex;

use super::{DAY, ago, ban, now};
use crate::support::{State, by_hand, source, target};

/// A page with all its parts.
fn page(host: Option<&str>) -> String {
    let many = (0..40).map(|number| {
        let ports = vec![(Protocol::Tcp, 1000 + u16::try_from(number).unwrap()), (Protocol::Icmp, 8)];
        BanRecord { ports, ..ban(source(number << 8), ago(u64::from(number) * DAY / 2), DAY) }
    });
    let again = (0..30).map(|number| ban(target(&format!("2001:db8:{number:x}::1")), ago(3 * DAY), DAY));
    let bans: Vec<_> = many.chain(again.clone()).chain(again.map(|ban| BanRecord { since: ago(60), ..ban })).collect();
    page_of(&bans, 30, host)
}

/// The page about the last `days` of these bans.
fn page_of(bans: &[BanRecord], days: u64, host: Option<&str>) -> String {
    html(&ReportStats::read(&State::with(bans).path(), Duration::from_secs(days * DAY), now()).unwrap(), host)
}

/// All tags: whether it is an end tag, name, attributes, whether it is self-closing.
fn tags(page: &str) -> Vec<(bool, String, String, bool)> {
    let tag = Regex::new(r#"<(/?)([a-z][a-z0-9]*)((?:\s+[a-zA-Z][a-zA-Z0-9-]*="[^"<>]*")*)\s*(/?)>"#).unwrap();
    let (_, body) = page.split_once("<!DOCTYPE html>\n").unwrap();
    let found: Vec<_> = tag.captures_iter(body).collect();
    assert_eq!(found.len(), body.matches('<').count(), "every < begins a well-formed tag");
    found.iter().map(|tag| (&tag[1] == "/", tag[2].to_owned(), tag[3].to_owned(), &tag[4] == "/")).collect()
}

/// All values of an attribute in the page.
fn values(page: &str, attribute: &str) -> Vec<String> {
    let found = Regex::new(&format!(r#"\s{attribute}="([^"]*)""#)).unwrap();
    tags(page)
        .iter()
        .flat_map(|tag| found.captures_iter(&tag.2).map(|value| value[1].to_owned()).collect::<Vec<_>>())
        .collect()
}

#[test]
fn markup_is_balanced_and_escaped() {
    let entity = Regex::new("^&(amp|lt|gt|quot|#[0-9]+);").unwrap();
    for page in [page(None), page_of(&[], 1, None)] {
        let mut open = Vec::new();
        for (closes, name, _, alone) in tags(&page) {
            match (closes, alone) {
                (true, _) => assert_eq!(open.pop(), Some(name), "an end tag without its start tag"),
                (false, true) => assert!(["meta", "line", "rect"].contains(&name.as_str()), "{name}"),
                (false, false) => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?}");
        let (_, body) = page.split_once("</style>").unwrap();
        assert!(body.match_indices('&').all(|(at, _)| entity.is_match(&body[at..])));
    }
}

#[test]
fn class_shares_exclude_manual_bans() {
    let by_hand = |number| by_hand(source(number), ago(60));
    let bans = [ban(source(1), ago(60), DAY), by_hand(2), by_hand(3)];
    let page = page_of(&bans, 1, None);
    for section in ["classes", "evidence"] {
        let (_, from) = page.split_once(&format!("<h2 id=\"{section}\">")).unwrap();
        let (table, _) = from.split_once("</section>").unwrap();
        assert!(table.contains(">100\u{a0}%<"), "the only ban on evidence is all of them, {section}: {table}");
    }
}

#[test]
fn page_fetches_and_runs_nothing() {
    let page = page(Some("web1"));
    for foreign in
        ["://", "url(", "@import", "<script", "<link", "<img", "<iframe", "<object", "<base", "<form", "expression("]
    {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert!(page.contains("content=\"default-src &#39;none&#39;; style-src &#39;unsafe-inline&#39;;"));
    for (_, name, attributes, _) in tags(&page) {
        for attribute in [" src=", " href=", " style=", " action=", " on", " xlink"] {
            assert!(!attributes.contains(attribute), "{name}{attributes}");
        }
    }
}

#[test]
fn host_name_is_always_text() {
    let page = page(Some("<script>\"'&\u{202e}evil"));
    assert!(page.contains("<h1>Blocked port scans on &lt;script&gt;&quot;&#39;&amp;\u{fffd}evil</h1>"), "{page}");
    let _ = tags(&page);
}

#[test]
fn page_is_accessible_to_screen_readers() {
    let page = page(None);
    let ids = values(&page, "id");
    let distinct: BTreeSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len(), "{ids:?}");
    let named = values(&page, "aria-labelledby");
    assert!(named.iter().flat_map(|names| names.split(' ')).all(|name| ids.iter().any(|id| id == name)), "{named:?}");
    let count = |part: &str| page.matches(part).count();
    assert_eq!((count("<h1"), count("<main>"), count("lang=\"en\"")), (1, 1, 1));
    assert_eq!(count("<table"), count("<caption"), "every table has a caption");
    assert_eq!(count("<th") - count("<thead"), count("scope=\""), "every header cell has a scope");
    assert_eq!(count("<svg"), count("role=\"img\"") + count("aria-hidden=\"true\""));
    assert!(page.contains("<title id=\"chart-title\">") && page.contains("<desc id=\"chart-desc\">"));
    assert_eq!(count("<section"), count("<h2"));
}

#[test]
fn every_drawn_number_is_also_text() {
    let page = page(None);
    let bar = Regex::new(r#"<rect x="[^"]*" y="[0-9]+" width="[^"]*" height="[0-9]+"><title>([^<]*)</title></rect>"#)
        .unwrap();
    let drawn: Vec<u64> = bar
        .captures_iter(&page)
        .map(|bar| bar[1].rsplit(' ').nth(1).unwrap().replace(',', "").parse().unwrap())
        .collect();
    let row = Regex::new(r#"<th scope="row"><time[^>]*>[^<]*</time></th><td class="n">([0-9,]+)</td>"#).unwrap();
    let written: Vec<u64> = row.captures_iter(&page).map(|row| row[1].replace(',', "").parse().unwrap()).collect();
    assert_eq!(drawn, written);
    assert_eq!((drawn.len(), drawn.iter().sum::<u64>()), (31, 100));
    assert_eq!(page.matches("<td class=\"l").count(), 7 * 24);
}

#[test]
fn long_lists_are_cut_with_note() {
    let page = page(None);
    for rest in ["And 28 more ports that", "And 55 more networks that", "And 10 more sources that"] {
        assert!(page.contains(rest), "{rest}: {page}");
    }
}
