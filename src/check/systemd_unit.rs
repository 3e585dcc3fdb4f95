//! Reports settings of the configuration that the installed systemd unit does not permit. Otherwise the first sign
//! would be an error in the log after the restart, or a service that does not start and leaves the host unprotected.
//!
//! Only restrictions that the packaged drop-ins lift are checked; a unit without restrictions causes no warnings.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::unit::{EXECUTE, READ, UNIT, Unit, normalized};
use super::warnings::Findings;
use crate::config::{Config, DEFAULT_CONFIG, Mode};
use crate::control::DEFAULT_SOCKET;
use crate::ledger::DEFAULT_STATE_DIR;
use crate::types::Backend;

/// Directory of the drop-ins in the package; in the source tree `packaging/examples`.
const EXAMPLES: &str = "/usr/share/doc/portsentry-nft/examples/portsentry.service.d";

/// Configuration of the name service switch. With some of its modules another service resolves names, and this program
/// needs no network socket for that.
const SWITCH: &str = "/etc/nsswitch.conf";

/// Adds the conflicts of `config` in `file` with the installed service, if there is one: errors that prevent its start,
/// and warnings about features that would not work.
pub(super) fn inspect(config: &Config, file: &Path, findings: &mut Findings) {
    let Some(unit) = Unit::installed() else { return };
    let names_by_others = fs::read_to_string(SWITCH).is_ok_and(|text| {
        text.lines().any(|line| line.starts_with("hosts:") && line.split_whitespace().any(|word| word == "resolve"))
    });
    forbids(&unit, config, names_by_others, findings);
    shuts_out(&unit, config, file, findings);
    missing_directories(&unit, findings);
}

/// Files that the service cannot use at its start: the configuration, the files that it names, and programs.
fn shuts_out(unit: &Unit, config: &Config, file: &Path, findings: &mut Findings) {
    let mut files: Vec<_> = config.allow.files.iter().map(|file| ("allow.files", file.as_path(), READ)).collect();
    let own = unit.options().and_then(|options| options.config).unwrap_or_else(|| DEFAULT_CONFIG.into());
    // A draft elsewhere is not the file that the service reads.
    if normalized(file) == normalized(own) {
        files.push(("User", file, READ));
    }
    let (run, runs) = (&config.block.run, config.runs_commands());
    for (key, command, is_run) in [
        ("block.run.command", &run.command, runs),
        ("block.run.expire_command", &run.expire_command, runs || config.only_undoes_commands()),
        ("notify.command", &config.notify.command, config.notifies()),
    ] {
        files.extend(command.first().filter(|_| is_run).map(|program| (key, Path::new(program), EXECUTE)));
    }
    for (key, path, bits) in files {
        let does = if bits == READ { "read" } else { "executed" };
        if let Some(why) = unit.obstacle(path, bits) {
            let message = format!("the current {UNIT} prevents {} from being {does}: {why}", path.display());
            findings.wrong(key, message);
        }
    }
}

/// Directories whose absence prevents systemd from starting the service.
fn missing_directories(unit: &Unit, findings: &mut Findings) {
    let paths = unit.list("ReadWritePaths").into_iter().map(|path| path.strip_prefix('+').unwrap_or(path));
    for path in paths.filter(|path| !path.starts_with('-') && !Path::new(path).exists()) {
        let message = format!(
            "the directory {path} is missing, and {UNIT} does not start without it; create it, or write \
             ReadWritePaths=-{path}"
        );
        findings.wrong("ReadWritePaths", message);
    }
}

