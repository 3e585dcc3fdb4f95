//! Defines the events of the slow-backends thread, each with its log sentence.

use std::fmt;
use std::time::Duration;

use crate::enforce::BanContext;
use crate::enforce::command::Outcome;
use crate::types::{Backend, BanTarget};

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
    /// This backend enforces the ban. Commands report [`BackendEvent::Ran`] instead.
    Done { case: BanContext, backend: Backend },
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
        case: BanContext,
        occasion: CommandPhase,
        /// The command with expanded macros, on one line.
        command: String,
        outcome: Outcome,
        /// The first 4 KiB of its output, on one printable line.
        output: String,
        took: Duration,
        /// Number of runs for this ban.
        attempt: u32,
        /// Delay before it runs again after a failure; `None`: no further run.
        again: Option<Duration>,
    },
    /// The command before the block has ended or timed out: block now.
    Ready { case: BanContext },
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

impl fmt::Display for BackendEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done { case, backend } => write!(f, "{} is blocked via {}", case.target, SlowTask::Ban(*backend)),
            Self::Failed { targets, task, reason, attempt, again } => {
                write!(f, "{task}: {reason} ({}, attempt {attempt}", many(targets))?;
                next(f, *again)?;
                f.write_str(")")
            }
            Self::Released { targets, backend } => {
                write!(f, "{} released from {}", many(targets), SlowTask::Ban(*backend))
            }
            Self::Restored { targets, backend } => {
                write!(f, "{} missing in {} and restored", many(targets), SlowTask::Ban(*backend))
            }
            Self::Ran { case, command, outcome, output, took, attempt, again, .. } => {
                let took = Duration::from_millis(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
                let took = humantime::format_duration(took);
                write!(f, "command for {} {outcome} after {took}: {command}", case.target)?;
                if !output.is_empty() {
                    write!(f, "; output: {output}")?;
                }
                if *attempt > 1 || again.is_some() {
                    write!(f, " (attempt {attempt}")?;
                    next(f, *again)?;
                    f.write_str(")")?;
                }
                Ok(())
            }
            Self::Ready { case } => write!(f, "{} can be blocked now", case.target),
            Self::Connections { target, ended: 1 } => write!(f, "1 connection of {target} was ended"),
            Self::Connections { target, ended } => write!(f, "{ended} connections of {target} were ended"),
            Self::Exempted { targets } => write!(
                f,
                "hosts.deny and the command no longer block {}, because addresses in it are now protected or allowed",
                many(targets)
            ),
            Self::Unable { task, reason } => write!(f, "{task}: {reason}; not retried"),
            Self::Lost { tasks, commands } => {
                let slow = Backend::slow_names();
                write!(
                    f,
                    "the queue of the backends {slow} was full; dropped tasks: {tasks}, dropped commands: {commands}"
                )
            }
        }
    }
}

fn next(f: &mut fmt::Formatter<'_>, again: Option<Duration>) -> fmt::Result {
    match again {
        Some(pause) => write!(f, ", the next in {}", humantime::format_duration(pause)),
        None => f.write_str(", the last"),
    }
}

/// A short form of the targets.
fn many(targets: &[BanTarget]) -> String {
    match targets {
        [] => "no source".to_owned(),
        [one] => one.to_string(),
        [first, others @ ..] => format!("{first} and {} more", others.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_one_sentence() {
        let case = BanContext::example("192.0.2.7".parse().unwrap());
        let other = BanContext::example("2001:db8::7".parse().unwrap()).target;
        let ran = |outcome, attempt, again| BackendEvent::Ran {
            case,
            occasion: CommandPhase::Block,
            command: "notify 192.0.2.7".to_owned(),
            outcome,
            output: "no route\\n".to_owned(),
            took: Duration::from_micros(12_345),
            attempt,
            again,
        };
        let expected = [
            (BackendEvent::Done { case, backend: Backend::HostsDeny }, "192.0.2.7 is blocked via hosts.deny"),
            (
                ran(Outcome::Exited(1), 1, Some(Duration::from_secs(1))),
                "command for 192.0.2.7 failed with exit status 1 after 12ms: notify 192.0.2.7; output: no route\\n \
                 (attempt 1, the next in 1s)",
            ),
            (
                ran(Outcome::Exited(0), 1, None),
                "command for 192.0.2.7 succeeded after 12ms: notify 192.0.2.7; output: no route\\n",
            ),
            (
                BackendEvent::Failed {
                    targets: vec![case.target, other],
                    task: SlowTask::Ban(Backend::HostsDeny),
                    reason: "no room".to_owned(),
                    attempt: 3,
                    again: Some(Duration::from_secs(4)),
                },
                "hosts.deny: no room (192.0.2.7 and 1 more, attempt 3, the next in 4s)",
            ),
            (
                BackendEvent::Released { targets: vec![other], backend: Backend::HostsDeny },
                "2001:db8::/64 released from hosts.deny",
            ),
            (BackendEvent::Connections { target: other, ended: 1 }, "1 connection of 2001:db8::/64 was ended"),
            (
                BackendEvent::Lost { tasks: 3, commands: 0 },
                "the queue of the backends hosts-deny and run was full; dropped tasks: 3, dropped commands: 0",
            ),
        ];
        for (event, text) in expected {
            assert_eq!(event.to_string(), text);
        }
    }
}
