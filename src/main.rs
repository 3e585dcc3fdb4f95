//! Parses the command line, runs the command, and prints its error once.

use std::fmt::Display;
use std::io::{BufWriter, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use portsentry::check::{self, CheckError};
use portsentry::cli::{self, Command, ImportOptions, ReportOptions, RunOptions};
use portsentry::config::{Config, LogTarget};
use portsentry::control::{self, commands, list, live_view};
use portsentry::daemon::{self, DaemonError, DaemonPaths, background, helper, helper_process};
use portsentry::events::log;
use portsentry::fleet::{self, FleetError};
use portsentry::import::{self, ImportError};
use portsentry::replay::{self, ReplayError};
use portsentry::report::{self, ReportStats};
use portsentry::types::exit_code;
use portsentry::types::printable::masked;

fn main() -> ExitCode {
    if let Some(args) = helper::HelperArgs::parse(std::env::args_os()) {
        return finish(helper_process::run(&args));
    }
    let command = match cli::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(error) if error.use_stderr() => {
            // A failure to print the error is ignored.
            let _ = error.print();
            return exit_code::USAGE.into();
        }
        Err(help) => return print(&help.render().to_string()),
    };
    match command {
        Command::Run(options) => match options.configure() {
            Ok(config) => run(config, options),
            Err(errors) => fail(&errors, exit_code::CONFIG),
        },
        Command::Replay(options) => {
            let config = Config::load_or_builtin(options.config.as_deref()).map_err(ReplayError::Config);
            let result = config.and_then(|config| replay::run(&options, &config, &mut BufWriter::new(stdout().lock())));
            finish_or_refuse(result, |error| matches!(error, ReplayError::Config(_)))
        }
        Command::Ask(command) => match commands::run(&command, &mut stdout().lock()) {
            Ok(()) => exit_code::DONE.into(),
            Err(error) => fail(&error, error.exit_code()),
        },
        Command::Import(options) => finish_or_refuse(import(&options), |error| matches!(error, ImportError::Wrong(_))),
        Command::Report(options) => report(&options),
        Command::Completions { shell } => print(&shell.completions()),
        Command::List(options) => finish(list::run(&options, &mut stdout().lock()).map(print_notes)),
        Command::Check(options) => {
            let result = check::run(&options, &mut stdout().lock()).map(print_notes);
            finish_or_refuse(result, |error| matches!(error, CheckError::Config(_)))
        }
        Command::Fleet(options) => {
            let result = fleet::run(&options, &mut stdout().lock());
            finish_or_refuse(result, |error| matches!(error, FleetError::Config(_) | FleetError::Setup(_)))
        }
        Command::Watch(options) => finish(live_view::run(&options)),
    }
}

fn run(config: Config, options: RunOptions) -> ExitCode {
    let place = |given: &Option<PathBuf>, default: &str| given.clone().unwrap_or_else(|| default.into());
    let paths = DaemonPaths {
        state_dir: place(&options.state_dir, cli::DEFAULT_STATE_DIR),
        socket: place(&options.socket, cli::DEFAULT_SOCKET),
        config: place(&options.config, cli::DEFAULT_CONFIG),
    };
    let in_background = background::enter();
    if options.daemon && !in_background {
        return match background::start(std::env::args_os()) {
            Ok(Ok(())) => exit_code::DONE.into(),
            Ok(Err(code)) => code.into(),
            Err(error) => fail(&format_args!("cannot start in the background: {error}"), exit_code::FAILED),
        };
    }
    let by_mode = options.tcp_mode().is_some() || options.udp_mode().is_some();
    // systemd sets the variable, which the scripts of a service inherit.
    let is_service = std::env::var_os("INVOCATION_ID").is_some() && std::os::unix::process::parent_id() == 1;
    if by_mode && !in_background && !is_service {
        print_error(
            &"portsentry runs in the foreground, unlike classic PortSentry; use --daemon to run it in the background",
        );
    }
    let target = match config.report.log {
        // In the background, standard error is not connected.
        LogTarget::Auto if in_background => LogTarget::Syslog,
        target => target,
    };
    if let Err(error) = log::init(target, config.report.facility) {
        return fail(&format_args!("cannot set up the log: {error}"), exit_code::FAILED);
    }
    match daemon::run(config, paths, (options.confirm, !options.no_sandbox), Box::new(move || options.configure())) {
        Err(error @ DaemonError::InstanceLockError(_)) if by_mode => {
            let hint =
                "one process monitors TCP and UDP: start it once with both modes, for example portsentry -atcp -audp";
            fail(&format_args!("{error}\n{hint}"), exit_code::FAILED)
        }
        result => finish_or_refuse(result, |error| {
            matches!(error, DaemonError::Config(_) | DaemonError::Untrusted(_) | DaemonError::Handover(_))
        }),
    }
}

fn print(text: &str) -> ExitCode {
    match control::print(&mut stdout().lock(), text) {
        Ok(()) => exit_code::DONE.into(),
        Err(error) => fail(&format_args!("cannot write to standard output: {error}"), exit_code::FAILED),
    }
}

fn report(options: &ReportOptions) -> ExitCode {
    let stats = match ReportStats::read(&options.state_dir, options.since, SystemTime::now()) {
        Ok(stats) => stats,
        Err(error) => return fail(&error, exit_code::FAILED),
    };
    let host = report::host_name();
    let text = if options.json {
        format!("{}\n", report::json(&stats, host.as_deref()))
    } else {
        report::html(&stats, host.as_deref())
    };
    match options.output.as_deref().filter(|output| *output != Path::new("-")) {
        Some(output) => finish(report::save(output, &text)),
        None => print(&text),
    }
}

fn import(options: &ImportOptions) -> Result<(), ImportError> {
    let import = import::read(options)?;
    match &options.output {
        Some(path) => import::write(path, &import.toml, options.force)?,
        None => {
            let text = if options.json { format!("{}\n", serde_json::json!(import)) } else { import.toml.clone() };
            let written = control::print(&mut stdout().lock(), &text);
            written.map_err(|error| ImportError::Write { path: "standard output".into(), error })?;
        }
    }
    print_notes(import.notes);
    Ok(())
}

fn finish(result: Result<(), impl Display>) -> ExitCode {
    finish_or_refuse(result, |_| false)
}

/// Reports a result. An error for which `is_refusal` is true means that the configuration is refused.
fn finish_or_refuse<E: Display>(result: Result<(), E>, is_refusal: impl FnOnce(&E) -> bool) -> ExitCode {
    match result {
        Ok(()) => exit_code::DONE.into(),
        Err(error) => fail(&error, if is_refusal(&error) { exit_code::CONFIG } else { exit_code::FAILED }),
    }
}

fn print_notes(notes: Vec<impl Display>) {
    notes.iter().for_each(|note| print_error(note));
}

fn fail(error: &dyn Display, code: u8) -> ExitCode {
    print_error(error);
    code.into()
}

/// Writes `what` to standard error. If that is closed, or the reader of the daemon's log has stalled, only the exit
/// code reports the failure.
fn print_error(what: &dyn Display) {
    if log::is_stalled() {
        return;
    }
    let mut stderr = std::io::stderr().lock();
    for line in what.to_string().lines() {
        let line: String = masked(line, ' ').collect();
        let _ = writeln!(stderr, "portsentry: {line}");
    }
}
