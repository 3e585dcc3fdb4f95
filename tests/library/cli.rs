//! Tests the parsing of the command line without a daemon: flags, classic modes, help, and the manual page.

use clap::error::ErrorKind;
use portsentry::cli::{
    self, CheckOptions, Command, ImportOptions, ListOptions, ReplayOptions, ReportOptions, RunOptions, SortOrder,
    WatchOptions,
};
use portsentry::config::{Config, Mode};
use portsentry::types::{Expiry, Response, exit_code};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn parse(line: &str) -> Result<Command, clap::Error> {
    cli::parse(format!("portsentry {line}").split_whitespace().map(OsString::from))
}

fn run(line: &str) -> RunOptions {
    match parse(line) {
        Ok(Command::Run(options)) => options,
        other => panic!("{line}: {other:?}"),
    }
}

fn wrong(line: &str) -> ErrorKind {
    let error = parse(line).expect_err(line);
    assert!(error.use_stderr() && error.exit_code() == i32::from(exit_code::USAGE), "{line}");
    error.kind()
}

/// The configuration from the file `text` and the flags in `line`.
fn configured(line: &str, text: &str) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("portsentry.toml");
    std::fs::write(&file, text).unwrap();
    let mut options = run(line);
    options.config = Some(file);
    options.configure().map_err(|errors| errors.to_string())
}

#[test]
fn no_arguments_run_configured_daemon() {
    assert_eq!(run(""), RunOptions::default());
}

#[test]
fn flags_are_read() {
    let options = run(
        "--expire 90m --config /etc/p.toml --interface eth0 --interface wg0 --scan-trigger 0 --log-only --state-dir /srv/p \
         --socket /run/p.sock --confirm 5m --no-sandbox",
    );
    let expected = RunOptions {
        expire: Some(Expiry::After(Duration::from_secs(5_400))),
        config: Some(PathBuf::from("/etc/p.toml")),
        interfaces: vec!["eth0".into(), "wg0".into()],
        scan_trigger: Some(0),
        log_only: true,
        state_dir: Some(PathBuf::from("/srv/p")),
        socket: Some(PathBuf::from("/run/p.sock")),
        confirm: Some(Duration::from_secs(300)),
        no_sandbox: true,
        ..RunOptions::default()
    };
    assert_eq!(options, expected);
    assert!(run("--daemon -atcp").daemon);
    assert_eq!(run("--expire=never").expire, Some(Expiry::Never));
}

#[test]
fn classic_words_set_only_their_protocol() {
    for (line, tcp, udp) in [
        ("-tcp", Some(Mode::Connect), None),
        ("-udp", None, Some(Mode::Connect)),
        ("-stcp", Some(Mode::Stealth), None),
        ("-sudp", None, Some(Mode::Stealth)),
        ("-atcp", Some(Mode::Advanced), None),
        ("-audp", None, Some(Mode::Advanced)),
        ("-stcp --expire 1h -audp", Some(Mode::Stealth), Some(Mode::Advanced)),
    ] {
        let options = run(line);
        assert_eq!((options.tcp_mode(), options.udp_mode()), (tcp, udp), "{line}");
    }
}

#[test]
fn two_modes_of_protocol_are_refused() {
    for line in ["-tcp -stcp", "-atcp -tcp", "-sudp -audp", "-tcp -udp -sudp"] {
        assert_eq!(wrong(line), ErrorKind::ArgumentConflict, "{line}");
    }
}

#[test]
fn unlisted_word_is_usage_error() {
    for (line, kind) in [
        ("--expire", ErrorKind::InvalidValue),
        ("--expire 90x", ErrorKind::ValueValidation),
        ("--expire 10ms", ErrorKind::ValueValidation),
        ("--interface a/b", ErrorKind::ValueValidation),
        ("--scan-trigger 16", ErrorKind::ValueValidation),
        ("--scan-trigger -1", ErrorKind::ValueValidation),
        ("-btcp", ErrorKind::UnknownArgument),
        ("-tcp=1", ErrorKind::UnknownArgument),
        ("nonsense", ErrorKind::InvalidSubcommand),
        ("replay", ErrorKind::MissingRequiredArgument),
        ("replay f --local 1.2.3", ErrorKind::ValueValidation),
        ("replay f --log-only", ErrorKind::UnknownArgument),
        ("--expire 1h replay f", ErrorKind::ArgumentConflict),
        ("import a b", ErrorKind::UnknownArgument),
        ("import --force", ErrorKind::MissingRequiredArgument),
        ("import --json -o f", ErrorKind::ArgumentConflict),
        ("import --expire 1h", ErrorKind::UnknownArgument),
        ("check a b", ErrorKind::UnknownArgument),
        ("check --config f", ErrorKind::UnknownArgument),
        ("list a", ErrorKind::ValueValidation),
        ("list --sort name", ErrorKind::InvalidValue),
        ("list --since 0s", ErrorKind::ValueValidation),
        ("report --since 30x", ErrorKind::ValueValidation),
        ("report --since 59s", ErrorKind::ValueValidation),
        ("report --since 11years", ErrorKind::ValueValidation),
        ("report -o", ErrorKind::InvalidValue),
        ("report file", ErrorKind::UnknownArgument),
        ("report --config f", ErrorKind::UnknownArgument),
    ] {
        assert_eq!(wrong(line), kind, "{line}");
    }
}

