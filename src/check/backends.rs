//! Checks whether the configured backends would work on this host. Nothing is created, written or run.

use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::process::geteuid;
use rustix::thread::CapabilitySet;
use serde::Serialize;

use super::warnings::Findings;
use crate::config::Config;
use crate::enforce::command::check_program;
use crate::enforce::hosts_deny::HostsDeny;
use crate::enforce::nft::{RulesetError, RulesetSpec};
use crate::enforce::route::Routes;
use crate::netlink::nft::{examine, foreign_objects};
use crate::netlink::socket::Socket;
use crate::types::{Action, Backend, RouteKind};

/// A backend, as in the JSON.
#[derive(Serialize)]
pub(super) struct BackendCheck {
    #[serde(rename = "method")]
    pub(super) backend: &'static str,
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
    if !firewall && backends.iter().any(|backend| matches!(backend, Backend::Nft | Backend::Route)) {
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
    let mut look = |backend: &Backend| {
        let (key, does, works) = match backend {
            Backend::Nft => ("block.method", nft(config), firewall.then(|| table(config))),
            Backend::Route => ("block.method", route(config), firewall.then(|| routes(config))),
            Backend::Command => {
                let words = words(&config.block.run.command);
                let works = config.block.run.check().map(|()| String::new()).map_err(|error| error.to_string());
                ("block.run.command", format!("the command {words}"), Some(works))
            }
            Backend::HostsDeny => match HostsDeny::from_config(config) {
                Ok(hosts_deny) => ("block.hosts_deny", hosts_deny.describe(), entries(&hosts_deny, findings)),
                Err(error) => ("block.hosts_deny", "entries in hosts.deny".to_owned(), Some(Err(error.to_string()))),
            },
        };
        let (state, works) = match works {
            None => (String::new(), None),
            Some(Ok(state)) => (state, Some(true)),
            Some(Err(error)) => {
                match backend {
                    Backend::Nft | Backend::Route | Backend::Command => findings.wrong(key, error),
                    Backend::HostsDeny => findings.warn(key, error),
                }
                (String::new(), Some(false))
            }
        };
        BackendCheck { backend: backend.name(), works, does: format!("{does}{state}") }
    };
    backends.iter().map(&mut look).collect()
}

/// A command on one line, each word in quotes.
pub(super) fn words(command: &[String]) -> String {
    command.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" ")
}

fn nft(config: &Config) -> String {
    let nft = &config.block.nft;
    let action = match nft.action {
        Action::Drop => "dropped",
        Action::Reject => "rejected",
    };
    let logged = nft.log_drops.map_or_else(String::new, |rate| format!(", {rate} of them logged"));
    let ended = if nft.end_connections { ", open connections are closed" } else { "" };
    format!("table inet portsentry, up to {} bans in each set; packets are {action}{logged}{ended}", nft.size)
}

fn table(config: &Config) -> Result<String, String> {
    let spec = RulesetSpec::from_config(config);
    let look = |mut socket| Ok((examine(&mut socket, &spec)?, foreign_objects(&mut socket, &spec)?));
    let found = Socket::open().map_err(RulesetError::from).and_then(look);
    let (sizes, foreign) = found.map_err(|error| error.to_string())?;
    let foreign = if foreign.is_empty() { String::new() } else { format!("; it also contains {}", foreign.join(", ")) };
    match sizes {
        None => Ok("; the daemon would create it".to_owned()),
        Some((blocked, blocked6)) if (blocked, blocked6) == (spec.size, spec.size) => {
            Ok(format!("; it exists{foreign}"))
        }
        Some((blocked, blocked6)) => {
            Ok(format!("; it exists, with sets of {blocked} and {blocked6} elements{foreign}"))
        }
    }
}

fn route(config: &Config) -> String {
    match config.block.route {
        RouteKind::Blackhole => "a blackhole route".to_owned(),
        RouteKind::Unreachable => "an unreachable route".to_owned(),
        RouteKind::Prohibit => "a prohibit route".to_owned(),
        RouteKind::Via(gateway) => format!("a route via {gateway}"),
    }
}

fn routes(config: &Config) -> Result<String, String> {
    Routes::from_config(config).map(|_| String::new()).map_err(|error| error.to_string())
}

/// The state of the file, with its number of entries. `None` if this user cannot determine whether the service can
/// write it.
fn entries(hosts_deny: &HostsDeny, findings: &mut Findings) -> Option<Result<String, String>> {
    let directory = hosts_deny.path().parent().unwrap_or(Path::new("/"));
    if !geteuid().is_root() && accessat(CWD, directory, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).is_err() {
        findings.add_note(format!(
            "{}: this user cannot write to this directory, so hosts.deny was not checked; run this with sudo",
            directory.display()
        ));
        return None;
    }
    Some(hosts_deny.check().and_then(|()| hosts_deny.held()).map_err(|error| error.to_string()).map(|held| {
        match held.len() {
            0 => String::new(),
            lines => format!("; lines of portsentry in it: {lines}"),
        }
    }))
}

/// True if this process currently has the capability.
pub(super) fn may(capability: CapabilitySet) -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}
