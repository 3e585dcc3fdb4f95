//! Tests `portsentry check`: errors in a configuration, and its effect on the host.

use std::fs::{self, Permissions};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use portsentry::enforce::nft::{Nft, RulesetSpec};
use portsentry::ledger::{DATABASE, Ledger};
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{stderr, stdout};
use netns_lab::Namespace;

/// A host with one interface, a gateway, and a directory for its files.
struct Host {
    directory: TempDir,
    units: TempDir,
    namespace: Namespace,
}

impl Host {
    fn new() -> Self {
        let namespace = Namespace::new();
        namespace.ip_batch(
            "link set lo up
            link add out type veth peer name far
            address add 192.0.2.1/24 dev out
            address add 2001:db8::1/64 dev out nodad
            link set far addrgenmode none
            link set out addrgenmode none
            link set far up
            link set out up
            route add default via 192.0.2.254\n",
        );
        let host = Self { directory: tempfile::tempdir().unwrap(), units: tempfile::tempdir().unwrap(), namespace };
        for directory in ["lib", "etc"] {
            fs::create_dir(host.units.path().join(directory)).unwrap();
        }
        host
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A unit or a drop-in: `lib` holds those of packages, `etc` those of the administrator.
    fn unit(&self, place: &str, text: &str) {
        let file = self.units.path().join(place);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    /// Runs `program` in the namespace, with only the test host's units and an empty /var/lib. The mounts are private,
    /// because `ip netns exec` creates a mount namespace.
    fn command(&self, program: &str) -> Command {
        const MOUNT: &str = "mount --bind \"$0/lib\" /usr/lib/systemd/system && mount --bind \"$0/etc\" /etc/systemd/system && \
            mount -t tmpfs -o mode=755 tmpfs /var/lib && exec \"$@\"";
        let mut command = self.namespace.command("sh");
        command.args(["-c", MOUNT]).arg(self.units.path()).arg(program);
        command
    }

    /// Runs the check with these settings and a clean environment.
    fn check(&self, settings: &str, arguments: &[&str]) -> Output {
        let file = self.file("portsentry.toml", settings);
        self.command(env!("CARGO_BIN_EXE_portsentry")).arg("check").arg(file).args(arguments).output().unwrap()
    }

    fn json(&self, settings: &str, code: i32) -> Value {
        crate::json(&self.check(settings, &["--json"]), code)
    }
}

#[test]
fn all_errors_are_reported_in_one_run() {
    let host = Host::new();
    let settings = "expire = 5\n[detect]\nwindow = \"x\"\n[block]\nmethods = [\"nft\"]\n";
    let output = host.check(settings, &[]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(78), 0));
    let text = stderr(&output);
    let places: Vec<&str> = text.lines().map(|line| line.rsplit_once("portsentry.toml:").unwrap().1).collect();
    assert_eq!(places.len(), 3, "{text}");
    for (place, start) in places.iter().zip(["1:10: expire: ", "3:10: detect.window: ", "5:1: block.methods: "]) {
        assert!(place.starts_with(start), "{text}");
    }
    let report = host.json(settings, 78);
    assert_eq!(report["ok"], false);
    let keys: Vec<_> =
        report["errors"].as_array().unwrap().iter().map(|error| (&error["key"], &error["line"])).collect();
    let expected =
        [("expire", 1), ("detect.window", 3), ("block.methods", 5)].map(|(key, line)| (json!(key), json!(line)));
    assert_eq!(keys, expected.iter().map(|(key, line)| (key, line)).collect::<Vec<_>>());
    let ignore = host.file("ignore", "192.0.2.7\nlocalhost\n10.0.0.0/33\n");
    let output = host.check(&format!("[allow]\nfiles = [\"{}\", \"/nowhere\"]\n", ignore.display()), &[]);
    assert_eq!((output.status.code(), stderr(&output).lines().count()), (Some(78), 3), "{}", stderr(&output));
    let missing =
        host.namespace.command(env!("CARGO_BIN_EXE_portsentry")).args(["check", "/nowhere"]).output().unwrap();
    assert_eq!(
        missing.status.code(),
        Some(78),
        "a missing file that is named is an error, not a reason for built-in defaults"
    );
}

#[test]
fn inaccessible_default_file_is_refused() {
    const LOOP: &str = "mount -t tmpfs tmpfs /etc && mkdir /etc/portsentry && \
        ln -s portsentry.toml /etc/portsentry/portsentry.toml && exec \"$0\" \"$@\"";
    let host = Host::new();
    for command in [&["check"][..], &["replay", "/dev/null"]] {
        let program = env!("CARGO_BIN_EXE_portsentry");
        let output = host.namespace.command("sh").args(["-c", LOOP, program]).args(command).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(78), 0), "{command:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("/etc/portsentry/portsentry.toml: cannot read the file: Too many levels"));
    }
}

