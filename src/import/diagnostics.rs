//! Collects errors and notes about the translated files, each with file, line and option. Their number is limited per
//! file, because a megabyte of junk has half a million invalid lines.

use super::source::Sources;
use std::io;
use std::path::PathBuf;

use crate::config::{ConfigErrors, Diagnostic};
use crate::types::printable::escaped;

/// Why a translation fails.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("{}: cannot read the file: {error}; name an existing file that you can read", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}: cannot write the file: {error}{}", path.display(), remedy(error))]
    Write { path: PathBuf, error: io::Error },
    /// The text is not a configuration of PortSentry, or has errors.
    #[error(transparent)]
    Wrong(#[from] ConfigErrors),
}

fn remedy(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::AlreadyExists { "; name another one, or add --force to replace it" } else { "" }
}

/// Diagnostics of one severity, grouped by file in the order of the files. After the first hundred of a file, further
/// ones are only counted.
pub(super) struct Diagnostics(Vec<FileDiagnostics>);

#[derive(Default)]
struct FileDiagnostics {
    name: String,
    list: Vec<Diagnostic>,
    more: usize,
}

const MAX_PER_FILE: usize = 100;

impl Diagnostics {
    pub(super) fn new(sources: &Sources) -> Self {
        let files = std::iter::once(&sources.config).chain(&sources.defaults).chain(&sources.ignore);
        Self(files.map(|file| FileDiagnostics { name: file.name.clone(), ..FileDiagnostics::default() }).collect())
    }

    pub(super) fn add(&mut self, name: &str, line: Option<usize>, key: Option<&str>, message: impl Into<String>) {
        let index = self.0.iter().position(|file| file.name == name).unwrap_or_else(|| {
            self.0.push(FileDiagnostics { name: name.to_owned(), ..FileDiagnostics::default() });
            self.0.len() - 1
        });
        let Some(file) = self.0.get_mut(index) else { return };
        if file.list.len() < MAX_PER_FILE {
            let (file_name, key) = (name.to_owned(), key.map(shown));
            file.list.push(Diagnostic { file: file_name, line, column: None, key, message: message.into() });
        } else {
            file.more += 1;
        }
    }

    pub(super) fn into_vec(self) -> Vec<Diagnostic> {
        let mut all = Vec::new();
        for FileDiagnostics { name: file, mut list, more } in self.0 {
            list.sort_by_key(|diagnostic| diagnostic.line);
            all.append(&mut list);
            if more > 0 {
                all.push(Diagnostic {
                    file,
                    line: None,
                    column: None,
                    key: None,
                    message: format!("further messages about this file: {more}"),
                });
            }
        }
        all
    }
}

/// Formats `text` for a terminal or a comment: unprintable characters are escaped, and a long text is cut.
pub(super) fn shown(text: &str) -> String {
    const MAX_SHOWN: usize = 80;
    let mut shown: String = text.chars().take(MAX_SHOWN).map(escaped).collect();
    if text.chars().nth(MAX_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// Formats `text` as [`shown`] does, in quotes.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", shown(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::InputFile;

    #[test]
    fn unprintable_text_is_escaped_and_cut() {
        assert_eq!(quoted("a\x1b[2J\t\"b\\"), "\"a\\u{1b}[2J\\t\"b\\\"");
        assert_eq!(shown("\u{202e}\u{2028}é"), "\\u{202e}\\u{2028}é");
        assert_eq!(shown(&"x".repeat(81)), format!("{}…", "x".repeat(80)));
    }

    #[test]
    fn excess_findings_are_counted() {
        let config = InputFile { name: "f".to_owned(), bytes: Vec::new() };
        let mut diagnostics = Diagnostics::new(&Sources { config, ..Sources::default() });
        (0..1_000).for_each(|line| diagnostics.add("f", Some(1_000 - line), Some("KEY"), "is wrong"));
        let list = diagnostics.into_vec();
        assert_eq!(list.len(), 101);
        assert_eq!(list[0].to_string(), "f:901: KEY: is wrong");
        assert_eq!(list[100].to_string(), "f: further messages about this file: 900");
    }
}
