//! Tests `portsentry import` with classic configurations: real files against the expected results in tests/import,
//! hostile ones against properties of every result, and the program itself.
//!
//! `BLESS=1 cargo test --test import` rewrites the expected results; review the difference before you commit it.

#![cfg(test)]

mod program;

use portsentry::config::{Config, Mode};
use portsentry::import::{Import, ImportError, InputFile, ReadFile, Sources, translate};
use portsentry::types::Response;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import").join(name)
}

fn source(name: &str) -> InputFile {
    let path = corpus(name);
    InputFile { name: name.to_owned(), bytes: std::fs::read(&path).unwrap_or_else(|error| panic!("{name}: {error}")) }
}

fn text(text: &str) -> InputFile {
    named("portsentry.conf", text)
}

fn named(name: &str, text: &str) -> InputFile {
    InputFile { name: name.to_owned(), bytes: text.as_bytes().to_vec() }
}

/// None of the files that a configuration names exists.
fn no_files(_: &Path) -> std::io::Result<Vec<u8>> {
    Err(std::io::ErrorKind::NotFound.into())
}

/// The translation of a configuration without other files, which the daemon must accept.
fn alone(config: InputFile) -> Result<Import, Vec<String>> {
    let sources = Sources { config, ..Sources::default() };
    let result = translate(&sources, &no_files).inspect(|import| assert_valid(&import.toml));
    result.map_err(|error| match error {
        ImportError::Wrong(findings) => findings.iter().map(ToString::to_string).collect(),
        other => panic!("{other}"),
    })
}

fn toml(config: &str) -> String {
    alone(text(config)).unwrap_or_else(|errors| panic!("{config}: {errors:?}")).toml
}

/// The translation of `config` with `modes` as the file with the modes.
fn with_modes(config: &str, modes: &str) -> Result<Import, ImportError> {
    let sources = Sources { config: text(config), defaults: Some(named("d", modes)), ignore: Vec::new() };
    translate(&sources, &no_files)
}

/// Fails if the daemon would refuse `toml`.
fn assert_valid(toml: &str) {
    if let Err(errors) = Config::parse("portsentry.toml", toml) {
        panic!("{errors}\n{toml}");
    }
}

/// The part of `toml` before `[block]`, as the daemon reads it.
fn watched(toml: &str) -> Config {
    let part = toml.split("\n[block").next().unwrap();
    Config::parse("portsentry.toml", part).unwrap_or_else(|errors| panic!("{errors}\n{part}"))
}

/// Compares a translation and its notes with the expected ones.
fn compare(name: &str, sources: &Sources, read: &ReadFile) -> String {
    let import = translate(sources, read).unwrap_or_else(|error| panic!("{error}"));
    let notes: String = import.notes.iter().map(|note| format!("{note}\n")).collect();
    for (end, found) in [("toml", &import.toml), ("notes", &notes)] {
        let path = corpus(&format!("{name}.{end}"));
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, found).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(*found, expected, "{}", path.display());
    }
    assert_valid(&import.toml);
    import.toml
}

#[test]
fn installed_debian_1_2_is_imported() {
    let (config, defaults) = (source("debian-1.2.conf"), Some(source("debian-1.2.default")));
    let sources = Sources { config, defaults, ignore: Vec::new() };
    let toml = compare("debian-1.2", &sources, &|path| match path.to_str() {
        Some("/etc/portsentry/portsentry.ignore.static") => Ok(source("debian-1.2.ignore.static").bytes),
        _ => no_files(path),
    });
    let config = watched(&toml);
    let builtin = Config::default();
    assert_eq!((config.tcp.mode, config.udp.mode), (Mode::Connect, Mode::Connect));
    assert_eq!((&config.tcp.ports, &config.udp.ports), (&builtin.tcp.ports, &builtin.udp.ports));
    assert_eq!((config.tcp.block, config.udp.block), (Response::Log, Response::Log));
    assert_eq!(config.detect.scan_trigger, 0);
    let networks: Vec<String> = config.allow.networks.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["0.0.0.0/32", "127.0.0.1/32"]);
    assert!(config.allow.files.is_empty());
    assert!(config.tcp.port_banner.starts_with("** UNAUTHORIZED") && config.udp.port_banner.is_empty());
}

