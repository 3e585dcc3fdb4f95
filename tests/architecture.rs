//! Tests the dependencies between the modules of `src`, read from the sources: that a module uses only those below it,
//! that files have no cycles, and that pure modules do no I/O. A test fails if an import breaks a rule, so that the core
//! stays a function of its input.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking, in its helpers too")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

/// The modules of the crate from the top down, each with those that it uses: only modules after its own.
const LAYOUT: [(&str, &[&str]); 29] = [
    (
        "fuzzing",
        &["capture", "config", "control", "daemon", "enforce", "fleet", "host", "import", "ledger", "netlink", "types"],
    ),
    (
        "main",
        &[
            "check", "cli", "config", "control", "daemon", "events", "fleet", "import", "ledger", "replay", "report",
            "types",
        ],
    ),
    ("cli", &["check", "config", "control", "fleet", "import", "ledger", "replay", "report"]),
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
            "file",
            "fleet",
            "host",
            "import",
            "ledger",
            "metrics",
            "netlink",
            "panic_guard",
            "sandbox",
            "sensor",
            "types",
            "worker",
        ],
    ),
    (
        "check",
        &[
            "capture", "config", "control", "enforce", "engine", "fleet", "host", "ledger", "netlink", "sandbox",
            "types",
        ],
    ),
    ("import", &["atomic_file", "config", "file", "types"]),
    ("replay", &["capture", "clock", "config", "engine", "events", "types", "wire"]),
    (
        "control",
        &[
            "clock", "config", "enforce", "engine", "events", "file", "fleet", "host", "ledger", "netlink", "sandbox",
            "types",
        ],
    ),
    ("fleet", &["clock", "config", "engine", "events", "types"]),
    ("report", &["atomic_file", "clock", "engine", "ledger", "types"]),
    ("metrics", &["engine", "sensor", "types"]),
    (
        "sensor",
        &["capture", "clock", "config", "enforce", "engine", "events", "netlink", "panic_guard", "types", "wire"],
    ),
    (
        "enforce",
        &["atomic_file", "clock", "config", "engine", "events", "file", "netlink", "panic_guard", "types", "worker"],
    ),
    ("events", &["atomic_file", "clock", "config", "engine", "lazy_queue", "types", "worker"]),
    ("ledger", &["atomic_file", "clock", "engine", "file", "panic_guard", "types", "worker"]),
    ("host", &["engine", "file", "netlink", "panic_guard", "types"]),
    ("capture", &["config", "engine", "types", "wire"]),
    ("netlink", &["engine", "types"]),
    ("engine", &["config", "types", "wire"]),
    ("wire", &[]),
    ("config", &["file", "sandbox", "types"]),
    ("sandbox", &["file", "types"]),
    ("atomic_file", &["file"]),
    ("worker", &["lazy_queue", "panic_guard"]),
    ("clock", &["types"]),
    ("file", &[]),
    ("lazy_queue", &[]),
    ("panic_guard", &["types"]),
    ("types", &[]),
];

