//! Options to keys: what the parts of a translation share, and the order in which they do their work.

use std::path::Path;

use super::classic::{Classic, Entry};
use super::defaults::Modes;
use super::document::{Document, Value};
use super::finding::{Findings, quoted};
use super::{Import, ImportError, Source, Sources};

/// A translation under way.
pub(super) struct Translation {
    classic: Classic,
    /// The modes, and what the file is called that says them.
    pub(super) modes: Option<(Modes, String)>,
    pub(super) document: Document,
    pub(super) errors: Findings,
    pub(super) notes: Findings,
    /// Of the other files.
    other_errors: Vec<Findings>,
    other_notes: Vec<Findings>,
}

/// More options that nobody knows than this are only counted.
const MOST_UNKNOWN: usize = 100;

impl Translation {
    /// Reads the texts of `sources`.
    pub(super) fn of(sources: &Sources) -> Result<Self, ImportError> {
        let name = &sources.config.name;
        let (mut errors, mut notes) = (Findings::about(name), Findings::about(name));
        let classic = Classic::read(&sources.config, &mut errors, &mut notes);
        if classic.is_empty() && !errors.is_empty() {
            return Err(ImportError::Wrong(errors.into_vec()));
        }
        let mut translation = Self {
            classic,
            modes: None,
            document: Document::default(),
            errors,
            notes,
            other_errors: Vec::new(),
            other_notes: Vec::new(),
        };
        if let Some(source) = &sources.defaults {
            let modes = translation.beside(source, Modes::read);
            translation.modes = Some((modes, source.name.clone()));
        }
        Ok(translation)
    }

    /// Writes everything; the texts of `sources` are those that this was made of.
    pub(super) fn finish(mut self, sources: &Sources, is_there: &dyn Fn(&Path) -> bool) -> Result<Import, ImportError> {
        let name = &sources.config.name;
        self.document.head(&format!(
            "Translated from {name} by \"portsentry import\"; the comments say what each line comes from. A key that is \
             not here has its built-in value. To try it: portsentry --config FILE --log-only"
        ));
        self.watch();
        self.block();
        self.banner();
        self.detect();
        self.allow(&sources.ignore, is_there);
        self.report();
        self.leave_out();
        let errors: Vec<_> = joined(self.errors, self.other_errors);
        if errors.is_empty() {
            Ok(Import { toml: self.document.to_string(), notes: joined(self.notes, self.other_notes) })
        } else {
            Err(ImportError::Wrong(errors))
        }
    }

    /// The option, if it is set.
    pub(super) fn get(&self, key: &str) -> Option<Entry> {
        self.classic.get(key).cloned()
    }

    /// Says `message` about the line of `entry`.
    pub(super) fn note(&mut self, entry: &Entry, message: &str) {
        self.notes.add(Some(entry.line), Some(&entry.key), message.to_owned());
    }

    /// Refuses the line of `entry`.
    pub(super) fn refuse(&mut self, entry: &Entry, message: String) {
        self.errors.add(Some(entry.line), Some(&entry.key), message);
    }

    /// Leaves a comment in `table` instead of a key, and says so.
    pub(super) fn left_out(&mut self, table: &str, entry: &Entry, why: &str) {
        self.document.remark(table, &format!("{}\nLeft out: {why}", entry.origin()));
        self.note(entry, &format!("left out: {why}"));
    }

    /// `key = value` in `table`, with where it comes from.
    pub(super) fn set(&mut self, table: &str, key: &str, value: &Value, entry: &Entry) {
        self.document.set(table, key, value, &entry.origin());
    }

    /// An option that is 0 or 1.
    pub(super) fn switch(&mut self, key: &str) -> Option<(bool, Entry)> {
        let entry = self.get(key)?;
        match entry.value.trim() {
            "0" => Some((false, entry)),
            "1" => Some((true, entry)),
            wrong => {
                let message = format!("{} is no switch; write \"0\" or \"1\"", quoted(wrong));
                self.refuse(&entry, message);
                None
            }
        }
    }

