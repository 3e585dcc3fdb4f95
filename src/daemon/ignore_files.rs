//! Watches the files of `allow.files` and reads them again when they change, so that a new entry needs no restart.
//! While a file is unreadable or invalid, its last valid content stays in force, so that an editing mistake bans no
//! allowed source.

use std::path::PathBuf;

use ipnet::IpNet;

use crate::config::{Allow, ConfigErrors, read_ignore_file};
use crate::events::event::EventKind;
use crate::host::file_watch::FileWatch;
use crate::types::counted;

/// Number of polls after which a file that keeps changing is read nevertheless.
const MAX_POLLS: u8 = 5;

/// Maximum number of errors logged individually per file: a long file may have an error in every line.
const MAX_LOGGED_ERRORS: usize = 5;

struct IgnoreFile {
    watch: FileWatch<PathBuf>,
    networks: Vec<IpNet>,
    /// Number of polls for which the file has kept changing; 0 if it has not changed since it was read.
    changing: u8,
    wrong: bool,
}

pub(super) struct IgnoreFiles(Vec<IgnoreFile>);

impl IgnoreFiles {
    /// Reads the files that `allow` names.
    ///
    /// # Errors
    /// All errors in all files: at the start there is no earlier content to use instead.
    pub(super) fn open(allow: &Allow) -> Result<Self, ConfigErrors> {
        // Watches are installed first, so that changes during the reads are noticed.
        let watches: Vec<_> = allow.files.iter().map(|path| FileWatch::new(path.clone())).collect();
        let read = allow.read_files()?;
        let file = |(watch, networks)| IgnoreFile { watch, networks, changing: 0, wrong: false };
        Ok(Self(watches.into_iter().zip(read).map(file).collect()))
    }

    pub(super) fn networks(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.0.iter().flat_map(|file| file.networks.iter().copied())
    }

    /// Reads the changed files that are stable; returns whether their networks changed, and the events to report.
    pub(super) fn tick(&mut self) -> (bool, Vec<EventKind>) {
        let mut events = Vec::new();
        let mut changed = false;
        for file in &mut self.0 {
            changed |= file.rests() && file.read(&mut events);
        }
        (changed, events)
    }
}

impl IgnoreFile {
    /// True if the file changed, but not since the last poll: a file that is being written may be truncated anywhere.
    fn rests(&mut self) -> bool {
        if self.watch.poll() && self.changing < MAX_POLLS {
            self.changing += 1;
            return false;
        }
        std::mem::take(&mut self.changing) > 0
    }

    fn read(&mut self, events: &mut Vec<EventKind>) -> bool {
        let path = self.watch.files();
        let name = path.display();
        match read_ignore_file(path) {
            Ok(networks) => {
                let changed = networks != self.networks;
                if changed || self.wrong {
                    let allowed = counted(networks.len(), "network");
                    events.push(EventKind::Note(format!("{name} was reloaded and now allows {allowed}")));
                }
                self.wrong = false;
                self.networks = networks;
                changed
            }
            Err(errors) => {
                events.extend(errors.iter().take(MAX_LOGGED_ERRORS).map(|error| EventKind::Error(error.to_string())));
                let more = match errors.iter().count().saturating_sub(MAX_LOGGED_ERRORS) {
                    0 => String::new(),
                    more => format!("further invalid lines: {more}; "),
                };
                let count = self.networks.len();
                events.push(EventKind::Note(format!("{name}: {more}its previous entries stay allowed ({count})")));
                self.wrong = true;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn open(path: &Path) -> IgnoreFiles {
        IgnoreFiles::open(&Allow { files: vec![path.to_owned()], ..Allow::default() }).unwrap()
    }

    /// A file with this text, in a separate directory.
    fn opened(text: &str) -> (tempfile::TempDir, PathBuf, IgnoreFiles) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ignore");
        fs::write(&path, text).unwrap();
        let files = open(&path);
        (directory, path, files)
    }

    fn allowed(files: &IgnoreFiles) -> Vec<String> {
        files.networks().map(|network| network.to_string()).collect()
    }

    /// Two checks: the first one notices a change, the second one reads the file.
    fn look_twice(files: &mut IgnoreFiles) -> (bool, Vec<String>) {
        assert!(!files.tick().0, "the file may be incomplete");
        let (changed, messages) = files.tick();
        (changed, messages.iter().map(|event| format!("{event:?}")).collect())
    }

    #[test]
    fn renamed_and_restored_file_is_followed() {
        let (directory, path, mut files) = opened("192.0.2.7\n");
        assert!(!files.tick().0);
        fs::write(&path, "192.0.2.7\n192.0.2.8\n").unwrap();
        let (changed, messages) = look_twice(&mut files);
        assert!(changed && messages.len() == 1 && messages[0].contains("2 networks"), "{messages:?}");
        fs::write(directory.path().join("new"), "192.0.2.9\n").unwrap();
        fs::rename(directory.path().join("new"), &path).unwrap();
        assert!(look_twice(&mut files).0);
        assert_eq!(allowed(&files), ["192.0.2.9/32"]);
        fs::remove_file(&path).unwrap();
        let (changed, messages) = look_twice(&mut files);
        assert!(
            !changed && messages.len() == 2 && messages[0].contains("cannot read the file: No such file"),
            "{messages:?}"
        );
        assert_eq!(allowed(&files), ["192.0.2.9/32"], "the previous networks stay allowed");
        assert_eq!(files.tick().1.len(), 0, "said once");
        fs::write(&path, "192.0.2.9\n").unwrap();
        let (changed, messages) = look_twice(&mut files);
        assert!(!changed && messages.len() == 1, "the file is valid again: {messages:?}");
    }

    #[test]
    fn wrong_line_changes_nothing() {
        let (_directory, path, mut files) = opened("192.0.2.7\n");
        fs::write(&path, "192.0.2.8\nlocalhost\n").unwrap();
        let (changed, messages) = look_twice(&mut files);
        assert!(!changed && messages[0].contains("ignore:2:1: "), "{messages:?}");
        assert_eq!(allowed(&files), ["192.0.2.7/32"]);
        fs::write(&path, "x\n".repeat(100_000)).unwrap();
        let (_, messages) = look_twice(&mut files);
        assert_eq!(messages.len(), MAX_LOGGED_ERRORS + 1);
        assert!(messages[MAX_LOGGED_ERRORS].contains("further invalid lines: 99995"), "{messages:?}");
    }

    #[test]
    fn changed_comments_are_not_reported() {
        let (_directory, path, mut files) = opened("192.0.2.7\n");
        fs::write(&path, "192.0.2.7 # the monitor\n").unwrap();
        assert_eq!(look_twice(&mut files), (false, Vec::new()));
    }

    #[test]
    fn constantly_changing_file_is_read() {
        let (_directory, path, mut files) = opened("");
        let read = (1..20).position(|round| {
            fs::write(&path, "192.0.2.7 #".to_owned() + &"x".repeat(round)).unwrap();
            files.tick().0
        });
        assert_eq!(read, Some(usize::from(MAX_POLLS)));
    }

    #[test]
    fn start_refuses_every_configuration_error() {
        let directory = tempfile::tempdir().unwrap();
        let [bad, none] = ["bad", "none"].map(|name| directory.path().join(name));
        fs::write(&bad, "localhost\n").unwrap();
        let errors = IgnoreFiles::open(&Allow { files: vec![bad, none], ..Allow::default() }).err().unwrap();
        assert_eq!(errors.iter().count(), 2);
    }
}
