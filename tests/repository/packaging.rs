//! Tests the packaged files other than the program: the unit, its drop-ins, the second manual page, completions, and
//! rules for other programs. tests/deb.sh tests the installation of the package, which takes longer.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use portsentry::cli::{self, Shell};
use portsentry::config::Config;
use portsentry::engine::{Class, Observation, Probe};
use portsentry::events::classic_log::{self, Wording};
use portsentry::events::event::EventKind;
use portsentry::types::{Backend, BanTarget, Protocol, Response, exit_code};
use regex::Regex;

use super::{path, text};

fn files(directory: &str) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(path(directory)).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// Runs a program to its end; returns its output and status.
fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; `make setup` installs what is missing"))
}

fn shown(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The values of a key in a unit, in order.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

/// The unit with drop-ins in a separate directory, with an existing program in place of portsentry.
fn laid_out(drop_ins: &[&Path]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let unit = directory.path().join("portsentry.service");
    std::fs::write(&unit, text("packaging/portsentry.service").replace("/usr/sbin/portsentry", "/bin/true")).unwrap();
    let drop_in_directory = directory.path().join("portsentry.service.d");
    std::fs::create_dir(&drop_in_directory).unwrap();
    for drop_in in drop_ins {
        std::fs::copy(drop_in, drop_in_directory.join(drop_in.file_name().unwrap())).unwrap();
    }
    (directory, unit)
}

fn drop_ins() -> Vec<PathBuf> {
    let found = files("packaging/examples/portsentry.service.d");
    found.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "conf")).collect()
}

/// True if systemd-analyze rates the unit's exposure at most `tenths`/10, by its exit code.
fn is_exposed_at_most(unit: &Path, tenths: u32) -> bool {
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=yes", "--no-pager", &format!("--threshold={tenths}")]).arg(unit);
    let output = run(&mut command);
    assert!(shown(&output).contains("Overall exposure level"), "{}", shown(&output));
    output.status.success()
}

#[test]
fn unit_rating_is_below_two() {
    let (_directory, unit) = laid_out(&[]);
    assert!(is_exposed_at_most(&unit, 19));
    std::fs::write(&unit, "[Service]\nExecStart=/bin/true\n").unwrap();
    assert!(!is_exposed_at_most(&unit, 19), "the check can fail");
}

#[test]
fn systemd_accepts_unit_and_drop_ins() {
    let all = drop_ins();
    assert!(all.len() >= 4, "{all:?}");
    let sets = all.iter().map(|one| vec![one.as_path()]).chain([vec![], all.iter().map(PathBuf::as_path).collect()]);
    for set in sets {
        let (_directory, unit) = laid_out(&set);
        let output = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit));
        assert!(output.status.success() && shown(&output).is_empty(), "{set:?}: {}", shown(&output));
    }
    let (_directory, unit) = laid_out(&[]);
    std::fs::write(&unit, text("packaging/portsentry.service").replace("ProtectHome=yes", "ProtectHouse=yes")).unwrap();
    let output = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit));
    assert!(shown(&output).contains("ProtectHouse"), "an unknown directive is reported");
}

#[test]
fn unit_grants_needed_rights() {
    let unit = text("packaging/portsentry.service");
    // The port range of outgoing connections is in /proc/sys.
    assert_eq!(values(&unit, "ProcSubset"), [""; 0]);
    // The sensor thread raises its own priority: neither the system call filter nor a resource limit may prevent it.
    assert_eq!((values(&unit, "RestrictRealtime"), values(&unit, "LimitRTPRIO")), (vec!["no"], vec!["1"]));
    assert!(values(&unit, "SystemCallFilter").last().unwrap().contains("sched_setscheduler"));
    for set in ["CapabilityBoundingSet", "AmbientCapabilities"] {
        assert_eq!(values(&unit, set), ["CAP_NET_ADMIN CAP_NET_RAW"]);
    }
    // The default path of the configuration.
    for (key, directory, place) in [
        ("StateDirectory", "/var/lib", Path::new(cli::DEFAULT_STATE_DIR)),
        ("RuntimeDirectory", "/run", Path::new(cli::DEFAULT_SOCKET).parent().unwrap()),
        ("ConfigurationDirectory", "/etc", Path::new(cli::DEFAULT_CONFIG).parent().unwrap()),
    ] {
        let [name] = values(&unit, key)[..] else { panic!("{key}") };
        assert_eq!(Path::new(directory).join(name), place);
    }
    // A configuration error is no reason to restart repeatedly.
    let forgiven: Vec<_> = values(&unit, "RestartPreventExitStatus")[0].split(' ').collect();
    assert_eq!(forgiven, [exit_code::USAGE.to_string(), exit_code::CONFIG.to_string()]);
    assert!(text("packaging/portsentry.sysusers").lines().any(|line| line.starts_with("u portsentry ")));
    for key in ["User", "Group"] {
        assert_eq!(values(&unit, key), ["portsentry"]);
    }
}

