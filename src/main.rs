//! The program: reads the command line, runs what it asks for, prints an error once.

use std::fmt::Display;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use portsentry::cli::{self, Command, Question, ReplayOptions, RunOptions};
use portsentry::config::Config;
use portsentry::control::client::ClientError;
use portsentry::control::commands;
use portsentry::control::protocol::Refusal;
use portsentry::daemon::{self, DaemonError, Places};
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
            Ok(config) => run(config, options),
            Err(errors) => fail(&errors, cli::EXIT_CONFIG),
        },
        Command::Replay(options) => match options.configure() {
            Ok(config) => replay(&options, &config),
            Err(errors) => fail(&errors, cli::EXIT_CONFIG),
        },
        Command::Ask(question) => ask(&question),
        Command::Complete(shell) => print(&shell.completions()),
    }
}

fn ask(question: &Question) -> ExitCode {
    match commands::run(question, &mut std::io::stdout().lock()) {
        Ok(()) => cli::EXIT_DONE.into(),
        Err(ClientError::Not { kind: Refusal::Usage, error }) => fail(&error, cli::EXIT_USAGE),
        Err(ClientError::Not { kind: Refusal::Configuration, error }) => fail(&error, cli::EXIT_CONFIG),
        Err(error) => fail(&error, cli::EXIT_FAILED),
    }
}

fn run(config: Config, options: RunOptions) -> ExitCode {
    let place = |given: &Option<PathBuf>, default: &str| given.clone().unwrap_or_else(|| default.into());
    let places = Places {
        state_dir: place(&options.state_dir, cli::DEFAULT_STATE_DIR),
        socket: place(&options.socket, cli::DEFAULT_SOCKET),
    };
    let confirm = options.confirm;
    if let Err(error) = log::init() {
        return fail(&format_args!("cannot set up the log: {error}"), cli::EXIT_FAILED);
    }
    match daemon::run(config, places, confirm, Box::new(move || options.configure())) {
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

fn print(text: &str) -> ExitCode {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => cli::EXIT_DONE.into(),
        Err(error) => fail(&format_args!("cannot write to standard output: {error}"), cli::EXIT_FAILED),
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
