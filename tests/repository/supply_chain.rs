//! Tests the software bill of materials: the packaged list of components must agree with what cargo builds and links,
//! and with Cargo.toml, the documents and the scripts.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use regex::Regex;
use serde_json::Value;

use super::{path, text};

/// An arbitrary fixed time, 2001-09-09 01:46:40 UTC.
const EPOCH: &str = "1000000000";

/// The output of a command, which must succeed.
fn output(command: &mut Command) -> String {
    let output = command.current_dir(path("")).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}; `make setup` installs what is missing"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn parts() -> String {
    output(Command::new(path("packaging/sbom.sh")).env("SOURCE_DATE_EPOCH", EPOCH))
}

/// `name@version` of the crates in `cargo tree` for these kinds of edges, without the program itself.
fn tree(edges: &str) -> BTreeSet<String> {
    let cargo = ["tree", "--locked", "--prefix", "none", "--format", "{p}", "--edges", edges];
    let shown = output(Command::new(env!("CARGO")).args(cargo));
    let crates = shown.lines().map(|line| {
        let (name, version) = line.split(' ').next().zip(line.split(' ').nth(1)).unwrap();
        format!("{name}@{}", version.strip_prefix('v').unwrap())
    });
    crates.filter(|name| !name.starts_with("portsentry@")).collect()
}

fn string<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// Cargo.toml as cargo reads it.
fn manifest() -> Value {
    let read = output(Command::new(env!("CARGO")).args(["metadata", "--locked", "--no-deps", "--format-version", "1"]));
    let read: Value = serde_json::from_str(&read).unwrap();
    list(&read, "packages").iter().find(|package| package["name"] == "portsentry").unwrap().clone()
}

/// The checksums in Cargo.lock, by `name@version`.
fn checksums(lock: &str) -> BTreeMap<String, String> {
    let entry = Regex::new("(?s)name = \"([^\"]+)\"\nversion = \"([^\"]+)\".*\nchecksum = \"([0-9a-f]{64})\"").unwrap();
    let entries = lock.split("[[package]]").filter_map(|part| entry.captures(part));
    entries.map(|found| (format!("{}@{}", &found[1], &found[2]), found[3].to_owned())).collect()
}

#[test]
fn component_list_has_every_built_crate() {
    let parts: Value = serde_json::from_str(&parts()).unwrap();
    let listed: BTreeMap<&str, &str> =
        list(&parts, "components").iter().map(|part| (string(part, "bom-ref"), string(part, "scope"))).collect();
    let crates: BTreeSet<_> =
        listed.keys().filter(|name| !name.starts_with("sqlite@") && !name.starts_with("rust-std@")).collect();
    let built = tree("normal,build");
    assert!(built.len() > 100, "{built:?}");
    assert_eq!(crates, built.iter().map(String::as_str).collect::<BTreeSet<_>>().iter().collect());
    assert_eq!(crates.len() + 2, listed.len());
    // Crates that are linked into the program, and those that only its build needs.
    let linked = tree("normal,no-proc-macro");
    for (name, scope) in &listed {
        let required = linked.contains(*name) || !built.contains(*name);
        assert_eq!(*scope, if required { "required" } else { "excluded" }, "{name}");
    }
    for (name, scope) in [("rusqlite@", "required"), ("bindgen@", "excluded"), ("serde_derive@", "excluded")] {
        assert!(listed.iter().any(|(listed, found)| listed.starts_with(name) && *found == scope), "{name}");
    }
}

