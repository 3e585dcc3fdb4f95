//! Drops the privileges that the program does not need, once it knows its configuration and before it reads the
//! first packet. All of it happens before the first thread starts, so that it applies to every thread. The caller
//! decides what is needed.
//!
//! Where a kernel lacks one of the mechanisms, the others are used, and the log says so once.

mod capabilities;
mod dynamic_user;
mod handover;
mod instance_lock;
mod landlock;
mod name_service;
mod ownership;
mod seccomp;
mod user;

use std::path::{Path, PathBuf};

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, dumpable_behavior, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{no_new_privs, set_no_new_privs};

pub use capabilities::Capabilities;
pub use handover::HandoverError;
pub use instance_lock::{InstanceLock, InstanceLockError};
pub use landlock::Reach;
pub use ownership::{Untrusted, only_ours};
use user::Account;

/// What the program needs once it is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Folders of its own, which are made where they are missing and given to the user that it runs as.
    pub own: Vec<PathBuf>,
    /// Names of the files that it makes in them; `*` at the end of one stands for any rest.
    pub own_files: Vec<String>,
    /// The socket that it makes in one of them.
    pub own_socket: Option<PathBuf>,
    /// Another one, which processes of other users reach.
    pub shared_socket: Option<PathBuf>,
    /// Folders in which it makes, writes, renames and removes files.
    pub write: Vec<PathBuf>,
    /// Files that it reads again when they are replaced.
    pub settings: Vec<PathBuf>,
    /// Files, and folders with all that is in them, that it reads where it can.
    pub read: Vec<PathBuf>,
    /// Listeners on ports below 1024.
    pub low_ports: bool,
    /// TCP ports on which it listens.
    pub tcp_ports: Vec<u16>,
    /// Look-ups of names, which load libraries.
    pub names: bool,
    /// Which of the program's processes this is.
    pub process: Process,
    /// Files of others are replaced, and keep their owner.
    pub others_files: bool,
    /// Why it stays root; `None` where its own user will do.
    pub root: Option<&'static str>,
}

impl Policy {
    /// One with the folders of a daemon's state and of its control socket, and nothing else. `files` are the names that it
    /// makes in them ([`Policy::own_files`]).
    #[must_use]
    pub fn of_folders(state_dir: &Path, socket: &Path, files: &[&str]) -> Self {
        let folder = socket.parent().filter(|folder| !folder.as_os_str().is_empty());
        Self {
            own: std::iter::once(state_dir).chain(folder).map(Path::to_owned).collect(),
            own_files: files.iter().map(|&name| name.to_owned()).collect(),
            own_socket: Some(socket.to_owned()),
            ..Self::default()
        }
    }
}

/// The processes of this program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Process {
    /// It reads packets.
    #[default]
    Daemon,
    /// It runs the administrator's commands, which inherit all of this.
    Commands,
    /// It writes files that only root may write.
    Files,
}

/// What holds from now on, and is never taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The user's name, if it has one.
    pub user: Option<String>,
    /// The user's number.
    pub uid: u32,
    /// What is left of root.
    pub capabilities: Capabilities,
    /// No program that is run gets more rights than this one.
    pub no_new_privs: bool,
    /// What the kernel writes nowhere when the program crashes, nor shows to others of the same user.
    pub core_dumps: bool,
    /// The version of Landlock that is in force; `None`: it is not.
    pub landlock: Option<i32>,
    /// Which system calls there are.
    pub seccomp: Calls,
    /// Which files it reaches; `None`: all that its user may.
    pub reach: Option<Reach>,
    /// What is to be said.
    pub warnings: Vec<String>,
}

/// Which system calls the kernel carries out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// All.
    All,
    /// All but some that no command needs.
    Most,
    /// Those on the list; any other one ends the process.
    Listed,
}

impl Calls {
    /// As `status` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "off",
            Self::Most => "deny-list",
            Self::Listed => "allow-list",
        }
    }
}

