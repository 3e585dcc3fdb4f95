//! The arrows between the folders of `src`, read from the sources: who may know whom, and what the pure ones must not
//! touch. A test fails where an import breaks a direction, so that the core stays a function of its input.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Which modules of the crate each module may name. The way of a packet goes from left to right in `lib.rs`; nothing here
/// points back to who wires it.
const MAY_NAME: [(&str, &[&str]); 25] = [
    ("atomic_file", &[]),
    ("lazy_queue", &[]),
    ("panic_guard", &["types"]),
    ("types", &[]),
    ("sandbox", &[]),
    ("wire", &[]),
    ("config", &["engine", "types"]),
    ("engine", &["types", "wire"]),
    ("netlink", &["engine", "types"]),
    ("capture", &["engine", "types", "wire"]),
    ("host", &["engine", "types"]),
    ("ledger", &["atomic_file", "engine", "lazy_queue", "panic_guard", "types"]),
    ("events", &["engine", "lazy_queue", "panic_guard", "types"]),
    ("enforce", &["atomic_file", "engine", "lazy_queue", "netlink", "panic_guard", "types"]),
    ("sensor", &["capture", "enforce", "engine", "events", "netlink", "panic_guard", "types", "wire"]),
    ("metrics", &["engine", "events", "sensor", "types"]),
    ("report", &["atomic_file", "engine", "ledger", "types"]),
    ("cli", &["config", "engine", "types"]),
    ("import", &["atomic_file", "config", "engine", "types"]),
    ("control", &["cli", "enforce", "engine", "events", "ledger", "sandbox", "types"]),
    (
        "daemon",
        &[
            "capture",
            "config",
            "control",
            "enforce",
            "engine",
            "events",
            "host",
            "ledger",
            "metrics",
            "netlink",
            "panic_guard",
            "sandbox",
            "sensor",
            "types",
            "wire",
        ],
    ),
    ("check", &["capture", "cli", "config", "daemon", "enforce", "engine", "host", "netlink", "types"]),
    ("replay", &["capture", "cli", "config", "daemon", "engine", "events", "types", "wire"]),
    ("fuzzing", &["capture", "config", "control", "daemon", "enforce", "host", "import", "ledger", "netlink"]),
    ("main", &["check", "cli", "config", "control", "daemon", "events", "import", "portsentry", "replay", "report"]),
];

/// What the pure modules may use of the standard library and of other crates; all else is refused, so that a clock, a
/// socket, a file, a thread or a source of randomness cannot come in under a name that nobody thought of.
const PURE: [(&str, &[&str]); 3] = [
    (
        "types",
        &[
            "ipnet::",
            "serde::Deserialize",
            "std::fmt",
            "std::net::IpAddr",
            "std::net::Ipv4Addr",
            "std::net::Ipv6Addr",
            "std::str::FromStr",
            "std::time::Duration",
        ],
    ),
    ("wire", &["std::fmt", "std::net::IpAddr", "std::net::Ipv4Addr", "std::net::Ipv6Addr"]),
    (
        "engine",
        &[
            "ipnet::",
            "prefix_trie::AsView",
            "prefix_trie::PrefixMap",
            "siphasher::sip::SipHasher13",
            "std::cmp::Reverse",
            "std::collections::BinaryHeap",
            "std::collections::HashSet",
            "std::collections::VecDeque",
            "std::fmt",
            "std::hash::Hasher",
            "std::net::IpAddr",
            "std::net::Ipv4Addr",
            "std::net::Ipv6Addr",
            "std::net::SocketAddr",
            "std::str::FromStr",
            "std::time::Duration",
        ],
    ),
];

/// Names that reach the outside without an import: full paths, and what the prelude and macros give.
const OUTSIDE: [&str; 18] = [
    "Instant",
    "SystemTime",
    "UNIX_EPOCH",
    "std::fs",
    "std::io",
    "std::env",
    "std::process",
    "std::thread",
    "std::sync",
    "std::os",
    "TcpStream",
    "UdpSocket",
    "RandomState",
    "thread_local",
    "static mut",
    "println!",
    "tracing::",
    "getrandom",
];

/// The sources of a top module, tests aside: what a test imports is no arrow.
fn sources(module: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![root.join(format!("{module}.rs"))];
    let mut folders = vec![root.join(module)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let tests = path.file_stem().is_some_and(|stem| stem == "tests");
            match path.is_dir() {
                true if !tests => folders.push(path),
                false if !tests => files.push(path),
                _ => {}
            }
        }
    }
    files.retain(|path| path.extension().is_some_and(|end| end == "rs") && path.exists());
    files.sort();
    files.into_iter().map(|path| (path.clone(), code(&std::fs::read_to_string(path).unwrap()))).collect()
}

