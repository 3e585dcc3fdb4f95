//! Implements the hosts.deny backend: adds and removes lines of /etc/hosts.deny for services that use TCP wrappers. It
//! is slow, because each change writes a file and syncs it to the disk. Expiry is handled by the caller.
//!
//! The file belongs to the administrator. Each ban is two lines, a comment that names the target and its rule (see
//! `text`); all other bytes are preserved. New lines are appended, so that the administrator's own rules come first.
//!
//! A symbolic link in place of the file is refused: any user may own its target, and replacing the link with a file
//! would separate the two. The administrator of such a host configures the path of the link's target instead.
//!
//! References: hosts_access(5), hosts_options(5).

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::BanContext;
use super::template::{NAMES, expand, unknown};
use crate::config::{Config, DEFAULT_DENY_LINE};
use crate::file::FileStamp;
use crate::types::BanTarget;

mod error;
mod file;
mod text;

pub use error::HostsDenyError;
pub(super) use error::MAX_FILE_LEN;
#[cfg(any(test, fuzzing))]
pub(crate) use text::fuzz;

use error::MAX_ATTEMPTS;
use text::{DenyRule, ParsedFile, hosts_pattern};

/// Why a template is invalid.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("$TARGET$ must be a separate word in the line for hosts.deny; write for example \"{DEFAULT_DENY_LINE}\"")]
    NotAlone,
    #[error("{0} is not a placeholder of the line for hosts.deny; the placeholders are {NAMES}")]
    Unknown(String),
}

/// The file and the template of its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostsDeny {
    path: PathBuf,
    template: String,
}

impl HostsDeny {
    /// Uses lines of `template` in the file at `path`. The configuration has checked both. Does not access the file yet.
    ///
    /// # Errors
    /// The template contains an unknown placeholder, or its lines could not be found again in the file.
    pub fn new(path: impl Into<PathBuf>, template: &str) -> Result<Self, TemplateError> {
        if let Some(word) = unknown(template) {
            return Err(TemplateError::Unknown(word.to_owned()));
        }
        let hosts_deny = Self { path: path.into(), template: template.trim().to_owned() };
        if !hosts_deny.finds_its_own() { Err(TemplateError::NotAlone) } else { Ok(hosts_deny) }
    }

    /// The file and the template of the configuration, whether or not hosts.deny is a backend.
    ///
    /// # Errors
    /// See [`HostsDeny::new`].
    pub fn from_config(config: &Config) -> Result<Self, TemplateError> {
        let deny = &config.block.hosts_deny;
        Self::new(&deny.file, &deny.line)
    }

    /// The file, in a directory that must be writable.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it writes where.
    pub fn describe(&self) -> String {
        format!("the line \"{}\" in {}", self.template, self.path.display())
    }

    /// The line that denies the source of `context`, as reported in its event.
    pub fn entry(&self, context: &BanContext) -> String {
        expand(&self.template, &hosts_pattern(context.target), context)
    }

    /// A value that changes when the file is written or replaced; `None` if it does not exist.
    pub(super) fn stamp(&self) -> Option<FileStamp> {
        std::fs::symlink_metadata(&self.path).ok().as_ref().map(FileStamp::from)
    }

    /// The directory in which the file is replaced.
    pub(super) fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// Checks that the directory accepts a new file.
    pub(super) fn check_directory(&self) -> Result<(), HostsDenyError> {
        let writable = accessat(CWD, self.directory(), Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
        writable.map_err(|error| HostsDenyError::system("create a file in", self.directory())(error.into()))
    }

    /// Checks that lines can be written, as far as possible without writing: the directory accepts a new file, and an
    /// existing file can be read. Returns the targets of own lines.
    ///
    /// # Errors
    /// The first problem.
    pub(super) fn check(&self) -> Result<Vec<BanTarget>, HostsDenyError> {
        self.check_directory()?;
        self.targets()
    }

    /// The warning at the start, if lines cannot be written now. Each write is retried.
    pub fn warning(&self) -> Option<String> {
        self.check().err().map(|error| format!("cannot write hosts.deny, retrying: {error}"))
    }

    /// The targets of own lines, in order; empty if the file does not exist.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn targets(&self) -> Result<Vec<BanTarget>, HostsDenyError> {
        Ok(file::read(&self.path)?.map_or(Vec::new(), |old| Self::targets_in(&old.bytes)))
    }

