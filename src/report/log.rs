//! Lines to standard error, or to the journal where systemd runs the program. How many probes are told one by one is
//! bounded: a flood of forged sources must not fill the disk.

use std::io;
use std::time::{Duration, Instant};

use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use super::event::{Event, What};
use super::{json, line};

/// Lines about single probes and short bans, a minute. Other verdicts are never left out; they have bounds of their own.
const LINES_PER_MINUTE: u32 = 600;
/// Lines about bans that failed, a minute: as many as somebody forges where the set is full. Probes must not use them up.
const FAILURES_PER_MINUTE: u32 = 60;
const MINUTE: Duration = Duration::from_secs(60);

/// Sends what is logged from now on to the journal if standard error is connected to it, else to standard error.
pub fn init() -> Result<(), TryInitError> {
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let journal = journal.map(|layer| layer.with_syslog_identifier("portsentry".to_owned()).with_field_prefix(None));
    let terminal = journal.is_none().then(|| {
        // The message alone, as classic PortSentry wrote it; the fields are for the journal.
        let fields = format::debug_fn(|writer, field, value| match field.name() {
            "message" => write!(writer, "{value:?}"),
            _ => Ok(()),
        });
        let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).fmt_fields(fields);
        layer.without_time().with_level(false).with_target(false).with_ansi(false).boxed()
    });
    tracing_subscriber::registry().with(journal).with(terminal).try_init()
}

/// Writes events as lines, at a bounded rate.
pub struct Log {
    minute: Instant,
    lines: u32,
    failures: u32,
    left_out: u64,
}

impl Default for Log {
    fn default() -> Self {
        Self { minute: Instant::now(), lines: LINES_PER_MINUTE, failures: FAILURES_PER_MINUTE, left_out: 0 }
    }
}

impl Log {
    /// Writes the line of `event`, if it has one.
    pub fn write(&mut self, event: &Event) {
        self.turn_minute();
        let room = match &event.what {
            What::Probe(_) | What::Repeated { .. } => take(&mut self.lines),
            // Above the ceiling there are as many as somebody forges. A line of their own says how many.
            What::Blocked { ban, .. } if ban.capped => take(&mut self.lines),
            What::BlockFailed { .. } => take(&mut self.failures),
            _ => true,
        };
        if !room {
            self.left_out += 1;
            return;
        }
        let Some(line) = line::of(&event.what) else { return };
        match &event.what {
            What::Error(_) | What::BlockFailed { .. } | What::Dropped { .. } => tracing::error!("{line}"),
            _ => tracing::info!(portsentry_json = %json::of(event), "{line}"),
        }
    }

    /// Says how many lines of the last minute were left out, once it is over.
    pub fn turn_minute(&mut self) {
        if self.minute.elapsed() < MINUTE {
            return;
        }
        if self.left_out > 0 {
            tracing::info!(
                "adminalert: {} more lines about probes, short bans and failed ones were left out",
                self.left_out
            );
        }
        *self = Self::default();
    }
}

/// Takes one of the lines that the minute has left.
fn take(left: &mut u32) -> bool {
    let taken = left.checked_sub(1);
    *left = taken.unwrap_or(0);
    taken.is_some()
}
