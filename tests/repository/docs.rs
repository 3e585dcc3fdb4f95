//! Tests the documents: links lead to existing pages, commands are accepted, configuration keys exist, the tests that
//! they name exist, and the dashboard and the alerts use existing metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use portsentry::cli;
use portsentry::config::Config;
use portsentry::metrics::{self, FleetSnapshot, Snapshot};
use portsentry::sensor::SensorMetrics;
use regex::Regex;
use serde_json::Value;

use super::{path, text};

/// README.md and all pages of docs, with names and texts.
fn pages() -> Vec<(String, String)> {
    let found = std::fs::read_dir(path("docs")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = found.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}")).collect();
    names.sort();
    names.extend(["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"].map(str::to_owned));
    assert!(names.len() >= 13, "{names:?}");
    names.into_iter().map(|name| (name.clone(), text(&name))).collect()
}

/// A fenced block: its first line, its language and its contents.
struct Block<'a> {
    line: usize,
    language: &'a str,
    lines: Vec<&'a str>,
}

/// The fenced blocks of a page, and the page without them.
fn blocks(page: &str) -> (Vec<Block<'_>>, String) {
    let (mut blocks, mut prose, mut open) = (Vec::new(), String::new(), None::<Block<'_>>);
    for (number, line) in page.lines().enumerate() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.lines.push(line),
            (None, Some(language)) => open = Some(Block { line: number + 1, language, lines: Vec::new() }),
            (None, None) => {
                prose.push_str(line);
                prose.push('\n');
            }
        }
    }
    assert!(open.is_none(), "a block has no end");
    (blocks, prose)
}

