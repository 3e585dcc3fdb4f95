//! Drops the privileges that the program does not need, after the configuration is known and before the first packet is
//! read. This happens before the first thread starts, so that it applies to every thread. The caller defines the
//! policy.
//!
//! If a kernel lacks one of the mechanisms, the others are used, and the log reports it once.

mod capabilities;
mod dynamic_user;
mod handover;
mod instance_lock;
mod landlock;
mod ownership;
mod policy;
mod seccomp;
mod state;
mod user;

use std::path::{Path, PathBuf};

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;

pub use capabilities::forget_priority;
pub use handover::HandoverError;
pub use instance_lock::{InstanceLock, InstanceLockError};
pub use landlock::Reach;
pub use ownership::{Untrusted, only_ours};
pub use policy::{Policy, Process};
pub use seccomp::Calls;
pub use state::SandboxState;
use user::Account;
pub use user::{obstacle_for, user_id};

/// The sandbox of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    pub state: SandboxState,
    /// The accessible files; `None`: all that its user can access.
    pub reach: Option<Reach>,
    pub warnings: Vec<String>,
}

/// Refuses a policy whose own directories are not the program's own, if root would give them to the new user. Changes
/// nothing.
///
/// # Errors
/// The first directory that belongs to the system, or contains files of others.
pub fn check_directories(policy: &Policy) -> Result<(), HandoverError> {
    Account::find(policy).map_or(Ok(()), |account| handover::check(policy, &account))
}

/// Returns the problems that the user, to which root would switch with `policy`, would have; empty if this process is
/// not root. None of them prevents the daemon from starting. `running` is the user of a running daemon, which the next
/// one takes over.
pub fn obstacles(policy: &Policy, running: Option<u32>) -> Vec<String> {
    let account = match Account::find(policy) {
        Ok(account) => account,
        Err(why) => return why.map(|why| format!("portsentry would continue as root: {why}")).into_iter().collect(),
    };
    let shut_out = account.is_shut_out(policy).map(|why| {
        format!(
            "{why}, so portsentry would keep CAP_DAC_READ_SEARCH; run chmod o+x on the directories and o+r on the \
             files, or move them"
        )
    });
    let foreign = handover::foreign(policy, &account).into_iter().filter(|(_, owner)| Some(*owner) != running);
    let foreign = foreign.map(|(path, owner)| {
        let path = path.display();
        format!("{path} belongs to user {owner}, but portsentry would run as {account}; check its contents and change its owner with chown")
    });
    shut_out.into_iter().chain(foreign).collect()
}

/// The directories in [`Policy::write`] in which the user, to which root would switch, cannot create and replace files;
/// empty if the user does not change.
pub fn closed_directories(policy: &Policy) -> Vec<PathBuf> {
    Account::find(policy).map_or(Vec::new(), |account| handover::closed(policy, &account))
}

