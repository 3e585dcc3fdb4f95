//! Reads the files to translate and writes the result. No other part of the import accesses the system.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use super::ImportOptions;
use super::diagnostics::ImportError;
use super::options::Options;
use super::output::{Import, Output};
use super::source::{InputFile, MAX_LEN, Sources};
use super::translate::translate;
use crate::atomic_file::{AtomicFile, TemporaryName};
use crate::config::{Config, Mode, Warning};
use crate::file::{open_regular, read_up_to};
use crate::types::Response;

const CONFIG: &str = "/etc/portsentry/portsentry.conf";
const DEFAULTS: &str = "/etc/default/portsentry";
/// Directory in which Debian 13 enables `portsentry@MODE.service`, which does not read that file.
const INSTANCES: &str = "/etc/systemd/system/multi-user.target.wants";

/// Reads the files of `options` and translates them. If no `portsentry.conf` is named, Debian's file is read, and its
/// file with the modes if there is one.
///
/// # Errors
/// A file cannot be read, and the errors of [`translate`].
pub fn read(options: &ImportOptions) -> Result<Import, ImportError> {
    let config = source(options.file.as_deref().unwrap_or(Path::new(CONFIG)))?;
    let defaults = match (&options.defaults, &options.file) {
        (Some(named), _) => Some(source(named)?),
        (None, Some(_)) => None,
        (None, None) => match instances(Path::new(INSTANCES)) {
            None if !matches!(Path::new(DEFAULTS).try_exists(), Ok(false)) => Some(source(Path::new(DEFAULTS))?),
            found => found,
        },
    };
    let ignore = options.ignore.iter().map(|path| source(path)).collect::<Result<_, _>>()?;
    translate(&Sources { config, defaults, ignore }, &|path| bytes(open_regular(path)?))
}

/// The pitfall of a migration: the classic configuration in `directory` only logs, but `config` blocks, which the
/// operator may not expect.
pub fn classic_only_logs(config: &Config, directory: &Path) -> Option<Warning> {
    let path = directory.join("portsentry.conf");
    let blocks = config.tcp.mode != Mode::Off && config.tcp.block == Response::Block;
    let classic = InputFile { bytes: open_regular(&path).and_then(bytes).ok()?, ..InputFile::default() };
    let sources = Sources { config: classic, ..Sources::default() };
    let options = Options::parse(&sources.config, &mut Output::new(&sources))?;
    if !blocks || options.get("BLOCK_TCP")?.value.trim() != "0" {
        return None;
    }
    let message = format!(
        "scans are blocked, although {} of classic PortSentry says to only log (BLOCK_TCP is 0): that file is not \
         read. `portsentry trial 1d` only logs for a day; `portsentry import` translates the file; remove it to end \
         this warning",
        path.display()
    );
    Some(Warning::new("tcp.block", message))
}

/// The modes of the enabled instances of classic's unit in `directory`, in the form of `/etc/default/portsentry`.
fn instances(directory: &Path) -> Option<InputFile> {
    let names = directory.read_dir().ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let modes = names.filter_map(|name| name.strip_prefix("portsentry@")?.strip_suffix(".service").map(str::to_owned));
    let mut lines: Vec<String> =
        modes.map(|mode| format!("{}_MODE={mode}\n", if mode.ends_with("udp") { "UDP" } else { "TCP" })).collect();
    lines.sort_unstable();
    let name = directory.join("portsentry@.service").display().to_string();
    (!lines.is_empty()).then(|| InputFile { name, bytes: lines.concat().into_bytes() })
}

fn source(path: &Path) -> Result<InputFile, ImportError> {
    let bytes = File::open(path).and_then(bytes).map_err(|error| ImportError::Read { path: path.to_owned(), error })?;
    Ok(InputFile { name: path.display().to_string(), bytes })
}

fn bytes(file: File) -> io::Result<Vec<u8>> {
    // One byte above the limit shows that the file is too long.
    read_up_to(file, MAX_LEN as u64 + 1)
}

/// Writes `text` to `path`, which must not exist unless `force` is true. The write is atomic: a reader sees the
/// complete old or new file.
///
/// # Errors
/// The error of the system; no temporary file is left behind.
pub fn write(path: &Path, text: &str, force: bool) -> Result<(), ImportError> {
    // The umask applies, so that other users can read the file.
    let write = || -> io::Result<()> {
        let file = AtomicFile::write(path, TemporaryName::Random, 0o666, |file| file.write_all(text.as_bytes()))?;
        if force { file.replace() } else { file.create_new() }
    };
    write().map_err(|error| ImportError::Write { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enabled_instances_name_the_modes() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(instances(directory.path()), None);
        for name in ["ssh.service", "portsentry.service", "portsentry@sudp.service", "portsentry@atcp.service"] {
            File::create(directory.path().join(name)).unwrap();
        }
        let found = instances(directory.path()).unwrap();
        assert_eq!(String::from_utf8(found.bytes).unwrap(), "TCP_MODE=atcp\nUDP_MODE=sudp\n");
        assert_eq!(instances(Path::new("/nosuch")), None);
    }

    #[test]
    fn classic_that_only_logs_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let named = |text: &str| classic_only_logs(&Config::parse("test", text).unwrap(), directory.path());
        assert_eq!(named(""), None, "there is no classic configuration");
        for (classic, warns) in
            [("BLOCK_TCP=\"0\"\n", true), ("# BLOCK_TCP=\"0\"\nBLOCK_TCP=\"1\"\n", false), ("", false)]
        {
            std::fs::write(directory.path().join("portsentry.conf"), classic).unwrap();
            assert_eq!(named("").is_some(), warns, "{classic}");
            assert_eq!(named("[tcp]\nblock = false\n"), None, "both only log");
        }
    }
}
