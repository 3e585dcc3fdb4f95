//! Reads the installed systemd unit with its drop-ins, and determines what it permits.
//!
//! References: systemd.unit(5), systemd.exec(5).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::config::flags::RunOptions;
use crate::sandbox;

/// The directories of systemd units, in order of precedence.
const DIRECTORIES: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

pub(super) const UNIT: &str = "portsentry.service";

/// Bits of a file's mode for one class of users.
pub(super) const READ: u32 = 0o4;
pub(super) const EXECUTE: u32 = 0o1;

/// The service section of a unit with its drop-ins.
pub(super) struct Unit {
    /// Keys and values, in order of precedence.
    words: Vec<(String, String)>,
}

impl Unit {
    pub(super) fn installed() -> Option<Self> {
        let text = DIRECTORIES.iter().find_map(|directory| fs::read_to_string(Path::new(directory).join(UNIT)).ok())?;
        // If several directories have a drop-in of the same name, the first one counts. Drop-ins are applied in order
        // of their names.
        let mut drop_ins: BTreeMap<OsString, PathBuf> = BTreeMap::new();
        for directory in DIRECTORIES {
            let entries = fs::read_dir(Path::new(directory).join(format!("{UNIT}.d"))).into_iter().flatten().flatten();
            for entry in entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "conf")) {
                drop_ins.entry(entry.file_name()).or_insert_with(|| entry.path());
            }
        }
        let others = drop_ins.values().filter_map(|path| fs::read_to_string(path).ok());
        Some(Self::from_texts(std::iter::once(text).chain(others)))
    }

    pub(super) fn from_texts(texts: impl Iterator<Item = String>) -> Self {
        let mut words = Vec::new();
        for text in texts {
            let text = text.replace("\\\n", " ");
            let mut section = "";
            for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
                match (line.strip_prefix('['), line.split_once('=')) {
                    (Some(name), _) => section = name.trim_end_matches(']'),
                    (None, Some((key, value))) if section == "Service" => {
                        words.push((key.trim().to_owned(), value.trim().to_owned()));
                    }
                    _ => {}
                }
            }
        }
        Self { words }
    }

    /// The items of a list. Each line adds items, and an empty line clears the list.
    pub(super) fn list(&self, key: &str) -> Vec<&str> {
        let mut found = Vec::new();
        for (_, value) in self.words.iter().filter(|(word, _)| word == key) {
            if value.is_empty() {
                found.clear();
            }
            found.extend(value.split_whitespace());
        }
        found
    }

    pub(super) fn value(&self, key: &str) -> &str {
        self.words.iter().rev().find(|(word, _)| word == key).map_or("", |(_, value)| value)
    }

    /// True if the service does not run as root.
    pub(super) fn has_user(&self) -> bool {
        !matches!(self.value("User"), "" | "root" | "0")
    }

    pub(super) fn is_on(&self, key: &str) -> bool {
        matches!(self.value(key), "yes" | "true" | "on" | "1")
    }

    /// True if sockets of the family can be created.
    pub(super) fn has_family(&self, family: &str) -> bool {
        let families = self.list("RestrictAddressFamilies");
        match families.split_first() {
            None => true,
            Some((&first, rest)) if first.starts_with('~') => {
                first.trim_start_matches('~') != family && !rest.contains(&family)
            }
            Some(_) => families.contains(&family),
        }
    }

    /// True if the service lacks the capability, because it is not root or the capability is removed.
    pub(super) fn lacks(&self, capability: &str) -> bool {
        let bounded = self.list("CapabilityBoundingSet");
        let taken =
            !bounded.is_empty() && !bounded.iter().any(|word| word.starts_with('~')) && !bounded.contains(&capability);
        taken || self.has_user() && !self.list("AmbientCapabilities").contains(&capability)
    }

    /// The setting that hides `path` from the service behind an empty directory.
    fn hides(&self, path: &Path) -> Option<&'static str> {
        let is_hidden = |key| !matches!(self.value(key), "" | "no" | "false" | "off" | "0" | "read-only");
        let lies_in = |directories: &[&str]| directories.iter().any(|directory| path.starts_with(directory));
        let bound = [self.list("BindPaths"), self.list("BindReadOnlyPaths")].concat();
        if bound.iter().any(|one| path.starts_with(one.trim_start_matches('-').split(':').next().unwrap_or_default())) {
            return None;
        }
        let home = lies_in(&["/home", "/root", "/run/user"]) && is_hidden("ProtectHome");
        let tmp = lies_in(&["/tmp", "/var/tmp"]) && is_hidden("PrivateTmp");
        home.then_some("ProtectHome").or(tmp.then_some("PrivateTmp"))
    }

    /// Why the service cannot use a file with `bits` (4 to read, 1 to execute) that root can use, and the
    /// remedy.
    pub(super) fn obstacle(&self, path: &Path, bits: u32) -> Option<String> {
        if let Some(setting) = self.hides(path) {
            return Some(format!("{setting}= hides the file; move it, for example to /etc/portsentry"));
        }
        if !self.has_user() || !self.lacks("CAP_DAC_READ_SEARCH") {
            return None;
        }
        let user = self.value("User");
        let groups = [self.list("SupplementaryGroups"), self.list("Group")].concat();
        let closed = sandbox::obstacle_for(user, &groups, path, bits)?;
        let right = match (closed.is_dir(), bits) {
            (true, _) => "o+x",
            (false, READ) => "o+r",
            (false, _) => "o+rx",
        };
        Some(format!("the service's user {user} has no permission; run: chmod {right} {}", closed.display()))
    }

    /// True if files in `directory` can be created and replaced.
    pub(super) fn writes(&self, directory: &Path) -> bool {
        let closed: &[&str] = match self.value("ProtectSystem") {
            "strict" => &["/"],
            "full" => &["/usr", "/boot", "/efi", "/etc"],
            "yes" | "true" | "on" | "1" => &["/usr", "/boot", "/efi"],
            _ => &[],
        };
        let home = !matches!(self.value("ProtectHome"), "" | "no" | "false" | "off" | "0");
        let homes: &[&str] = if home { &["/home", "/root", "/run/user"] } else { &[] };
        let own = [
            ("StateDirectory", "/var/lib"),
            ("LogsDirectory", "/var/log"),
            ("RuntimeDirectory", "/run"),
            ("CacheDirectory", "/var/cache"),
        ];
        let own =
            own.iter().flat_map(|(key, place)| self.list(key).into_iter().map(move |name| Path::new(place).join(name)));
        let opened =
            self.list("ReadWritePaths").into_iter().map(|path| normalized(path.trim_start_matches(['-', '+'])));
        // /tmp is always writable; it is private if PrivateTmp= is set.
        let always = ["/dev", "/proc", "/sys", "/tmp", "/var/tmp"].map(PathBuf::from);
        let directory = &normalized(directory);
        // The most specific path decides, as with mounts.
        let deepest = |places: &mut dyn Iterator<Item = PathBuf>| {
            places.filter(|place| directory.starts_with(place)).map(|place| place.components().count()).max()
        };
        let shut = deepest(&mut closed.iter().chain(homes).map(PathBuf::from));
        shut.is_none() || shut <= deepest(&mut own.chain(opened).chain(always))
    }

    /// The flags on the command line of the service.
    pub(super) fn options(&self) -> Option<RunOptions> {
        // Quotes, variables and specifiers are not expanded; if the command line cannot be parsed, nothing is reported.
        let line = self.value("ExecStart").trim_start_matches(['@', '-', ':', '+', '!']);
        RunOptions::parse(line.split_whitespace().map(OsString::from))
    }
}

/// The path with links resolved, if it exists.
pub(super) fn normalized(path: impl AsRef<Path>) -> PathBuf {
    path.as_ref().canonicalize().unwrap_or_else(|_| path.as_ref().to_owned())
}
