//! Which files there are to translate, and where the result goes. All that touches the system.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::finding::{Finding, ImportError};
use super::{Import, LARGEST, Source, Sources, translate};
use crate::config::Allow;

/// The files that an operator names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// `portsentry.conf`; `None`: those of Debian, with the modes' file if there is one.
    pub config: Option<PathBuf>,
    /// `/etc/default/portsentry`.
    pub defaults: Option<PathBuf>,
    /// Ignore files whose networks are written into the result.
    pub ignore: Vec<PathBuf>,
}

const CONFIG: &str = "/etc/portsentry/portsentry.conf";
const DEFAULTS: &str = "/etc/default/portsentry";

/// Reads `files` and translates them. A look at the ignore file that the result names is part of it: the daemon would
/// not start with one that it cannot read.
///
/// # Errors
/// A file that cannot be read, and as [`translate`].
pub fn read(files: &Files) -> Result<Import, ImportError> {
    let config = source(files.config.as_deref().unwrap_or(Path::new(CONFIG)))?;
    let defaults = match (&files.defaults, &files.config) {
        (Some(named), _) => Some(source(named)?),
        (None, None) if !matches!(Path::new(DEFAULTS).try_exists(), Ok(false)) => Some(source(Path::new(DEFAULTS))?),
        (None, _) => None,
    };
    let ignore = files.ignore.iter().map(|path| source(path)).collect::<Result<_, _>>()?;
    let mut import = translate(&Sources { config, defaults, ignore }, &|path| path.is_file())?;
    import.notes.extend(ignored(&import));
    Ok(import)
}

/// What is wrong with the ignore files that the translation names.
fn ignored(import: &Import) -> Vec<Finding> {
    let document = toml::de::DeTable::parse(&import.toml).ok();
    let files = document
        .as_ref()
        .and_then(|document| document.get_ref().get("allow")?.get_ref().get("files")?.get_ref().as_array());
    let files = files.into_iter().flatten().filter_map(|file| file.get_ref().as_str()).map(PathBuf::from).collect();
    let allow = Allow { files, ..Allow::default() };
    let Err(errors) = allow.read() else { return Vec::new() };
    let findings = errors.iter().map(|error| Finding {
        file: error.file.clone(),
        line: error.position.map(|position| position.line),
        key: None,
        message: format!("{}; the daemon does not start before that", error.message),
    });
    findings.take(100).collect()
}

fn source(path: &Path) -> Result<Source, ImportError> {
    let wrong = |error| ImportError::Read { path: path.to_owned(), error };
    // One byte more than is taken tells that there is more.
    let most = u64::try_from(LARGEST).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)).map_err(wrong)?;
    Ok(Source { name: path.display().to_string(), bytes })
}

/// Writes `text` to `path`, which must not be there unless `force` says to replace it; a reader sees the old file or the
/// new one, whole.
///
/// # Errors
/// What the system says, and nothing is left behind.
pub fn write(path: &Path, text: &str, force: bool) -> Result<(), ImportError> {
    let wrong = |error| ImportError::Write { path: path.to_owned(), error };
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}.new", std::process::id()));
    let fresh = PathBuf::from(fresh);
    if !force && fs::symlink_metadata(path).is_ok() {
        return Err(wrong(io::Error::from(io::ErrorKind::AlreadyExists)));
    }
    let put = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // A link, unlike a renaming, never replaces what somebody else has put there meanwhile.
        if force { fs::rename(&fresh, path) } else { fs::hard_link(&fresh, path) }
    };
    let result = put();
    if !force || result.is_err() {
        // Also where it is not there.
        let _ = fs::remove_file(&fresh);
    }
    result.map_err(wrong)
}