#[test]
fn installed_2_0_is_imported() {
    let sources = Sources { config: source("stock-2.0.conf"), ..Sources::default() };
    let config = watched(&compare("stock-2.0", &sources, &no_files));
    assert_eq!((config.tcp.mode, config.udp.mode), (Mode::Stealth, Mode::Stealth));
    assert!(config.tcp.ports.contains(514) && !config.tcp.ports.contains(22) && config.udp.ports.contains(518));
    assert_eq!((config.tcp.block, config.udp.block), (Response::Log, Response::Log));
}

#[test]
fn web_guide_configurations_are_imported() {
    let sources = Sources {
        config: source("recipe.conf"),
        defaults: Some(source("recipe.default")),
        ignore: vec![source("recipe.ignore")],
    };
    let toml = compare("recipe", &sources, &no_files);
    let config = watched(&toml);
    assert_eq!((config.tcp.mode, config.tcp.monitored().contains(443)), (Mode::Advanced, false));
    let lists = |address: &str| {
        let address: std::net::IpAddr = address.parse().unwrap();
        config.allow.networks.iter().any(|network| network.contains(&address))
    };
    assert!(lists("10.0.0.77") && lists("192.0.2.127") && lists("2001:db8::5") && lists("198.51.100.10"));
    assert!(!lists("198.51.100.1") && !lists("203.0.113.1") && !lists("192.0.2.128"));
}

#[test]
fn odd_configuration_keeps_its_meaning() {
    compare("odd", &Sources { config: source("odd.conf"), ..Sources::default() }, &no_files);
}

#[test]
fn each_blocking_command_becomes_configuration() {
    for (options, expected) in [
        (
            "KILL_ROUTE=\"/sbin/route add -host $TARGET$ reject\"",
            vec!["method = [\"route\"]", "kind = \"unreachable\""],
        ),
        (
            "KILL_ROUTE=\"route add $TARGET$ 127.0.0.1 -blackhole\"",
            vec!["method = [\"route\"]", "kind = \"blackhole\""],
        ),
        ("KILL_ROUTE=\"/sbin/route add -host $TARGET$ gw 192.0.2.254\"", vec!["via = \"192.0.2.254\""]),
        ("KILL_ROUTE=\"/sbin/iptables -I INPUT -s $TARGET$ -j DROP\"", vec!["method = [\"nft\"]"]),
        ("KILL_ROUTE=\"iptables -I INPUT -s $TARGET$ -j REJECT\"", vec!["method = [\"nft\"]", "action = \"reject\""]),
        ("KILL_ROUTE=\"/sbin/ipchains -I input -s $TARGET$ -j DENY -l\"", vec!["log_drops = \"3/minute\""]),
        (
            "KILL_HOSTS_DENY=\"ALL: $TARGET$ : spawn /bin/x \\%c\"",
            vec!["method = [\"hosts-deny\"]", "line = \"ALL: $TARGET$ : spawn /bin/x %c\""],
        ),
        (
            "KILL_RUN_CMD=\"/bin/x $TARGET$ $PORT$\"\nKILL_RUN_CMD_FIRST = \"1\"",
            vec!["method = [\"run\"]", "command = [\"/bin/x\", \"$TARGET$\", \"$PORT$\"]", "first = true"],
        ),
        ("KILL_ROUTE=\"/usr/local/sbin/shun $TARGET$\"", vec!["command = [\"/usr/local/sbin/shun\", \"$TARGET$\"]"]),
        (
            "KILL_ROUTE=\"/sbin/route add -host $TARGET$ reject\"\nKILL_HOSTS_DENY=\"ALL: $TARGET$\"\n\
             KILL_RUN_CMD=\"/sbin/iptables -I INPUT -s $TARGET$ -j DROP\"",
            vec!["method = [\"nft\", \"route\", \"hosts-deny\"]"],
        ),
    ] {
        let toml = toml(&format!("TCP_PORTS=\"1\"\nBLOCK_TCP=\"1\"\n{options}\n"));
        for line in expected {
            assert!(toml.lines().any(|found| found == line), "{options}: {line}\n{toml}");
        }
    }
}