#[test]
fn replay_has_its_own_options() {
    let expected = ReplayOptions {
        file: PathBuf::from("scan.pcap"),
        config: Some(PathBuf::from("p.toml")),
        local: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::1/128".parse().unwrap()],
        json: true,
    };
    let line = "replay scan.pcap --config p.toml --local 192.0.2.9/24 --local 2001:db8::1 --json";
    assert_eq!(parse(line).unwrap(), Command::Replay(expected));
    let Ok(Command::Replay(options)) = parse("replay -- -tcp") else { panic!("a file may have the name of a mode") };
    assert_eq!(options.file, Path::new("-tcp"));
}

#[test]
fn import_has_its_own_options() {
    assert_eq!(parse("import").unwrap(), Command::Import(ImportOptions::default()));
    let expected = ImportOptions {
        file: Some(PathBuf::from("p.conf")),
        defaults: Some(PathBuf::from("d")),
        ignore: vec![PathBuf::from("i"), PathBuf::from("j")],
        json: false,
        output: Some(PathBuf::from("p.toml")),
        force: true,
    };
    let line = "import p.conf --defaults d --ignore i --ignore j -o p.toml --force";
    assert_eq!(parse(line).unwrap(), Command::Import(expected));
}

#[test]
fn list_has_own_options_and_order() {
    let socket = PathBuf::from(cli::DEFAULT_SOCKET);
    let plain = ListOptions {
        target: None,
        sort: SortOrder::Expires,
        since: None,
        would_block: false,
        names: false,
        json: false,
        state_dir: None,
        socket: socket.clone(),
    };
    assert_eq!(parse("list").unwrap(), Command::List(plain.clone()));
    let would_block = ListOptions { would_block: true, ..plain };
    assert_eq!(parse("list --would-block").unwrap(), Command::List(would_block));
    assert_eq!(wrong("list --would-block --sort hits"), ErrorKind::ArgumentConflict);
    let expected = ListOptions {
        target: Some("10.0.0.0/24".parse().unwrap()),
        sort: SortOrder::Hits,
        since: Some(Duration::from_secs(3_600)),
        would_block: false,
        names: true,
        json: true,
        state_dir: Some(PathBuf::from("/srv/p")),
        socket,
    };
    let line = "list 10.0.0.9/24 --sort hits --since 1h --names --json --state-dir /srv/p";
    assert_eq!(parse(line).unwrap(), Command::List(expected));
}

#[test]
fn watch_uses_default_or_given_socket() {
    assert_eq!(parse("watch").unwrap(), Command::Watch(WatchOptions { socket: PathBuf::from(cli::DEFAULT_SOCKET) }));
    assert_eq!(parse("watch --socket s").unwrap(), Command::Watch(WatchOptions { socket: PathBuf::from("s") }));
    assert_eq!(wrong("watch --json"), ErrorKind::UnknownArgument);
}

#[test]
fn check_reads_given_or_default_file() {
    let expected = |file: Option<&str>, json| CheckOptions {
        file: file.map(PathBuf::from),
        state_dir: PathBuf::from(cli::DEFAULT_STATE_DIR),
        socket: PathBuf::from(cli::DEFAULT_SOCKET),
        json,
    };
    assert_eq!(parse("check").unwrap(), Command::Check(expected(None, false)));
    assert_eq!(parse("check p.toml --json").unwrap(), Command::Check(expected(Some("p.toml"), true)));
}

#[test]
fn report_covers_thirty_days_by_default() {
    let days = |days: u64| Duration::from_secs(days * 86_400);
    let plain =
        ReportOptions { since: days(30), output: None, state_dir: PathBuf::from(cli::DEFAULT_STATE_DIR), json: false };
    assert_eq!(parse("report").unwrap(), Command::Report(plain));
    let (output, state_dir) = (Some(PathBuf::from("r.html")), PathBuf::from("/srv/p"));
    let expected = ReportOptions { since: days(7), output, state_dir, json: true };
    let line = "report --since 7d -o r.html --state-dir /srv/p --json";
    assert_eq!(parse(line).unwrap(), Command::Report(expected));
}

#[test]
fn flags_override_only_their_keys() {
    let file =
        "expire = \"2h\"\ninterfaces = [\"lo\"]\n[udp]\nmode = \"stealth\"\nblock = true\n[detect]\nscan_trigger = 5\n";
    let config = configured("--expire 1h -tcp", file).unwrap();
    assert_eq!(config.expire, Expiry::After(Duration::from_secs(3_600)));
    assert_eq!((config.tcp.mode, config.udp.mode), (Mode::Connect, Mode::Stealth));
    assert_eq!((config.interfaces.as_slice(), config.detect.scan_trigger), (["lo".to_owned()].as_slice(), 5));
    assert_eq!((config.tcp.block, config.udp.block), (Response::Block, Response::Block));
    let config = configured("--log-only --interface eth1 --scan-trigger 0", file).unwrap();
    assert_eq!((config.tcp.block, config.udp.block), (Response::Log, Response::Log));
    assert_eq!((config.interfaces.as_slice(), config.detect.scan_trigger), (["eth1".to_owned()].as_slice(), 0));
}