#[test]
fn monitored_and_protected_match_this_host() {
    let host = Host::new();
    let _listeners = host.namespace.inside(|| {
        let tcp = ["0.0.0.0:22", "[::]:80", "127.0.0.1:25"].map(|address| TcpListener::bind(address).unwrap());
        (tcp, UdpSocket::bind("[::]:53").unwrap())
    });
    let ignore = host.file("ignore", "198.51.100.0/24\n");
    let settings = format!(
        "[tcp]\nadvanced_ports = \"22-25,80\"\n[udp]\nmode = \"stealth\"\nports = \"53,69\"\n\
         [allow]\nnetworks = [\"10.0.0.0/8\"]\nfiles = [\"{}\"]\n",
        ignore.display()
    );
    let report = host.json(&settings, 0);
    assert_eq!((&report["ok"], &report["errors"], &report["warnings"]), (&json!(true), &json!([]), &json!([])));
    let tcp = json!({"mode": "advanced", "block": "yes", "ports": "22-25", "count": 4, "left_out": "80",
        "partly_in_use": [{"port": 22, "address": "0.0.0.0"}, {"port": 25, "address": "127.0.0.1"}]});
    assert_eq!(report["tcp"], tcp);
    let udp = json!({"mode": "stealth", "block": "only logged", "ports": "69", "count": 1, "left_out": "53", "partly_in_use": []});
    assert_eq!(report["udp"], udp);
    let reason = |network: &str| {
        let all = report["exempt"].as_array().unwrap();
        all.iter().find(|one| one["network"] == network).map(|one| one["reason"].as_str().unwrap().to_owned())
    };
    assert_eq!(reason("192.0.2.1/32").as_deref(), Some("an address of this host"));
    assert_eq!(reason("192.0.2.254/32").as_deref(), Some("a gateway of this host"));
    assert_eq!(reason("10.0.0.0/8").as_deref(), Some("on the allow-list"));
    assert_eq!(reason("198.51.100.0/24").as_deref(), Some("on the allow-list"));
    assert_eq!((&report["methods"], &report["interfaces"]), (&json!(["nft"]), &json!([])), "as configured");
    let interfaces: Vec<_> =
        report["host_interfaces"].as_array().unwrap().iter().map(|one| (&one["name"], &one["watched"])).collect();
    let expected = [("lo", false), ("far", false), ("out", true)].map(|(name, watched)| (json!(name), json!(watched)));
    assert_eq!(interfaces, expected.iter().map(|(name, watched)| (name, watched)).collect::<Vec<_>>());
    let text = stdout(&host.check(&settings, &[]));
    for line in [
        "TCP         advanced, 4 ports, scans are blocked",
        "  left out  80: in use",
        "  in use    22 on IPv4, 25 on 127.0.0.1; monitored on all other addresses",
        "interface   out monitored; 192.0.2.1/24, 2001:db8::1/64",
        "interface   far not monitored: no address",
        "protected   192.0.2.254: a gateway of this host",
        "result      no problem found",
    ] {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line} is missing:\n{text}");
    }
}

/// The keys that the check warns about.
fn warned_keys(report: &Value) -> Vec<String> {
    let warnings = report["warnings"].as_array().unwrap().iter().map(|warning| warning.as_str().unwrap());
    warnings.map(|warning| warning.split_once(": ").unwrap().0.to_owned()).collect()
}

