//! Removes what bans of an earlier run left in backends that `block.method` no longer contains: the table, routes,
//! lines of hosts.deny. The bans continue in the configured backends.

use std::path::Path;
use std::time::SystemTime;

use crate::config::Config;
use crate::enforce::nft::{Nft, RulesetError, RulesetSpec};
use crate::enforce::route::Routes;
use crate::enforce::{EntryStore, entry_store};
use crate::events::event::EventKind;
use crate::ledger::Reader;
use crate::types::{Backend, Timestamp};

/// Removes the objects that `config` does not use any more; returns the events to report.
pub(super) fn remove(config: &Config) -> Vec<EventKind> {
    let is_unused = |backend: Backend| !config.block.method.contains(&backend);
    let methods = config.block.method.iter().map(|method| method.name()).collect::<Vec<_>>().join(", ");
    let mut report = Vec::new();
    if is_unused(Backend::Nft) {
        let spec = RulesetSpec::from_config(config);
        match Nft::open().map_err(RulesetError::from).and_then(|mut nft| nft.remove(&spec)) {
            Ok(true) => report.push(EventKind::Note(format!(
                "table inet portsentry of an earlier run has been removed, because \"nft\" is not in block.method; its \
                 bans continue with {methods}"
            ))),
            Ok(false) | Err(RulesetError::Socket(_)) => {}
            Err(error) => report.push(EventKind::Error(format!("the table of an earlier run stays: {error}"))),
        }
    }
    if is_unused(Backend::Route) {
        let swept = Routes::open(config.block.route, 0).and_then(|mut routes| {
            let found = routes.leftovers()?;
            Ok((found.len(), routes.sweep(Timestamp::default()).trouble))
        });
        match swept {
            Ok((0, _)) | Err(_) => {}
            Ok((count, None)) => report.push(EventKind::Note(format!(
                "routes of earlier bans have been removed, because \"route\" is not in block.method: {count}; the bans continue \
                 with {methods}"
            ))),
            Ok((_, Some(error))) => report.push(EventKind::Error(format!(
                "routes of earlier bans stay: {error}; remove them with `ip route flush proto 112` and \
                 `ip -6 route flush proto 112`"
            ))),
        }
    }
    report
}

/// True if an earlier run may have left bans in a backend or in the ledger in `state_dir`, or commands that have to be
/// undone. Must be called before the daemon opens the ledger. A table may contain bans of a fleet, and counts even if it
/// is empty, because the kernel takes seconds to list a full set.
pub(super) fn exist(config: &Config, state_dir: &Path) -> bool {
    let has_table = || Nft::open().is_ok_and(|mut nft| nft.table_handle().is_ok_and(|handle| handle.is_some()));
    let has_routes = || {
        let found = Routes::open(config.block.route, 0).and_then(|mut routes| routes.leftovers());
        found.is_ok_and(|found| !found.is_empty())
    };
    let has_records = || {
        let undoes_commands = !config.block.run.expire_command.is_empty();
        let found = Reader::read(state_dir, |reader| {
            let is_active = !reader.active(SystemTime::now())?.items.is_empty();
            Ok(is_active || undoes_commands && reader.has_to_undo()?)
        });
        found.unwrap_or(false)
    };
    let has_entries =
        |backend| entry_store(config, backend).is_some_and(|store| store.is_ok_and(|store| has_entries(&*store)));
    has_table() || has_routes() || Backend::ALL.into_iter().any(has_entries) || has_records()
}

/// True if `store` contains entries of earlier bans.
pub(super) fn has_entries(store: &dyn EntryStore) -> bool {
    store.held().is_ok_and(|held| !held.is_empty())
}