/// The anchors of a page's headings, as GitHub generates them.
fn anchors(page: &str) -> BTreeSet<String> {
    let (_, prose) = blocks(page);
    let headings = prose.lines().filter_map(|line| line.strip_prefix('#'));
    let plain = |heading: &str| {
        let anchor = heading.trim_start_matches('#').trim().to_lowercase();
        let anchor = anchor.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        anchor.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(plain).collect()
}

#[test]
fn links_lead_to_existing_headings() {
    let link = Regex::new(r"\]\(([^() ]+)\)").unwrap();
    let mut followed = 0;
    for (name, page) in pages() {
        let (_, prose) = blocks(&page);
        for found in link.captures_iter(&prose).map(|found| found.get(1).unwrap().as_str()) {
            if found.contains("://") {
                continue;
            }
            let (file, anchor) = found.split_once('#').unwrap_or((found, ""));
            let here = path(&name);
            let target = if file.is_empty() { here } else { here.parent().unwrap().join(file) };
            assert!(target.exists(), "{name}: the target of {found} does not exist");
            if !anchor.is_empty() {
                let headings = anchors(&std::fs::read_to_string(&target).unwrap());
                assert!(headings.contains(anchor), "{name}: {found}: no such heading among {headings:?}");
            }
            followed += 1;
        }
    }
    assert!(followed > 20, "{followed}");
}

#[test]
fn pages_are_reachable_from_readme() {
    let link = Regex::new(r"\]\(([^() #]+\.md)").unwrap();
    let (mut reached, mut ahead) = (BTreeSet::new(), vec![path("README.md")]);
    while let Some(page) = ahead.pop() {
        let page = page.canonicalize().unwrap();
        let text = std::fs::read_to_string(&page).unwrap();
        if reached.insert(page.clone()) {
            let links = link.captures_iter(&text).map(|found| found.get(1).unwrap().as_str());
            let near = links.filter(|link| !link.contains("://")).map(|link| page.parent().unwrap().join(link));
            ahead.extend(near);
        }
    }
    for (name, _) in pages() {
        assert!(reached.contains(&path(&name).canonicalize().unwrap()), "no link leads to {name}");
    }
}

/// Splits a command line into words, with the shell syntax that the documents use. Comments are left out.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in line.chars() {
        match (quote, letter) {
            (None, '#') if word.is_none() => break,
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (Some(open), _) if open == letter => quote = None,
            (None, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

/// The command lines of `portsentry` in a shell line, program name first.
fn invocations(line: &str) -> Vec<Vec<String>> {
    let words = words(line);
    let commands = words.split(|word| ["|", "||", "&&", ";", "&"].contains(&word.as_str()));
    let own = commands.filter_map(|command| {
        let start = command.iter().position(|word| word != "sudo")?;
        let (program, rest) = command.get(start..)?.split_first()?;
        (program == "portsentry" || program.ends_with("/portsentry")).then(|| {
            let until = rest.iter().position(|word| word.contains(['>', '<'])).unwrap_or(rest.len());
            [&["portsentry".to_owned()], &rest[..until]].concat()
        })
    });
    own.collect()
}

#[test]
fn commands_in_blocks_are_accepted() {
    let mut tried = BTreeSet::new();
    for (name, page) in pages() {
        for block in blocks(&page).0.iter().filter(|block| ["sh", "console"].contains(&block.language)) {
            let prompted = |line: &'_ &str| block.language == "sh" || line.starts_with("# ") || line.starts_with("$ ");
            for line in block.lines.iter().filter(|line| prompted(line)) {
                let line = if block.language == "sh" { line } else { &line[2..] };
                for command in invocations(line) {
                    tried.extend(command.get(1).cloned());
                    if let Err(error) = cli::parse(command.iter().map(OsString::from)) {
                        assert!(!error.use_stderr(), "{name}, block at line {}: {line}\n{error}", block.line);
                    }
                }
            }
        }
    }
    for word in ["status", "list", "explain", "unblock", "report", "replay", "import", "--log-only", "--expire"] {
        assert!(tried.contains(word), "no page shows {word}, or it is not found: {tried:?}");
    }
}

#[test]
fn documented_commands_and_flags_exist() {
    let span = Regex::new(r"`portsentry ([^`]+)`").unwrap();
    let grammar = cli::grammar();
    let longs = |command: &clap::Command| -> BTreeSet<String> {
        let flags = command.get_arguments().filter_map(|argument| argument.get_long());
        flags.map(str::to_owned).chain(["help", "version"].map(str::to_owned)).collect()
    };
    let mut seen = 0;
    for (name, page) in pages() {
        for found in span.captures_iter(&blocks(&page).1) {
            let words = words(&found[1].replace('\n', " "));
            let Some(first) = words.first() else { continue };
            let command = match first.starts_with('-') || first.chars().all(char::is_uppercase) {
                true => &grammar,
                false => grammar.find_subcommand(first).unwrap_or_else(|| panic!("{name}: `portsentry {first}`")),
            };
            for flag in words.iter().filter_map(|word| word.strip_prefix("--")) {
                assert!(longs(command).contains(flag), "{name}: `portsentry {}`: --{flag}", &found[1]);
            }
            seen += 1;
        }
    }
    assert!(seen >= 12, "{seen}");
}

#[test]
fn documented_settings_are_read_by_program() {
    let mut read = 0;
    for (name, page) in pages() {
        for block in blocks(&page).0.iter().filter(|block| block.language == "toml") {
            let location = format!("{name}, block at line {}", block.line);
            if let Err(errors) = Config::parse(&location, &block.lines.join("\n")) {
                panic!("{errors}");
            }
            read += 1;
        }
    }
    assert!(read >= 3, "{read}");
}

/// The names of the functions in a directory's sources.
fn functions(directory: &Path, found: &mut BTreeSet<String>) {
    let function = Regex::new(r"fn ([a-z0-9_]+)").unwrap();
    for entry in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            functions(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&entry).unwrap();
            found.extend(function.captures_iter(&text).map(|found| found[1].to_owned()));
        }
    }
}

#[test]
fn tests_named_in_threat_model_exist() {
    let mut existing = BTreeSet::new();
    functions(&path("src"), &mut existing);
    functions(&path("tests"), &mut existing);
    // A test's name has at least four words.
    let test_name = Regex::new(r"`([a-z0-9]+(?:_[a-z0-9]+){3,})`").unwrap();
    let page = text("docs/threat-model.md");
    let named: BTreeSet<&str> = test_name.captures_iter(&page).map(|found| found.get(1).unwrap().as_str()).collect();
    assert!(named.len() > 60, "{}", named.len());
    let missing: Vec<_> = named.iter().filter(|name| !existing.contains(**name)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    // The files must exist too.
    let file = Regex::new(r"`((?:src|tests|fuzz|packaging|nft)/[^` ]+)`").unwrap();
    for found in file.captures_iter(&page) {
        assert!(path(&found[1]).exists(), "{}", &found[1]);
    }
}

/// A path is relative to the repository, to `src`, or to the directory of the path named before it.
#[test]
fn paths_named_in_architecture_exist() {
    let span = Regex::new(r"`([A-Za-z0-9_./-]+(?:/|\.(?:rs|md|toml|json|nft|sh|py)))`").unwrap();
    let (mut named, mut directory) = (0, path(""));
    for found in span.captures_iter(&blocks(&text("ARCHITECTURE.md")).1) {
        let name = &found[1];
        let siblings = directory.join(name);
        let place = [path(name), path("src").join(name), siblings].into_iter().find(|place| place.exists());
        let place = place.unwrap_or_else(|| panic!("ARCHITECTURE.md names {name}, which does not exist"));
        if name.contains('/') {
            directory = place.parent().unwrap().to_owned();
        }
        named += 1;
    }
    assert!(named > 90, "only {named} paths were found; does the pattern still match?");
}

#[test]
fn threat_has_unique_number_and_test() {
    let page = text("docs/threat-model.md");
    let heading = Regex::new(r"(?m)^### ([0-9]+)\. ").unwrap();
    let mut numbers: Vec<u32> = heading.captures_iter(&page).map(|found| found[1].parse().unwrap()).collect();
    numbers.sort_unstable();
    assert!(numbers.len() > 20, "{numbers:?}");
    assert_eq!(
        numbers,
        (1..).take(numbers.len()).collect::<Vec<u32>>(),
        "each number is used once, and none is left out"
    );
    for (entry, number) in heading.split(&page).skip(1).zip(1..) {
        assert_eq!(entry.matches("\n- **Tests**: `").count(), 1, "entry {number} names its tests");
    }
}

/// The metric families with the names of their series.
fn families() -> BTreeMap<String, Vec<String>> {
    let snapshot = Snapshot { capacity: Some(1), fleet: Some(FleetSnapshot::default()), ..Snapshot::default() };
    let text = metrics::text(&Arc::new(SensorMetrics::default()), snapshot);
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let series = |name: &str, kind: &str| match kind {
        "counter" => vec![format!("{name}_total")],
        "histogram" => ["bucket", "sum", "count"].map(|part| format!("{name}_{part}")).to_vec(),
        "gauge" => vec![name.to_owned()],
        other => panic!("{name} is a {other}"),
    };
    types.map(|(name, kind)| (name.to_owned(), series(name, kind))).collect()
}

/// The names of the series in an expression.
fn queried(expression: &str) -> Vec<String> {
    let name = Regex::new(r"portsentry_[a-z0-9_]+").unwrap();
    name.find_iter(expression).map(|found| found.as_str().to_owned()).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&text("examples/grafana-dashboard.json")).unwrap()
}

fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels: Vec<_> = dashboard["panels"].as_array().unwrap().iter().collect();
    assert!(panels.len() > 15, "{}", panels.len());
    panels
}

