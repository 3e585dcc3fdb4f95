//! The hosts.deny backend: adds and removes lines of /etc/hosts.deny for services that use TCP wrappers. It is
//! slow, because each change writes a file and syncs it to the disk. It has no notion of time: its caller says when
//! a ban ends.
//!
//! The file belongs to the administrator. Each ban is two lines, a comment that names it and its rule (see `text`);
//! every other byte is preserved. New lines go to the end, so that the administrator's own rules come first.
//!
//! A symbolic link in place of the file is refused: any user may own its target, and replacing the link by a file
//! would separate the two. The administrator of such a host configures the path of the target instead.
//!
//! References: hosts_access(5), hosts_options(5).

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::BanContext;
use super::template::{NAMES, Values, expand, unknown};
use crate::types::BanTarget;

pub(crate) mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod text;

use text::{Reading, Rule, hosts_pattern};

/// Where the TCP wrappers look.
pub const DEFAULT_PATH: &str = "/etc/hosts.deny";

/// No service for the source, on any port.
pub const DEFAULT_TEMPLATE: &str = "ALL: $TARGET$";

/// Bytes of a template. The wrappers' buffer for a line has 2,048, and a macro may grow by 40.
const LONGEST: usize = 512;

/// How often a file may change under our hands before that is an error.
const ATTEMPTS: usize = 5;

/// Why a template is none.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It denies no source.
    #[error("the line for hosts.deny has no $TARGET$; write for example \"{DEFAULT_TEMPLATE}\"")]
    NoTarget,
    /// The target is part of another word, such as a prefix of its own.
    #[error("$TARGET$ must stand by itself in the line for hosts.deny; write for example \"{DEFAULT_TEMPLATE}\"")]
    NotAlone,
    /// A slip.
    #[error("{0} is no macro in the line for hosts.deny; there are {NAMES}")]
    Unknown(String),
    /// It would not be one line, or not a rule.
    #[error("the line for hosts.deny must be one rule: without a line break, a backslash at its end, or a # before it")]
    NotOneRule,
    /// The wrappers would cut it.
    #[error("the line for hosts.deny is longer than {LONGEST} bytes")]
    TooLong,
    /// It could mean any file.
    #[error("{0} is no absolute path of a file; write for example \"{DEFAULT_PATH}\"")]
    Path(PathBuf),
}

/// Why hosts.deny could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HostsDenyError {
    /// It is a symbolic link.
    #[error("{0} is a symbolic link; name the file that it points to")]
    Link(PathBuf),
    /// It is something else.
    #[error("{0} is no regular file; move it away")]
    Kind(PathBuf),
    /// It has too many bytes to be read for every change.
    #[error("{0} is larger than {limit} MiB; take out lines that are not needed any more", limit = file::LIMIT >> 20)]
    TooBig(PathBuf),
    /// One more line would make it so.
    #[error("{0} has no room for more lines below {limit} MiB; shorten `expire`, or block with nftables alone", limit = file::LIMIT >> 20)]
    Full(PathBuf),
    /// Another program writes it all the time.
    #[error("{0} was changed by another program {ATTEMPTS} times while it was being rewritten")]
    Unsteady(PathBuf),
    /// The operating system refused something.
    #[error("cannot {doing} {path}: {error}")]
    System { doing: &'static str, path: PathBuf, error: io::Error },
}

impl HostsDenyError {
    fn system(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |error| Self::System { doing, path, error }
    }
}

/// The file, and the template of a line in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostsDeny {
    path: PathBuf,
    template: String,
}

impl Default for HostsDeny {
    fn default() -> Self {
        Self { path: DEFAULT_PATH.into(), template: DEFAULT_TEMPLATE.to_owned() }
    }
}