#[test]
fn impossible_configuration_on_host_is_refused() {
    let host = Host::new();
    let program = host.file("on-scan", "#!/bin/sh\n");
    let settings = |mode: u32| {
        fs::set_permissions(&program, Permissions::from_mode(mode)).unwrap();
        let file = host.directory.path().join("missing/hosts.deny");
        format!(
            "interfaces = [\"eth9\"]\n[block]\nmethod = [\"nft\", \"hosts-deny\", \"run\"]\n[block.hosts_deny]\nfile = \"{}\"\n\
             [block.run]\ncommand = [\"{}\", \"$TARGET$\"]\n",
            file.display(),
            program.display()
        )
    };
    let output = host.check(&settings(0o644), &[]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(78));
    for part in [
        "interfaces: there is no interface eth9; this host has lo, far, out",
        "block.run.command: ",
        "it is not an executable file",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let out = stdout(&output);
    assert!(out.contains("backend     run: the command "), "the methods are described nevertheless");
    assert!(out.contains("warning     block.hosts_deny: "), "hosts.deny alone causes only a warning: {out}");
    let report = host.json(&settings(0o755), 78);
    let works: Vec<_> =
        report["backends"].as_array().unwrap().iter().map(|method| (&method["method"], &method["works"])).collect();
    let expected =
        [("nft", true), ("hosts-deny", false), ("run", true)].map(|(name, works)| (json!(name), json!(works)));
    assert_eq!(works, expected.iter().map(|(name, works)| (name, works)).collect::<Vec<_>>());
    assert_eq!(report["errors"].as_array().unwrap().len(), 1, "{}", report["errors"]);
}

#[test]
fn loopback_is_refused_as_interface() {
    let errors = Host::new().json("interfaces = [\"lo\"]\n", 78)["errors"].clone();
    let message = "loopback is never monitored: leave out lo; this host has lo, far, out";
    assert_eq!((errors.as_array().unwrap().len(), &errors[0]["message"]), (1, &json!(message)), "{errors}");
}

#[test]
fn exclusion_of_every_interface_is_refused() {
    let host = Host::new();
    assert_eq!(host.check("interfaces = [\"!far\"]\n", &[]).status.code(), Some(0));
    let errors = host.json("interfaces = [\"!far\", \"!out\"]\n", 78)["errors"].clone();
    let message = "every interface is excluded; remove one of the entries !far, !out; this host has lo, far, out";
    assert_eq!((errors.as_array().unwrap().len(), &errors[0]["message"]), (1, &json!(message)), "{errors}");
    // A host that has only loopback yet may get another interface later.
    host.namespace.run("ip", "link delete out");
    assert_eq!(host.check("interfaces = [\"!out\"]\n", &[]).status.code(), Some(0));
}

#[test]
fn unknown_placeholder_fails_check() {
    let settings = "[block]\nmethod = [\"hosts-deny\"]\n[block.hosts_deny]\nline = \"ALL: $TARGET$ : $HOST$\"\n";
    let errors = Host::new().json(settings, 78)["errors"].clone();
    assert_eq!((errors.as_array().unwrap().len(), &errors[0]["key"]), (1, &json!("block.hosts_deny")), "{errors}");
    assert!(errors[0]["message"].as_str().unwrap().starts_with("$HOST$ is not a placeholder"), "{errors}");
}

#[test]
fn changeable_file_fails_check() {
    let host = Host::new();
    let list = host.file("ignore", "192.0.2.9\n");
    let settings = format!("[allow]\nfiles = [{list:?}]\n");
    assert_eq!(host.check(&settings, &[]).status.code(), Some(0));
    fs::set_permissions(&list, Permissions::from_mode(0o666)).unwrap();
    let output = host.check(&settings, &[]);
    assert_eq!(output.status.code(), Some(78));
    let text = stderr(&output);
    assert!(text.contains(&format!("; run: chmod go-w {}", list.display())), "{text}");
}

#[test]
fn check_changes_nothing_in_kernel() {
    let host = Host::new();
    let ruleset = || host.namespace.command("nft").args(["list", "ruleset"]).output().unwrap().stdout;
    let description = |report: &Value| report["backends"][0]["does"].as_str().unwrap().to_owned();
    assert!(description(&host.json("", 0)).ends_with("; the daemon would create it"));
    assert!(ruleset().is_empty());
    host.namespace.inside(|| Nft::open().unwrap().install(&RulesetSpec { size: 5, ..RulesetSpec::default() }).unwrap());
    let before = ruleset();
    assert!(description(&host.json("", 0)).ends_with("; it exists, with sets of 5 and 5 elements"));
    assert!(description(&host.json("[block.nft]\naction = \"reject\"\nsize = 5\n", 0)).ends_with("; it exists"));
    assert_eq!(ruleset(), before);
    host.namespace.run("nft", "add chain inet portsentry mine");
    assert!(
        description(&host.json("[block.nft]\nsize = 5\n", 0))
            .ends_with("; it exists; it also contains another chain \"mine\"")
    );
    host.namespace.run("nft", "delete table inet portsentry; add table inet portsentry");
    let output = host.check("", &[]);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("portsentry changes nothing that it did not create"), "{}", stderr(&output));
    assert_eq!(fs::read_dir(host.directory.path()).unwrap().count(), 1, "only the settings");
}

#[test]
fn unwise_names_are_warned_about() {
    let host = Host::new();
    let settings =
        "expire = \"never\"\n[udp]\nblock = true\n[allow]\nnetworks = [\"0.0.0.0/0\"]\nnames = [\"localhost\"]\n";
    let report = host.json(settings, 0);
    assert_eq!(report["names"], json!([{"name": "localhost", "addresses": [], "error": null}]));
    assert_eq!(warned_keys(&report), ["udp.block", "expire", "allow.networks", "allow.names"]);
    let file = host.file("portsentry.toml", "");
    let mut command = host.command(env!("CARGO_BIN_EXE_portsentry"));
    let from = |address: &str| format!("{address} 51234 192.0.2.1 22");
    let output = command.env("SSH_CONNECTION", from("203.0.113.9")).arg("check").arg(&file).output().unwrap();
    assert!(
        stdout(&output).contains("warning     allow.networks: your own session comes from 203.0.113.9, "),
        "{}",
        stdout(&output)
    );
    let output = command.env("SSH_CONNECTION", from("192.0.2.254")).output().unwrap();
    assert!(!stdout(&output).contains("warning"), "{}", stdout(&output));
}