fn targets(panel: &Value) -> impl Iterator<Item = &Value> {
    panel["targets"].as_array().into_iter().flatten()
}

#[test]
fn dashboard_shows_exactly_existing_metrics() {
    let (dashboard, families) = (dashboard(), families());
    assert!(families.len() > 15, "{families:?}");
    let known: BTreeSet<&String> = families.values().flatten().collect();
    let mut used = BTreeSet::new();
    for panel in panels(&dashboard) {
        for target in targets(panel) {
            let names = queried(target["expr"].as_str().unwrap());
            assert!(!names.is_empty(), "{}: an expression without a metric", panel["title"]);
            for name in names {
                assert!(known.contains(&name), "{}: the metric {name} does not exist", panel["title"]);
                used.insert(name);
            }
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        for name in queried(&variable["query"].to_string()) {
            assert!(known.contains(&name), "{name}");
        }
    }
    for (family, series) in &families {
        assert!(series.iter().all(|name| used.contains(name)), "the dashboard shows {family} only in part: {series:?}");
    }
}

/// The types of a schema: "string", "array of object"; null stands for a missing value.
fn types(schema: &Value, root: &Value) -> BTreeSet<String> {
    if let Some(name) = schema["$ref"].as_str() {
        return types(&root["$defs"][name.strip_prefix("#/$defs/").unwrap()], root);
    }
    let kinds = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
    let kinds = kinds.iter().map(|kind| kind.as_str().unwrap_or_else(|| panic!("{schema} has no type")));
    kinds
        .filter(|kind| *kind != "null")
        .flat_map(|kind| match kind {
            "array" => types(&schema["items"], root).iter().map(|item| format!("array of {item}")).collect(),
            _ => vec![kind.to_owned()],
        })
        .collect()
}

/// Adds the types of each key in a part of the schema `root`, and where it is.
fn collect_types(at: &str, part: &Value, root: &Value, found: &mut BTreeMap<String, BTreeMap<String, String>>) {
    for (name, value) in part.as_object().into_iter().flatten() {
        match name.as_str() {
            "properties" => {
                for (key, schema) in value.as_object().unwrap() {
                    let kinds = types(schema, root).into_iter().map(|kind| (kind, format!("{at}.{key}")));
                    found.entry(key.clone()).or_default().extend(kinds);
                    collect_types(&format!("{at}.{key}"), schema, root, found);
                }
            }
            "$defs" => {
                value.as_object().unwrap().iter().for_each(|(key, part)| {
                    collect_types(&format!("{at}#{key}"), part, root, found);
                });
            }
            "items" => collect_types(&format!("{at}[]"), value, root, found),
            _ => {}
        }
    }
}

#[test]
fn json_key_has_one_type_everywhere() {
    // The second types are in a table of docs/control.md.
    const SECOND_TYPE: [&str; 5] = ["bans", "capped", "fleet", "packets", "ports"];
    let mut found = BTreeMap::new();
    for command in ["check", "events", "explain", "list", "status", "would-block"] {
        let schema: Value = serde_json::from_str(&text(&format!("docs/schema/{command}.schema.json"))).unwrap();
        collect_types(command, &schema, &schema, &mut found);
    }
    assert!(found.len() > 100, "{found:?}");
    let several: Vec<_> = found.iter().filter(|(_, types)| types.len() > 1).collect();
    assert_eq!(several.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), SECOND_TYPE, "{several:#?}");
    let control = text("docs/control.md");
    for key in SECOND_TYPE {
        assert!(control.contains(&format!("\n| `{key}` | ")), "{key} is not in the table of docs/control.md");
    }
}