impl Sandbox {
    /// Drops everything that `policy` does not list. Call [`check_directories`] first. `last` runs with the initial
    /// privileges, after the directories have been created.
    pub fn enter(policy: &Policy, last: impl FnOnce()) -> Self {
        let mut warnings = Vec::new();
        let made = create_directories(policy);
        last();
        let nice = !prepare(&mut warnings);
        let shut_out = match become_own_user(policy, &made) {
            Ok(shut_out) => shut_out,
            Err(stays) => {
                // The daemon has started this helper because it is root.
                let stays = stays.filter(|_| policy.process != Process::Files);
                warnings.extend(
                    stays.map(|why| format!("portsentry continues as root, without root's capabilities: {why}")),
                );
                None
            }
        };
        if let Err(error) = capabilities::cut(policy, nice, shut_out.is_some()) {
            warnings.push(format!("cannot reduce the capabilities of the process ({error})"));
        }
        if let Some(why) = shut_out {
            warnings.push(format!(
                "{why}, so portsentry keeps CAP_DAC_READ_SEARCH, which permits it to read every file; run chmod o+x \
                 on the directories and o+r on the files, or move them, and restart portsentry"
            ));
        }
        if let Err(error) = set_no_new_privs(true) {
            warnings.push(format!("the kernel does not support no_new_privs ({error})"));
        }
        // After the change of user, which also changes this flag.
        if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
            warnings.push(format!("a crash may write a core dump to the disk ({error})"));
        }
        let fenced = if policy.process == Process::Commands { Ok(None) } else { landlock::fence(policy) };
        let fenced = fenced.unwrap_or_else(|error| {
            warnings.push(format!("the file access of portsentry is not restricted: {error}"));
            None
        });
        let (landlock_abi, reach) = fenced.unzip();
        let now = SandboxState::now();
        let seccomp = seccomp::filter(policy).unwrap_or_else(|error| {
            warnings.push(format!("the system calls of portsentry are not restricted: {error}"));
            Calls::All
        });
        Self { state: SandboxState { landlock_abi, seccomp, ..now }, reach, warnings }
    }

    /// Drops nothing, and takes back directories that an earlier run in a sandbox has given away.
    pub fn without(policy: &Policy) -> Self {
        let warnings = take_back(policy).err().map(|error| error.to_string()).into_iter().collect();
        Self { warnings, ..Self::now() }
    }

    /// Drops the capability that only the start of the sensor thread needed. The thread itself has dropped it already
    /// ([`forget_priority`]).
    pub fn drop_privileges(&mut self) {
        forget_priority();
        self.state.capabilities = capabilities::names();
    }

    /// The current state, if nothing was dropped.
    pub fn now() -> Self {
        Self { state: SandboxState::now(), reach: None, warnings: Vec::new() }
    }

    /// True if `path` can certainly be read, or with `write`, written.
    pub fn reaches(&self, path: &Path, write: bool) -> bool {
        self.reach.as_ref().is_some_and(|reach| reach.has(path, write))
    }

    /// True if file access is not restricted, and `path` or a component of its path belongs to the process's user.
    pub fn owns(&self, path: &Path) -> bool {
        self.reach.is_none() && ownership::belongs_to(self.state.uid, path)
    }

    /// Returns an error text if `path` cannot be read or written, because the sandbox was created for other settings.
    pub fn out_of_reach(&self, path: &Path, write: bool) -> Option<String> {
        let reach = self.reach.as_ref()?;
        (!reach.has(path, write)).then(|| {
            let doing = if write { "written" } else { "read" };
            format!(
                "{} cannot be {doing}, because the sandbox from the start of portsentry forbids it; restart portsentry",
                path.display()
            )
        })
    }
}

/// Creates missing directories while the process still has the permission; returns the created ones.
fn create_directories(policy: &Policy) -> Vec<PathBuf> {
    if policy.process == Process::Files {
        return Vec::new();
    }
    let directories = policy.own.iter().chain(&policy.write);
    // Errors are reported where the directory is used.
    let made = directories.filter(|directory| user::make(directory).is_ok_and(|made| made)).cloned().collect();
    policy.shared_socket.as_deref().and_then(Path::parent).into_iter().for_each(user::let_pass);
    made
}

/// Switches from root to the own user, and gives it its directories. Returns a warning if that user cannot access some
/// of its files; the error is the reason to stay root.
fn become_own_user(policy: &Policy, made: &[PathBuf]) -> Result<Option<String>, Option<String>> {
    let account = match Account::find(policy) {
        Err(Some(stays)) => {
            // An earlier run may have used a separate user.
            take_back(policy).map_err(|error| format!("{stays}; {error}"))?;
            return Err(Some(stays));
        }
        found => found?,
    };
    let shut_out = account.is_shut_out(policy);
    handover::give_away(policy, &account, made).map_err(|error| error.to_string())?;
    account.enter()?;
    Ok(shut_out)
}

/// Takes back directories and files that an earlier run gave to its user. Does nothing without root's permissions.
///
/// # Errors
/// The first directory that contains files of others.
fn take_back(policy: &Policy) -> Result<(), HandoverError> {
    if rustix::process::geteuid().is_root() { handover::give_away(policy, &Account::root(), &[]) } else { Ok(()) }
}

/// Does what needs permissions that are dropped later; true if the resource limit permits the sensor thread's real-time
/// priority without a capability.
fn prepare(warnings: &mut Vec<String>) -> bool {
    // A crash must not leave the ledger's key or the addresses of banned sources in a core dump.
    if let Err(error) = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }) {
        warnings.push(format!("a crash may write a core dump to the disk ({error})"));
    }
    let has = getrlimit(Resource::Rtprio);
    let maximum = has.maximum.map(|most| most.max(1));
    has.current.is_none_or(|most| most >= 1)
        || setrlimit(Resource::Rtprio, Rlimit { current: Some(1), maximum }).is_ok()
}
