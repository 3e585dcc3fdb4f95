//! Derives the sandbox policy from the configuration: files, capabilities and system calls. Files that any part of the
//! program reads or writes must be listed here; otherwise that part cannot access them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::backends::UsedBackends;
use super::paths::DaemonPaths;
use crate::capture::decoy::DecoyPorts;
use crate::config::Config;
use crate::enforce::file_helper::Files;
use crate::enforce::hosts_deny::HostsDeny;
use crate::enforce::implementation;
use crate::sandbox::{Policy, Process, Sandbox};
use crate::{file, ledger};

/// Read-only files about the host: name servers, leases and sessions, if they exist ([`crate::host`]); kernel settings;
/// and randomness for SQLite. Directories are listed if files in them are replaced.
const HOST_FILES: [&str; 13] = [
    "/etc/resolv.conf",
    "/run/systemd",
    "/run/NetworkManager",
    "/run/dnsmasq",
    "/run/resolvconf",
    "/run/utmp",
    "/var/lib/dhcp",
    "/var/lib/dhclient",
    "/var/lib/NetworkManager",
    "/proc/sys/net",
    "/proc/sys/kernel/random/boot_id",
    "/sys/class/net",
    "/dev/urandom",
];

/// Files for name look-ups. A reload may add names, so these are always accessible.
const NAME_FILES: [&str; 5] = ["/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services"];

/// Libraries loaded by name look-ups.
const LIBRARIES: [&str; 6] = ["/etc/ld.so.cache", "/etc/ld.so.preload", "/usr/lib", "/usr/lib64", "/lib", "/lib64"];

/// The daemon's policy with `config` and the backends in use.
pub(super) fn of_daemon(config: &Config, paths: &DaemonPaths, used: &UsedBackends) -> Policy {
    let directory = |path: &Path| file::directory(path).map(Path::to_owned);
    let DecoyPorts { tcp, udp, .. } = DecoyPorts::from_config(config);
    let metrics = config.metrics.listen.map(|it| it.port());
    let names = config.report.resolve_host || !config.allow.names.is_empty();
    let mut policy = Policy {
        read: HOST_FILES.iter().chain(&NAME_FILES).map(PathBuf::from).collect(),
        tcp_ports: tcp.iter().chain(metrics).collect(),
        low_ports: tcp.iter().chain(udp.iter()).chain(metrics).any(|port| port < 1024),
        names,
        ..config.directories(Some(&paths.config), &paths.state_dir, &paths.socket, &ledger::OWN_FILES)
    };
    // Without logind, session processes are examined.
    if !Path::new("/run/systemd/sessions").is_dir() {
        policy.read.push("/proc".into());
    }
    if names {
        policy.read.extend(LIBRARIES.map(PathBuf::from));
    }
    policy.write.extend(config.report.json_file.as_deref().and_then(directory));
    let files = used.open.iter().filter_map(|backend| implementation(backend).file(config));
    policy.write.extend(files.filter_map(|file| directory(&file)));
    policy
}

/// The policy of the command helper, which commands inherit: any file that its user may open, and permissions for the
/// network.
pub(super) fn of_commands() -> Policy {
    let root = Some("commands run as the user that started portsentry");
    Policy { process: Process::Commands, root, ..Policy::default() }
}

/// The policy of the file helper, which writes files in directories of root.
pub(super) fn of_files(files: &Files) -> Policy {
    let hosts_deny = files.hosts_deny.as_ref().map(HostsDeny::path);
    let foreign = |file: &Path| fs::metadata(file).is_ok_and(|found| (found.uid(), found.gid()) != (0, 0));
    Policy {
        process: Process::Files,
        write: hosts_deny
            .into_iter()
            .chain(files.json_file.as_ref().map(|(file, _)| file.as_path()))
            .filter_map(Path::parent)
            .map(Path::to_owned)
            .collect(),
        others_files: hosts_deny.is_some_and(foreign),
        root: Some("only root can write these files"),
        ..Policy::default()
    }
}

/// Warnings about command programs that a compromised daemon could change, although it cannot choose them. `runs` is
/// true if the commands of `block.run` are used.
pub(super) fn own_commands(config: &Config, runs: bool, sandbox: &Sandbox) -> Vec<String> {
    let run = &config.block.run;
    let commands = [&run.command, &run.expire_command].into_iter().filter(|_| runs);
    let commands = commands.chain([&config.notify.command]);
    let programs: BTreeSet<&Path> = commands.filter_map(|command| command.first()).map(Path::new).collect();
    programs
        .into_iter()
        .filter_map(|program| Some(format!("{} {}", program.display(), why_ours(program, sandbox)?)))
        .collect()
}