#[test]
fn dashboard_imports_for_any_data_source() {
    let dashboard = dashboard();
    // 39 is the schema of Grafana 10 and 11; later versions convert it.
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39);
    assert!(dashboard.get("id").is_none(), "an id is valid in one Grafana only");
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let sources = variables.iter().filter(|one| one["type"] == "datasource" && one["query"] == "prometheus");
    assert_eq!(sources.map(|one| &one["name"]).collect::<Vec<_>>(), ["datasource"]);
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels(&dashboard) {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["id"]);
        let position = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(position("x") + position("w") <= 24, "{}", panel["title"]);
        for (x, y) in (0..position("w")).flat_map(|x| (0..position("h")).map(move |y| (x, y))) {
            assert!(taken.insert((position("x") + x, position("y") + y)), "{} overlaps another panel", panel["title"]);
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(!panel["description"].as_str().unwrap().is_empty(), "{}", panel["title"]);
        assert!(targets(panel).count() > 0, "{}", panel["title"]);
        for source in targets(panel).map(|target| &target["datasource"]).chain([&panel["datasource"]]) {
            assert_eq!(source["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
}

#[test]
fn every_alert_uses_existing_metrics() {
    let families = families();
    let known: BTreeSet<&String> = families.values().flatten().collect();
    let rules = text("examples/prometheus-alerts.yml");
    let mut used = BTreeSet::new();
    let mut alerts = BTreeSet::new();
    let mut open = None;
    for line in rules.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        if let Some(alert) = line.strip_prefix("- alert: ") {
            assert_eq!(open, None, "the previous alert has no expression");
            assert!(alerts.insert(alert), "{alert} exists twice");
            open = Some(alert);
        } else if let Some(expression) = line.strip_prefix("expr: ") {
            let alert = open.take().expect(expression);
            let names = queried(expression);
            assert!(!names.is_empty(), "{alert}: {expression}");
            for name in names {
                assert!(known.contains(&name), "{alert}: the metric {name} does not exist");
                used.insert(name);
            }
        }
    }
    assert_eq!(open, None);
    let needed =
        ["ban_failures_total", "packets_dropped_total", "bans_missing", "start_time_seconds", "fleet_connected"];
    for name in needed.map(|name| format!("portsentry_{name}")) {
        assert!(used.contains(&name), "no alert uses {name}");
    }
}