/// The pure modules: each with the parts of the standard library and of other crates that it may use. Everything else is refused, so that no clock, socket, file, thread or source of randomness can enter under
/// an unexpected name.
const PURE: [(&str, &[&str]); 3] = [
    (
        "types",
        &[
            "ipnet::",
            "serde::Deserialize",
            "serde::Deserializer",
            "serde::Serialize",
            "serde::de::DeserializeOwned",
            "serde_with::DeserializeFromStr",
            "serde_with::SerializeDisplay",
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

/// The sources of a top module without tests, whose imports do not count. `portsentry::` in the program is read as `crate::`.
fn sources(module: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![root.join(format!("{module}.rs"))];
    let mut directories = vec![root.join(module)];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            let tests = path.file_stem().is_some_and(|stem| stem == "tests");
            match path.is_dir() {
                true if !tests => directories.push(path),
                false if !tests => files.push(path),
                _ => {}
            }
        }
    }
    files.retain(|path| path.extension().is_some_and(|end| end == "rs") && path.exists());
    files.sort();
    let text = |path: &Path| code(&std::fs::read_to_string(path).unwrap()).replace("portsentry::", "crate::");
    files.into_iter().map(|path| (path.clone(), text(&path))).collect()
}

/// The text without comments and without its module of tests.
fn code(text: &str) -> String {
    let before = text.split_once("mod tests {").and_then(|(before, _)| before.rsplit_once("\n#[cfg(test)]"));
    let text = before.map_or(text, |(before, _)| before);
    let lines = text.lines().map(|line| match line.find("//") {
        // "https://" in a string is not a comment.
        Some(at) if !line.get(..at).is_some_and(|before| before.ends_with(':')) => line.get(..at).unwrap_or_default(),
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// All paths that the `use` statements of this text import, with braces expanded.
fn imports(text: &str) -> BTreeSet<String> {
    bindings(uses(text)).into_values().collect()
}

/// The names that these `use` statements import, each with its path.
fn bindings<'a>(statements: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
    let mut paths = BTreeSet::new();
    for statement in statements {
        let (_, tree) = statement.split_once("use ").unwrap_or_default();
        spread("", &tree.replace(" as ", "=").replace(['\n', ' '], ""), &mut paths);
    }
    let name = |path: &str| path.rsplit(['=', ':']).next().unwrap_or_default().to_owned();
    // Traits imported as `_`, and `*`, have no name and keep their path.
    let key = |path: &str| if path.ends_with(['_', '*']) { path.to_owned() } else { name(path) };
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

fn first(path: &str) -> String {
    path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn every_module_has_place_in_layout() {
    let lib = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let modules = code(&lib);
    let modules = modules.lines().filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';'));
    let placed: BTreeSet<&str> = LAYOUT.iter().map(|(name, _)| *name).collect();
    assert_eq!(modules.chain(["main"]).collect::<BTreeSet<_>>(), placed, "src/lib.rs and the layout in this file");
    assert_eq!(placed.len(), LAYOUT.len());
}

/// The crate's files by module path: `engine::sources`, `main`, and an empty path for `lib.rs`.
struct Modules(BTreeMap<String, Module>);

struct Module {
    bindings: BTreeMap<String, String>,
    /// The names that `pub use` exports again.
    exports: BTreeSet<String>,
    /// Everything except the `use` statements and the declarations of children.
    body: String,
}

impl Module {
    fn of(text: &str) -> Self {
        let body = uses(text).fold(text.to_owned(), |body, statement| body.replacen(statement, "", 1));
        // A path in a visibility does not use that module.
        let body = body.replace("(in crate::", "(in ").replace("(in super::", "(in ");
        let is_child = |line: &&str| line.ends_with(';') && line.split(' ').rev().nth(1) == Some("mod");
        let body = body.lines().filter(|line| !is_child(line)).collect::<Vec<_>>().join("\n");
        let exports = bindings(uses(text).filter(|statement| statement.starts_with("pub"))).into_keys().collect();
        Self { bindings: bindings(uses(text)), exports, body }
    }
}

impl Modules {
    fn of(files: &[(&str, &str)]) -> Self {
        Self(files.iter().map(|(path, text)| ((*path).to_owned(), Module::of(text))).collect())
    }

    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let files = LAYOUT.iter().flat_map(|(name, _)| sources(name)).chain([(root.join("lib.rs"), String::new())]);
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

    /// The modules that a module needs: by its imports, and by full paths in its text. To export an item of its own
    /// directory needs nothing of it.
    fn dependencies(&self, from: &str) -> BTreeSet<String> {
        let Module { bindings, exports, body } = &self.0[from];
        let mut paths: Vec<String> = Vec::new();
        for (name, path) in bindings {
            let within: Vec<_> =
                paths_after(body, &format!("{name}::")).map(|rest| format!("{path}::{rest}")).collect();
            let only_exported = exports.contains(name)
                && paths_after(body, name).next().is_none()
                && self.resolve(from, path).is_some_and(|module| module.starts_with(&format!("{from}::")));
            // If a whole module is imported, the items that are used from it count.
            paths.extend(if within.is_empty() && !only_exported { vec![path.clone()] } else { within });
        }
        let children = self.0.keys().filter(|module| !module.is_empty() && parent(module) == from);
        for name in
            children.filter_map(|module| module.rsplit("::").next()).filter(|name| !bindings.contains_key(*name))
        {
            paths.extend(paths_after(body, &format!("{name}::")).map(|rest| format!("self::{name}::{rest}")));
        }
        for prefix in ["crate::", "self::", "super::"] {
            paths.extend(paths_after(body, prefix).map(|rest| format!("{prefix}{rest}")));
        }
        paths.iter().filter_map(|path| self.resolve(from, path)).filter(|module| module != from).collect()
    }

    /// The dependencies between the children of a module, and the module's own file `mod.rs`. A child is a file, or a
    /// directory with all its contents.
    fn arrows(&self) -> BTreeMap<String, BTreeSet<(String, String)>> {
        let mut arrows: BTreeMap<String, BTreeSet<_>> = BTreeMap::new();
        for from in self.0.keys() {
            for to in self.dependencies(from) {
                let shared = from.split("::").zip(to.split("::")).take_while(|(a, b)| a == b).count();
                let child = |path: &str| path.split("::").nth(shared).unwrap_or("mod.rs").to_owned();
                let parent = from.split("::").take(shared).collect::<Vec<_>>().join("::");
                arrows.entry(parent).or_default().insert((child(from), child(&to)));
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

/// The paths that follow `prefix`, wherever it begins a word, and ends one if it is a name.
fn paths_after<'a>(text: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(prefix).filter_map(move |(at, _)| {
        let before = text.get(..at)?.chars().next_back();
        let rest = text.get(at + prefix.len()..)?;
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
        let starts = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
        let ends = prefix.ends_with(':') || !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        (starts && ends).then(|| rest.get(..end).unwrap_or_default().trim_end_matches(':'))
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
fn files_have_no_cycle() {
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
        let arrows = Modules::of(files).arrows();
        arrows
            .iter()
            .flat_map(|(parent, arrows)| cycles(arrows).into_iter().map(move |one| format!("{parent}: {one:?}")))
            .collect::<Vec<_>>()
    };
    let directory = ("a", "mod b;\nmod c;\npub use b::Thing;\nfn g() { b::h() }");
    // `c` uses an item of `b` that the directory's file exports.
    let export = ("a::c", "use super::Thing;");
    assert_eq!(
        found(&[("", ""), directory, ("a::b", "use super::c as d;\nfn h() { d::g() }"), export]),
        [r#"a: ["b", "c"]"#]
    );
    let other = ("a::b", "fn h() { super::f() }");
    assert_eq!(found(&[("", ""), directory, other, export]), [r#"a: ["b", "mod.rs"]"#]);
    // Dependencies count between directories, for any of their files.
    let inner = ("a::b", "fn h() { crate::z::k() }");
    assert_eq!(found(&[("", ""), directory, inner, ("z", "pub mod y;"), ("z::y", "fn k() {}")]), [""; 0]);
    assert_eq!(
        found(&[("", ""), directory, inner, ("z", "pub use y::k;\nmod y;"), ("z::y", "use crate::a::{Thing, f};")]),
        [r#": ["a", "z"]"#]
    );
}

/// The dependencies of top modules on those above them.
fn upward(modules: &Modules) -> Vec<String> {
    let place = |name: &str| LAYOUT.iter().position(|(known, _)| *known == name);
    let arrows = modules.arrows().remove("").unwrap_or_default().into_iter();
    arrows.filter(|(from, to)| place(to) < place(from)).map(|(from, to)| format!("{from} -> {to}")).collect()
}

#[test]
fn modules_use_only_lower_modules() {
    assert_eq!(upward(&Modules::read()), [""; 0]);
}

#[test]
fn modules_use_what_layout_says() {
    let arrows = Modules::read().arrows().remove("").unwrap();
    for (module, permitted) in LAYOUT {
        let used: Vec<_> = arrows.iter().filter(|(from, _)| from == module).map(|(_, to)| to.as_str()).collect();
        assert_eq!(used, permitted, "{module}: change the layout only for an arrow that belongs there");
    }
}

#[test]
fn dependency_on_upper_module_is_found() {
    let found = |text: &str| {
        let files = [("", ""), ("daemon", ""), ("types", ""), ("engine", "pub mod a;"), ("engine::a", text)];
        upward(&Modules::of(&files))
    };
    assert_eq!(found("use crate::types::Expiry;\nfn f() { super::g(crate::types::h()) }"), [""; 0]);
    for text in [
        "use crate::{daemon::{self, run}, types};",
        "fn f() { crate::daemon::run() }",
        "use super::super::daemon as d;\nfn f() { d::run() }",
        "fn f() { super::super::daemon::run() }",
        "pub use crate::daemon::run;",
    ] {
        assert_eq!(found(text), ["engine -> daemon"], "{text}");
    }
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
    for (module, ..) in PURE {
        for (path, text) in sources(module) {
            for name in OUTSIDE {
                let set_once = path.ends_with(SET_ONCE.0) && name == "std::sync";
                assert!(set_once || !text.contains(name), "{} names {name}", path.display());
            }
        }
    }
}

/// A module is `foo.rs`, or `foo/mod.rs` with its children; a test program is `foo.rs`, or `foo/main.rs`.
#[test]
fn modules_with_children_are_directories() {
    let mut directories = ["src", "tests", "benches", "fuzz/fuzz_targets"].map(PathBuf::from).to_vec();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)).unwrap() {
            let path = entry.unwrap().path();
            assert!(!path.is_dir() || !path.with_extension("rs").exists(), "move {}.rs into it", path.display());
            directories.extend(path.is_dir().then_some(path));
        }
    }
}

#[test]
fn source_reader_sees_imports() {
    let text = "pub use allow::A;\nuse std::{io::{self, Read}, fmt};\nfn f() { crate::daemon::run(); } // crate::cli\n\
                #[cfg(test)]\nmod tests {\n use crate::config::C;\n}";
    let code = code(text);
    let found: Vec<String> = imports(&code).into_iter().collect();
    assert_eq!(found, ["allow::A", "std::fmt", "std::io", "std::io::Read"]);
    let tree = imports("use crate::{\n    config::Config,\n    wire,\n};");
    assert_eq!(tree.into_iter().collect::<Vec<_>>(), ["crate::config::Config", "crate::wire"]);
}