/// Lines for KILL_RUN_CMD that cannot be run without a shell.
const SHELL_LINES: [&str; 9] = [
    "/bin/x $TARGET$ | /bin/y",
    "/bin/x $TARGET$ && /bin/y",
    "(whois $TARGET$) | mailx -s $PORT$ root; /bin/z",
    "/usr/local/sbin/block $TARGET$ >/dev/null 2>&1",
    "/usr/bin/firewall-cmd --zone=drop --add-source=$TARGET$ && /usr/bin/firewall-cmd --reload",
    "/usr/sbin/csf -d $TARGET$ && mail -s $TARGET$ root",
    "/bin/x $TARGET$ && echo 'iptables -D INPUT -s $TARGET$ -j DROP' | at now+24hour",
    "/bin/x $(hostname)",
    "it's",
];

#[test]
fn shell_line_becomes_comment() {
    for command in SHELL_LINES {
        let import = alone(text(&format!("TCP_PORTS=\"1\"\nBLOCK_TCP=\"1\"\nKILL_RUN_CMD=\"{command}\"\n"))).unwrap();
        assert!(!import.toml.contains("\ncommand") && import.toml.contains("\nmethod = [\"nft\"]"), "{}", import.toml);
        assert_eq!(watched(&import.toml).tcp.block, Response::Block, "{command}");
        let notes: Vec<&str> = import.notes.iter().map(|note| note.message.as_str()).collect();
        assert!(notes.iter().any(|note| note.contains("move it to a script")), "{command}: {notes:?}");
        assert!(notes.iter().any(|note| note.contains("\"nft\" in block.method replaces it")), "{command}: {notes:?}");
        assert!(!notes.iter().any(|note| note.contains("classic PortSentry only logs")), "{command}: {notes:?}");
    }
}

#[test]
fn shell_line_as_only_blocker_is_refused() {
    let without_path = "csf -d $TARGET$";
    for command in SHELL_LINES.into_iter().chain([without_path]) {
        let config = format!("BLOCK_TCP=\"2\"\nBLOCK_UDP=\"2\"\nKILL_RUN_CMD=\"{command}\"\n");
        let errors = alone(text(&config)).expect_err(command);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].starts_with("portsentry.conf:3: KILL_RUN_CMD: "), "{errors:?}");
        assert!(errors[0].contains("no source would be blocked without it. Move it to a script"), "{errors:?}");
    }
    // Classic PortSentry blocks nothing here either: it runs no KILL_ROUTE, and the command only ends a ban.
    for options in [
        "",
        "KILL_ROUTE=\"/usr/sbin/csf -d $TARGET$ && mail root\"\n",
        "KILL_RUN_CMD=\"echo 'iptables -D INPUT -s $TARGET$ -j DROP' | at now+24hour\"\n",
    ] {
        let config = format!("TCP_PORTS=\"1\"\nBLOCK_TCP=\"2\"\n{options}");
        assert_eq!(watched(&toml(&config)).tcp.block, Response::Log, "{options}");
    }
}

