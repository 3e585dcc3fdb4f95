//! What is to be said about a text that is translated: notes and errors, each with file, line and option. Bounded, because
//! a megabyte of junk has half a million wrong lines.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// One thing to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file, as the operator named it.
    pub file: String,
    /// Line, from 1; `None` where it is about the file as a whole.
    pub line: Option<usize>,
    /// The option; `None` where it is about none.
    pub key: Option<String>,
    /// A sentence: what, and what to do.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Why there is no translation.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file cannot be read.
    #[error("{}: cannot be read: {error}; name a file that is there and that you may read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The result cannot be written.
    #[error("{}: cannot be written: {error}{}", path.display(), remedy(error))]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The text is no configuration of PortSentry, or has errors: at least one, in the order of the text.
    #[error("{}", lines(.0))]
    Wrong(Vec<Finding>),
}

fn remedy(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::AlreadyExists { "; name another one, or add --force to replace it" } else { "" }
}

fn lines(findings: &[Finding]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Findings about one file, in the order they are made; beyond the first hundred they are only counted.
pub(super) struct Findings {
    file: String,
    list: Vec<Finding>,
    more: usize,
}

const MOST: usize = 100;

impl Findings {
    pub(super) fn about(file: &str) -> Self {
        Self { file: file.to_owned(), list: Vec::new(), more: 0 }
    }

    pub(super) fn add(&mut self, line: Option<usize>, key: Option<&str>, message: String) {
        if self.list.len() < MOST {
            self.list.push(Finding { file: self.file.clone(), line, key: key.map(shown), message });
        } else {
            self.more += 1;
        }
    }

    /// Puts the findings of `other`, about the same file, behind these.
    pub(super) fn append(&mut self, other: Self) {
        for finding in other.list {
            self.add(finding.line, finding.key.as_deref(), finding.message);
        }
        self.more += other.more;
    }

    /// True where one is about one of `keys`.
    pub(super) fn mentions(&self, keys: &[&str]) -> bool {
        self.list.iter().any(|finding| finding.key.as_deref().is_some_and(|key| keys.contains(&key)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn into_vec(self) -> Vec<Finding> {
        let Self { file, mut list, more } = self;
        list.sort_by_key(|finding| finding.line);
        if more > 0 {
            list.push(Finding { file, line: None, key: None, message: format!("{more} more of this kind") });
        }
        list
    }
}

/// `text` for a terminal and for a comment: what does not print is escaped, what is long is cut.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut shown: String = text.chars().take(LONGEST).map(|c| Printable(c).to_string()).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

/// [`shown`], in quotes.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", shown(text))
}

/// A character that stays on its line and moves nothing: controls, direction marks and the like as `\u{202e}`.
pub(super) struct Printable(pub(super) char);

impl fmt::Display for Printable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            '"' | '\'' | '\\' => write!(f, "{}", self.0),
            c if c.is_whitespace() && c != ' ' => write!(f, "{}", c.escape_unicode()),
            c if c.is_control() => write!(f, "{}", c.escape_unicode()),
            c => write!(f, "{}", c.escape_debug()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_print_is_escaped_and_what_is_long_is_cut() {
        assert_eq!(quoted("a\x1b[2J\t\"b\\"), "\"a\\u{1b}[2J\\u{9}\"b\\\"");
        assert_eq!(shown("\u{202e}\u{2028}é"), "\\u{202e}\\u{2028}é");
        assert_eq!(shown(&"x".repeat(81)), format!("{}…", "x".repeat(80)));
    }

    #[test]
    fn a_flood_of_findings_is_counted() {
        let mut findings = Findings::about("f");
        (0..1_000).for_each(|line| findings.add(Some(1_000 - line), Some("KEY"), "is wrong".to_owned()));
        let list = findings.into_vec();
        assert_eq!(list.len(), 101);
        assert_eq!(list[0].to_string(), "f:901: KEY: is wrong");
        assert_eq!(list[100].to_string(), "f: 900 more of this kind");
    }
}
