//! Tests every command as a program against one daemon: its text and JSON output, its exit code, and that
//! docs/control.md names every field of the JSON.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::{stderr, stdout};

use super::watch::Daemon;

const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const CONFIG: i32 = 78;

/// The placeholder for the daemon's paths in a command line.
const SOCKET: &str = "SOCKET";
const STATE: &str = "STATE";
const FILE: &str = "FILE";

/// Command line, exit code, a part of standard output, and the fields of the object that `--json` prints.
const DONE_WELL: &[(&str, &str, &[&str])] = &[
    (
        "status --socket SOCKET",
        "blocking",
        &[
            "running",
            "version",
            "process",
            "since",
            "uptime_s",
            "state",
            "trial_left_s",
            "expire_s",
            "methods",
            "interfaces",
            "tcp",
            "udp",
            "packets",
            "probes",
            "sources_tracked",
            "bans",
            "trap",
            "allowed",
            "protected_networks",
            "services",
            "allows_all",
            "warnings",
            "ledger",
            "metrics",
            "sandbox",
            "commands",
            "fleet",
            "last_event",
        ],
    ),
    (
        "block 192.0.2.7 --expire 2h --reason word --socket SOCKET",
        "192.0.2.7 is blocked until 2",
        &["subject", "expires"],
    ),
    (
        "block 192.0.2.8 --expire never --socket SOCKET",
        "192.0.2.8 is blocked until `portsentry unblock",
        &["subject", "expires"],
    ),
    (
        "explain 192.0.2.7 --socket SOCKET",
        "until 2",
        &[
            "address",
            "subject",
            "protected",
            "blocked",
            "logged",
            "hold",
            "strikes",
            "suspected",
            "unserved",
            "connected",
            "fleet",
            "bans",
            "history",
        ],
    ),
    ("list --socket SOCKET", "192.0.2.7 ", &["time", "kernel", "notes", "bans", "fleet"]),
    ("list --would-block --socket SOCKET", "no source would have been blocked", &["time", "notes", "would_block"]),
    (
        "allow 198.51.100.0/24 --for 1h --socket SOCKET",
        "198.51.100.0/24 is allowed until 2",
        &["allowed", "until", "lifted", "bans"],
    ),
    ("allowed --socket SOCKET", "198.51.100.0/24  by root", &["allowed", "more"]),
    ("trial 1h --socket SOCKET", "scans are only logged until 2", &["until"]),
    ("unblock --all --socket SOCKET", "bans lifted: ", &["unblocked"]),
    ("reload --socket SOCKET", "configuration reloaded", &["changed", "needs_restart"]),
    (
        "report --state-dir STATE",
        "</html>",
        &[
            "event",
            "host",
            "from",
            "to",
            "kept",
            "bans",
            "sources",
            "in_force",
            "repeat_offenders",
            "probes",
            "over_time",
            "classes",
            "evidence",
            "ports",
            "networks",
            "top_sources",
            "offenders",
            "recent",
            "by_hand",
            "hours",
            "would_block",
            "ends",
            "authors",
            "methods",
            "ahead",
            "unreadable",
        ],
    ),
    (
        "check FILE/good.toml --state-dir STATE --socket SOCKET",
        "result",
        &[
            "ok",
            "settings",
            "errors",
            "warnings",
            "notes",
            "tcp",
            "udp",
            "scan_trigger",
            "window_s",
            "expire_s",
            "methods",
            "backends",
            "interfaces",
            "host_interfaces",
            "exempt",
            "names",
            "notify",
        ],
    ),
    ("import FILE/classic.conf", "[tcp]", &["toml", "notes"]),
];

