//! Implements the hosts.deny backend.

use std::path::PathBuf;

use rustix::process::geteuid;

use super::{BanBackend, CheckOutcome, Helpers, HostsDenyQueue, Opened};
use crate::config::Config;
use crate::enforce::OpenError;
use crate::enforce::hosts_deny::HostsDeny;

/// The hosts.deny backend.
pub(super) struct HostsDenyBackend;

impl BanBackend for HostsDenyBackend {
    fn describe(&self, config: &Config) -> String {
        HostsDeny::from_config(config)
            .map_or_else(|_| "entries in hosts.deny".to_owned(), |hosts_deny| hosts_deny.describe())
    }

    fn check(&self, config: &Config) -> CheckOutcome {
        let hosts_deny = match HostsDeny::from_config(config) {
            Ok(hosts_deny) => hosts_deny,
            Err(error) => return CheckOutcome::Fails(error.to_string()),
        };
        // The service may have rights that this user lacks.
        if !geteuid().is_root() && hosts_deny.check_directory().is_err() {
            return CheckOutcome::Unknown(format!(
                "{}: this user cannot write to this directory, so hosts.deny was not checked; run this with sudo",
                hosts_deny.directory().display()
            ));
        }
        match hosts_deny.check() {
            Ok(targets) if targets.is_empty() => CheckOutcome::Works(String::new()),
            Ok(targets) => CheckOutcome::Works(format!("; lines of portsentry in it: {}", targets.len())),
            Err(error) => CheckOutcome::FailsForNow(error.to_string()),
        }
    }

    fn open(&self, config: &Config, helpers: &Helpers) -> Result<Opened, OpenError> {
        Ok(Opened::Slow(Box::new(HostsDenyQueue::new(HostsDeny::from_config(config)?, helpers.hosts_deny.clone()))))
    }

    fn key(&self) -> &'static str {
        "block.hosts_deny"
    }

    fn weakness(&self) -> Option<&'static str> {
        Some("hosts-deny alone protects only services that use TCP wrappers; \"nft\" stops all packets")
    }

    fn after_stop(&self, _config: &Config) -> &'static str {
        "lines in hosts.deny stay until the next start removes the expired ones"
    }

    fn file(&self, config: &Config) -> Option<PathBuf> {
        Some(config.block.hosts_deny.file.clone())
    }

    fn has_leftovers(&self, config: &Config) -> bool {
        let found = HostsDeny::from_config(config).ok().and_then(|hosts_deny| hosts_deny.targets().ok());
        found.is_some_and(|found| !found.is_empty())
    }
}