#[test]
fn component_list_conforms_to_cyclonedx() {
    let text = parts();
    let parts: Value = serde_json::from_str(&text).unwrap();
    assert_eq!([string(&parts, "bomFormat"), string(&parts, "specVersion")], ["CycloneDX", "1.5"]);
    assert_eq!(parts["version"], 1);
    assert_eq!(string(&parts["metadata"], "timestamp"), "2001-09-09T01:46:40Z");
    let program = &parts["metadata"]["component"];
    assert_eq!(string(program, "type"), "application");
    assert_eq!(string(program, "version"), env!("CARGO_PKG_VERSION"));

    let checksums = checksums(&super::text("Cargo.lock"));
    let purl = Regex::new(r"^pkg:(cargo|generic)/[A-Za-z0-9_.-]+@[A-Za-z0-9.%-]+$").unwrap();
    let mut known = BTreeSet::from([string(program, "bom-ref")]);
    for part in list(&parts, "components") {
        let reference = string(part, "bom-ref");
        assert!(known.insert(reference), "{reference} is listed twice");
        assert_eq!(string(part, "type"), "library");
        assert_eq!(reference, format!("{}@{}", string(part, "name"), string(part, "version")));
        assert!(purl.is_match(string(part, "purl")), "{part}");
        let [licence] = list(part, "licenses") else { panic!("{part}") };
        assert!(!string(licence, "expression").contains('/'), "{part}");
        if string(part, "purl").starts_with("pkg:cargo/") {
            let [hash] = list(part, "hashes") else { panic!("{part}") };
            assert_eq!(string(hash, "alg"), "SHA-256");
            assert_eq!(Some(string(hash, "content")), checksums.get(reference).map(String::as_str), "{reference}");
        }
    }

    // The dependencies: each component once, all of them known, and all reachable from the program.
    let mut needs = BTreeMap::new();
    for entry in list(&parts, "dependencies") {
        let needed: Vec<&str> = list(entry, "dependsOn").iter().map(|name| name.as_str().unwrap()).collect();
        assert!(needs.insert(string(entry, "ref"), needed).is_none(), "{entry}");
    }
    assert_eq!(needs.keys().copied().collect::<BTreeSet<_>>(), known);
    let (mut reached, mut ahead) = (BTreeSet::new(), vec![string(program, "bom-ref")]);
    while let Some(name) = ahead.pop() {
        if reached.insert(name) {
            ahead.extend(&needs[name]);
        }
    }
    assert_eq!(reached, known);

    assert!(!text.contains(env!("CARGO_MANIFEST_DIR")), "the list contains a path of the build machine");
    assert_eq!(text, self::parts(), "the same commit gives the same list");
}

#[test]
fn listed_sqlite_version_is_linked() {
    let parts: Value = serde_json::from_str(&parts()).unwrap();
    let found: Vec<_> = list(&parts, "components").iter().filter(|part| part["name"] == "sqlite").collect();
    let [sqlite] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(string(sqlite, "version"), rusqlite::version());
    let needs = |part: &str| {
        let entry = list(&parts, "dependencies").iter().find(|entry| string(entry, "ref").starts_with(part)).unwrap();
        list(entry, "dependsOn").iter().any(|name| name == &sqlite["bom-ref"])
    };
    assert!(needs("libsqlite3-sys@") && !needs("rusqlite@"));
}

#[test]
fn dependency_is_documented_without_default_features() {
    let manifest = manifest();
    let document = text("docs/dependencies.md");
    let (program, tests) = document.split_once("## Tests and benchmarks").unwrap();
    let named = |table: &str| -> BTreeSet<String> {
        let name = Regex::new("`([a-z0-9_-]+)`").unwrap();
        let first = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
        // Features are in brackets.
        let crates = first.map(|cell| cell.split(" (").next().unwrap().to_owned());
        crates.flat_map(|cell| name.captures_iter(&cell).map(|found| found[1].to_owned()).collect::<Vec<_>>()).collect()
    };
    for (kind, document) in [(None, program), (Some("dev"), tests)] {
        let dependencies: Vec<&Value> =
            list(&manifest, "dependencies").iter().filter(|one| one["kind"].as_str() == kind).collect();
        let names: BTreeSet<String> = dependencies.iter().map(|one| string(one, "name").to_owned()).collect();
        assert!(names.len() > 5, "{names:?}");
        assert_eq!(named(document), names, "Cargo.toml and docs/dependencies.md");
        for one in dependencies {
            assert_eq!(one["uses_default_features"], false, "{}", one["name"]);
        }
    }
}

#[test]
fn rust_version_and_tools_are_consistent() {
    let manifest = manifest();
    let oldest = string(&manifest, "rust_version");
    let rust = Regex::new(r"Rust (1\.[0-9]+)").unwrap();
    let mut named = 0;
    for name in
        ["README.md", "docs/dependencies.md", "docs/quick-start.md", "docs/supply-chain.md", "tests/packages.sh"]
    {
        for found in rust.captures_iter(&text(name)) {
            assert_eq!(&found[1], oldest, "{name}");
            named += 1;
        }
    }
    assert!(named >= 4, "{named}");
    let (script, document) = (text("tests/packages.sh"), text("docs/dependencies.md"));
    for tool in ["deb", "deny"] {
        let pinned = Regex::new(&format!("(?m)^cargo_{tool}=([0-9.]+)$")).unwrap();
        let version = &pinned.captures(&script).unwrap()[1];
        assert!(document.contains(&format!("`cargo-{tool}` {version}")), "cargo-{tool} {version}");
    }
}