/// Command line, exit code, and the remedy on standard error.
const WRONG: &[(&str, i32, &str)] = &[
    ("list --since yesterday", USAGE, "\"yesterday\" is not a duration; write for example \"90m\", \"24h\" or \"7d\""),
    ("list --since never", USAGE, "\"never\" is not a duration; write for example"),
    ("allow 192.0.2.7 --for never", USAGE, "permanent entries belong in allow.networks"),
    ("allow fe80::1%2", USAGE, "\"fe80::1%2\" names a link; write fe80::1, which is that address on every link"),
    ("disallow fe80::1%eth0", USAGE, "write fe80::1, which is that address on every link"),
    ("block fe80::1%2", USAGE, "write fe80::1, which is that address on every link"),
    ("unblock fe80::1%nolink", USAGE, "\"fe80::1%nolink\" names no link of this host; write the number or the name"),
    ("explain fe80::1%0", USAGE, "or fe80::1, which is that address on every link"),
    ("list fe80::1%", USAGE, "or fe80::1, which is that address on every link"),
    ("explain 192.0.2.7%lo", USAGE, "\"192.0.2.7%lo\" is not an address or network; write for example"),
    ("--expire -5m", USAGE, "\"-5m\" is not a positive duration; write for example \"24h\", or \"never\""),
    ("--confirm -5m", USAGE, "\"-5m\" is not a positive duration; write for example \"90m\", \"24h\" or \"7d\""),
    ("--scan-trigger -1", USAGE, "write a number from 0 to 15"),
    (
        "block 192.0.2.7 --expire -1h",
        USAGE,
        "\"-1h\" is not a positive duration; write for example \"24h\", or \"never\"",
    ),
    ("allow 192.0.2.7 --for -1h", USAGE, "\"-1h\" is not a positive duration"),
    ("trial -5m", USAGE, "\"-5m\" is not a positive duration"),
    ("list --since -5m", USAGE, "\"-5m\" is not a positive duration"),
    ("report --since -5m", USAGE, "write a duration from one minute to ten years"),
    ("fleet lift 192.0.2.7 --for -1h", USAGE, "\"-1h\" is not a positive duration"),
    ("trial --ende", USAGE, "\"--ende\" is not a duration"),
    ("check FILE/none", CONFIG, "create it, or name another file"),
    (
        "check FILE/twice.toml",
        CONFIG,
        "twice.toml:3:2: the table \"metrics\" is defined twice; write its keys under the first one",
    ),
    ("bloc 192.0.2.7", USAGE, "similar subcommands"),
    ("block 192.0.2.7 --expire soon", USAGE, "write for example"),
    ("block 192.0.2.300", USAGE, "write for example"),
    ("block 0.0.0.0/0 --socket SOCKET", USAGE, "too wide"),
    ("explain 192.0.2.0/24", USAGE, "write for example"),
    ("unblock", USAGE, "--all"),
    ("forget-service 80/sctp", USAGE, "write for example"),
    ("forget-service 80 --socket SOCKET", FAILED, "`portsentry status` lists the remembered services"),
    ("list --sort size", USAGE, "possible values"),
    ("report --since yesterday", USAGE, "write a duration"),
    ("completions tcsh", USAGE, "possible values"),
    ("block 224.0.0.1 --socket SOCKET", FAILED, "refused to block 224.0.0.1: it is a multicast address"),
    ("block 255.255.255.255 --socket SOCKET", FAILED, "it is the broadcast address"),
    ("block 0.0.0.0 --force --socket SOCKET", FAILED, "it is an unspecified address"),
    ("block ff02::1 --socket SOCKET", FAILED, "it is a multicast address"),
    ("block :: --socket SOCKET", USAGE, "is in the /64 of the unspecified address"),
    ("block ::1 --socket SOCKET", FAILED, "loopback"),
    ("--scan-trigger 16", USAGE, "write a number from 0 to 15"),
    ("block 127.0.0.1 --socket SOCKET", FAILED, "refused to block 127.0.0.1: 127.0.0.0/8 is a loopback address"),
    ("unblock 192.0.2.9 --socket SOCKET", FAILED, "192.0.2.9 is not blocked; `portsentry list` shows the bans"),
    ("unblock 192.0.2.0/24 --socket SOCKET", FAILED, "; `portsentry list 192.0.2.0/24` shows the bans"),
    ("allow 0.0.0.0/0 --socket SOCKET", FAILED, "Use --force to allow it anyway"),
    ("allow ::/0 --socket SOCKET", FAILED, "Use --force to allow it anyway"),
    ("disallow 203.0.113.7 --socket SOCKET", FAILED, "`portsentry allowed` lists the allowed networks"),
    ("disallow 127.0.0.1 --socket SOCKET", FAILED, "it is a loopback address"),
    ("trial", USAGE, "--end"),
    ("trial soon", USAGE, "write for example"),
    ("trial --end --socket SOCKET", FAILED, "no trial is running"),
    ("confirm --socket SOCKET", FAILED, "was started without --confirm"),
    ("status --socket FILE/none", FAILED, "start it, or name its socket"),
    ("unblock 192.0.2.7 --socket FILE/none", FAILED, "`nft delete element inet portsentry blocked { ADDRESS }`"),
    ("explain 192.0.2.7 --socket FILE/none", FAILED, "start it, or name its socket"),
    ("report --state-dir FILE/none", FAILED, "--state-dir names another directory"),
    ("import FILE/none", FAILED, "FILE/none"),
    ("replay FILE/none", FAILED, "FILE/none"),
    ("check FILE/bad.toml", CONFIG, "bad.toml:1:10: expire: "),
    ("--config FILE/bad.toml", CONFIG, "bad.toml:1:10: expire: "),
    ("import FILE/bad.conf", CONFIG, "bad.conf"),
];

fn filled(daemon: &Daemon, line: &str) -> Vec<String> {
    let (directory, socket) = (daemon.directory.path().display().to_string(), daemon.socket().display().to_string());
    let state = daemon.directory.path().join("state").display().to_string();
    let word = |word: &str| word.replace(SOCKET, &socket).replace(STATE, &state).replace(FILE, &directory);
    line.split_whitespace().map(word).collect()
}

