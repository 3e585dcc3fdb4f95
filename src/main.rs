//! The program: reads the command line, runs what it asks for, prints an error once.

use std::fmt::Display;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use portsentry::cli::{self, Command, ReplayOptions, ReportOptions};
use portsentry::config::Config;
use portsentry::daemon::{self, DaemonError};
use portsentry::page::{self, Figures};
use portsentry::replay::{self, ReplayError};
use portsentry::report::log;

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(error) => {
            // Where even this cannot be written there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { cli::EXIT_USAGE.into() } else { cli::EXIT_DONE.into() };
        }
    };
    match command {
        Command::Run(options) => match options.configure() {
            Ok(config) => run(&config, options.state_dir.as_deref().unwrap_or(Path::new(cli::DEFAULT_STATE_DIR))),
            Err(errors) => fail(&errors, cli::EXIT_CONFIG),
        },
        Command::Replay(options) => match options.configure() {
            Ok(config) => replay(&options, &config),
            Err(errors) => fail(&errors, cli::EXIT_CONFIG),
        },
        Command::Report(options) => report(&options),
    }
}

fn run(config: &Config, state_dir: &Path) -> ExitCode {
    if let Err(error) = log::init() {
        return fail(&format_args!("cannot set up the log: {error}"), cli::EXIT_FAILED);
    }
    match daemon::run(config, state_dir) {
        Ok(()) => cli::EXIT_DONE.into(),
        Err(DaemonError::Config(errors)) => fail(&errors, cli::EXIT_CONFIG),
        Err(error) => fail(&error, cli::EXIT_FAILED),
    }
}

fn replay(options: &ReplayOptions, config: &Config) -> ExitCode {
    match replay::run(options, config, &mut BufWriter::new(std::io::stdout().lock())) {
        Ok(()) => cli::EXIT_DONE.into(),
        Err(ReplayError::Config(errors)) => fail(&errors, cli::EXIT_CONFIG),
        Err(error) => fail(&error, cli::EXIT_FAILED),
    }
}

fn report(options: &ReportOptions) -> ExitCode {
    let figures = match Figures::read(&options.state_dir, options.since, SystemTime::now()) {
        Ok(figures) => figures,
        Err(error) => return fail(&error, cli::EXIT_FAILED),
    };
    let host = page::host_name();
    let text = if options.json {
        format!("{}\n", page::json(&figures, host.as_deref()))
    } else {
        page::html(&figures, host.as_deref())
    };
    match options.output.as_deref().filter(|output| *output != Path::new("-")) {
        Some(output) => match page::save(output, &text) {
            Ok(()) => cli::EXIT_DONE.into(),
            Err(error) => fail(&error, cli::EXIT_FAILED),
        },
        None => {
            let mut out = std::io::stdout().lock();
            match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                // A reader that has had enough is no error.
                Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                    fail(&format_args!("the report cannot be written: {error}"), cli::EXIT_FAILED)
                }
                _ => cli::EXIT_DONE.into(),
            }
        }
    }
}

fn fail(error: &dyn Display, code: u8) -> ExitCode {
    let mut stderr = std::io::stderr().lock();
    for line in error.to_string().lines() {
        // Where standard error is closed, the exit code says it.
        let _ = writeln!(stderr, "portsentry: {line}");
    }
    code.into()
}