fn forbids(unit: &Unit, config: &Config, names_by_others: bool, findings: &mut Findings) {
    let message = |does: &str, drop_in: &str| format!("with the current {UNIT}, {does}; {drop_in}");
    let drop_in = |name: &str| format!("install the drop-in {name} from {EXAMPLES}");
    let open = |directory: &Path| {
        format!("add a drop-in (systemctl edit portsentry): [Service] ReadWritePaths={}", directory.display())
    };
    let internet = unit.has_family("AF_INET") && unit.has_family("AF_INET6");

    for (key, protocol) in [("tcp.mode", &config.tcp), ("udp.mode", &config.udp)] {
        let low = protocol.monitored().iter().any(|port| port < 1024);
        // A shared listener for all ports uses a separate port, which is not below 1024.
        let low = low && !(key == "tcp.mode" && config.shares_decoys());
        if protocol.mode == Mode::Connect && (!internet || low && unit.lacks("CAP_NET_BIND_SERVICE")) {
            findings.wrong(key, message("connect mode cannot open its ports", &drop_in("connect-mode.conf")));
        }
    }
    if let Some(address) = config.metrics.listen {
        let family = if matches!(address.ip(), IpAddr::V4(_)) { "AF_INET" } else { "AF_INET6" };
        let shut = !unit.has_family(family);
        if (1..1024).contains(&address.port()) && unit.lacks("CAP_NET_BIND_SERVICE") {
            let message = message("ports below 1024 cannot be opened", &drop_in("connect-mode.conf"));
            findings.wrong("metrics.listen", message);
        } else if shut {
            findings.wrong("metrics.listen", message("metrics cannot be served", &drop_in("internet.conf")));
        }
    }
    let mut warn = |key, does: &str, drop_in: &str| findings.warn(key, message(does, drop_in));
    let named = [("allow.names", !config.allow.names.is_empty()), ("report.resolve_host", config.report.resolve_host)];
    for (key, _) in named.into_iter().filter(|(_, wanted)| *wanted && !internet && !names_by_others) {
        warn(key, "name servers cannot be queried", &drop_in("internet.conf"));
    }
    if config.blocks() && config.block.method.contains(&Backend::HostsDeny) {
        let file = &config.block.hosts_deny.file;
        let directory = file.parent().unwrap_or(Path::new("/"));
        if !unit.writes(directory) {
            let does = format!("{} cannot be replaced", file.display());
            let shipped = "the drop-in hosts-deny.conf";
            warn("block.hosts_deny.file", &does, &format!("{shipped} from {EXAMPLES} says where to move it"));
        }
    }
    let shut = !internet || unit.is_on("MemoryDenyWriteExecute");
    let commands = [("block.run.command", config.runs_commands()), ("notify.command", config.notifies())];
    for (key, _) in commands.into_iter().filter(|(_, wanted)| *wanted && shut) {
        let does = "commands have no network access, or cannot create executable memory";
        warn(key, does, &drop_in("run.conf"));
    }
    if let Some(directory) = config.report.json_file.as_deref().and_then(Path::parent)
        && !unit.writes(directory)
    {
        let does = format!("{} cannot be written to", directory.display());
        warn("report.json_file", &does, &format!("use /var/log/portsentry, or {}", open(directory)));
    }
    for (key, directory) in places(unit) {
        if !unit.writes(&directory) {
            let does = format!("{}, the directory of {key} in ExecStart=, cannot be written to", directory.display());
            warn("ExecStart", &does, &open(&directory));
        }
    }
}

