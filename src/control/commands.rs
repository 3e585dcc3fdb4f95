//! Runs the commands that talk to the running daemon: sends each as a request, and prints the answer as text or as one
//! JSON object.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, Error, FromArgMatches, Subcommand};
use serde::Serialize;

use super::client::{Client, ClientError};
use super::print;
use super::protocol::Request;
use crate::types::to_line;

/// A command that talks to the running daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlCommand {
    pub request: Request,
    pub connection: ConnectionOptions,
}

// The socket of the daemon, and the output format. A doc comment would replace the help of each command.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// Control socket of the daemon
    #[arg(long, value_name = "FILE", default_value = super::DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Each request is a command. The options of the connection follow those of the request.
impl Subcommand for ControlCommand {
    fn augment_subcommands(program: Command) -> Command {
        let requests = Request::augment_subcommands(Command::default());
        program.subcommands(requests.get_subcommands().cloned().map(ConnectionOptions::augment_args))
    }

    fn augment_subcommands_for_update(program: Command) -> Command {
        Self::augment_subcommands(program)
    }

    fn has_subcommand(name: &str) -> bool {
        Request::has_subcommand(name)
    }
}

impl FromArgMatches for ControlCommand {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let (_, options) = matches.subcommand().ok_or_else(|| Error::new(ErrorKind::MissingSubcommand))?;
        let connection = ConnectionOptions::from_arg_matches(options)?;
        Ok(Self { request: Request::from_arg_matches(matches)?, connection })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        Self::from_arg_matches(matches).map(|command| *self = command)
    }
}

/// The status if no daemon runs.
#[derive(Serialize)]
struct NotRunning {
    running: bool,
    reason: String,
}

/// Sends the request and writes the answer.
///
/// # Errors
/// The daemon does not run, or did not carry out the request.
pub fn run(ControlCommand { request, connection }: &ControlCommand, out: &mut impl Write) -> Result<(), ClientError> {
    if *request == Request::Subscribe {
        return events(connection, out);
    }
    let answer = match Client::connect(&connection.socket).and_then(|mut client| client.ask(request)) {
        Ok(answer) => answer,
        // A program that requests the status also gets JSON if there is no daemon.
        Err(error @ ClientError::NotRunning(_)) if connection.json && *request == Request::Status => {
            let status = NotRunning { running: false, reason: error.to_string() };
            print(out, &to_line(&status)).map_err(ClientError::Write)?;
            return Err(error);
        }
        Err(ClientError::NotRunning(path)) if matches!(request, Request::Unblock { .. }) => {
            return Err(ClientError::BansStay(path));
        }
        Err(ClientError::NotPermitted(path)) if request.changes() => return Err(ClientError::NotRoot(path)),
        Err(error) => return Err(error),
    };
    let text = if connection.json { to_line(&answer) } else { answer.to_string() };
    print(out, &text).map_err(ClientError::Write)
}

/// Writes events until the daemon ends or standard output is closed.
fn events(connection: &ConnectionOptions, out: &mut impl Write) -> Result<(), ClientError> {
    for event in Client::connect(&connection.socket)?.subscribe()? {
        let event = event?;
        match writeln!(out, "{}", event.to_json()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            written => written.map_err(ClientError::Write)?,
        }
    }
    Ok(())
}
