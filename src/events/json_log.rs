//! Appends lines to a file that logrotate may move or truncate: the file is reopened within a second after its path
//! refers to another file. A separate thread writes, so that a full or hanging disk delays nothing; lost lines are
//! counted and reported once.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::channel::Sender;
use super::event::EventKind;
use crate::atomic_file::{append, end_last_line, is_at};
use crate::clock::boot_time;
use crate::types::{LossReport, counted};
use crate::worker::{Inbox, Worker};

/// Maximum number of lines that wait for the thread.
const MAX_QUEUED_LINES: usize = 4_096;
/// Maximum number of bytes that wait for free disk space.
const MAX_PENDING_BYTES: usize = 1 << 20;
/// Maximum number of bytes per write.
const MAX_BATCH_BYTES: usize = 1 << 16;
/// Interval at which the file is compared with its path, and at which a failing disk is retried.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Time for writing the remaining lines when the program ends.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(300);

/// Opens the file, in this process ([`open`]) or in another one.
pub type OpenFile = Box<dyn Fn() -> io::Result<File> + Send>;

/// Accepts lines for the file. When it is dropped, the remaining lines are written if the disk is fast enough.
pub struct LineFile {
    path: PathBuf,
    worker: Worker<Command, ()>,
}

enum Command {
    Line(String),
    Reopen,
}

impl LineFile {
    /// Appends to the file `path`, which `open` opens. Failures and losses are sent through `events`.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(path: &Path, open: OpenFile, events: Sender) -> io::Result<Self> {
        let worker = Worker::start("json-file", MAX_QUEUED_LINES, |inbox| {
            let mut writer = Writer {
                path: path.to_owned(),
                open,
                file: None,
                looked: Instant::now(),
                waiting: String::new(),
                inbox,
                dropped: 0,
                losses: LossReport::default(),
                failing: false,
                events,
            };
            move || writer.run()
        })?;
        Ok(Self { path: path.to_owned(), worker })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Queues a line without its line end. Never waits; a line that does not fit is counted as lost.
    pub fn send(&self, line: String) {
        let _ = self.worker.handle().send(Command::Line(line));
    }

    /// Requests that the file be reopened.
    pub fn reopen(&self) {
        // A busy thread checks the file itself within a second.
        if self.worker.handle().inbox().len() < MAX_QUEUED_LINES {
            let _ = self.worker.handle().send(Command::Reopen);
        }
    }
}

impl Drop for LineFile {
    fn drop(&mut self) {
        // A hanging disk must not delay the end.
        let _ = self.worker.stop(FLUSH_TIMEOUT);
    }
}

struct Writer {
    path: PathBuf,
    open: OpenFile,
    file: Option<File>,
    /// Time of the last comparison with the path, or of the last failed attempt.
    looked: Instant,
    waiting: String,
    inbox: Arc<Inbox<Command>>,
    /// Lines that did not fit into `waiting`.
    dropped: u64,
    losses: LossReport<1>,
    failing: bool,
    events: Sender,
}

impl Writer {
    fn run(&mut self) {
        // An invalid path is reported at the start, not with the first scan.
        self.write();
        loop {
            // Read first, so that lines sent before the stop request are in the queue.
            let ends = self.inbox.stop().is_some();
            let mut reopen = false;
            while (self.failing || self.waiting.len() < MAX_BATCH_BYTES)
                && let Some(command) = self.inbox.pop()
            {
                match command {
                    Command::Line(line) if self.waiting.len() + line.len() >= MAX_PENDING_BYTES => self.dropped += 1,
                    Command::Line(line) => self.waiting.push_str(&(line + "\n")),
                    Command::Reopen => reopen = true,
                }
            }
            if reopen {
                self.file = None;
            }
            if reopen || ends || !self.failing || self.looked.elapsed() >= POLL_INTERVAL {
                self.write();
            }
            match (self.inbox.is_empty(), self.waiting.is_empty()) {
                (true, _) if ends => return,
                (true, true) => thread::park(),
                (true, false) => thread::park_timeout(POLL_INTERVAL),
                (false, _) => {}
            }
        }
    }

    fn write(&mut self) {
        match self.try_write() {
            Ok(()) => {
                self.waiting.clear();
                self.report_losses();
                self.failing = false;
            }
            Err(error) => {
                self.file = None;
                self.looked = Instant::now();
                if !std::mem::replace(&mut self.failing, true) {
                    let path = self.path.display();
                    self.events.emit(EventKind::Error(format!(
                        "cannot write events to {path} (report.json_file): {error}; the daemon continues without the \
                         file and retries every second"
                    )));
                }
            }
        }
    }