    /// The targets of own lines in a file with these bytes.
    pub(crate) fn targets_in(bytes: &[u8]) -> Vec<BanTarget> {
        ParsedFile::parse(bytes).entries.iter().map(|entry| entry.target).collect()
    }

    /// Opens the file for another process to read; `None` if it does not exist.
    pub(crate) fn open(&self) -> Result<Option<std::fs::File>, HostsDenyError> {
        file::open(&self.path)
    }

    /// Adds lines for `add` and removes those of `remove`, all in one new file; a target in both gets a line. No target
    /// gets a second line, and targets without a line are skipped. Returns the targets whose lines were removed.
    ///
    /// # Errors
    /// The file cannot be read or replaced. Its content is then unchanged, unless only the final sync of the directory
    /// failed.
    pub fn apply(&self, add: &[BanContext], remove: &[BanTarget]) -> Result<Vec<BanTarget>, HostsDenyError> {
        let add: Vec<DenyRule> = add
            .iter()
            .map(|context| DenyRule { target: context.target, rule: self.entry(context), until: context.until() })
            .collect();
        let remove: HashSet<BanTarget> = remove.iter().copied().collect();
        for _ in 0..MAX_ATTEMPTS {
            let old = file::read(&self.path)?;
            let bytes = old.as_ref().map_or(&[][..], |old| &old.bytes);
            let Some(edit) = ParsedFile::parse(bytes).edit(&add, &remove) else { return Ok(Vec::new()) };
            let grows = edit.text.len() > bytes.len();
            if grows && u64::try_from(edit.text.len()).is_ok_and(|length| length > MAX_FILE_LEN) {
                return Err(HostsDenyError::Full(self.path.clone()));
            }
            if file::replace(&self.path, old.as_ref(), &edit.text)? {
                return Ok(edit.removed);
            }
        }
        Err(HostsDenyError::Unsteady(self.path.clone()))
    }

    /// True if the parser recognises the written lines: a target inside another word would never be found again.
    fn finds_its_own(&self) -> bool {
        ["192.0.2.1", "2001:db8::1", "fe80::1"].iter().filter_map(|text| text.parse().ok()).all(|source| {
            let context = BanContext::example(source);
            let rule = DenyRule { target: context.target, rule: self.entry(&context), until: context.until() };
            let edit = ParsedFile::parse(&[]).edit(&[rule], &HashSet::new());
            edit.is_some_and(|edit| {
                ParsedFile::parse(&edit.text).entries.iter().any(|entry| entry.target == context.target)
            })
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
        assert!(
            matches!(refusal("ALL: $TARGET$ : spawn log $TARGT$"), TemplateError::Unknown(word) if word == "$TARGT$")
        );
        assert!(matches!(refusal("ALL: $TARGET$/24"), TemplateError::NotAlone));
    }

    #[test]
    fn classic_templates_give_their_lines() {
        let line = |template: &str, source: &str| {
            HostsDeny::new("/etc/hosts.deny", template).unwrap().entry(&BanContext::example(source.parse().unwrap()))
        };
        assert_eq!(line("ALL: $TARGET$", "192.0.2.7"), "ALL: 192.0.2.7");
        assert_eq!(line("ALL: $TARGET$ : DENY", "192.0.2.7"), "ALL: 192.0.2.7 : DENY");
        assert_eq!(line(" ALL:$TARGET$:deny ", "2001:db8::7"), "ALL:[2001:db8::]/64:deny");
        assert_eq!(line("sshd, ftpd: $TARGET$, .test", "192.0.2.7"), "sshd, ftpd: 192.0.2.7, .test");
    }
}
