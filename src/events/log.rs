//! Writes log lines to standard error, the journal or syslog. In the daemon this happens on a separate thread if
//! the journal, or the reader of a pipe, may stop reading: no other thread must wait for it. Lines that do not fit
//! into the queue are dropped, counted and reported.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use tracing::Level;
use tracing::field;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use super::classic_log::{self, Wording};
use super::event::{Event, EventKind};
use super::json::EventRecord;
use super::syslog::{DEV_LOG, Syslog};
use crate::config::{Facility, LogTarget};
use crate::engine::Class;
use crate::types::{Backend, Protocol, counted};
use crate::worker::{Handle, Inbox, Worker};

/// Maximum number of queued lines.
const MAX_QUEUED_LINES: usize = 4_096;

/// Time limit for writing the queued lines when the program ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

static LINES: OnceLock<Handle<LogLine>> = OnceLock::new();

static STALLED: AtomicBool = AtomicBool::new(false);

/// Sends log lines to `target`, or to standard error if the target is not available, which is logged.
///
/// # Errors
/// A log destination is already set.
pub fn init(target: LogTarget, facility: Facility) -> Result<(), TryInitError> {
    let (mut journal, mut syslog) = (None, None);
    let failure = match target {
        LogTarget::Stderr => None,
        LogTarget::Auto => {
            journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| to_journal(facility).ok());
            None
        }
        LogTarget::Journal => {
            let connected = to_journal(facility).map(|layer| journal = Some(layer));
            connected.err().map(|error| format!("the journal is not available: {error}"))
        }
        LogTarget::Syslog => {
            let connected = Syslog::connect(Path::new(DEV_LOG), facility).map(|layer| syslog = Some(layer));
            connected.err().map(|error| format!("the syslog daemon at {DEV_LOG} is not available: {error}"))
        }
    };
    let journal = journal.map(|layer| layer.with_syslog_identifier("portsentry".to_owned()).with_field_prefix(None));
    let terminal = (journal.is_none() && syslog.is_none()).then(|| {
        // Only the message, as in classic PortSentry; the fields are for the journal.
        let fields = format::debug_fn(|writer, field, value| match field.name() {
            "message" => write!(writer, "{value:?}"),
            _ => Ok(()),
        });
        let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).fmt_fields(fields);
        layer.without_time().with_level(false).with_target(false).with_ansi(false).boxed()
    });
    tracing_subscriber::registry().with(journal).with(syslog).with(terminal).try_init()?;
    if let Some(failure) = failure {
        tracing::error!("adminalert: ERROR: {failure}; the log goes to standard error");
    }
    Ok(())
}

/// One line for the log.
enum LogLine {
    Event {
        level: Level,
        text: String,
        /// A further line, which only has the fields that identify the event and its target.
        addition: Option<String>,
        record: Box<EventRecord>,
        name: Option<String>,
    },
    Error(String),
}

/// Writes the line of `event`, if it has one, with `name`, the name of its source, if that is known. The journal fields
/// are those of the JSON object.
pub fn write(event: &Event, name: Option<&str>, wording: Wording) {
    let Some(text) = classic_log::line_with_name(&event.kind, name, wording) else { return };
    let level = match &event.kind {
        EventKind::Error(_) | EventKind::BlockFailed { .. } | EventKind::Dropped { .. } => Level::ERROR,
        _ if text.starts_with("adminalert:") => Level::INFO,
        _ => Level::WARN,
    };
    let addition = classic_log::addition(&event.kind);
    queue(LogLine::Event { level, text, addition, record: Box::new(event.into()), name: name.map(str::to_owned) });
}

/// Writes an error that is not an event.
pub fn error(text: String) {
    queue(LogLine::Error(text));
}

/// Passes `line` to the thread, or writes it directly if the thread does not run. A line that does not fit is counted.
fn queue(line: LogLine) {
    match LINES.get() {
        Some(lines) => drop(lines.send(line)),
        None => emit(line),
    }
}

