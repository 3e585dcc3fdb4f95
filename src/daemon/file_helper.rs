//! Starts the helper process that writes the files in directories of root: hosts.deny and `report.json_file`. It runs
//! as root without network access; the daemon has no root permissions.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use super::error::DaemonError;
use super::helper::{self, Helper, Work};
use super::sandbox_policy;
use crate::config::Config;
use crate::enforce::EntryStore;
use crate::enforce::file_helper::{FileHelper, Files, HelperFile, Open};
use crate::enforce::hosts_deny::HostsDeny;
use crate::events::json_log;
use crate::sandbox::Sandbox;
use crate::types::Backend;

/// The helper and the files that it handles.
#[derive(Clone, Debug, Default)]
pub(super) struct RootFiles {
    /// Opens this file.
    pub(super) json_file: Option<(PathBuf, FileHelper)>,
    pub(super) warnings: Vec<String>,
}

impl RootFiles {
    /// Starts the helper if one of the files that the daemon writes is in a directory of `closed`, which its user
    /// cannot write. The helper then also writes such a hosts.deny among `stores`.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(
        config: &Config,
        config_path: &Path,
        closed: &[PathBuf],
        stores: &mut [Arc<dyn EntryStore>],
    ) -> Result<Self, DaemonError> {
        let is_closed = |file: &Path| closed.iter().any(|folder| file.parent() == Some(folder));
        let hosts_deny =
            stores.iter_mut().find(|store| store.backend() == Backend::HostsDeny && is_closed(store.path()));
        let json_file = config.report.json_file.as_ref().filter(|file| is_closed(file));
        if hosts_deny.is_none() && json_file.is_none() {
            return Ok(Self::default());
        }
        let work = Work::Files { hosts_deny: hosts_deny.is_some(), json_file: json_file.is_some() };
        // It ends with the daemon, which need not wait for it.
        let Helper { socket, child, warnings, .. } = Helper::start(work, config_path, true, Stdio::null())?;
        let helper = FileHelper::new(socket, child.id());
        let json_file = json_file.map(|file| (file.clone(), helper.clone()));
        if let Some(store) = hosts_deny {
            *store = Arc::new(HelperFile::new(Arc::clone(store), helper));
        }
        Ok(Self { json_file, warnings })
    }
}

/// Drops all unneeded permissions, and returns the files.
pub(super) fn ready(
    config_path: &Path,
    sandboxed: bool,
    (hosts_deny, json_file): (bool, bool),
) -> Result<(Files, Sandbox), String> {
    let config = helper::load(config_path)?;
    let deny = &config.block.hosts_deny;
    let hosts_deny = hosts_deny.then(|| HostsDeny::new(&deny.file, &deny.line)).transpose();
    let hosts_deny =
        hosts_deny.map_err(|error| DaemonError::Entries(error.to_string(), Backend::HostsDeny).to_string())?;
    let json_file = config.report.json_file.filter(|_| json_file);
    let files = Files { hosts_deny, json_file: json_file.map(|file| (file, json_log::open as Open)) };
    let policy = sandbox_policy::of_files(&files);
    let mut sandbox = if sandboxed { Sandbox::enter(&policy, || ()) } else { Sandbox::now() };
    if let Some(Err(error)) = files.hosts_deny.as_ref().map(HostsDeny::check) {
        sandbox.warnings.push(format!("cannot write hosts.deny, retrying: {error}"));
    }
    Ok((files, sandbox))
}
