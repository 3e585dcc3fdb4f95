//! Defines the texts that are translated together.

use std::io;
use std::path::Path;

/// Maximum length of a text in bytes. The longest published configurations have about 20 KiB.
pub(super) const MAX_LEN: usize = 1 << 20;

/// A text to translate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputFile {
    /// Name of the text in messages.
    pub name: String,
    /// Contents: UTF-8, except in comments.
    pub bytes: Vec<u8>,
}

/// All texts that are translated together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// `portsentry.conf`.
    pub config: InputFile,
    /// `/etc/default/portsentry`, which has the modes on Debian.
    pub defaults: Option<InputFile>,
    /// Ignore files; if empty, the file of `IGNORE_FILE` is read.
    pub ignore: Vec<InputFile>,
}

/// Reads a file that the configuration names.
pub type ReadFile<'r> = dyn Fn(&Path) -> io::Result<Vec<u8>> + 'r;