#[test]
fn configuration_without_monitored_ports_is_refused() {
    let error = configured("-stcp", "[tcp]\nports = \"\"\n").unwrap_err();
    let expected = "command line: tcp.ports: no port is left to monitor; list one, or write mode = \"off\" under [tcp]";
    assert_eq!(error, expected);
}

#[test]
fn wrong_file_never_means_defaults() {
    let error = configured("--expire 1h", "expire = 5\n").unwrap_err();
    assert!(
        error.ends_with("portsentry.toml:1:10: expire: 5 is not a duration; write for example \"24h\", or \"never\"")
    );
    let options = run("--config /nonexistent/portsentry.toml");
    assert!(options.configure().unwrap_err().to_string().contains("No such file"));
}

#[test]
fn help_names_flags_on_one_screen() {
    let help = parse("--help").unwrap_err();
    assert_eq!((help.kind(), help.use_stderr()), (ErrorKind::DisplayHelp, false));
    let text = help.to_string();
    assert!(text.lines().count() <= 24, "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let mut grammar = cli::grammar();
    grammar.build();
    for word in flags_of(&[&grammar]) {
        assert!(text.contains(&word), "{word} is missing:\n{text}");
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    for command in grammar.get_subcommands() {
        assert!(words.contains(&command.get_name()), "{} is missing:\n{text}", command.get_name());
    }
    assert_eq!(text, parse("-h").unwrap_err().to_string());
}

#[test]
fn misplaced_option_error_names_right_place() {
    for (line, expected) in [
        ("check --config /x", "write portsentry check FILE"),
        ("--config /x check", "write portsentry check FILE"),
        ("--socket /x status", "'--socket <FILE>' cannot stand before 'status'"),
        ("--expire 1h list", "see portsentry list --help"),
        ("list --since -1h", "\"-1h\" is not a positive duration"),
        ("report --since -1h", "write a duration"),
        ("help -tcp", "'-tcp'"),
    ] {
        let error = parse(line).unwrap_err();
        assert!(error.use_stderr() && error.to_string().contains(expected), "{line}: {error}");
    }
}

#[test]
fn version_equals_package_version() {
    let version = parse("--version").unwrap_err();
    assert_eq!(version.kind(), ErrorKind::DisplayVersion);
    assert_eq!(parse("-V").unwrap_err().to_string(), version.to_string());
    assert_eq!(version.to_string().trim(), concat!("portsentry ", env!("CARGO_PKG_VERSION")));
}

/// All flags as typed: long ones with two dashes, the classic modes with one.
fn documented_flags() -> Vec<String> {
    let mut grammar = cli::grammar();
    grammar.build();
    flags_of(&std::iter::once(&grammar).chain(grammar.get_subcommands()).collect::<Vec<_>>())
}

fn flags_of(commands: &[&clap::Command]) -> Vec<String> {
    let flags = commands.iter().flat_map(|command| command.get_arguments().cloned().collect::<Vec<_>>());
    let typed = flags.filter_map(|flag| {
        let dashes = if flag.is_hide_set() { "-" } else { "--" };
        flag.get_long().map(|long| format!("{dashes}{long}"))
    });
    let flags: Vec<String> = typed.collect();
    assert!(flags.len() >= 14, "{flags:?}");
    flags
}

#[test]
fn manual_names_flags_commands_and_exit_codes() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/man/portsentry.8.md")).unwrap();
    // An entry is a line of terms, followed by its text after a colon; pandoc turns two dashes into one without the
    // backslash.
    let lines: Vec<String> = page.lines().map(|line| line.trim().replace("\\--", "--")).collect();
    let entries =
        || lines.iter().zip(lines.iter().skip(1)).filter(|(_, text)| text.starts_with(": ")).map(|(term, _)| term);
    for flag in documented_flags() {
        let named = |entry: &&String| entry.contains(&format!("**{flag}**"));
        assert!(entries().any(|entry| named(&entry)), "{flag} has no entry");
    }
    let mut grammar = cli::grammar();
    grammar.build();
    for command in grammar.get_subcommands() {
        let name = command.get_name();
        assert!(entries().any(|entry| entry.starts_with(&format!("**{name}**"))), "{name} has no entry");
    }
    for code in [exit_code::DONE, exit_code::FAILED, exit_code::USAGE, exit_code::CONFIG] {
        assert!(entries().any(|entry| *entry == code.to_string()), "{code} has no entry");
    }
}

#[test]
fn settings_page_names_overriding_flags() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md")).unwrap();
    let own = ["--help", "--version", "--confirm", "--no-sandbox", "--daemon"];
    let mut grammar = cli::grammar();
    grammar.build();
    for flag in flags_of(&[&grammar]).iter().filter(|flag| !own.contains(&flag.as_str())) {
        assert!(page.contains(&format!("`{flag}`")), "{flag}");
    }
}