#[test]
fn unreadable_ignore_file_is_refused() {
    let refusal = |path: &str, unreadable: &str, kind: std::io::ErrorKind| {
        let config = text(&format!("TCP_PORTS=\"1\"\nIGNORE_FILE=\"{path}\"\n"));
        let read = |asked: &Path| if asked == Path::new(unreadable) { Err(kind.into()) } else { no_files(asked) };
        translate(&Sources { config, ..Sources::default() }, &read).map_err(|error| error.to_string())
    };
    use std::io::ErrorKind::{NotFound, Other, PermissionDenied};
    for (unreadable, kind) in [("/srv/i", PermissionDenied), ("/srv/i", Other), ("/srv/i.static", PermissionDenied)] {
        let error = refusal("/srv/i", unreadable, kind).unwrap_err();
        let expected = format!("portsentry.conf:2: IGNORE_FILE: cannot read {unreadable}: ");
        assert!(error.starts_with(&expected), "{error}");
    }
    let error = refusal("portsentry.ignore", "", NotFound).unwrap_err();
    assert!(error.starts_with("portsentry.conf:2: IGNORE_FILE: the path is relative"), "{error}");
    assert!(refusal("/srv/i", "", NotFound).is_ok(), "classic PortSentry starts without the file");
}

#[test]
fn kill_route_without_target_is_left_out() {
    for command in ["/usr/local/sbin/shun --all", "/sbin/iptables -I INPUT -s $TARGET -j DROP"] {
        let import = alone(text(&format!("TCP_PORTS=\"1\"\nBLOCK_TCP=\"1\"\nKILL_ROUTE=\"{command}\"\n"))).unwrap();
        assert!(!import.toml.contains("\ncommand") && !import.toml.contains("\nmethod"), "{}", import.toml);
        let note = import.notes.iter().find(|note| note.line == Some(3)).expect(command);
        assert!(note.message.contains("left out: it does not contain $TARGET$"), "{note}");
    }
}

#[test]
fn too_long_hosts_deny_line_is_left_out() {
    let long = "x".repeat(600);
    let toml = toml(&format!(
        "TCP_PORTS=\"1\"\nBLOCK_TCP=\"1\"\nKILL_ROUTE=\"/sbin/iptables -I INPUT -s $TARGET$ -j DROP\"\n\
         KILL_HOSTS_DENY=\"ALL: $TARGET$ # {long}\"\n"
    ));
    assert!(toml.contains("Left out: it is too long with 616 bytes; write 512 or fewer"), "{toml}");
    assert!(!toml.contains("hosts-deny"), "{toml}");
}

#[test]
fn blocking_command_is_not_imported_as_run() {
    let toml = toml(
        "TCP_PORTS=\"1\"\nBLOCK_TCP=\"2\"\nKILL_RUN_CMD=\"iptables -I INPUT -s $TARGET$ -j DROP && mail -s x root </dev/null\"\n",
    );
    assert!(watched(&toml).tcp.block == Response::Block);
    assert!(toml.contains("method = [\"nft\"]") && !toml.contains("\ncommand"), "{toml}");
    assert!(toml.contains("this part has no equivalent: mail -s x root"), "{toml}");
}

#[test]
fn dropped_kill_route_script_becomes_nft() {
    let blocker = "KILL_ROUTE=\"/usr/local/sbin/block.sh $TARGET$\"\n";
    for (other, methods) in [
        ("KILL_RUN_CMD=\"/usr/local/sbin/notify.sh $TARGET$ $PORT$\"\n", "\"nft\", \"run\""),
        (
            "KILL_RUN_CMD=\"/usr/local/sbin/notify.sh $TARGET$\"\nKILL_HOSTS_DENY=\"ALL: $TARGET$\"\n",
            "\"nft\", \"hosts-deny\", \"run\"",
        ),
    ] {
        let import = alone(text(&format!("TCP_PORTS=\"1\"\nBLOCK_TCP=\"1\"\n{blocker}{other}"))).unwrap();
        assert!(import.toml.contains(&format!("method = [{methods}]")), "{}", import.toml);
        assert!(
            import
                .notes
                .iter()
                .any(|note| note.line == Some(3) && note.message.contains("\"nft\" in block.method replaces it"))
        );
    }
    // Classic PortSentry ran only the command here, so nothing is lost.
    let toml = toml(&format!("TCP_PORTS=\"1\"\nBLOCK_TCP=\"2\"\n{blocker}KILL_RUN_CMD=\"/bin/x $TARGET$\"\n"));
    assert!(toml.contains("method = [\"run\"]"), "{toml}");
}

