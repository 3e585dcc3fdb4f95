//! Defines the events of the slow-backends thread.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::enforce::BanContext;
use crate::enforce::command::ExitOutcome;
use crate::events::event::{Event, EventKind};
use crate::types::{Backend, BanTarget, first_and_more};

/// The phase of a ban in which a command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandPhase {
    Before,
    Block,
    Release,
}

/// The activity of the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowTask {
    /// Enforcing a ban in this backend, or ending one.
    Ban(Backend),
    /// Ending the connections of a blocked source.
    EndConnections,
}

/// An event for the operator or the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendEvent {
    /// This backend enforces the ban, with this entry. Commands report [`BackendEvent::Ran`] instead.
    Done { context: BanContext, backend: Backend, entry: String },
    Failed {
        targets: Vec<BanTarget>,
        task: SlowTask,
        /// The reason, with a remedy.
        reason: String,
        attempt: u32,
        /// Delay before the next attempt; `None`: no further attempt.
        again: Option<Duration>,
    },
    /// Entries were removed, because their bans ended or were not adopted.
    Released { targets: Vec<BanTarget>, backend: Backend },
    /// Entries that another program removed while their bans were in force were restored.
    Restored { targets: Vec<BanTarget>, backend: Backend },
    /// A command has ended, or could not be started.
    Ran {
        context: BanContext,
        phase: CommandPhase,
        /// The command with expanded macros, on one line.
        command: String,
        outcome: ExitOutcome,
        /// The first 4 KiB of its output, on one printable line.
        output: String,
        took: Duration,
        /// Number of runs for this ban.
        attempt: u32,
        /// Delay before it runs again after a failure; `None`: no further run.
        again: Option<Duration>,
    },
    /// The command before the block has ended or timed out: block now.
    Ready { context: BanContext },
    /// Connections of a blocked source were ended.
    Connections { target: BanTarget, ended: usize },
    /// Entries were removed and commands undone, because the targets now contain exempt addresses.
    Exempted { targets: Vec<BanTarget> },
    /// A backend cannot work on this system, and is not retried.
    Unable { task: SlowTask, reason: String },
    /// Tasks or commands were dropped because a queue was full.
    Lost {
        /// Number of dropped tasks.
        tasks: u64,
        /// Number of commands that were not run, or not retried.
        commands: u64,
    },
}

impl fmt::Display for SlowTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ban(backend) => backend.title(),
            Self::EndConnections => "connections",
        })
    }
}

impl BackendEvent {
    /// The event for the log and the ledger; `None` if there is nothing to report.
    pub fn into_event(self) -> Option<Event> {
        let named = |targets: &[BanTarget]| first_and_more(targets).unwrap_or_else(|| "no source".to_owned());
        let mut time = SystemTime::now();
        let kind = match self {
            Self::Ready { .. } | Self::Released { .. } | Self::Connections { ended: 0, .. } => return None,
            Self::Done { context, backend, entry } => {
                let BanContext { target, ban, since, .. } = context;
                time = ban.map_or(time, |_| since);
                EventKind::Entered { target, backend, ban, entry }
            }
            Self::Ran { context, phase, command, outcome, output, took, again, .. } => {
                let BanContext { target, since, .. } = context;
                let took = Duration::from_millis(took.as_millis().try_into().unwrap_or(u64::MAX));
                let took = humantime::format_duration(took);
                let wrote = if output.is_empty() { String::new() } else { format!("; output: {output}") };
                let when = match phase {
                    CommandPhase::Before => " before the block",
                    CommandPhase::Block => "",
                    CommandPhase::Release => " at the end of the ban",
                };
                let ban = context.ban.filter(|_| phase != CommandPhase::Release);
                let has_ended = again.is_none()
                    && !matches!(outcome, ExitOutcome::Stopped | ExitOutcome::Unknown | ExitOutcome::NotStarted(_));
                let undone = (phase == CommandPhase::Release && has_ended).then_some(since);
                let well = outcome.is_success();
                let outcome = format!("{outcome} after {took}{when}{wrote}").into();
                time = ban.map_or(time, |_| since);
                EventKind::Ran { target, ban, command: command.into(), outcome, well, undone }
            }
            Self::Failed { targets, task, reason, attempt, again } => {
                let next = again.map_or("the last".to_owned(), |pause| {
                    format!("the next in {}", humantime::format_duration(pause))
                });
                EventKind::Error(format!("{task}: {reason} ({}, attempt {attempt}, {next})", named(&targets)))
            }
            Self::Restored { targets, backend } => EventKind::Repaired { bans: targets.len(), backend },
            Self::Connections { target, ended } => EventKind::Disconnected { target, connections: ended },
            Self::Exempted { targets } => EventKind::Note(format!(
                "hosts.deny and the command no longer block {}, because addresses in it are now protected or allowed",
                named(&targets)
            )),
            Self::Unable { task, reason } => EventKind::Error(format!("{task}: {reason}; not retried")),
            Self::Lost { tasks, commands } => {
                let slow = Backend::slow_names();
                EventKind::Error(format!(
                    "the queue of the backends {slow} was full; dropped tasks: {tasks}, dropped commands: {commands}"
                ))
            }
        };
        Some(Event { time, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_logged_event_is_one_sentence() {
        let [one, other] =
            ["192.0.2.7", "2001:db8::7"].map(|source| BanContext::example(source.parse().unwrap()).target);
        let expected = [
            (
                BackendEvent::Failed {
                    targets: vec![one, other],
                    task: SlowTask::Ban(Backend::HostsDeny),
                    reason: "no room".to_owned(),
                    attempt: 3,
                    again: Some(Duration::from_secs(4)),
                },
                "hosts.deny: no room (192.0.2.7 and 1 more, attempt 3, the next in 4s)",
            ),
            (
                BackendEvent::Lost { tasks: 3, commands: 0 },
                "the queue of the backends hosts-deny and run was full; dropped tasks: 3, dropped commands: 0",
            ),
        ];
        for (event, text) in expected {
            let Some(Event { kind: EventKind::Error(logged), .. }) = event.into_event() else { panic!("{text}") };
            assert_eq!(logged, text);
        }
    }
}