#[test]
fn fleet_unit_has_no_rights_but_network() {
    let unit = text("packaging/portsentry-fleet.service");
    for (key, value) in [
        ("ExecStart", "/usr/sbin/portsentry fleet"),
        ("User", "portsentry-fleet"),
        ("Group", "portsentry-fleet"),
        ("CapabilityBoundingSet", ""),
        ("AmbientCapabilities", ""),
        ("NoNewPrivileges", "yes"),
        ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6"),
        ("RestartPreventExitStatus", "2 78"),
    ] {
        assert_eq!(values(&unit, key), [value], "{key}");
    }
    assert!(text("packaging/portsentry.sysusers").lines().any(|line| line.starts_with("u portsentry-fleet ")));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("portsentry-fleet.service");
    std::fs::write(&path, unit.replace("/usr/sbin/portsentry", "/bin/true")).unwrap();
    assert!(is_exposed_at_most(&path, 15));
    let output = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path));
    assert!(output.status.success() && shown(&output).is_empty(), "{}", shown(&output));
}

#[test]
fn packaged_files_exist_and_are_listed() {
    let manifest = text("Cargo.toml");
    let asset = Regex::new(r#"(?m)^    \["([^"]+)", "[^"]+", "[0-7]+"\],$"#).unwrap();
    let sources: BTreeSet<&str> = asset.captures_iter(&manifest).map(|found| found.get(1).unwrap().as_str()).collect();
    assert!(sources.len() > 20, "{sources:?}");
    for source in &sources {
        let fixed = source.split('*').next().unwrap();
        assert!(fixed.starts_with("target/") || path(fixed).exists(), "{source} does not exist");
    }
    let listed = |file: &str| {
        sources.contains(file)
            || sources.iter().any(|source| source.strip_suffix('*').is_some_and(|s| file.starts_with(s)))
    };
    for directory in [
        "packaging",
        "packaging/examples",
        "packaging/examples/crowdsec",
        "packaging/examples/fail2ban",
        "packaging/logcheck",
    ] {
        for file in files(directory).iter().filter(|file| file.is_file()) {
            let name = file.strip_prefix(path("")).unwrap().to_str().unwrap();
            // These build the package.
            assert!(
                listed(name) || ["sh", "awk", "jq"].iter().any(|tool| name.ends_with(tool)),
                "{name} is not packaged"
            );
        }
    }
}

#[test]
fn manual_page_equals_generated_page() {
    // Other versions format the same page differently.
    if !shown(&run(Command::new("pandoc").arg("--version"))).starts_with("pandoc 2.17") {
        println!("skipped: the manual pages are generated with pandoc 2.17");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let made = run(Command::new(path("docs/man/make.sh")).arg(directory.path()));
    assert!(made.status.success(), "{}", shown(&made));
    for page in ["portsentry.8", "portsentry.toml.5"] {
        let made = std::fs::read_to_string(directory.path().join(page)).unwrap();
        assert!(text(&format!("docs/{page}")) == made, "the source of {page} has changed; run `make man`");
    }
}

#[test]
fn manual_page_names_every_key() {
    let page = text("docs/portsentry.toml.5");
    let (mut section, mut keys) = (String::new(), Vec::new());
    for line in text("examples/portsentry.toml").lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            keys.push(format!("{section}{key}"));
        }
    }
    assert!(keys.len() > 30, "{keys:?}");
    for key in keys {
        assert!(page.contains(&format!("\n\\f[B]{key}\\f[R]\n")), "{key}");
    }
}

