//! Tests the dependencies between the modules of `src`, read from the sources: which folder may use which, that sibling
//! modules have no cycles, and that pure modules do no I/O. A test fails if an import breaks a rule, so that the core
//! stays a function of its input.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking, in its helpers too")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

/// The modules of the crate that each module may use. A packet passes them in the order of `lib.rs`; no module uses one
/// that wires it.
const MAY_NAME: [(&str, &[&str]); 28] = [
    ("atomic_file", &[]),
    ("lazy_queue", &[]),
    ("panic_guard", &["types"]),
    ("types", &[]),
    ("clock", &["types"]),
    ("worker", &["lazy_queue", "panic_guard"]),
    ("sandbox", &[]),
    ("wire", &[]),
    ("config", &["sandbox", "types"]),
    ("engine", &["config", "types", "wire"]),
    ("netlink", &["engine", "types"]),
    ("capture", &["config", "engine", "types", "wire"]),
    ("host", &["engine", "netlink", "panic_guard", "types"]),
    ("ledger", &["atomic_file", "clock", "engine", "panic_guard", "types", "worker"]),
    ("events", &["atomic_file", "clock", "config", "engine", "lazy_queue", "types", "worker"]),
    ("enforce", &["atomic_file", "clock", "config", "engine", "netlink", "panic_guard", "types", "worker"]),
    (
        "sensor",
        &["capture", "clock", "config", "enforce", "engine", "events", "netlink", "panic_guard", "types", "wire"],
    ),
    ("metrics", &["engine", "events", "sensor", "types"]),
    ("report", &["atomic_file", "engine", "ledger", "types"]),
    ("fleet", &["clock", "config", "control", "engine", "events", "types"]),
    ("cli", &["check", "config", "control", "fleet", "import", "ledger", "replay", "report", "types"]),
    ("import", &["atomic_file", "config", "types"]),
    ("control", &["clock", "config", "enforce", "engine", "events", "host", "ledger", "sandbox", "types"]),
    (
        "daemon",
        &[
            "capture",
            "clock",
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
    (
        "check",
        &[
            "capture", "config", "control", "enforce", "engine", "fleet", "host", "ledger", "netlink", "sandbox",
            "types",
        ],
    ),
    ("replay", &["capture", "config", "engine", "events", "types", "wire"]),
    ("fuzzing", &["capture", "config", "control", "daemon", "enforce", "fleet", "host", "import", "ledger", "netlink"]),
    (
        "main",
        &["check", "cli", "config", "control", "daemon", "events", "fleet", "import", "portsentry", "replay", "report"],
    ),
];

/// The folders of `src` from the top down: a module uses only folders after its own.
const LAYOUT: [&str; 28] = [
    "fuzzing",
    "main",
    "cli",
    "daemon",
    "check",
    "import",
    "replay",
    "fleet",
    "control",
    "report",
    "metrics",
    "sensor",
    "enforce",
    "events",
    "ledger",
    "host",
    "capture",
    "netlink",
    "engine",
    "wire",
    "config",
    "sandbox",
    "atomic_file",
    "worker",
    "clock",
    "lazy_queue",
    "panic_guard",
    "types",
];

/// The parts of the standard library and of other crates that pure modules may use. Everything else is refused, so that
/// no clock, socket, file, thread or source of randomness can enter under an unexpected name.
const PURE: [(&str, &[&str]); 3] = [
    (
        "types",
        &[
            "ipnet::",
            "serde::Deserialize",
            "serde::Deserializer",
            "serde::Serialize",
            "serde::Serializer",
            "serde::de::Error",
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
            "prefix_trie::joint::JointPrefixMap",
            "serde::Deserialize",
            "serde::Serialize",
            "siphasher::sip::SipHasher13",
            "std::cmp::Reverse",
            "std::collections::BTreeSet",
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

/// Names that reach the outside without an import: full paths, the prelude and macros.
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

/// The sources of a top module without tests, whose imports do not count.
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
        // "https://" in a string is not a comment.
        Some(at) if !line.get(..at).is_some_and(|before| before.ends_with(':')) => line.get(..at).unwrap_or_default(),
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// All paths that the `use` statements of this text import, with braces expanded.
fn imports(text: &str) -> BTreeSet<String> {
    bindings(text).into_values().collect()
}

/// The names that the `use` statements of this text import, each with its path.
fn bindings(text: &str) -> BTreeMap<String, String> {
    let mut paths = BTreeSet::new();
    for statement in uses(text) {
        let (_, tree) = statement.split_once("use ").unwrap_or_default();
        spread("", &tree.replace(" as ", "=").replace(['\n', ' '], ""), &mut paths);
    }
    let name = |path: &str| path.rsplit(['=', ':']).next().unwrap_or_default().to_owned();
    // Traits imported as `_` have no name and keep their path.
    let key = |path: &str| if path.ends_with("=_") { path.to_owned() } else { name(path) };
    paths.iter().map(|path| (key(path), path.split('=').next().unwrap_or_default().to_owned())).collect()
}

/// The `use` statements of this text, each from its first line to its semicolon.
fn uses(text: &str) -> impl Iterator<Item = &str> {
    let starts = text.split(['\n', ';']).map(str::trim).filter(|line| is_use(line));
    starts.filter_map(|start| text.get(start.as_ptr().addr() - text.as_ptr().addr()..)?.split(';').next())
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
fn every_module_has_import_rules() {
    let lib = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let modules: BTreeSet<&str> = code(&lib)
        .lines()
        .map(str::trim)
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .map(|name| {
            MAY_NAME.iter().map(|(known, _)| *known).find(|known| *known == name).unwrap_or_else(|| {
                panic!("src/lib.rs has a new module {name}: add to this file which modules it may use")
            })
        })
        .collect();
    assert_eq!(modules.len() + 1, MAY_NAME.len(), "all modules except main: {modules:?}");
}

#[test]
fn modules_use_only_permitted_modules() {
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
fn allowed_dependencies_have_no_cycle() {
    let mut left: BTreeMap<&str, &[&str]> = MAY_NAME.into();
    // Repeatedly removes a module without dependencies; a cycle remains.
    while let Some(free) =
        left.iter().find(|(_, may)| may.iter().all(|name| !left.contains_key(name))).map(|(name, _)| *name)
    {
        left.remove(free);
    }
    assert!(left.is_empty(), "{left:?}");
}

/// The library's files by module path: `engine::suspects`, and an empty path for `lib.rs`.
struct Modules(BTreeMap<String, Module>);

struct Module {
    bindings: BTreeMap<String, String>,
    /// Everything except the `use` statements.
    body: String,
}

impl Module {
    fn of(text: &str) -> Self {
        let body = uses(text).fold(text.to_owned(), |body, statement| body.replacen(statement, "", 1));
        Self { bindings: bindings(text), body }
    }
}

impl Modules {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let tops = MAY_NAME.iter().filter(|(name, _)| *name != "main");
        let files = tops.flat_map(|(name, _)| sources(name)).chain([(root.join("lib.rs"), String::new())]);
        let named = files.map(|(path, text)| {
            let path = path.strip_prefix(&root).unwrap().with_extension("");
            let parts = path.iter().map(|part| part.to_str().unwrap()).filter(|part| !["mod", "lib"].contains(part));
            (parts.collect::<Vec<_>>().join("::"), Module::of(&text))
        });
        Self(named.collect())
    }

    /// The module that defines `path` as used in the module `from`, following re-exports; `None` for other crates.
    fn resolve(&self, from: &str, path: &str) -> Option<String> {
        let mut parts: VecDeque<&str> = path.split("::").collect();
        let mut module = match parts.front()? {
            &"crate" => String::new(),
            &"self" | &"super" => from.to_owned(),
            first => self.0.contains_key(&below(from, first)).then(|| from.to_owned())?,
        };
        while let Some(part) = parts.pop_front() {
            match part {
                "crate" | "self" => {}
                "super" => module = parent(&module).to_owned(),
                _ if self.0.contains_key(&below(&module, part)) => module = below(&module, part),
                _ => {
                    let exported = self.0.get(&module)?.bindings.get(part);
                    return exported.and_then(|path| self.resolve(&module, path)).or(Some(module));
                }
            }
        }
        Some(module)
    }

    /// The modules that a module needs: by its imports, and by full paths in its text.
    fn dependencies(&self, from: &str) -> BTreeSet<String> {
        let Module { bindings, body } = &self.0[from];
        let mut paths: Vec<String> = Vec::new();
        for (name, path) in bindings {
            let within: Vec<_> =
                paths_after(body, &format!("{name}::")).map(|rest| format!("{path}::{rest}")).collect();
            // If a whole module is imported, the items that are used from it count.
            paths.extend(if within.is_empty() { vec![path.clone()] } else { within });
        }
        for prefix in ["crate::", "super::"] {
            paths.extend(paths_after(body, prefix).map(|rest| format!("{prefix}{rest}")));
        }
        paths.iter().filter_map(|path| self.resolve(from, path)).filter(|module| module != from).collect()
    }

    /// The dependencies between the children of a module. A child is a file, or a folder with all its contents.
    /// Dependencies between a child and the file of its own folder do not count: they belong together.
    fn arrows(&self) -> BTreeMap<String, BTreeSet<(String, String)>> {
        let mut arrows: BTreeMap<String, BTreeSet<_>> = BTreeMap::new();
        for from in self.0.keys() {
            for to in self.dependencies(from) {
                let shared = from.split("::").zip(to.split("::")).take_while(|(a, b)| a == b).count();
                let child =
                    |path: &str| path.split("::").nth(shared).filter(|part| !part.is_empty()).map(str::to_owned);
                if let (Some(one), Some(other)) = (child(from), child(&to)) {
                    let parent = from.split("::").take(shared).collect::<Vec<_>>().join("::");
                    arrows.entry(parent).or_default().insert((one, other));
                }
            }
        }
        arrows
    }
}

fn below(module: &str, child: &str) -> String {
    if module.is_empty() { child.to_owned() } else { format!("{module}::{child}") }
}

fn parent(module: &str) -> &str {
    module.rsplit_once("::").map_or("", |(parent, _)| parent)
}

/// The paths that follow `prefix`, wherever it begins a word.
fn paths_after<'a>(text: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(prefix).filter_map(move |(at, _)| {
        let before = text.get(..at)?.chars().next_back();
        let rest = text.get(at + prefix.len()..)?;
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
        let starts = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
        starts.then(|| rest.get(..end).unwrap_or_default().trim_end_matches(':'))
    })
}

/// Groups of two or more modules that reach each other.
fn cycles(arrows: &BTreeSet<(String, String)>) -> BTreeSet<Vec<&str>> {
    let reached = |from: &str| {
        let (mut reached, mut ahead) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(next) = ahead.pop() {
            let found = arrows.iter().filter(|(one, _)| *one == next).map(|(_, other)| other);
            ahead.extend(found.filter(|other| reached.insert((*other).clone())).cloned());
        }
        reached
    };
    let all: BTreeMap<&str, BTreeSet<String>> = arrows.iter().map(|(one, _)| (one.as_str(), reached(one))).collect();
    let group = |one: &str| {
        all.iter()
            .filter(|(other, back)| all[one].contains(**other) && back.contains(one))
            .map(|(name, _)| *name)
            .collect()
    };
    all.keys().map(|one| group(one)).filter(|group: &Vec<_>| group.len() > 1).collect()
}

#[test]
fn sibling_modules_have_no_cycle() {
    let arrows = Modules::read().arrows();
    assert!(arrows.len() > 10, "{:?}", arrows.keys());
    let found: Vec<(&str, Vec<&str>)> = arrows
        .iter()
        .flat_map(|(parent, arrows)| cycles(arrows).into_iter().map(move |group| (parent.as_str(), group)))
        .collect();
    let why: Vec<_> = found
        .iter()
        .map(|(parent, group)| {
            let within = arrows[*parent]
                .iter()
                .filter(|(one, other)| group.contains(&one.as_str()) && group.contains(&other.as_str()));
            (parent, within.map(|(one, other)| format!("{one} -> {other}")).collect::<Vec<_>>())
        })
        .collect();
    assert!(found.is_empty(), "found: {found:#?}\nby {why:#?}");
}

#[test]
fn import_cycles_are_found_on_all_paths() {
    let found = |files: &[(&str, &str)]| {
        let modules = files.iter().map(|(path, text)| ((*path).to_owned(), Module::of(text)));
        let arrows = Modules(modules.collect()).arrows();
        arrows
            .iter()
            .flat_map(|(parent, arrows)| cycles(arrows).into_iter().map(move |one| format!("{parent}: {one:?}")))
            .collect::<Vec<_>>()
    };
    let folder = ("a", "mod b;\nmod c;\npub use b::Thing;\nfn f() { c::g() }");
    // `c` uses an item of `b` that the folder's file exports; dependencies on that file itself do not count.
    let export = "use super::Thing;\nuse super::f;";
    assert_eq!(
        found(&[("", ""), folder, ("a::b", "use super::c as d;\nfn h() { d::g() }"), ("a::c", export)]),
        [r#"a: ["b", "c"]"#]
    );
    assert_eq!(found(&[("", ""), folder, ("a::b", "fn h() { super::f() }"), ("a::c", export)]), [""; 0]);
    // Dependencies count between folders, for any of their files.
    let inner = ("a::b", "fn h() { crate::z::k() }");
    assert_eq!(found(&[("", ""), folder, inner, ("z", "pub mod y;"), ("z::y", "fn k() {}")]), [""; 0]);
    assert_eq!(
        found(&[("", ""), folder, inner, ("z", "pub use y::k;\nmod y;"), ("z::y", "use crate::a::{Thing, f};")]),
        [r#": ["a", "z"]"#]
    );
}

#[test]
fn folders_use_only_lower_folders() {
    let place = |name: &str| {
        LAYOUT.iter().position(|known| *known == name).unwrap_or_else(|| panic!("add {name} to the layout"))
    };
    let mut upward: BTreeSet<(String, String)> = BTreeSet::new();
    for (module, _) in MAY_NAME {
        let needed = sources(module).into_iter().flat_map(|(_, text)| named(&text));
        let known = needed
            .filter(|name| name != module && name != "portsentry" && MAY_NAME.iter().any(|(known, _)| known == name));
        upward.extend(known.filter(|name| place(name) < place(module)).map(|name| (module.to_owned(), name)));
    }
    assert_eq!(upward, BTreeSet::new());
}

/// A target depends on the prefixes of NAT64 translators, which are set once at the start.
const SET_ONCE: (&str, &str) = ("types/shared64.rs", "std::sync::OnceLock");

#[test]
fn pure_modules_import_only_permitted_modules() {
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
            let foreign = |import: &String| foreign(import) && !(path.ends_with(SET_ONCE.0) && import == SET_ONCE.1);
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
fn pure_modules_do_no_io() {
    for (module, _) in PURE {
        for (path, text) in sources(module) {
            for name in OUTSIDE {
                let set_once = path.ends_with(SET_ONCE.0) && name == "std::sync";
                assert!(set_once || !text.contains(name), "{} names {name}", path.display());
            }
        }
    }
}

/// A module is `foo.rs`, or `foo/mod.rs` with its children.
#[test]
fn modules_with_children_are_folders() {
    for (path, _) in MAY_NAME.iter().flat_map(|(module, _)| sources(module)) {
        let folder = path.with_extension("");
        assert!(!folder.is_dir(), "move {} to {}/mod.rs", path.display(), folder.display());
    }
}

#[test]
fn source_reader_sees_imports() {
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