#[test]
fn command_of_another_firewall_gets_its_undo() {
    for (command, undo, expire) in [
        ("/usr/sbin/csf -d $TARGET$ portsentry", "[\"/usr/sbin/csf\", \"-dr\", \"$TARGET$\"]", 86_400),
        ("/usr/sbin/csf -td $TARGET$ 3600 -d in", "[\"/usr/sbin/csf\", \"-tr\", \"$TARGET$\"]", 3_600),
        ("/usr/local/sbin/apf -d $TARGET$ {portsentry}", "[\"/usr/local/sbin/apf\", \"-u\", \"$TARGET$\"]", 86_400),
        ("/sbin/shorewall logdrop $TARGET$", "[\"/sbin/shorewall\", \"allow\", \"$TARGET$\"]", 86_400),
        (
            "/usr/bin/firewall-cmd --timeout=90m --add-rich-rule='rule family=ipv4 source address=$TARGET$ drop'",
            "[\"/usr/bin/firewall-cmd\", \"--remove-rich-rule=rule family=ipv4 source address=$TARGET$ drop\"]",
            5_400,
        ),
        (
            "/usr/bin/firewall-cmd --zone=drop --add-source $TARGET$",
            "[\"/usr/bin/firewall-cmd\", \"--zone=drop\", \"--remove-source\", \"$TARGET$\"]",
            86_400,
        ),
        (
            "/usr/bin/fail2ban-client set portsentry banip $TARGET$",
            "[\n    \"/usr/bin/fail2ban-client\",\n    \"set\",\n    \"portsentry\",\n    \"unbanip\",\n    \"$TARGET$\",\n]",
            86_400,
        ),
        (
            "/usr/bin/cscli decisions add --ip $TARGET$",
            "[\n    \"/usr/bin/cscli\",\n    \"decisions\",\n    \"delete\",\n    \"--ip\",\n    \"$TARGET$\",\n]",
            14_400,
        ),
        (
            "/usr/bin/cscli decision add --ip $TARGET$ -d 4h",
            "[\n    \"/usr/bin/cscli\",\n    \"decision\",\n    \"delete\",\n    \"--ip\",\n    \"$TARGET$\",\n]",
            14_400,
        ),
    ] {
        for (policy, key) in [("1", "KILL_ROUTE"), ("2", "KILL_RUN_CMD")] {
            let toml = toml(&format!("TCP_PORTS=\"1\"\nBLOCK_TCP=\"{policy}\"\n{key}=\"{command}\"\n"));
            assert!(toml.contains("method = [\"run\"]"), "{command}\n{toml}");
            assert!(toml.contains(&format!("\nexpire_command = {undo}\n")), "{command}\n{toml}");
            let expected = portsentry::types::Expiry::After(Duration::from_secs(expire));
            assert_eq!(Config::parse("portsentry.toml", &toml).unwrap().expire, expected, "{command}");
        }
    }
}

#[test]
fn set_timeout_is_noted_as_expiry() {
    for command in ["/sbin/ipset add portsentry $TARGET$", "nft add element inet filter bad '{ $TARGET$ }'"] {
        let import = alone(text(&format!("TCP_PORTS=\"1\"\nBLOCK_TCP=\"2\"\nKILL_RUN_CMD=\"{command}\"\n"))).unwrap();
        assert!(
            import
                .toml
                .contains("\n# If the timeout of its set ends the ban, write its time here.\nexpire = \"24h\"\n")
        );
        assert!(
            import.notes.iter().any(|note| note.line == Some(3) && note.message.contains("the timeout of its set"))
        );
        assert!(!import.notes.iter().any(|note| note.message.contains("never ends a ban")), "{:?}", import.notes);
    }
    let import = alone(text("TCP_PORTS=\"1\"\nKILL_ROUTE=\"ipset add bad $TARGET$ timeout 180\"\n")).unwrap();
    assert!(import.toml.contains("\nexpire = \"180s\"\n"), "{}", import.toml);
}