/// Refuses a policy whose own folders are not the program's own, where root would give them to the user that it becomes.
/// Changes nothing.
///
/// # Errors
/// For the first folder that belongs to the system, or holds files of others.
pub fn check_folders(policy: &Policy) -> Result<(), HandoverError> {
    Account::find(policy).map_or(Ok(()), |account| handover::check(policy, &account))
}

/// What would be in the way of the user that root becomes with `policy`, each as a sentence; nothing where this is not root.
/// None of it keeps the daemon from starting.
#[must_use]
pub fn obstacles(policy: &Policy) -> Vec<String> {
    let account = match Account::find(policy) {
        Ok(account) => account,
        Err(why) => return why.map(|why| format!("portsentry would stay root: {why}")).into_iter().collect(),
    };
    let shut_out = account.is_shut_out(policy).map(|why| {
        format!(
            "{why}: portsentry would keep CAP_DAC_READ_SEARCH; chmod o+x the folders and o+r the files, or move them"
        )
    });
    let foreign = handover::foreign(policy, &account).into_iter().map(|(path, owner)| {
        let path = path.display();
        format!("{path} belongs to user {owner}, but portsentry would run as {account}; chown it, after a look at what is in it")
    });
    shut_out.into_iter().chain(foreign).collect()
}

/// What keeps the user of a service, with more `groups`, from using `file` with all of `bits` (4 to read, 1 to execute): the file, or
/// a folder on the way to it.
#[must_use]
pub fn obstacle_for(user: &str, groups: &[&str], file: &Path, bits: u32) -> Option<PathBuf> {
    user::obstacle(user, groups, file, bits)
}

/// The folders among [`Policy::write`] in which the user that root becomes could not make and replace files; none where it
/// stays what it is.
#[must_use]
pub fn closed_folders(policy: &Policy) -> Vec<PathBuf> {
    Account::find(policy).map_or(Vec::new(), |account| handover::closed(policy, &account))
}

impl Sandbox {
    /// Gives up all that `policy` does not name. [`check_folders`] is to be asked before. `last` is what is done with the
    /// rights of the start, once the folders are there.
    #[must_use]
    pub fn enter(policy: &Policy, last: impl FnOnce()) -> Self {
        let mut warnings = Vec::new();
        let made = make_folders(policy);
        last();
        let nice = !prepare(&mut warnings);
        let shut_out = match become_own_user(policy, &made) {
            Ok(shut_out) => shut_out,
            Err(stays) => {
                // The daemon has started the other one because it is root.
                let stays = stays.filter(|_| policy.process != Process::Files);
                warnings.extend(stays.map(|why| format!("it stays root, without root's rights: {why}")));
                None
            }
        };
        capabilities::cut(policy, (nice, shut_out.is_some()), &mut warnings);
        if let Some(why) = shut_out {
            warnings.push(format!(
                "{why}: it keeps CAP_DAC_READ_SEARCH, with which it may read and pass through more than it needs; open the way \
                 (chmod o+x on folders, o+r on files) or move the files, and restart portsentry"
            ));
        }
        if let Err(error) = set_no_new_privs(true) {
            warnings.push(format!("the kernel knows no no_new_privs ({error})"));
        }
        // After the change of user, which sets it as well.
        if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
            warnings.push(format!("a crash may leave memory on the disk ({error})"));
        }
        let fenced = if policy.process == Process::Commands { Ok(None) } else { landlock::fence(policy) };
        let (landlock, reach) = match fenced {
            Ok(fenced) => fenced.unzip(),
            Err(error) => {
                warnings.push(format!("the files that it reaches are not restricted: {error}"));
                (None, None)
            }
        };
        let now = Self { landlock, reach, ..Self::now() };
        let seccomp = match seccomp::filter(policy) {
            Ok(seccomp) => seccomp,
            Err(error) => {
                warnings.push(format!("its system calls are not restricted: {error}"));
                Calls::All
            }
        };
        Self { seccomp, warnings, ..now }
    }

    /// Gives up nothing, and takes folders back that an earlier run in a sandbox has given away.
    #[must_use]
    pub fn without(policy: &Policy) -> Self {
        let warnings = take_back(policy).err().map(|error| error.to_string()).into_iter().collect();
        Self { warnings, ..Self::now() }
    }

    /// Gives up what only the start of the sensor's thread takes, which has given it up already ([`forget_priority`]).
    pub fn drop_privileges(&mut self) {
        forget_priority();
        self.capabilities = Capabilities::now();
    }

    /// What holds where nothing was given up.
    #[must_use]
    pub fn now() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        Self {
            user: user::name(uid),
            uid,
            capabilities: Capabilities::now(),
            no_new_privs: no_new_privs().unwrap_or(false),
            core_dumps: !matches!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable)),
            landlock: None,
            seccomp: Calls::All,
            reach: None,
            warnings: Vec::new(),
        }
    }

    /// True where it is certain that `path` can be read, or written.
    #[must_use]
    pub fn reaches(&self, path: &Path, write: bool) -> bool {
        self.reach.as_ref().is_some_and(|reach| reach.has(path, write))
    }

    /// True where the files are not restricted, and `path` or what stands on the way to it belongs to the process's user.
    #[must_use]
    pub fn owns(&self, path: &Path) -> bool {
        self.reach.is_none() && ownership::belongs_to(self.uid, path)
    }

    /// A sentence where `path` cannot be read, or written, since the sandbox was made for other settings.
    #[must_use]
    pub fn out_of_reach(&self, path: &Path, write: bool) -> Option<String> {
        let reach = self.reach.as_ref()?;
        (!reach.has(path, write)).then(|| {
            let doing = if write { "written" } else { "read" };
            format!(
                "{} cannot be {doing} in the sandbox of the settings at the start; restart portsentry",
                path.display()
            )
        })
    }
}