    fn report_losses(&mut self) {
        let total = [self.dropped + self.inbox.refused()];
        if self.failing && self.losses.is_pending(total) {
            self.losses.expedite();
        }
        let lost = self.losses.take(total, boot_time());
        let path = self.path.display();
        self.events.emit(EventKind::Note(match lost {
            _ if self.failing => {
                format!("events are written to {path} again; events lost: {}", lost.map_or(0, |[lost]| lost))
            }
            Some([lost]) => {
                let lost = counted(lost, "event");
                format!("{lost} lost, because they came faster than they could be written to {path}")
            }
            None => return,
        }));
    }

    fn try_write(&mut self) -> io::Result<()> {
        if self.looked.elapsed() >= POLL_INTERVAL {
            self.looked = Instant::now();
            self.file = self.file.take().filter(|file| is_at(file, &self.path));
        }
        let file = match &mut self.file {
            Some(file) => file,
            file => {
                self.looked = Instant::now();
                file.insert((self.open)()?)
            }
        };
        append(file, self.waiting.as_bytes())
    }
}

/// Opens the file, which is created with mode 0640 if it does not exist. Links are refused, because they could lead to
/// any file, and a FIFO would wait for a reader.
///
/// # Errors
/// The path is not a regular file, or cannot be opened or created.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR | Mode::RGRP);
    let opened = opened.map_err(|error| match error {
        rustix::io::Errno::LOOP => io::Error::other("it is a symbolic link; configure the file itself"),
        other => other.into(),
    });
    let mut file = File::from(opened?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    end_last_line(&mut file)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use netns_lab::{eventually, within};

    use super::*;
    use crate::events::channel::{Receiver, bounded};

    fn start(path: &Path) -> (LineFile, Receiver) {
        let (events, reported) = bounded(16);
        let place = path.to_owned();
        (LineFile::start(path, Box::new(move || open(&place)), events).unwrap(), reported)
    }

    fn next(reported: &Receiver) -> EventKind {
        within(Duration::from_secs(10), || reported.poll()).unwrap().kind
    }

    fn text_is(path: &Path, expected: &str) {
        eventually(expected, || fs::read_to_string(path).is_ok_and(|text| text == expected));
    }

    #[test]
    fn appended_lines_are_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        fs::write(&path, "of a crash").unwrap();
        let (file, reported) = start(&path);
        (0..1_000).for_each(|number| file.send(number.to_string()));
        drop(file);
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[1_000]), (1_001, "of a crash", "999"));
        assert!(reported.poll().is_none());
    }

    #[test]
    fn new_file_is_not_world_readable() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        drop(start(&path));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o137, 0);
    }

    #[test]
    fn moved_file_is_followed_within_a_second() {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (directory.path().join("events"), directory.path().join("events.1"));
        let (file, reported) = start(&path);
        file.send("one".to_owned());
        text_is(&path, "one\n");
        fs::rename(&path, &moved).unwrap();
        std::thread::sleep(POLL_INTERVAL);
        file.send("two".to_owned());
        text_is(&path, "two\n");
        text_is(&moved, "one\n");
        fs::remove_file(&path).unwrap();
        file.reopen();
        file.send("three".to_owned());
        text_is(&path, "three\n");
        // copytruncate
        fs::write(&path, "").unwrap();
        file.send("four".to_owned());
        text_is(&path, "four\n");
        drop(file);
        assert!(reported.poll().is_none());
    }

    #[test]
    fn unwritable_file_is_reported_and_retried() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("later");
        let path = directory.join("events");
        let (file, reported) = start(&path);
        (0..10).for_each(|number| file.send(number.to_string()));
        let failed = next(&reported);
        std::thread::sleep(POLL_INTERVAL + POLL_INTERVAL / 2);
        assert!(matches!(failed, EventKind::Error(text) if text.contains("No such file")));
        assert!(reported.poll().is_none(), "it is reported once");
        let line = "x".repeat(1 << 12);
        (0..400).for_each(|_| file.send(line.clone()));
        fs::create_dir(&directory).unwrap();
        let EventKind::Note(recovered) = next(&reported) else { panic!("another event") };
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("0\n1\n") && text.len() > 1 << 19);
        assert!(
            recovered.contains("again; events lost: 14"),
            "{recovered}: about 145 of 400 lines of 4 KiB do not fit into 1 MiB"
        );
        drop(file);
        assert!(reported.poll().is_none());
    }

    #[test]
    fn links_and_special_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (directory.path().join("target"), directory.path().join("link"));
        fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        for path in [link.as_path(), Path::new("/dev/null")] {
            let (file, reported) = start(path);
            file.send("x".to_owned());
            drop(file);
            assert!(matches!(reported.poll().unwrap().kind, EventKind::Error(_)), "{}", path.display());
            assert!(reported.poll().is_none());
        }
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    }
}