#[test]
fn manual_pages_pass_mandoc_lint() {
    for page in ["docs/portsentry.8", "docs/portsentry.toml.5"] {
        let output = run(Command::new("mandoc").args(["-Tlint", "-Wwarning"]).arg(path(page)));
        assert!(output.status.success(), "{}", shown(&output));
        let constant_width = r"\f[C";
        assert!(!text(page).contains(constant_width), "{page}: groff 1.23 warns of a font that a terminal lacks");
    }
    let broken = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(broken.path(), text("docs/portsentry.toml.5").replace(".TP\n", ".Unknown\n")).unwrap();
    assert!(!run(Command::new("mandoc").args(["-Tlint", "-Wwarning"]).arg(broken.path())).status.success());
}

#[test]
fn completions_name_every_flag_and_command() {
    let mut grammar = cli::grammar();
    grammar.build();
    for (shell, option, classic) in [(Shell::Bash, "--", "-"), (Shell::Zsh, "--", "-"), (Shell::Fish, "-l ", "-o ")] {
        let script = shell.completions();
        // A word ends before a character other than a letter or dash.
        let has = |word: &str| {
            Regex::new(&format!(r"(?m)[\s'*\x22]{}([^\w-]|$)", regex::escape(word))).unwrap().is_match(&script)
        };
        for flag in grammar.get_arguments().filter_map(|argument| Some((argument.get_long()?, argument.is_hide_set())))
        {
            let (long, hidden) = flag;
            assert!(has(&format!("{}{long}", if hidden { classic } else { option })), "{shell:?}: {long}");
            assert!(!hidden || !has(&format!("{option}{long}")), "{shell:?}: {long} with two dashes");
        }
        for command in grammar.get_subcommands() {
            assert!(script.contains(command.get_name()), "{shell:?}: {}", command.get_name());
        }
    }
    for function in ["banned", "allowed", "services"] {
        let used = Shell::Zsh.completions().contains(&format!(":_portsentry_{function}'"));
        assert!(used, "the grammar describes the argument of {function} in other words");
    }
    assert!(has_syntax("bash", &Shell::Bash.completions()));
    assert!(!has_syntax("bash", "case x in"));
}

/// Every file of the package, and their directories.
fn installed() -> BTreeSet<String> {
    let manifest: toml::Table = text("Cargo.toml").parse().unwrap();
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().unwrap();
    let mut found = BTreeSet::new();
    for asset in assets {
        let [source, destination] = [0, 1].map(|index| asset[index].as_str().unwrap());
        let Some(directory) = destination.strip_suffix('/') else {
            found.insert(format!("/{destination}"));
            continue;
        };
        found.insert(format!("/{directory}"));
        let (from, name) = source.rsplit_once('/').unwrap_or(("", source));
        match name.split_once('*') {
            None => drop(found.insert(format!("/{directory}/{name}"))),
            Some((_, suffix)) => {
                let names = files(from).into_iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
                found.extend(names.filter(|name| name.ends_with(suffix)).map(|name| format!("/{directory}/{name}")));
            }
        }
    }
    found
}

#[test]
fn manual_pages_name_only_installed_paths() {
    let installed = installed();
    assert!(installed.contains("/usr/share/portsentry/portsentry.nft"), "{installed:?}");
    let of_package = Regex::new(r"/usr/(?:share|lib|sbin)/[\w./-]*portsentry[\w./-]*").unwrap();
    let of_repository =
        Regex::new(r"(?:^|[\s(])((?:docs|examples|nft|packaging|src|tests)/[\w./-]+|[\w-]+\.md)").unwrap();
    let font = Regex::new(r"\\f\[\w*\]").unwrap();
    for page in ["docs/portsentry.8", "docs/portsentry.toml.5"] {
        let plain = font.replace_all(&text(page), "").replace("\\-", "-").replace("\\&", "");
        let paths: BTreeSet<&str> =
            of_package.find_iter(&plain).map(|path| path.as_str().trim_end_matches(['.', '/'])).collect();
        assert!(paths.len() >= 2, "{page}: {paths:?}");
        for path in paths {
            assert!(installed.contains(path), "{page} names {path}, which the package does not install");
        }
        let bare: Vec<&str> = of_repository.captures_iter(&plain).map(|found| found.get(1).unwrap().as_str()).collect();
        assert!(bare.is_empty(), "{page} names files of the repository; write a link, or the installed path: {bare:?}");
    }
}