#[test]
fn blocking_script_without_undo_is_noted() {
    let import =
        alone(text("TCP_PORTS=\"1\"\nBLOCK_TCP=\"1\"\nKILL_ROUTE=\"/usr/local/sbin/shun $TARGET$\"\n")).unwrap();
    let note = import.notes.iter().find(|note| note.line == Some(3)).unwrap();
    assert!(note.message.contains("block.run.expire_command"), "{note}");
}

#[test]
fn end_of_ban_is_stored() {
    for (time, expire) in [("now+24hour", 86_400), ("now + 90 minutes", 5_400), ("now +1 week", 604_800)] {
        let recipe = format!("echo 'iptables -D INPUT -s $TARGET$ -j DROP' | at {time}");
        let toml = toml(&format!("TCP_PORTS=\"1\"\nKILL_RUN_CMD=\"{recipe}\"\n"));
        assert_eq!(watched(&toml).expire, portsentry::types::Expiry::After(Duration::from_secs(expire)), "{time}");
    }
}

#[test]
fn resolve_host_is_imported() {
    let import = alone(text("TCP_PORTS=\"1\"\nRESOLVE_HOST=\"1\"\n")).unwrap();
    assert!(import.toml.contains("[report]\n") && import.toml.contains("\nresolve_host = true\n"), "{}", import.toml);
    assert!(Config::parse("portsentry.toml", &import.toml).unwrap().report.resolve_host);
    assert!(!import.notes.iter().any(|note| note.key.as_deref() == Some("RESOLVE_HOST")));
}

#[test]
fn every_classic_mode_is_imported() {
    for (tcp, udp, modes) in [
        ("tcp", "udp", (Mode::Connect, Mode::Connect)),
        ("stcp", "sudp", (Mode::Stealth, Mode::Stealth)),
        ("atcp", "audp", (Mode::Advanced, Mode::Advanced)),
        ("atcp", "", (Mode::Advanced, Mode::Off)),
    ] {
        let modes_file = format!("TCP_MODE={tcp}\nUDP_MODE='{udp}'\n");
        let config = watched(&with_modes("TCP_PORTS=\"1\"\nUDP_PORTS=\"1\"\n", &modes_file).unwrap().toml);
        assert_eq!((config.tcp.mode, config.udp.mode), modes, "{tcp} {udp}");
    }
}

#[test]
fn mode_in_configuration_is_fallback() {
    let config = "TCP_MODE=\"atcp\"\nUDP_MODE=\"-audp\"\nTCP_PORTS=\"1-1024\"\nUDP_PORTS=\"1-1024\"\n";
    let import = alone(text(config)).unwrap();
    let read = watched(&import.toml);
    assert_eq!((read.tcp.mode, read.udp.mode), (Mode::Advanced, Mode::Advanced), "{}", import.toml);
    let note = import.notes.iter().find(|note| note.key.as_deref() == Some("TCP_MODE")).unwrap();
    assert!(note.message.contains("only from /etc/default/portsentry; used"), "{note}");
    assert!(!import.notes.iter().any(|note| note.message.contains("sets no mode")), "{:?}", import.notes);
    let import = with_modes(config, "TCP_MODE=stcp\n").unwrap();
    let read = watched(&import.toml);
    assert_eq!((read.tcp.mode, read.udp.mode), (Mode::Stealth, Mode::Off), "{}", import.toml);
    // The other protocol has its default mode.
    let read = watched(&toml("TCP_MODE=\"tcp\"\nTCP_PORTS=\"1\"\nUDP_PORTS=\"1\"\n"));
    assert_eq!((read.tcp.mode, read.udp.mode), (Mode::Connect, Mode::Stealth));
}