/// The text without comments and without its module of tests.
fn code(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = text.lines().map(|line| match line.find("//") {
        // "https://" in a text is no comment.
        Some(at) if !line.get(..at).is_some_and(|before| before.ends_with(':')) => line.get(..at).unwrap_or_default(),
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Every path that a `use` of this text brings in, its braces spread out.
fn imports(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for statement in text.split(['\n', ';']).map(str::trim).filter(|line| is_use(line)) {
        // A statement may run over several lines: from its first one to the semicolon.
        let rest = text.get(statement.as_ptr().addr() - text.as_ptr().addr()..).unwrap_or_default();
        let whole = rest.split(';').next().unwrap_or_default();
        let (_, tree) = whole.split_once("use ").unwrap_or_default();
        spread("", &tree.replace(['\n', ' '], ""), &mut found);
    }
    found
}

fn is_use(line: &str) -> bool {
    let line =
        line.strip_prefix("pub").map_or(line, |rest| rest.trim_start_matches("(super)").trim_start_matches("(crate)"));
    line.trim_start().starts_with("use ")
}

fn spread(prefix: &str, tree: &str, found: &mut BTreeSet<String>) {
    let mut depth = 0;
    let branches = tree.split(|c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    for branch in branches.filter(|branch| !branch.is_empty()) {
        match branch.split_once('{') {
            Some((head, rest)) => spread(&format!("{prefix}{head}"), rest.trim_end_matches('}'), found),
            None => {
                found.insert(format!("{prefix}{branch}").trim_end_matches("::self").to_owned());
            }
        }
    }
}

/// The modules of this crate that a text names by `crate::`, in imports and in full paths.
fn named(text: &str) -> BTreeSet<String> {
    let imports = imports(text).into_iter().filter_map(|path| Some(first(path.strip_prefix("crate::")?)));
    let paths = text.match_indices("crate::").filter_map(|(at, prefix)| text.get(at + prefix.len()..));
    imports.chain(paths.map(first)).filter(|name| !name.is_empty()).collect()
}

fn first(path: &str) -> String {
    path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn every_module_of_the_crate_is_known_here() {
    let lib = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let modules: BTreeSet<&str> =
        code(&lib)
            .lines()
            .map(str::trim)
            .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
            .map(|name| {
                MAY_NAME.iter().map(|(known, _)| *known).find(|known| *known == name).unwrap_or_else(|| {
                    panic!("src/lib.rs has a module {name}: say in this file which modules it may name")
                })
            })
            .collect();
    assert_eq!(modules.len() + 1, MAY_NAME.len(), "all but main: {modules:?}");
}

#[test]
fn no_module_names_one_that_comes_after_it() {
    let mut wrong = Vec::new();
    for (module, may) in MAY_NAME {
        let sources = sources(module);
        assert!(!sources.is_empty(), "src/{module} has no sources");
        for (path, text) in sources {
            let others = named(&text).into_iter().filter(|name| name != module && !may.contains(&name.as_str()));
            wrong.extend(others.map(|name| format!("{}: {name}", path.display())));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_directions_make_no_circle() {
    let mut left: BTreeMap<&str, &[&str]> = MAY_NAME.into();
    // Whoever names nobody that is left can be taken away; a circle stays.
    while let Some(free) =
        left.iter().find(|(_, may)| may.iter().all(|name| !left.contains_key(name))).map(|(name, _)| *name)
    {
        left.remove(free);
    }
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_pure_modules_import_only_what_they_may() {
    let mut wrong = Vec::new();
    for (module, may) in PURE {
        for (path, text) in sources(module) {
            // Paths that begin with a module of this crate, or with one of the file's own.
            let foreign = |path: &String| !["crate::", "super", "self::"].iter().any(|own| path.starts_with(own));
            let own: BTreeSet<String> = text
                .lines()
                .filter_map(|line| line.trim().trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
                .map(str::to_owned)
                .collect();
            for import in imports(&text).into_iter().filter(foreign).filter(|path| !own.contains(&first(path))) {
                if !may
                    .iter()
                    .any(|allowed| import == *allowed || allowed.ends_with("::") && import.starts_with(allowed))
                {
                    wrong.push(format!("{}: {import}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_pure_modules_ask_no_clock_and_touch_no_file_socket_or_thread() {
    for (module, _) in PURE {
        for (path, text) in sources(module) {
            for name in OUTSIDE {
                assert!(!text.contains(name), "{} names {name}", path.display());
            }
        }
    }
}

#[test]
fn the_reader_of_sources_sees_what_it_must() {
    let text = "pub use allow::A;\nuse std::{io::{self, Read}, fmt};\nfn f() { crate::daemon::run(); } // crate::cli\n\
                #[cfg(test)]\nmod tests {\n use crate::config::C;\n}";
    let code = code(text);
    let found: Vec<String> = imports(&code).into_iter().collect();
    assert_eq!(found, ["allow::A", "std::fmt", "std::io", "std::io::Read"]);
    assert_eq!(named(&code), ["daemon".to_owned()].into());
    let tree = imports("use crate::{\n    config::Config,\n    wire,\n};");
    assert_eq!(tree.into_iter().collect::<Vec<_>>(), ["crate::config::Config", "crate::wire"]);
    assert_eq!(named("use crate::{config::Config, wire};"), ["config".to_owned(), "wire".to_owned()].into());
}