/// The output of the package's installation if the classic configuration has this text; `previous` is the version
/// before an upgrade.
fn installation_says(classic: Option<&str>, previous: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("portsentry.conf");
    if let Some(text) = classic {
        std::fs::write(&file, text).unwrap();
    }
    let script = text("packaging/debian/postinst").replace("/etc/portsentry/portsentry.conf", file.to_str().unwrap());
    let output = run(Command::new("sh").args(["-c", &script, "postinst", "configure", previous]));
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    shown(&output)
}

#[test]
fn installation_output_mentions_blocking() {
    const ONLY_LOGS: &str = "It says to only log (BLOCK_TCP is 0), but portsentry blocks.\n";
    let first = installation_says(None, "");
    assert!(first.starts_with("portsentry now blocks sources that scan this host, for 24 hours each.\n"), "{first}");
    assert!(first.contains("portsentry trial 1d") && !first.contains("BLOCK_TCP"), "{first}");
    for classic in ["BLOCK_TCP=\"0\"\n", "BLOCK_UDP=\"0\"\n  BLOCK_TCP = 0\n"] {
        let said = installation_says(Some(classic), "");
        assert!(said.contains(ONLY_LOGS) && said.contains("portsentry import --output"), "{classic}: {said}");
    }
    for classic in ["BLOCK_TCP=\"1\"\n", "#BLOCK_TCP=\"0\"\n", "BLOCK_UDP=\"0\"\n"] {
        assert_eq!(installation_says(Some(classic), ""), first, "{classic}");
    }
    assert_eq!(installation_says(Some("BLOCK_TCP=\"0\"\n"), "0.0.9-1"), "", "an upgrade changes nothing");
}

fn has_syntax(shell: &str, script: &str) -> bool {
    let mut child = Command::new(shell).arg("-n").stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    child.wait().unwrap().success()
}

/// A program that answers with two bans, a target of the fleet, an allowance of an operator and one of the
/// configuration, and services.
const ANSWERS: &str = r#"#!/bin/sh
case $* in
    "list --json") echo '{"bans":[{"subject":"192.0.2.7","source":"192.0.2.7"},{"subject":"2001:db8:1::/64"}],"fleet":[{"subject":"192.0.2.99"}]}' ;;
    "allowed --json") echo '{"allowed":[{"network":"10.0.0.0/8","by":"allow.networks"},{"network":"198.51.100.0/24","by":"root"}]}' ;;
    "status --json") echo '{"services":[{"proto":"tcp","port":80,"address":"0.0.0.0"},{"proto":"tcp","port":80,"address":"::"},{"proto":"udp","port":53,"address":"::"}],"last_event":{"proto":"tcp","port":23}}' ;;
esac
"#;

/// Writes `program` and the script of `shell` to a directory.
fn completing(shell: Shell, program: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("program");
    std::fs::write(&text, program).unwrap();
    netns_lab::install_program(&text, &directory.path().join("portsentry"));
    std::fs::write(directory.path().join("completions"), shell.completions()).unwrap();
    directory
}