fn why_ours(program: &Path, sandbox: &Sandbox) -> Option<&'static str> {
    match () {
        () if !program.is_absolute() => None,
        () if sandbox.reaches(program, true) => Some(
            "is in a directory that portsentry can write to, so a compromised daemon could change it: move the \
             command elsewhere",
        ),
        () if !sandbox.owns(program) => None,
        () if sandbox.state.uid == 0 => Some(
            "belongs to root, and portsentry runs as root here, so a compromised daemon could change it: on a kernel without Landlock, \
             only a separate user for portsentry prevents that",
        ),
        () => Some(
            "belongs to the user of portsentry, so a compromised daemon could change it: change the owner of the program and its directory to root",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::SandboxState;
    use crate::types::{Backend, Backends};

    fn needs(text: &str) -> Policy {
        let paths = DaemonPaths {
            state_dir: "/var/lib/portsentry".into(),
            socket: "/run/portsentry/portsentry.sock".into(),
            config: "/etc/portsentry/portsentry.toml".into(),
        };
        let config = Config::parse("test", text).unwrap();
        of_daemon(&config, &paths, &UsedBackends::new(&config, false, Backends::default()))
    }

    #[test]
    fn built_in_settings_need_own_directories_only() {
        let plain = needs("");
        assert_eq!(plain.own, [Path::new("/var/lib/portsentry"), Path::new("/run/portsentry")]);
        assert!(plain.write.is_empty() && plain.root.is_none());
        assert!(!(plain.low_ports || plain.names || plain.others_files) && plain.process == Process::Daemon);
    }

    #[test]
    fn setting_grants_only_needed_rights() {
        let plain = needs("");
        let named = needs("[report]\nresolve_host = true");
        assert_eq!(Policy { names: false, read: plain.read.clone(), ..named.clone() }, plain);
        assert!(named.names && named.read.contains(&"/usr/lib".into()));
        let connect = needs("[tcp]\nmode = \"connect\"\nports = \"23\"");
        assert_eq!(connect.tcp_ports, [23], "the listener of all decoys is opened before");
        assert_eq!(Policy { low_ports: false, tcp_ports: Vec::new(), ..connect.clone() }, plain);
        assert_eq!(needs("[metrics]\nlisten = \"127.0.0.1:9777\"").tcp_ports, [9777]);
        assert!(connect.low_ports && !needs("[tcp]\nmode = \"connect\"\nports = \"2323\"").low_ports);
        let run = "[block]\nmethod = [\"nft\", \"run\"]\n[block.run]\ncommand = [\"/bin/true\"]";
        assert_eq!(needs(run), plain, "another process runs commands");
        assert!(Config::parse("test", run).unwrap().runs_commands() && of_commands().root.is_some());
        let only_logs = "[tcp]\nblock = false\n[udp]\nblock = false\n[block]\nmethod = [\"hosts-deny\"]";
        assert_eq!(needs(only_logs), plain, "no source is blocked, so nothing is written");
        let only_logs = Config::parse("test", only_logs).unwrap();
        let earlier = UsedBackends::new(&only_logs, true, Backends::default());
        assert!(earlier.open.contains(Backend::HostsDeny), "lines of earlier bans are removed when these end");
        let deny = needs("[block]\nmethod = [\"hosts-deny\"]");
        assert_eq!(
            (&deny.write, deny.root),
            (&vec![PathBuf::from("/etc")], None),
            "another process writes root's files"
        );
        let files = Files { hosts_deny: Some(HostsDeny::from_config(&Config::default()).unwrap()), json_file: None };
        assert_eq!(of_files(&files).write, [Path::new("/etc")]);
        let fleet = needs("[fleet]\nurl = \"unix:///run/valkey.sock\"\nhost = \"a\"\nsocket = \"/run/fleet/s.sock\"");
        assert_eq!(fleet.own, [plain.own.clone(), vec!["/run/fleet".into()]].concat());
        assert_eq!(fleet.shared_socket, Some("/run/fleet/s.sock".into()));
        let json = needs("[report]\njson_file = \"/var/log/portsentry/events.json\"");
        assert_eq!(json.write, [Path::new("/var/log/portsentry")]);
    }
    #[test]
    fn own_command_is_named_without_landlock() {
        let directory = tempfile::tempdir().unwrap();
        let hook = directory.path().join("hook");
        fs::write(&hook, "").unwrap();
        let sandbox = |uid| Sandbox { state: SandboxState { uid, ..SandboxState::default() }, ..Sandbox::now() };
        let owner = fs::metadata(&hook).unwrap().uid();
        assert_eq!(why_ours(&hook, &sandbox(owner + 1)), None);
        let why = why_ours(&hook, &sandbox(owner)).unwrap();
        assert!(why.contains("could change it"), "{why}");
        assert_eq!(why_ours(Path::new("hook"), &sandbox(owner)), None);
    }
}