#[test]
fn errors_name_their_lines_in_one_run() {
    let sources = Sources {
        config: text(
            "TCP_PORTS=\"1,70000\"\nBLOCK_TCP=\"yes\"\nSCAN_TRIGGER=\"-1\"\nnonsense\nKILL_RUN_CMD_FIRST=\"x\"\n\
             UDP_PORTS=\"9-3\"\nADVANCED_PORTS_TCP=\"0\"\nPORT_BANNER=\"x\nINTERFACE_ADDRESS=\"a/b\"\n",
        ),
        defaults: Some(named("default", "UDP_MODE=\"$X\"\n")),
        ignore: vec![named("ignore", "127.0.0.1\nlocalhost\n")],
    };
    let error = translate(&sources, &no_files).unwrap_err().to_string();
    let expected = [
        "portsentry.conf:1: TCP_PORTS: \"70000\" is not a port; write numbers from 1 to 65535, as in \"1,7,9,11-15\"",
        "portsentry.conf:2: BLOCK_TCP: \"yes\" is not a valid value; write \"0\" to log, \"1\" to block, or \"2\" to run a command",
        "portsentry.conf:3: SCAN_TRIGGER: \"-1\" is not a number; write a number from 0 to 16",
        "portsentry.conf:4: \"nonsense\" does not have the form KEY=\"value\"; correct the line, or make it a \
         comment with #",
        "portsentry.conf:5: KILL_RUN_CMD_FIRST: \"x\" is not valid here; write \"0\" or \"1\"",
        "portsentry.conf:6: UDP_PORTS: \"9-3\" is a reversed range; write the smaller port first",
        "portsentry.conf:7: ADVANCED_PORTS_TCP: \"0\" is not a port; write a number from 1 to 65535",
        "portsentry.conf:8: PORT_BANNER: the closing quote is missing; write PORT_BANNER=\"value\" on one line",
        "portsentry.conf:9: INTERFACE_ADDRESS: \"a/b\" is not an address; write an address, or make the line a \
         comment with #",
        "default:1: UDP_MODE: \"$X\" is not a plain word; write UDP_MODE=\"audp\"",
        "ignore:2: \"localhost\" is not an address or network; write for example \"192.0.2.7\" or \"198.51.100.0/24\"",
    ];
    assert_eq!(error.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn import_without_ports_is_refused() {
    let error = with_modes("UDP_PORTS=\"1\"\n", "TCP_MODE=stcp\n").unwrap_err().to_string();
    assert!(error.starts_with("d:1: TCP_MODE: \"stcp\" monitors the ports of TCP_PORTS, which is not set"), "{error}");
    let error = with_modes("ADVANCED_PORTS_TCP=\"9\"\nADVANCED_EXCLUDE_TCP=\"1-9\"\n", "TCP_MODE=atcp")
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("portsentry.conf:2: ADVANCED_EXCLUDE_TCP: excludes every port"), "{error}");
    let error = with_modes("TCP_PORTS=\"1\"\n", "TCP_MODE=udp").unwrap_err().to_string();
    assert_eq!(error, "d:1: TCP_MODE: \"udp\" is not a mode of TCP; write tcp, stcp or atcp");
    // Without ports and mode the daemon's defaults apply.
    let config = watched(&toml("BLOCK_TCP=\"1\"\n"));
    assert_eq!((config.tcp.mode, config.udp.mode), (Mode::Advanced, Mode::Advanced));
}

#[test]
fn truncated_classic_file_is_translated_or_refused() {
    let whole = source("recipe.conf");
    let mut translated = 0;
    for length in 0..=whole.bytes.len() {
        let mut cut = whole.clone();
        cut.bytes.truncate(length);
        translated += usize::from(alone(cut).is_ok());
    }
    let lines = whole.bytes.iter().filter(|byte| **byte == b'\n').count();
    assert!(translated >= lines, "{translated}");
}

#[test]
fn megabyte_of_commands_gives_small_result() {
    for command in
        ["iptables -I INPUT -s $TARGET$ -j DROP", "route add $TARGET$ gw 333.444.555.666", "x $TARGET$", "''"]
    {
        let line = [command; 25_000].join(" && ");
        let config =
            format!("TCP_PORTS=\"1\"\nBLOCK_TCP=\"1\"\nKILL_ROUTE=\"{}\"\n", line.get(..1_000_000).unwrap_or(&line));
        let import = alone(text(&config)).unwrap();
        assert!(import.toml.len() < 4_000 && import.notes.len() < 10, "{}", import.toml.len());
    }
}

/// Any text without a newline.
fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        3 => any::<char>().prop_filter("a line", |c| *c != '\n').prop_map(String::from),
        1 => prop::sample::select(vec![
            "$TARGET$", "\"", "'", "\\", "\\\"", "\u{1b}[2J", "\r", "\0", "#", "]", "\"\"\"", "\u{202e}", " && ", " | at now+1hour",
            "iptables -I INPUT -s $TARGET$ -j DROP", "0", "1", "2", "24", "1-9", ",", "/etc/x", "=", "\u{feff}",
        ]).prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn option() -> impl Strategy<Value = String> {
    let keys = vec![
        "TCP_PORTS",
        "UDP_PORTS",
        "ADVANCED_PORTS_TCP",
        "ADVANCED_EXCLUDE_UDP",
        "INTERFACE_ADDRESS",
        "IGNORE_FILE",
        "HISTORY_FILE",
        "RESOLVE_HOST",
        "BLOCK_TCP",
        "BLOCK_UDP",
        "KILL_ROUTE",
        "KILL_HOSTS_DENY",
        "KILL_RUN_CMD",
        "KILL_RUN_CMD_FIRST",
        "SCAN_TRIGGER",
        "PORT_BANNER",
        "SOMETHING_ELSE",
    ];
    (prop::sample::select(keys), prop::bool::weighted(0.9), hostile()).prop_map(|(key, tidy, value)| {
        // Mostly values that pass the first check, so that later checks are reached.
        let value = if tidy { value.replace('"', "") } else { value };
        let fits = match key {
            "TCP_PORTS" | "UDP_PORTS" | "ADVANCED_PORTS_TCP" | "ADVANCED_EXCLUDE_UDP" if tidy => "1-20,4000".to_owned(),
            "BLOCK_TCP" | "BLOCK_UDP" | "SCAN_TRIGGER" if tidy => (value.len() % 3).to_string(),
            "KILL_RUN_CMD_FIRST" if tidy => (value.len() % 2).to_string(),
            "INTERFACE_ADDRESS" if tidy => "192.0.2.1".to_owned(),
            "IGNORE_FILE" => format!("/{value}"),
            "KILL_HOSTS_DENY" => format!("ALL: $TARGET${value}"),
            _ => value,
        };
        format!("{key}=\"{fits}\"\n")
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_options_give_valid_toml(
        options in prop::collection::vec(option(), 1..12), mode in prop::sample::select(vec!["", "tcp", "stcp", "atcp"])
    ) {
        let defaults = Some(named("d\u{1b}", &format!("TCP_MODE={mode}")));
        let config = named("c\n\u{1b}[2J]", &options.concat());
        match translate(&Sources { config, defaults, ignore: vec![] }, &no_files) {
            Ok(import) => {
                assert_valid(&import.toml);
                prop_assert!(import.toml.chars().all(|c| c == '\n' || !c.is_control()), "{:?}", import.toml);
                for note in &import.notes {
                    prop_assert!(note.message.chars().all(|c| !c.is_control()), "{note:?}");
                }
            }
            Err(ImportError::Wrong(findings)) => {
                prop_assert!(findings.iter().next().is_some());
                for finding in findings.iter() {
                    prop_assert!(finding.message.chars().all(|c| !c.is_control()), "{finding:?}");
                }
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn any_bytes_are_translated_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400), before in any::<bool>()) {
        let mut config = text(if before { "TCP_PORTS=\"1\"\n" } else { "" });
        config.bytes.extend(&bytes);
        let sources = Sources { config, defaults: Some(InputFile { name: "d".into(), bytes: bytes.clone() }), ignore: vec![] };
        if let Ok(import) = translate(&sources, &no_files) {
            assert_valid(&import.toml);
        }
    }
}