/// The text that bash inserts for TAB at the end of `line`.
fn completed_by_bash(line: &str, program: &str) -> Vec<String> {
    let directory = completing(Shell::Bash, program);
    // As readline does: words are split at colons, too.
    let ask = r#"
        PATH=$1:$PATH; . "$2"; COMP_LINE=$3; COMP_POINT=${#3}
        words=${3//:/ : }; read -ra COMP_WORDS <<<"$words"
        case $3 in *[[:space:]]|*:) COMP_WORDS+=("") ;; esac
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        function=$(complete -p portsentry); function=${function##*-F }; function=${function%% *}
        "$function" portsentry "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let mut bash = Command::new("bash");
    let script = directory.path().join("completions");
    let output = run(bash.args(["--norc", "-c", ask, "bash"]).arg(directory.path()).arg(script).arg(line));
    assert!(output.stderr.is_empty(), "{}", shown(&output));
    shown(&output).lines().map(str::to_owned).collect()
}

#[test]
fn unblock_completes_banned_targets() {
    let completed = |line: &str| completed_by_bash(line, ANSWERS);
    assert_eq!(completed("portsentry unblock "), ["192.0.2.7", "2001:db8:1::/64"]);
    assert_eq!(completed("portsentry unblock 192"), ["192.0.2.7"]);
    // Readline already has `2001:` in the line, and inserts the last word.
    assert_eq!(completed("portsentry unblock 2001:d"), ["db8:1::/64"]);
    assert_eq!(completed("portsentry unblock 10."), [""]);
    assert_eq!(completed("portsentry unblock --a"), ["--all"]);
    assert_eq!(completed("portsentry unb"), ["unblock"]);
    assert!(!completed("portsentry block ").contains(&"192.0.2.7".to_owned()));
    assert_eq!(completed("portsentry disallow "), ["198.51.100.0/24"], "the configuration's entries cannot be revoked");
    assert_eq!(completed("portsentry forget-service "), ["53/udp", "80/tcp"]);
}

#[test]
fn completion_is_silent_without_permission() {
    let denied = "#!/bin/sh\necho 'portsentry: refused: the user alice may not' >&2; exit 1\n";
    let stuck = "#!/bin/sh\nexec sleep 1000\n";
    for program in [denied, stuck] {
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for command in ["unblock", "disallow", "forget-service"] {
                scope.spawn(move || {
                    let completed = completed_by_bash(&format!("portsentry {command} "), program);
                    assert_eq!(completed, [""], "{command}: {program}");
                });
            }
        });
        assert!(begin.elapsed() < Duration::from_secs(30), "{program} delays the prompt for {:?}", begin.elapsed());
    }
}

#[test]
fn zsh_and_fish_complete_values() {
    let path = |directory: &Path| format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    for (command, first) in [("unblock", "192.0.2.7"), ("disallow", "198.51.100.0/24"), ("forget-service", "53")] {
        let directory = completing(Shell::Fish, ANSWERS);
        let ask = format!("source {}/completions; complete -C 'portsentry {command} '", directory.path().display());
        if let Ok(output) = Command::new("fish").args(["-N", "-c", &ask]).env("PATH", path(directory.path())).output() {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.starts_with(&format!("{first}\t")), "fish: {command}: {output:?}");
            assert!(!text.contains("192.0.2.99") && !text.contains("10.0.0.0/8"), "fish: {command}: {text}");
        }
        let directory = completing(Shell::Zsh, ANSWERS);
        // The script defines the function, and registers it where the completion system is loaded.
        let ask = format!(
            "compdef() {{ }}; source {}/completions 2>/dev/null; _portsentry_values {command}",
            directory.path().display()
        );
        if let Ok(output) = Command::new("zsh").args(["-f", "-c", &ask]).env("PATH", path(directory.path())).output() {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.starts_with(first), "zsh: {command}: {output:?}");
        }
    }
}

#[test]
fn completions_refuse_unknown_shell() {
    let program = || Command::new(env!("CARGO_BIN_EXE_portsentry"));
    let output = run(program().args(["completions", "zsh"]));
    assert_eq!((output.status.code(), shown(&output)), (Some(0), Shell::Zsh.completions()));
    assert_eq!(run(program().args(["completions", "csh"])).status.code(), Some(i32::from(exit_code::USAGE)));
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let status = program().args(["completions", "bash"]).stdout(full).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(i32::from(exit_code::FAILED)));
}

/// The program's log lines in the formats that logcheck reads.
fn logged(event: &EventKind) -> Vec<String> {
    let connect = classic_log::line_with_name(event, None, Wording::Connect);
    let lines = classic_log::line(event).into_iter().chain(connect).chain(classic_log::addition(event));
    lines
        .flat_map(|line| {
            [
                format!("Nov 21 06:32:13 gate-1.example.net portsentry[4711]: {line}"),
                format!("2026-11-21T06:32:13.123456+01:00 gate portsentry[4711]: {line}"),
            ]
        })
        .collect()
}