impl HostsDeny {
    /// Lines as `template` says in the file at `path`. Nothing is read or written yet.
    ///
    /// # Errors
    /// Where the template gives no line that denies a source and can be found again.
    pub fn new(path: impl Into<PathBuf>, template: &str) -> Result<Self, TemplateError> {
        let (path, template) = (path.into(), template.trim().to_owned());
        if !path.is_absolute() || path.file_name().is_none() {
            return Err(TemplateError::Path(path));
        }
        if template.len() > LONGEST {
            return Err(TemplateError::TooLong);
        }
        if template.starts_with('#') || template.ends_with('\\') || template.contains(['\n', '\r', '\0']) {
            return Err(TemplateError::NotOneRule);
        }
        if let Some(word) = unknown(&template) {
            return Err(TemplateError::Unknown(word.to_owned()));
        }
        if !template.contains("$TARGET$") {
            return Err(TemplateError::NoTarget);
        }
        let hosts_deny = Self { path, template };
        if !hosts_deny.finds_its_own() { Err(TemplateError::NotAlone) } else { Ok(hosts_deny) }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether lines can be written, as far as that can be seen without writing one: the folder takes a new file, and the file
    /// that is there can be read.
    ///
    /// # Errors
    /// What would be in the way.
    pub fn check(&self) -> Result<(), HostsDenyError> {
        // The file is replaced, so what counts is its folder.
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let writable = accessat(CWD, folder, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
        writable.map_err(|error| HostsDenyError::system("make a file in", folder)(error.into()))?;
        self.held().map(|_| ())
    }

    /// The line that denies the source of `case`.
    #[must_use]
    pub fn line(&self, case: &BanContext) -> String {
        expand(&self.template, &Values { target: &hosts_pattern(case.target), case })
    }

    /// What differs if the file has been written or replaced since; `None` if there is none.
    pub(crate) fn stamp(&self) -> Option<file::Stamp> {
        file::stamp(&self.path)
    }

    /// The subjects that lines of ours deny, as they follow each other; none if there is no file.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn held(&self) -> Result<Vec<BanTarget>, HostsDenyError> {
        Ok(file::read(&self.path)?.map_or(Vec::new(), |old| Self::held_in(&old.bytes)))
    }

    /// The subjects that lines of ours deny in a file of these bytes.
    pub(crate) fn held_in(bytes: &[u8]) -> Vec<BanTarget> {
        Reading::of(bytes).entries.iter().map(|entry| entry.target).collect()
    }

    /// Opens the file for another process to read; `None` where there is none.
    pub(crate) fn open(&self) -> Result<Option<std::fs::File>, HostsDenyError> {
        file::open(&self.path)
    }

    /// Adds lines for `add` and removes those of `remove`, all in one new file; a target in both gets a line.
    /// No target gets a second line, and targets without one are skipped. Returns the targets whose lines were removed.
    ///
    /// # Errors
    /// Where the file cannot be read or replaced. Then it is as it was, unless only the disk's word is missing that it will
    /// stay.
    pub fn apply(&self, add: &[BanContext], remove: &[BanTarget]) -> Result<Vec<BanTarget>, HostsDenyError> {
        let add: Vec<Rule> =
            add.iter().map(|case| Rule { target: case.target, rule: self.line(case), until: case.until() }).collect();
        let remove: HashSet<BanTarget> = remove.iter().copied().collect();
        for _ in 0..ATTEMPTS {
            let old = file::read(&self.path)?;
            let bytes = old.as_ref().map_or(&[][..], |old| &old.bytes);
            let Some(edit) = Reading::of(bytes).edit(&add, &remove) else { return Ok(Vec::new()) };
            let grows = edit.text.len() > bytes.len();
            if grows && u64::try_from(edit.text.len()).is_ok_and(|length| length > file::LIMIT) {
                return Err(HostsDenyError::Full(self.path.clone()));
            }
            if file::replace(&self.path, old.as_ref(), &edit.text)? {
                return Ok(edit.removed);
            }
        }
        Err(HostsDenyError::Unsteady(self.path.clone()))
    }

    /// Whether what it writes reads as its own: a target inside another word would never be found again.
    fn finds_its_own(&self) -> bool {
        ["192.0.2.1", "2001:db8::1", "fe80::1"].iter().filter_map(|text| text.parse().ok()).all(|source| {
            let case = BanContext::example(source);
            let rule = Rule { target: case.target, rule: self.line(&case), until: case.until() };
            let edit = Reading::of(&[]).edit(&[rule], &HashSet::new());
            edit.is_some_and(|edit| Reading::of(&edit.text).entries.iter().any(|entry| entry.target == case.target))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(template: &str) -> TemplateError {
        HostsDeny::new("/etc/hosts.deny", template).unwrap_err()
    }

    #[test]
    fn unusable_template_is_refused() {
        assert!(matches!(refusal("ALL: ALL"), TemplateError::NoTarget));
        assert!(matches!(refusal(""), TemplateError::NoTarget));
        assert!(
            matches!(refusal("ALL: $TARGET$ : spawn log $TARGT$"), TemplateError::Unknown(word) if word == "$TARGT$")
        );
        assert!(matches!(refusal("ALL: $TARGET$\nALL: ALL"), TemplateError::NotOneRule));
        assert!(matches!(refusal("# ALL: $TARGET$"), TemplateError::NotOneRule));
        assert!(matches!(refusal("ALL: $TARGET$ \\"), TemplateError::NotOneRule));
        assert!(matches!(refusal("ALL: $TARGET$/24"), TemplateError::NotAlone));
        assert!(matches!(refusal(&format!("ALL: $TARGET${}", " ".repeat(600) + "x")), TemplateError::TooLong));
        for path in ["hosts.deny", "/", "/etc/.."] {
            assert!(matches!(HostsDeny::new(path, DEFAULT_TEMPLATE), Err(TemplateError::Path(_))), "{path}");
        }
    }

    #[test]
    fn classic_templates_give_their_lines() {
        let line = |template: &str, source: &str| {
            HostsDeny::new(DEFAULT_PATH, template).unwrap().line(&BanContext::example(source.parse().unwrap()))
        };
        assert_eq!(line("ALL: $TARGET$", "192.0.2.7"), "ALL: 192.0.2.7");
        assert_eq!(line("ALL: $TARGET$ : DENY", "192.0.2.7"), "ALL: 192.0.2.7 : DENY");
        assert_eq!(line(" ALL:$TARGET$:deny ", "2001:db8::7"), "ALL:[2001:db8::]/64:deny");
        assert_eq!(line("sshd, ftpd: $TARGET$, .test", "192.0.2.7"), "sshd, ftpd: 192.0.2.7, .test");
    }
}
