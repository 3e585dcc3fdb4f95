//! Starts the helper process that writes the files in directories of root: hosts.deny and `report.json_file`. It runs
//! as root without network access; the daemon has no root permissions.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::error::DaemonError;
use super::helper::{self, Helper, HelperKind};
use super::sandbox_policy;
use crate::config::Config;
use crate::enforce::file_helper::{FileHelper, Files, Open};
use crate::enforce::hosts_deny::HostsDeny;
use crate::events::json_log;
use crate::sandbox::Sandbox;

/// The helper and the files that it handles.
#[derive(Clone, Debug, Default)]
pub(super) struct RootFiles {
    /// Writes hosts.deny.
    pub(super) hosts_deny: Option<FileHelper>,
    /// Opens this file.
    pub(super) json_file: Option<(PathBuf, FileHelper)>,
    pub(super) warnings: Vec<String>,
}

impl RootFiles {
    /// Starts the helper if one of the files that the daemon writes is in a directory of `closed`, which its user
    /// cannot write. If `writes_hosts_deny`, hosts.deny is one of these files.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(
        config: &Config,
        config_path: &Path,
        closed: &[PathBuf],
        writes_hosts_deny: bool,
    ) -> Result<Self, DaemonError> {
        let is_closed = |file: &Path| closed.iter().any(|directory| file.parent() == Some(directory));
        let hosts_deny = writes_hosts_deny && is_closed(&config.block.hosts_deny.file);
        let json_file = config.report.json_file.as_ref().filter(|file| is_closed(file));
        let work = match (hosts_deny, json_file) {
            (false, None) => return Ok(Self::default()),
            (true, None) => HelperKind::HostsDeny,
            (false, Some(_)) => HelperKind::JsonFile,
            (true, Some(_)) => HelperKind::BothFiles,
        };
        // It ends with the daemon, which need not wait for it.
        let Helper { socket, child, warnings, .. } = Helper::start(work, config_path, true, Stdio::null())?;
        let helper = FileHelper::new(socket, child.id());
        let json_file = json_file.map(|file| (file.clone(), helper.clone()));
        Ok(Self { hosts_deny: hosts_deny.then_some(helper), json_file, warnings })
    }
}

/// Drops all unneeded permissions, and returns the files.
pub(super) fn ready(config_path: &Path, sandboxed: bool, work: HelperKind) -> Result<(Files, Sandbox), String> {
    let config = helper::load(config_path)?;
    let hosts_deny = (work != HelperKind::JsonFile).then(|| HostsDeny::from_config(&config)).transpose();
    let hosts_deny = hosts_deny.map_err(|error| DaemonError::HostsDeny(error).to_string())?;
    let json_file = config.report.json_file.filter(|_| work != HelperKind::HostsDeny);
    let files = Files { hosts_deny, json_file: json_file.map(|file| (file, json_log::open as Open)) };
    let policy = sandbox_policy::of_files(&files);
    let mut sandbox = if sandboxed { Sandbox::enter(&policy, || ()) } else { Sandbox::now() };
    sandbox.warnings.extend(files.hosts_deny.as_ref().and_then(HostsDeny::warning));
    Ok((files, sandbox))
}
