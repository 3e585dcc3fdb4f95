//! Writes log lines to standard error, the journal or syslog.

use std::path::Path;

use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use super::classic_log::{self, Wording};
use super::event::{Event, EventKind};
use super::json::EventRecord;
use super::stderr::Stderr;
use super::syslog::{DEV_LOG, Syslog};
use crate::config::{Facility, LogTarget};

/// Sends log lines to `target`, or to standard error if the target is not available, which is logged.
/// # Errors
/// A log destination is already set.
pub fn init(target: LogTarget, facility: Facility) -> Result<(), TryInitError> {
    let mut failure = None;
    let (mut journal, mut syslog) = (None, None);
    match target {
        LogTarget::Stderr => {}
        LogTarget::Auto => journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| to_journal(facility).ok()),
        LogTarget::Journal => match to_journal(facility) {
            Ok(layer) => journal = Some(layer),
            Err(error) => {
                failure = Some(format!("the journal is not available: {error}; the log goes to standard error"))
            }
        },
        LogTarget::Syslog => match Syslog::connect(Path::new(DEV_LOG), facility) {
            Ok(layer) => syslog = Some(layer),
            Err(error) => {
                failure = Some(format!(
                    "the syslog daemon at {DEV_LOG} is not available: {error}; the log goes to standard error"
                ));
            }
        },
    }
    let journal = journal.map(|layer| layer.with_syslog_identifier("portsentry".to_owned()).with_field_prefix(None));
    let terminal = (journal.is_none() && syslog.is_none()).then(|| {
        // Only the message, as in classic PortSentry; the fields are for the journal.
        let fields = format::debug_fn(|writer, field, value| match field.name() {
            "message" => write!(writer, "{value:?}"),
            _ => Ok(()),
        });
        let layer = tracing_subscriber::fmt::layer().with_writer(|| Stderr).fmt_fields(fields);
        layer.without_time().with_level(false).with_target(false).with_ansi(false).boxed()
    });
    tracing_subscriber::registry().with(journal).with(syslog).with(terminal).try_init()?;
    if let Some(failure) = failure {
        tracing::error!("adminalert: ERROR: {failure}");
    }
    Ok(())
}

/// Writes the line of `event`, if it has one, with `name`, the name of its source, if that is known. The journal fields
/// are those of the JSON object. An additional line only has the fields that identify the event and its target.
pub fn write(event: &Event, name: Option<&str>, wording: Wording) {
    let Some(line) = classic_log::line_with_name(&event.what, name, wording) else { return };
    let record = EventRecord::from(event);
    // A macro, because a level is part of the call site. The journal converts names to upper case.
    macro_rules! log {
        ($level:ident) => {
            tracing::$level!(
                portsentry_event = record.event.as_ref(),
                portsentry_source = record.source.as_deref(),
                portsentry_name = name,
                portsentry_subject = record.target.as_deref(),
                portsentry_destination = record.destination.as_deref(),
                portsentry_class = record.class.as_deref(),
                portsentry_proto = record.proto.as_deref(),
                portsentry_port = record.port,
                portsentry_method = record.method.as_deref(),
                portsentry_reason = record.reason.as_deref(),
                portsentry_expires = record.expires.as_deref(),
                portsentry_json = %record.to_json(),
                "{line}"
            )
        };
    }
    match &event.what {
        EventKind::Error(_) | EventKind::BlockFailed { .. } | EventKind::Dropped { .. } => log!(error),
        _ if line.starts_with("adminalert:") => log!(info),
        _ => log!(warn),
    }
    if let Some(line) = classic_log::addition(&event.what) {
        tracing::info!(
            portsentry_event = record.event.as_ref(),
            portsentry_source = record.source.as_deref(),
            portsentry_subject = record.target.as_deref(),
            "{line}"
        );
    }
}

/// The journal with a facility. Without one, the journal forwards the lines to a syslog daemon as user messages, which
/// rules for `daemon.*` do not match.
fn to_journal(facility: Facility) -> std::io::Result<tracing_journald::Layer> {
    Ok(tracing_journald::layer()?.with_custom_fields([("SYSLOG_FACILITY", facility.code().to_string())]))
}
