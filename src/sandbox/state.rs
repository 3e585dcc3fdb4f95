//! Defines the permanent state of the sandbox, as `status` shows it.

use std::fmt;

use rustix::process::{DumpableBehavior, dumpable_behavior};
use rustix::thread::no_new_privs;
use serde::{Deserialize, Serialize};

use super::seccomp::Calls;
use super::{capabilities, user};
use crate::types::nullable;

#[serde_with::apply(Option => #[serde(deserialize_with = "nullable")])]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxState {
    /// Name of the user, if it has one.
    pub user: Option<String>,
    pub uid: u32,
    /// `None` if the process has all of root's capabilities.
    pub capabilities: Option<Vec<String>>,
    /// True if executed programs cannot gain privileges.
    pub no_new_privs: bool,
    /// The Landlock version in force; `None` if Landlock is not used.
    pub landlock_abi: Option<i32>,
    /// The permitted system calls.
    pub seccomp: Calls,
    /// True if a crash writes a core dump, and other processes of the same user can read the memory.
    pub core_dumps: bool,
}

impl SandboxState {
    /// The state of this process before anything is dropped.
    pub(super) fn now() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        Self {
            user: user::name(uid),
            uid,
            capabilities: capabilities::names(),
            no_new_privs: no_new_privs().unwrap_or(false),
            landlock_abi: None,
            seccomp: Calls::All,
            core_dumps: !matches!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable)),
        }
    }
}

impl fmt::Display for SandboxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.clone().unwrap_or_else(|| self.uid.to_string());
        let capabilities = match self.capabilities.as_deref() {
            None => "all capabilities".to_owned(),
            Some([]) => "no capabilities".to_owned(),
            Some(kept) => kept.join(", "),
        };
        let no_new_privs = if self.no_new_privs { "on" } else { "off" };
        let landlock = self.landlock_abi.map_or("off".to_owned(), |abi| format!("version {abi}"));
        let core_dumps = if self.core_dumps { "possible" } else { "off" };
        write!(
            f,
            "user {user}, {capabilities}; no_new_privs {no_new_privs}, Landlock {landlock}, seccomp {}, core dumps {core_dumps}",
            self.seccomp
        )
    }
}