/// True if a rule of the file matches, as `grep -E` does.
fn matches(rules: &str, line: &str) -> bool {
    let mut grep = Command::new("grep");
    grep.args(["-qE", "-f"]).arg(path(rules)).stdin(Stdio::piped());
    let mut child = grep.spawn().unwrap();
    // grep may stop at the first match without reading the rest of its input.
    let _ = child.stdin.take().unwrap().write_all(format!("{line}\n").as_bytes());
    match child.wait().unwrap().code() {
        Some(0) => true,
        Some(1) => false,
        code => panic!("grep refuses {rules}: {code:?}"),
    }
}

#[test]
fn logcheck_ignores_only_routine_lines() {
    const ROUTINE: &str = "packaging/logcheck/ignore";
    const ALARM: &str = "packaging/logcheck/violations";
    let target: BanTarget = BanTarget::V4("192.0.2.7".parse().unwrap());
    let routine = [
        EventKind::Started,
        EventKind::Adopted { bans: 3 },
        EventKind::Restored { bans: 3, backend: Backend::Nft },
        EventKind::Expired { target },
        EventKind::Repeated { target, response: Response::Block, protocol: None, packets: 1 },
        EventKind::Repeated { target, response: Response::Block, protocol: None, packets: 214 },
    ];
    for line in routine.iter().flat_map(logged) {
        assert!(matches(ROUTINE, &line) && !matches(ALARM, &line), "{line}");
    }
    let alarm = [
        EventKind::Error("the ledger was damaged".to_owned()),
        EventKind::BlockFailed { target, reason: "the set is full".to_owned(), backend: Backend::Nft },
        EventKind::Dropped { packets: 3 },
    ];
    for line in alarm.iter().flat_map(logged) {
        assert!(matches(ALARM, &line) && !matches(ROUTINE, &line), "{line}");
    }
    // These lines are neither ignored nor treated as attacks.
    let daily =
        "10234 single probes within 1d without log lines of their own (report.single_probes = false)".to_owned();
    let ordinary = [
        EventKind::Note(daily),
        EventKind::Stopped,
        EventKind::Note("eth7 is gone".to_owned()),
        EventKind::TableReinstalled { bans: 2 },
    ];
    for line in ordinary.iter().flat_map(logged) {
        assert!(!matches(ROUTINE, &line) && !matches(ALARM, &line), "{line}");
    }
    // A remote host that causes a log line must not be able to hide another line behind it.
    let forged = "Nov 21 06:32:13 gate sshd[1]: portsentry[1]: adminalert: PortSentry is now active and listening.";
    assert!(!matches(ROUTINE, forged));
}

/// The decoder of OSSEC and Wazuh for classic PortSentry takes the source, the protocol and the port from these lines.
#[test]
fn connect_lines_match_ossec_decoder() {
    let connect = Regex::new(r"Connect from host: (\S+)/\S+ to (\S+) port: (\d+)$").unwrap();
    let blocked = Regex::new(r"is already blocked\. Ignoring$").unwrap();
    for source in ["192.0.2.7", "2001:db8::7"] {
        let target = BanTarget::containing(source.parse().unwrap());
        for (protocol, title, port) in [(Protocol::Tcp, "TCP", 23), (Protocol::Udp, "UDP", 69)] {
            let observation = Observation {
                source: source.parse().unwrap(),
                source_port: 40_000,
                destination: "198.51.100.1".parse().unwrap(),
                interface: 2,
                bridge_port: 0,
                protocol,
                port,
                class: if protocol == Protocol::Tcp { Class::Connect } else { Class::Udp },
                fragmented: false,
                unverified: false,
                decoy: true,
            };
            let probe = EventKind::Probe(Probe { observation, target, distinct: 1, probes: 1, fresh: true });
            for (name, host) in [(None, source), (Some("scanner.example.net"), "scanner.example.net")] {
                let line = classic_log::line_with_name(&probe, name, Wording::Connect).unwrap();
                let found = connect.captures(&line).unwrap_or_else(|| panic!("{line}"));
                assert_eq!((&found[1], &found[2], &found[3]), (host, title, port.to_string().as_str()), "{line}");
            }
        }
        for packets in [1, 214] {
            let repeated = EventKind::Repeated { target, response: Response::Block, protocol: None, packets };
            let line = classic_log::line_with_name(&repeated, None, Wording::Connect).unwrap();
            assert!(blocked.is_match(&line) && line.contains(&format!("Host: {} is", target.element())), "{line}");
        }
    }
}

