//! Restricts the process to the paths that it needs, with Landlock. Opening, creating, renaming and removing files are
//! restricted; stat(2) and path traversal are not.
//!
//! A rule applies to the file that a path refers to at this moment, and a replaced file is a different one, so rules
//! name directories.
//!
//! If the kernel supports it, the process can use no other TCP ports (Linux 6.7), and can neither reach abstract Unix
//! sockets nor send signals outside of the sandbox (Linux 6.12).
//!
//! References: landlock(7).

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, NetPort, PathBeneath, PathFd, RestrictionStatus, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::policy::{Policy, Process};

/// Restricted access rights, if the kernel supports them: everything up to device ioctls. Later additions (connecting
/// to Unix sockets) would block the log.
const KNOWN: ABI = ABI::V5;

/// Above this number of ports, each of which needs a rule, listening is not restricted.
const MAX_PORTS: usize = 1_024;

/// Port for resolver answers that do not fit into a datagram.
const DNS: u16 = 53;

/// Directory of the system configuration.
const SYSTEM: &str = "/etc";

/// The accessible paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
}

impl Reach {
    fn from_policy(policy: &Policy) -> Self {
        let real =
            |paths: &mut dyn Iterator<Item = &PathBuf>| paths.filter_map(|path| path.canonicalize().ok()).collect();
        let write = real(&mut policy.own.iter().chain(&policy.write));
        let directories: Vec<PathBuf> =
            policy.config_files.iter().filter_map(|path| path.parent()).map(Path::to_owned).collect();
        let mut read: Vec<PathBuf> = real(&mut policy.read.iter().chain(&directories));
        if !rustix::process::geteuid().is_root() {
            // A non-root user can read no secrets there, and a replaced resolv.conf stays readable.
            read.push(SYSTEM.into());
        }
        Self { read, write }
    }

    /// True if `path` can be read, or with `write`, created and written.
    pub fn has(&self, path: &Path, write: bool) -> bool {
        // If the path is missing, its directory decides.
        let real = path.canonicalize().or_else(|_| path.parent().unwrap_or(Path::new("/")).canonicalize());
        let Ok(real) = real else { return false };
        let mut places = self.write.iter().chain(if write { &[][..] } else { &self.read });
        places.any(|place| real.starts_with(place))
    }
}

/// Why file access is not restricted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfenced {
    #[error("this kernel has no Landlock (Linux 5.13)")]
    Missing,
    #[error("Landlock is disabled (boot with lsm=landlock,...)")]
    Off,
    /// Another error.
    #[error(transparent)]
    Refused(#[from] RulesetError),
}

/// Restricts this thread and everything that it starts; returns the Landlock version.
pub(super) fn fence(policy: &Policy) -> Result<Option<(i32, Reach)>, Unfenced> {
    let reach = Reach::from_policy(policy);
    let write = (AccessFs::from_read(KNOWN) | AccessFs::WriteFile | AccessFs::Truncate)
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::Refer;
    let write = write & !AccessFs::Execute;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules = Ruleset::default().handle_access(AccessFs::from_all(KNOWN))?;
    let (binds, connects) = tcp_ports(policy);
    if binds.is_some() {
        rules = rules.handle_access(AccessNet::BindTcp)?;
    }
    if connects.is_some() {
        rules = rules.handle_access(AccessNet::ConnectTcp)?;
    }
    rules = rules.scope(Scope::Signal)?;
    if !notifies_abstract_socket() {
        rules = rules.scope(Scope::AbstractUnixSocket)?;
    }
    let mut rules = rules.create()?;
    for port in binds.into_iter().flatten() {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::BindTcp))?;
    }
    for port in connects.into_iter().flatten() {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    for (paths, access) in [(&reach.write, write), (&reach.read, read)] {
        for path in paths {
            let access = if path.is_dir() { access } else { access & AccessFs::from_file(KNOWN) };
            // A path that has disappeared needs no rule.
            if let Ok(open) = PathFd::new(path) {
                rules = rules.add_rule(PathBeneath::new(open, access))?;
            }
        }
    }
    let version = in_force(&rules.restrict_self()?)?;
    Ok(Some((version, reach)))
}

/// The ports on which the process may listen, and those to which it may connect; `None` if unrestricted.
fn tcp_ports(policy: &Policy) -> (Option<&[u16]>, Option<&'static [u16]>) {
    let connects = match policy.process {
        Process::Files => Some(&[][..]),
        // A name service library may connect to its own servers.
        _ if policy.names => None,
        // A reload may add names to resolve.
        _ => Some(&[DNS][..]),
    };
    (Some(policy.tcp_ports.as_slice()).filter(|ports| ports.len() <= MAX_PORTS), connects)
}

/// True if the service manager uses an abstract socket (sd_notify(3)).
fn notifies_abstract_socket() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| socket.as_encoded_bytes().starts_with(b"@"))
}

fn in_force(status: &RestrictionStatus) -> Result<i32, Unfenced> {
    match status.landlock {
        LandlockStatus::NotImplemented => Err(Unfenced::Missing),
        LandlockStatus::NotEnabled => Err(Unfenced::Off),
        LandlockStatus::Available { .. } if status.ruleset == RulesetStatus::NotEnforced => Err(Unfenced::Missing),
        LandlockStatus::Available { effective_abi, kernel_abi } => Ok(kernel_abi.unwrap_or(effective_abi as i32)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_ports_follow_policy() {
        let ports = |policy: &Policy| tcp_ports(policy).0.map(<[u16]>::len);
        assert_eq!(tcp_ports(&Policy::default()), (Some(&[][..]), Some(&[53][..])));
        assert_eq!(tcp_ports(&Policy { process: Process::Files, ..Policy::default() }).1, Some(&[][..]));
        assert_eq!(tcp_ports(&Policy { names: true, ..Policy::default() }).1, None);
        assert_eq!(ports(&Policy { tcp_ports: vec![7; MAX_PORTS], ..Policy::default() }), Some(MAX_PORTS));
        assert_eq!(ports(&Policy { tcp_ports: vec![7; MAX_PORTS + 1], ..Policy::default() }), None);
    }

    #[test]
    fn outside_directories_are_inaccessible() {
        let directory = tempfile::tempdir().unwrap();
        let [state, settings] = ["state", "settings"].map(|name| directory.path().join(name));
        [&state, &settings].iter().for_each(|path| std::fs::create_dir(path).unwrap());
        let policy = Policy { own: vec![state.clone()], read: vec![settings.clone()], ..Policy::default() };
        let reach = Reach::from_policy(&policy);
        assert!(reach.has(&state.join("new"), true) && reach.has(&state.join("new"), false));
        assert!(reach.has(&settings.join("ignore"), false) && !reach.has(&settings.join("ignore"), true));
        assert!(!reach.has(&directory.path().join("other"), false));
        std::os::unix::fs::symlink(directory.path(), settings.join("link")).unwrap();
        assert!(!reach.has(&settings.join("link"), false), "the target of the link counts");
        assert!(!reach.has(&state.join("no/such/directory"), true));
    }
}