#[test]
fn unit_conflicts_are_named_until_drop_in() {
    let host = Host::new();
    let settings = "[metrics]\nlisten = \"127.0.0.1:9777\"\n[block]\nmethod = [\"nft\", \"hosts-deny\"]\n\
        [report]\njson_file = \"/srv/portsentry/events.json\"\n[trap]\nudp = true\n";
    // The keys of the errors and of the warnings.
    let found = || {
        let report: Value = serde_json::from_str(&stdout(&host.check(settings, &["--json"]))).unwrap();
        let errors = report["errors"].as_array().unwrap();
        (errors.iter().map(|one| one["key"].as_str().unwrap().to_owned()).collect::<Vec<_>>(), warned_keys(&report))
    };
    let warned = || match found() {
        (errors, warnings) if errors.is_empty() => warnings,
        (errors, _) => panic!("{errors:?}"),
    };
    let owned = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    assert_eq!(warned(), ["trap.udp"], "no service is installed");
    host.unit("lib/portsentry.service", include_str!("../../packaging/portsentry.service"));
    let others = ["trap.udp", "block.hosts_deny.file", "report.json_file"];
    assert_eq!(found(), (owned(&["metrics.listen"]), owned(&others)), "the service would not start");
    let output = host.check(settings, &[]);
    assert_eq!(output.status.code(), Some(78));
    let text = stderr(&output);
    assert!(text.contains("metrics.listen: ") && text.contains("the drop-in internet.conf"), "{text}");
    let directory = "etc/portsentry.service.d";
    let internet = include_str!("../../packaging/examples/portsentry.service.d/internet.conf");
    host.unit(&format!("{directory}/internet.conf"), internet);
    assert_eq!(warned(), others);
    host.unit(&format!("{directory}/places.conf"), "[Service]\nReadWritePaths=-/srv/portsentry /etc\n");
    assert_eq!(warned(), ["trap.udp"]);
    // A unit of the administrator overrides the packaged one, and a file that only looks like a drop-in is ignored.
    host.unit(&format!("{directory}/internet.conf"), "");
    host.unit(&format!("{directory}/internet.conf.bak"), internet);
    assert_eq!(found(), (owned(&["metrics.listen"]), owned(&["trap.udp"])));
    host.unit("etc/portsentry.service", "[Service]\nExecStart=/usr/sbin/portsentry\n");
    assert_eq!(warned(), ["trap.udp"]);
}

#[test]
fn unprivileged_check_names_skipped_checks() {
    let host = Host::new();
    fs::set_permissions(host.directory.path(), Permissions::from_mode(0o755)).unwrap();
    let file = host.file("portsentry.toml", "[block]\nmethod = [\"nft\", \"hosts-deny\"]\n");
    // Not run from the build directory, which other users may be unable to enter.
    let program = host.directory.path().join("portsentry");
    netns_lab::install_program(std::path::Path::new(env!("CARGO_BIN_EXE_portsentry")), &program);
    let mut command = host.namespace.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program).arg("check").arg(file);
    let output = command.current_dir("/").output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in ["CAP_NET_RAW is missing", "CAP_NET_ADMIN is missing", "/etc: this user cannot write"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let report = stdout(&output);
    assert!(report.contains("backend     nft: ") && report.matches("; not checked").count() == 2, "{report}");
}

#[test]
fn newer_ledger_is_warned_of() {
    let host = Host::new();
    let state = host.directory.path().join("state");
    fs::create_dir(&state).unwrap();
    let arguments = ["--state-dir", state.to_str().unwrap()];
    drop(Ledger::open(&state).unwrap());
    let set_format = |format: i64| {
        let database = Connection::open(state.join(DATABASE)).unwrap();
        database.pragma_update(None, "user_version", format).unwrap();
    };
    let check = || host.check("", &arguments);
    assert!(!stdout(&check()).contains("newer portsentry"), "{}", stdout(&check()));
    set_format(9_999);
    let output = check();
    assert_eq!(output.status.code(), Some(0), "the service starts: {}", stderr(&output));
    let expected = "ledger.sqlite was written by a newer portsentry (format 9999";
    assert!(stdout(&output).contains(expected), "{}", stdout(&output));
}