fn run(daemon: &Daemon, line: &str) -> Output {
    let mut command = daemon.namespace.command(env!("CARGO_BIN_EXE_portsentry"));
    command.args(filled(daemon, line)).output().unwrap()
}

/// Runs `line`, asserts its exit code, and returns its output.
fn run_expecting(daemon: &Daemon, line: &str, code: i32) -> (String, String) {
    let output = run(daemon, line);
    let (out, err) = (stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(code), "{line}: {out}{err}");
    (out, err)
}

fn daemon() -> Daemon {
    let daemon = Daemon::start();
    // The socket's directory belongs to the daemon's user, which must not be able to change the configuration.
    let directory = daemon.directory.path();
    std::os::unix::fs::chown(directory, Some(0), Some(0)).unwrap();
    fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let write = |name: &str, text: &str| fs::write(daemon.directory.path().join(name), text).unwrap();
    write("good.toml", "expire = \"2h\"\n");
    write("bad.toml", "expire = \"soon\"\n");
    write("twice.toml", "[metrics]\nlisten = \"\"\n[metrics]\n");
    write("classic.conf", "TCP_PORTS=\"1,7\"\nBLOCK_TCP=\"1\"\n");
    write("bad.conf", "TCP_PORTS=\"1,x\"\n");
    daemon
}

#[test]
fn text_and_json_output_agree() {
    let daemon = daemon();
    for (line, part, keys) in DONE_WELL {
        // JSON first: commands that remove or list a ban find it both times.
        let (out, _) = run_expecting(&daemon, &format!("{line} --json"), DONE);
        assert_eq!(out.matches('\n').count(), 1, "{line}: one line: {out}");
        let Value::Object(reply) = serde_json::from_str(&out).unwrap() else { panic!("{line}: {out}") };
        let reply: BTreeSet<&str> = reply.keys().map(String::as_str).collect();
        assert_eq!(reply, keys.iter().copied().collect(), "{line}");
        let (out, _) = run_expecting(&daemon, line, DONE);
        assert!(out.contains(part), "{line}: {out}");
    }
}

#[test]
fn failures_have_exit_codes_and_remedies() {
    let daemon = daemon();
    let directory = daemon.directory.path().display().to_string();
    for (line, code, part) in WRONG {
        let (out, err) = run_expecting(&daemon, line, *code);
        assert!(err.contains(&part.replace(FILE, &directory)), "{line}: {err}");
        assert_eq!(out, "", "{line}: nothing on standard output");
    }
}

#[test]
fn output_that_cannot_be_written_is_failure() {
    let daemon = daemon();
    let lines = ["--help", "--version", "list --help", "status --json --socket SOCKET", "events --socket SOCKET"];
    let lines = lines.into_iter().chain(DONE_WELL.iter().map(|(line, ..)| *line));
    for line in lines {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = daemon.namespace.command(env!("CARGO_BIN_EXE_portsentry"));
        let mut child = command.args(filled(&daemon, line)).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        if line.starts_with("events") {
            // The command writes when the next event comes.
            while child.try_wait().unwrap().is_none() {
                run_expecting(&daemon, "reload --socket SOCKET", DONE);
            }
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(FAILED), "{line}: {}", stderr(&output));
        assert!(stderr(&output).contains("No space left on device"), "{line}: {}", stderr(&output));
    }
}

#[test]
fn socket_page_names_every_field() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/control.md")).unwrap();
    for (line, _, keys) in DONE_WELL {
        let command = line.split_whitespace().next().unwrap();
        // Its fields are in its row, or in a section of their own.
        let row = page.lines().find(|row| row.starts_with(&format!("| `{command}` |"))).unwrap_or_default();
        let section =
            page.split("\n### ").find_map(|part| part.strip_prefix(format!("Fields of {command}\n").as_str()));
        let section = section.and_then(|part| part.split("\n## ").next()).unwrap_or_default();
        for key in keys.iter().map(|key| format!("`{key}`")) {
            assert!(row.contains(&key) || section.contains(&key), "{command}: {key} is not in docs/control.md");
        }
    }
}

#[test]
fn help_and_version_are_not_errors() {
    let commands: Vec<String> =
        portsentry::cli::grammar().get_subcommands().map(|command| command.get_name().to_owned()).collect();
    assert!(commands.len() > 12, "{commands:?}");
    let lines = commands.iter().flat_map(|command| [format!("{command} --help"), format!("help {command}")]);
    for line in lines.chain(["--help".into(), "--version".into(), "help".into()]) {
        let words: Vec<&str> = line.split(' ').collect();
        let output = Command::new(env!("CARGO_BIN_EXE_portsentry")).args(words).output().unwrap();
        assert_eq!((output.status.code(), stderr(&output)), (Some(DONE), String::new()), "{line}");
        assert!(!output.stdout.is_empty(), "{line}");
    }
}