fn emit(line: LogLine) {
    let (level, line, addition, record, name) = match line {
        LogLine::Event { level, text, addition, record, name } => (level, text, addition, record, name),
        LogLine::Error(text) => return tracing::error!("adminalert: ERROR: {text}"),
    };
    // A macro, because a level is part of the call site. The journal converts names to upper case.
    macro_rules! log {
        ($level:ident) => {
            tracing::$level!(
                portsentry_event = record.event.key(),
                portsentry_source = record.source.map(field::display),
                portsentry_name = name.as_deref(),
                portsentry_subject = record.target.map(field::display),
                portsentry_destination = record.destination.map(field::display),
                portsentry_class = record.class.map(Class::key),
                portsentry_proto = record.proto.map(Protocol::key),
                portsentry_port = record.port,
                portsentry_method = record.method.map(Backend::name),
                portsentry_reason = record.reason.as_deref(),
                portsentry_expires = record.expires.map(field::display),
                portsentry_json = %record.to_json(),
                "{line}"
            )
        };
    }
    match level {
        Level::ERROR => log!(error),
        Level::INFO => log!(info),
        _ => log!(warn),
    }
    if let Some(line) = addition {
        tracing::info!(
            portsentry_event = record.event.key(),
            portsentry_source = record.source.map(field::display),
            portsentry_subject = record.target.map(field::display),
            "{line}"
        );
    }
}

/// Handle of the thread that writes the lines.
pub struct LogThread(Worker<LogLine, ()>);

impl LogThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn start() -> io::Result<Self> {
        let worker = write_with(emit)?;
        // A process contains only one daemon, so this is the first call.
        let _ = LINES.set(worker.handle().clone());
        Ok(Self(worker))
    }

    /// Waits until all lines are written, for at most one second.
    pub fn finish(self) {
        let written = self.0.stop(FLUSH_TIMEOUT).is_some();
        STALLED.store(!written, Ordering::Relaxed);
    }
}

/// True if the daemon ended before all lines were accepted. A further write could block.
pub fn is_stalled() -> bool {
    STALLED.load(Ordering::Relaxed)
}

fn write_with(mut write: impl FnMut(LogLine) + Send + 'static) -> io::Result<Worker<LogLine, ()>> {
    Worker::start("log", MAX_QUEUED_LINES, |inbox: Arc<Inbox<LogLine>>| {
        let mut reported = 0;
        move || loop {
            // Read first, so that lines sent before the stop request are in the queue.
            let ends = inbox.stop().is_some();
            while let Some(line) = inbox.pop() {
                write(line);
            }
            let lost = inbox.refused() - reported;
            if lost > 0 {
                reported += lost;
                let lines = counted(lost, "line");
                write(LogLine::Error(format!("the log was read too slowly: {lines} lost")));
            }
            if ends {
                return;
            }
            thread::park();
        }
    })
}

fn to_journal(facility: Facility) -> std::io::Result<tracing_journald::Layer> {
    Ok(tracing_journald::layer()?.with_custom_fields([("SYSLOG_FACILITY", (facility as u8).to_string())]))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    /// Writes the texts of the lines to `out`.
    fn to(mut out: UnixStream) -> impl FnMut(LogLine) + Send + 'static {
        move |line| {
            let (LogLine::Event { text, .. } | LogLine::Error(text)) = line;
            let _ = writeln!(out, "{text}");
        }
    }

    #[test]
    fn unread_lines_are_dropped_and_counted() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let worker = write_with(to(writer)).unwrap();
        let begin = Instant::now();
        for number in 0..30_000 {
            let _ = worker.handle().send(LogLine::Error(format!("{number:099}")));
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "no line waits for the reader");
        let lost = worker.handle().inbox().refused();
        assert!(lost > 0, "three megabytes fit into no socket and no queue");
        let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
        let written: Vec<usize> =
            lines.by_ref().map_while(|line| line.parse().ok()).take(30_000 - usize::try_from(lost).unwrap()).collect();
        assert!(written.iter().enumerate().all(|(place, number)| *number >= place) && written.is_sorted());
        assert_eq!(lines.next().unwrap(), format!("the log was read too slowly: {lost} lines lost"));
        worker.handle().send(LogLine::Error("later".to_owned())).ok().unwrap();
        assert_eq!(lines.next().unwrap(), "later");
        assert_eq!(worker.stop(Duration::from_secs(10)), Some(()));
    }

    #[test]
    fn end_waits_briefly_for_reader() {
        let (_reader, writer) = UnixStream::pair().unwrap();
        let worker = write_with(to(writer)).unwrap();
        while worker.handle().send(LogLine::Error("x".repeat(4_096))).is_ok() {}
        assert_eq!(worker.stop(Duration::from_millis(50)), None);
    }
}