/// Gives up, for the calling thread, the right to a real-time priority.
pub fn forget_priority() {
    capabilities::forget_nice();
}

/// Makes the folders that are missing, as long as there is a right to; those that were made.
fn make_folders(policy: &Policy) -> Vec<PathBuf> {
    if policy.process == Process::Files {
        return Vec::new();
    }
    let folders = policy.own.iter().chain(&policy.write);
    // What is wrong with one is said where it is used.
    let made = folders.filter(|folder| user::make(folder).is_ok_and(|made| made)).cloned().collect();
    policy.shared_socket.as_deref().and_then(Path::parent).into_iter().for_each(user::let_pass);
    made
}

/// The number of the user `name`; `None` where there is none. To be asked before the sandbox closes the files of users.
#[must_use]
pub fn user_id(name: &str) -> Option<u32> {
    user::number(name)
}

/// Becomes the own user where this is root, with the folders that are its own. A sentence where that one is shut out of some
/// of its files; as an error, one where it stays root.
fn become_own_user(policy: &Policy, made: &[PathBuf]) -> Result<Option<String>, Option<String>> {
    let account = match Account::find(policy) {
        Err(Some(stays)) => {
            // An earlier run may have had a user of its own.
            take_back(policy).map_err(|error| format!("{stays}; {error}"))?;
            return Err(Some(stays));
        }
        found => found?,
    };
    let shut_out = account.is_shut_out(policy);
    handover::give(policy, &account, made).map_err(|error| error.to_string())?;
    account.enter()?;
    Ok(shut_out)
}

/// Takes folders and files for root that an earlier run has given to the user that it had. Without root's rights it does
/// nothing.
///
/// # Errors
/// For the first folder that holds files of others.
fn take_back(policy: &Policy) -> Result<(), HandoverError> {
    if rustix::process::geteuid().is_root() { handover::give(policy, &Account::root(), &[]) } else { Ok(()) }
}

/// What takes rights that will be gone; true where the limit allows the sensor's thread its real-time priority without any.
fn prepare(warnings: &mut Vec<String>) -> bool {
    // A crash must not leave the ledger's key or the bans of strangers behind in a file.
    if let Err(error) = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }) {
        warnings.push(format!("a crash may leave memory on the disk ({error})"));
    }
    let has = getrlimit(Resource::Rtprio);
    let maximum = has.maximum.map(|most| most.max(1));
    has.current.is_none_or(|most| most >= 1)
        || setrlimit(Resource::Rtprio, Rlimit { current: Some(1), maximum }).is_ok()
}
