//! Checks whether the configured backends would work on this host. Nothing is created, written or run.

use rustix::thread::CapabilitySet;
use serde::Serialize;

use super::warnings::Findings;
use crate::config::Config;
use crate::enforce::command::check_program;
use crate::enforce::{CheckOutcome, implementation};
use crate::types::Backend;

/// A backend, as in the JSON.
#[derive(Serialize)]
pub(super) struct BackendCheck {
    #[serde(rename = "method")]
    pub(super) backend: Backend,
    /// Whether it would work; `None` if that could not be determined.
    pub(super) works: Option<bool>,
    /// Description of the backend.
    pub(super) does: String,
}

/// Examines the configured backends. Adds errors that prevent the start, warnings about backends without which the
/// daemon would still run, and notes about skipped checks.
pub(super) fn inspect(config: &Config, findings: &mut Findings) -> Vec<BackendCheck> {
    let mut backends = if config.blocks() { config.block.method.clone() } else { Vec::new() };
    if config.runs_commands() && !backends.contains(&Backend::Command) {
        backends.push(Backend::Command);
    }
    let firewall = may(CapabilitySet::NET_ADMIN);
    // The inline backends are in the kernel.
    if !firewall && backends.iter().any(|backend| !backend.is_slow()) {
        findings
            .add_note("nf_tables and routes were not checked, because CAP_NET_ADMIN is missing; run this with sudo");
    }
    if config.notifies()
        && let Err(error) = check_program(&config.notify.command)
    {
        findings.wrong("notify.command", error);
    }
    if config.only_undoes_commands()
        && let Err(error) = config.block.run.check_expiry()
    {
        findings.wrong("block.run.expire_command", error);
    }
    let mut inspect_one = |backend: &Backend| {
        let implementation = implementation(*backend);
        let checked = (backend.is_slow() || firewall).then(|| implementation.check(config));
        let mut does = implementation.describe(config);
        let works = match checked {
            Some(CheckOutcome::Works(state)) => {
                does.push_str(&state);
                Some(true)
            }
            Some(CheckOutcome::Fails(error)) => {
                findings.wrong(implementation.key(), error);
                Some(false)
            }
            Some(CheckOutcome::FailsForNow(error)) => {
                findings.warn(implementation.key(), error);
                Some(false)
            }
            Some(CheckOutcome::Unknown(note)) => {
                findings.add_note(note);
                None
            }
            None => None,
        };
        BackendCheck { backend: *backend, works, does }
    };
    backends.iter().map(&mut inspect_one).collect()
}

/// True if this process currently has the capability.
pub(super) fn may(capability: CapabilitySet) -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}