    /// Reads another file; its errors and notes come behind those of the configuration.
    pub(super) fn beside<T>(
        &mut self,
        source: &Source,
        read: impl FnOnce(&Source, &mut Findings, &mut Findings) -> T,
    ) -> T {
        let (mut errors, mut notes) = (Findings::about(&source.name), Findings::about(&source.name));
        let result = read(source, &mut errors, &mut notes);
        self.other_errors.push(errors);
        self.other_notes.push(notes);
        result
    }

    /// Refuses a line of the modes' file.
    pub(super) fn refuse_mode(&mut self, file: &str, entry: &Entry, message: String) {
        let mut errors = Findings::about(file);
        errors.add(Some(entry.line), Some(&entry.key), message);
        self.other_errors.push(errors);
    }

    fn banner(&mut self) {
        /// What the daemon sends at most: one segment on every link.
        const LONGEST: usize = 1_024;
        let Some(entry) = self.get("PORT_BANNER") else { return };
        if entry.value.len() > LONGEST {
            self.left_out("tcp", &entry, "it has more than 1024 bytes; write a shorter tcp.port_banner");
            return;
        }
        let remark = format!("{}\nOnly mode \"connect\" says it, and only over TCP.", entry.origin());
        self.document.set("tcp", "port_banner", &Value::text(&entry.value), &remark);
    }

    fn detect(&mut self) {
        let remark = "How many ports are forgiven. 0 blocks on the first touch, also him who has dialled wrongly; the \
                      built-in value is 2.";
        let Some(entry) = self.get("SCAN_TRIGGER") else {
            let remark = format!("SCAN_TRIGGER is not set: classic forgives none.\n{remark}");
            return self.document.set("detect", "scan_trigger", &Value::Number(0), &remark);
        };
        let value = entry.value.trim();
        let number = if value.bytes().all(|byte| byte.is_ascii_digit()) { value.parse::<u32>().ok() } else { None };
        let Some(number) = number else {
            let message = format!("{} is no number; write one from 0 to 15", quoted(&entry.value));
            return self.refuse(&entry, message);
        };
        let forgiven = u8::try_from(number.min(15)).unwrap_or(15);
        if number > 15 {
            self.note(&entry, "is more than is ever forgiven; 15 is written");
        }
        let remark = format!("{}\n{remark}", entry.origin());
        self.document.set("detect", "scan_trigger", &Value::Number(forgiven), &remark);
    }

    fn report(&mut self) {
        let Some(entry) = self.get("RESOLVE_HOST") else { return };
        // Classic takes everything else for no.
        if entry.value.trim() != "1" {
            return self.document.tail(&format!("{}: so it is; names are not looked up.", entry.origin()));
        }
        self.set("report", "resolve_host", &Value::Switch(true), &entry);
    }

    /// What becomes of no key.
    fn leave_out(&mut self) {
        for (key, file) in [("HISTORY_FILE", "portsentry.history"), ("BLOCKED_FILE", "portsentry.blocked")] {
            if let Some(entry) = self.get(key) {
                let remark = format!("is kept as {file} in /var/lib/portsentry, or where --state-dir says");
                self.document.tail(&format!("{}: it {remark}.", entry.origin()));
                if Path::new(&entry.value).parent() != Some(Path::new("/var/lib/portsentry")) {
                    self.note(&entry, &format!("has no key: it {remark}"));
                }
            }
        }
        let unknown = std::mem::take(&mut self.classic.unknown);
        for entry in unknown.iter().take(MOST_UNKNOWN) {
            self.document.tail(&format!("{}: no option of PortSentry; left out.", entry.origin()));
            self.note(entry, "is no option of PortSentry; left out");
        }
        if let Some(more) = unknown.len().checked_sub(MOST_UNKNOWN).filter(|more| *more > 0) {
            self.document.tail(&format!("{more} more that are no options of PortSentry."));
        }
    }
}

fn joined(first: Findings, others: Vec<Findings>) -> Vec<super::Finding> {
    std::iter::once(first).chain(others).flat_map(Findings::into_vec).collect()
}