#[test]
fn history_survives_rotation_and_jail_starts_fresh() {
    let rotation = text("packaging/logrotate");
    let history = rotation.split('}').next().unwrap();
    assert!(history.contains("portsentry.history") && history.contains("\n    create\n"), "{history}");
    let jail = text("packaging/examples/fail2ban/jail.conf");
    assert!(jail.contains("\nfindtime = 1m\n") && jail.contains("\nmaxretry = 1\n"), "{jail}");
}

#[test]
fn example_ruleset_loads_with_included_table() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("firewall.nft");
    let included = path("nft/portsentry.nft");
    let rules = text("packaging/examples/firewall.nft");
    assert!(rules.contains("/usr/share/portsentry/portsentry.nft"));
    std::fs::write(&file, rules.replace("/usr/share/portsentry/portsentry.nft", included.to_str().unwrap())).unwrap();
    // In its own namespace: the first line flushes every table.
    let output =
        run(Command::new("unshare").args(["--net", "sh", "-c", "nft -f \"$1\" && nft list tables", "sh"]).arg(&file));
    assert!(output.status.success(), "{}", shown(&output));
    assert_eq!(shown(&output), "table inet portsentry\ntable inet filter\n");
}

#[test]
fn mail_example_names_bans_and_counts() {
    let digest = serde_json::json!({
        "summary": "portsentry on web1: 2 bans", "from": "F", "until": "U", "unnamed": 1, "lost_events": 0,
        "bans": [{"subject": "192.0.2.1", "evidence": "proven", "expires": "never", "reason": "ports were probed"}],
        "lifted": {"count": 0, "named": []}, "not_banned": {"only_logged": 0, "withheld": 5, "failed": 0},
    });
    let mail = |mailer: &str, digest: &str| {
        let script = path("packaging/examples/notify/mail");
        let mut command = Command::new("sh");
        command.arg(script).arg("root").env("MAILER", mailer).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut command = command.spawn().unwrap();
        command.stdin.take().unwrap().write_all(digest.as_bytes()).unwrap();
        command.wait_with_output().unwrap()
    };
    let output = mail("cat", &digest.to_string());
    assert!(output.status.success(), "{}", shown(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = [
        "To: root",
        "Subject: portsentry on web1: 2 bans",
        "192.0.2.1  proven  until never  ports were probed",
        "and 1 more",
        "not banned: 0 only logged, 5 above the ceilings, 0 failed",
    ];
    assert!(lines.iter().all(|line| text.lines().any(|other| other == *line)), "{text}");
    assert!(!mail("false", "{}").status.success(), "a failing mailer is an error, so that the digest is sent again");
}

#[test]
fn packaged_scripts_pass_shellcheck() {
    let tests = [
        "benches/compare.sh",
        "tests/crowdsec.sh",
        "tests/debian.sh",
        "tests/deb.sh",
        "tests/interop.sh",
        "tests/migrate.sh",
        "tests/quick-start.sh",
        "tests/reproducible.sh",
        "tests/typing.sh",
        "tests/unit.sh",
    ];
    let packaged = [
        "packaging/deb.sh",
        "packaging/sbom.sh",
        "packaging/debian/postrm",
        "packaging/debian/postinst",
        "packaging/build.sh",
        "packaging/examples/notify/mail",
        "packaging/examples/notify/ntfy",
        "packaging/examples/notify/webhook",
    ];
    // These names help to find the other program.
    let output = run(Command::new("shellcheck").current_dir(path("")).args(packaged).args(tests));
    assert!(output.status.success(), "{}", shown(&output));
}

#[test]
fn packaged_configuration_equals_defaults() {
    let config = Config::load(&path("examples/portsentry.toml")).unwrap();
    assert_eq!(config, Config::default());
    assert!(config.detect.window > Duration::ZERO);
}