/// The directories on the command line of the service, with their options.
fn places(unit: &Unit) -> Vec<(&'static str, PathBuf)> {
    let Some(options) = unit.options() else { return Vec::new() };
    let state = options.state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into());
    let socket = options.socket.unwrap_or_else(|| DEFAULT_SOCKET.into());
    let directory = socket.parent().map(Path::to_owned);
    [Some(("--state-dir", state)), directory.map(|directory| ("--socket", directory))].into_iter().flatten().collect()
}
#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const PACKAGED: &str = include_str!("../../packaging/portsentry.service");
    const CONNECT: &str = include_str!("../../packaging/examples/portsentry.service.d/connect-mode.conf");
    const HOSTS_DENY: &str = include_str!("../../packaging/examples/portsentry.service.d/hosts-deny.conf");
    const INTERNET: &str = include_str!("../../packaging/examples/portsentry.service.d/internet.conf");
    const RUN: &str = include_str!("../../packaging/examples/portsentry.service.d/run.conf");

    /// A configuration, the key and a part of the warning that it causes, and the drop-in that removes the warning.
    const CASES: [(&str, &str, &str, &str); 12] = [
        ("[tcp]\nmode = \"connect\"\nports = \"23\"", "tcp.mode", "connect-mode.conf", CONNECT),
        ("[udp]\nmode = \"connect\"\nports = \"6900\"", "udp.mode", "connect-mode.conf", INTERNET),
        ("[metrics]\nlisten = \"127.0.0.1:9777\"", "metrics.listen", "internet.conf", INTERNET),
        ("[metrics]\nlisten = \"[::1]:9777\"", "metrics.listen", "internet.conf", INTERNET),
        ("[allow]\nnames = [\"monitor.example.org\"]", "allow.names", "internet.conf", INTERNET),
        ("[report]\nresolve_host = true", "report.resolve_host", "internet.conf", INTERNET),
        (
            "[block]\nmethod = [\"nft\", \"hosts-deny\"]",
            "block.hosts_deny.file",
            "hosts-deny.conf",
            "[Service]\nReadWritePaths=/etc",
        ),
        (
            "[block]\nmethod = [\"hosts-deny\"]\n[block.hosts_deny]\nfile = \"/var/lib/portsentry-wrappers/hosts.deny\"",
            "block.hosts_deny.file",
            "hosts-deny.conf",
            HOSTS_DENY,
        ),
        (
            "[block]\nmethod = [\"nft\", \"run\"]\n[block.run]\ncommand = [\"/bin/true\"]",
            "block.run.command",
            "run.conf",
            RUN,
        ),
        ("[tcp]\nblock = \"run\"\n[block.run]\ncommand = [\"/bin/true\"]", "block.run.command", "run.conf", RUN),
        ("[notify]\ncommand = [\"/bin/true\"]", "notify.command", "run.conf", RUN),
        (
            "[report]\njson_file = \"/srv/portsentry/events.json\"",
            "report.json_file",
            "ReadWritePaths=/srv/portsentry",
            "[Service]\nReadWritePaths=-/srv",
        ),
    ];

    /// The findings of `inspect`: errors, then warnings, each with its key.
    fn found(inspect: impl FnOnce(&mut Findings)) -> Vec<(String, String)> {
        let mut findings = Findings::default();
        inspect(&mut findings);
        let wrong = findings.wrong.into_iter().map(|one| (one.key.unwrap(), one.message));
        wrong.chain(findings.warnings.into_iter().map(|one| (one.key.to_owned(), one.message))).collect()
    }

    fn warnings(units: &[&str], settings: &str) -> Vec<(String, String)> {
        let unit = Unit::from_texts(units.iter().map(|text| (*text).to_owned()));
        let config = Config::parse("portsentry.toml", settings).unwrap();
        found(|findings| forbids(&unit, &config, false, findings))
    }

    #[test]
    fn packaged_unit_suffices_for_built_in_settings() {
        assert_eq!(warnings(&[PACKAGED], ""), []);
        for file in ["/var/log/portsentry/events.json", "/var/lib/portsentry/events.json"] {
            assert_eq!(warnings(&[PACKAGED], &format!("[report]\njson_file = \"{file}\"")), []);
        }
        assert_eq!(warnings(&[PACKAGED], "[block]\nmethod = [\"nft\", \"route\"]"), []);
    }

    #[test]
    fn missing_right_is_named_with_drop_in() {
        for (settings, key, named, drop_in) in CASES {
            let found = warnings(&[PACKAGED], settings);
            assert!(matches!(&found[..], [(one, message)] if one == key && message.contains(named)), "{found:?}");
            assert_eq!(warnings(&[PACKAGED, drop_in], settings), [], "{settings}");
            assert_eq!(warnings(&["[Service]\nExecStart=/usr/sbin/portsentry\n"], settings), [], "restricts nothing");
        }
        // A port below 1024 needs a capability in addition to the sockets.
        let low = "[udp]\nmode = \"connect\"\nports = \"69\"";
        for settings in [low, "[metrics]\nlisten = \"127.0.0.1:80\""] {
            assert_eq!(warnings(&[PACKAGED, INTERNET], settings).len(), 1);
            assert_eq!(warnings(&[PACKAGED, CONNECT], settings), []);
        }
        assert_eq!(warnings(&[PACKAGED, INTERNET], CASES[0].0), [], "one listener for all ports of TCP");
        let user = "[Service]\nUser=portsentry\n";
        assert_eq!(warnings(&[user], low).len(), 1, "a user without the capability");
        assert_eq!(warnings(&[user, "[Service]\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n"], low), []);
    }

    #[test]
    fn packaged_unit_without_drop_in_prevents_start() {
        let unit = Unit::from_texts([PACKAGED.to_owned()].into_iter());
        let keys_that_prevent = |settings: &str| -> Vec<String> {
            let mut findings = Findings::default();
            forbids(&unit, &Config::parse("portsentry.toml", settings).unwrap(), false, &mut findings);
            findings.wrong.into_iter().filter_map(|one| one.key).collect()
        };
        for (settings, key, ..) in CASES {
            let prevents = matches!(key, "tcp.mode" | "udp.mode" | "metrics.listen");
            assert_eq!(keys_that_prevent(settings), if prevents { vec![key] } else { Vec::new() }, "{settings}");
        }
    }

    #[test]
    fn unused_permission_is_not_named() {
        let names = Unit::from_texts([PACKAGED.to_owned()].into_iter());
        let config = Config::parse("portsentry.toml", CASES[4].0).unwrap();
        assert_eq!(found(|findings| forbids(&names, &config, true, findings)), [], "another program resolves names");
        for settings in [
            "[tcp]\nblock = false\n[block]\nmethod = [\"hosts-deny\"]",
            "[tcp]\nmode = \"off\"\nblock = \"run\"\n[block.run]\ncommand = [\"/bin/true\"]\n[udp]\nblock = true",
        ] {
            assert_eq!(warnings(&[PACKAGED], settings), [], "{settings}");
        }
    }

    #[test]
    fn paths_on_command_line_are_checked() {
        let elsewhere = "[Service]\nExecStart=\nExecStart=/usr/sbin/portsentry --state-dir /srv/p --socket /run/p/sock";
        let found: Vec<String> = warnings(&[PACKAGED, elsewhere], "").into_iter().map(|(_, message)| message).collect();
        assert!(found.len() == 2 && found[0].contains("--state-dir") && found[1].contains("--socket"), "{found:?}");
        assert!(found[0].contains("ReadWritePaths=/srv/p"), "{found:?}");
        let opened = "[Service]\nRuntimeDirectory=p\nReadWritePaths=/srv/p";
        assert_eq!(warnings(&[PACKAGED, elsewhere, opened], ""), []);
        // A command line that this program would not accept is reported by systemd.
        assert_eq!(warnings(&[PACKAGED, "[Service]\nExecStart=/usr/bin/env portsentry --nonsense"], ""), []);
    }

    #[test]
    fn lists_follow_systemd_syntax() {
        let unit = |text: &str| Unit::from_texts([text.to_owned()].into_iter());
        let families = unit(
            "# RestrictAddressFamilies=AF_INET\n[Unit]\nRestrictAddressFamilies=AF_INET\n[Service]\n\
             RestrictAddressFamilies=AF_INET6\nRestrictAddressFamilies=\nRestrictAddressFamilies = AF_UNIX \\\n AF_INET\n",
        );
        assert_eq!(families.list("RestrictAddressFamilies"), ["AF_UNIX", "AF_INET"]);
        assert!(families.has_family("AF_INET") && !families.has_family("AF_INET6"));
        let excluded = unit("[Service]\nRestrictAddressFamilies=~AF_INET AF_INET6\n");
        assert!(!excluded.has_family("AF_INET") && !excluded.has_family("AF_INET6") && excluded.has_family("AF_UNIX"));
        assert!(
            unit("").has_family("AF_INET") && !unit("[Service]\nRestrictAddressFamilies=none").has_family("AF_INET")
        );
        assert!(!unit("").lacks("CAP_NET_BIND_SERVICE"));
    }

    #[test]
    fn file_that_service_cannot_use_is_named() {
        let directory = tempfile::tempdir_in("/var").or_else(|_| tempfile::tempdir()).unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(directory.path(), 0o755);
        let text = file.display().to_string();
        let found = |unit: &str, settings: &str| {
            let unit = Unit::from_texts([format!("[Service]\nPrivateTmp=no\nUser=nobody\n{unit}\n")].into_iter());
            let config = Config::parse("portsentry.toml", &settings.replace("FILE", &text)).unwrap();
            found(|findings| shuts_out(&unit, &config, &file, findings))
        };
        let ignored = "[allow]\nfiles = [\"FILE\"]";
        let notified = "[notify]\ncommand = [\"FILE\"]";
        let undone = "[block.run]\nexpire_command = [\"FILE\"]";
        for (settings, key, enough, remedy) in [
            (ignored, "allow.files", 0o644, "o+r"),
            (notified, "notify.command", 0o755, "o+rx"),
            (undone, "block.run.expire_command", 0o755, "o+rx"),
        ] {
            mode(&file, 0o600);
            let named = found("", settings);
            let remedy = format!("chmod {remedy} {text}");
            assert!(matches!(&named[..], [(one, message)] if one == key && message.ends_with(&remedy)), "{named:?}");
            assert_eq!(found("CapabilityBoundingSet=\nAmbientCapabilities=CAP_DAC_READ_SEARCH", settings), []);
            assert_eq!(found("User=root", settings), []);
            mode(&file, enough);
            assert_eq!(found("", settings), []);
        }
        // The configuration counts only if the service reads it; a directory above it can hide it too.
        mode(directory.path(), 0o700);
        let own = format!("ExecStart=/usr/sbin/portsentry --config {text}");
        let named = found(&own, "");
        let remedy = format!("chmod o+x {}", directory.path().display());
        assert!(matches!(&named[..], [(key, message)] if key == "User" && message.ends_with(&remedy)), "{named:?}");
        assert_eq!(found("ExecStart=/usr/sbin/portsentry", ""), [], "it reads another file");
    }

    #[test]
    fn hidden_file_is_named_with_its_setting() {
        let found = |unit: &str, settings: &str| {
            let config = Config::parse("portsentry.toml", settings).unwrap();
            let unit = Unit::from_texts([PACKAGED.to_owned(), format!("[Service]\n{unit}\n")].into_iter());
            let found = found(|findings| shuts_out(&unit, &config, Path::new("/root/draft.toml"), findings));
            found.into_iter().map(|(_, message)| message).collect::<Vec<_>>()
        };
        let ignored = "[allow]\nfiles = [\"/home/alice/ignore\"]";
        let notified = "[notify]\ncommand = [\"/tmp/notify\"]";
        assert!(matches!(&found("", ignored)[..], [message] if message.contains("ProtectHome= hides the file")));
        assert!(matches!(&found("", notified)[..], [message] if message.contains("PrivateTmp= hides the file")));
        for opened in ["ProtectHome=no", "ProtectHome=read-only", "BindReadOnlyPaths=/home/alice"] {
            assert_eq!(found(opened, ignored), [""; 0], "{opened}");
        }
        assert_eq!(found("PrivateTmp=no", notified), [""; 0]);
    }

    #[test]
    fn missing_directory_of_unit_prevents_start() {
        let missing = |paths: &str| {
            let unit = Unit::from_texts([format!("[Service]\nReadWritePaths={paths}\n")].into_iter());
            let mut findings = Findings::default();
            missing_directories(&unit, &mut findings);
            findings.wrong.into_iter().map(|one| one.message).collect::<Vec<_>>()
        };
        assert_eq!(missing("/var/lib -/nonexistent -+/nonexistent"), [""; 0]);
        for paths in ["/nonexistent", "/var +/nonexistent"] {
            let found = missing(paths);
            assert!(matches!(&found[..], [message] if message.ends_with("ReadWritePaths=-/nonexistent")), "{found:?}");
        }
    }

    #[test]
    fn most_specific_path_decides_write_access() {
        let unit = |text: &str| Unit::from_texts([format!("[Service]\n{text}\n")].into_iter());
        let strict = unit("ProtectSystem=strict\nProtectHome=yes\nReadWritePaths=/srv -/opt/x\nStateDirectory=a b");
        for (directory, writes) in [
            ("/srv/portsentry", true),
            ("/srvx", false),
            ("/opt/x", true),
            ("/opt", false),
            ("/var/lib/b/c", true),
            ("/var/lib", false),
            ("/home/alice", false),
            ("/tmp", true),
        ] {
            assert_eq!(strict.writes(Path::new(directory)), writes, "{directory}");
        }
        assert!(!unit("ProtectSystem=full").writes(Path::new("/etc")));
        assert!(unit("ProtectSystem=full").writes(Path::new("/srv")));
        assert!(unit("ProtectSystem=no").writes(Path::new("/etc")));
        assert!(!unit("ProtectSystem=strict\nReadWritePaths=/\nProtectHome=yes").writes(Path::new("/root")));
    }
}
