//! Runs the commands that talk to the running daemon: sends each as a request, and prints the answer as text or as one
//! JSON object.

use std::io::{self, Write};

use serde_json::json;

use super::client::{Client, ClientError};
use super::options::{Connection, ControlCommand};
use super::protocol::Request;

/// Sends the request and writes the answer.
///
/// # Errors
/// The daemon does not run, or did not carry out the request.
pub fn run(command: &ControlCommand, out: &mut impl Write) -> Result<(), ClientError> {
    let (request, connection) = match command {
        ControlCommand::Status(connection) => (Request::Status, connection),
        ControlCommand::Block(options) => {
            let (target, expire, reason) = (options.target.to_string(), options.expire.clone(), options.reason.clone());
            (Request::Block { target, expire, reason, force: options.force }, &options.connection)
        }
        ControlCommand::Unblock(options) => {
            (Request::Unblock { target: options.target.clone(), all: options.all }, &options.connection)
        }
        ControlCommand::Allow(options) => {
            let span = options.span.map(|span| humantime::format_duration(span).to_string());
            (Request::Allow { target: options.target.to_string(), span, force: options.force }, &options.connection)
        }
        ControlCommand::Disallow(options) => {
            (Request::Disallow { target: options.target.to_string() }, &options.connection)
        }
        ControlCommand::Allowed(connection) => (Request::Allowed, connection),
        ControlCommand::Explain(options) => {
            (Request::Explain { address: options.address.to_string() }, &options.connection)
        }
        ControlCommand::ForgetService(options) => (Request::ForgetService { port: options.port }, &options.connection),
        ControlCommand::Trial(options) => {
            let span = options.span.map(|span| humantime::format_duration(span).to_string());
            (Request::Trial { span, end: options.end }, &options.connection)
        }
        ControlCommand::Confirm(connection) => (Request::Confirm, connection),
        ControlCommand::Reload(connection) => (Request::Reload, connection),
        ControlCommand::Events(connection) => return events(connection, out),
    };
    let answer = match Client::connect(&connection.socket).and_then(|mut client| client.ask(&request)) {
        Ok(answer) => answer,
        // A program that requests the status also gets JSON if there is no daemon.
        Err(error @ ClientError::NotRunning(_)) if connection.json && request == Request::Status => {
            write(out, &format!("{}\n", json!({"running": false, "reason": error.to_string()})))?;
            return Err(error);
        }
        Err(ClientError::NotRunning(path)) if matches!(request, Request::Unblock { .. }) => {
            return Err(ClientError::BansStay(path));
        }
        Err(ClientError::NotPermitted(path)) if request.changes() => return Err(ClientError::NotRoot(path)),
        Err(error) => return Err(error),
    };
    let text =
        if connection.json { serde_json::to_string(&answer).unwrap_or_default() + "\n" } else { answer.to_string() };
    write(out, &text)
}

/// Writes events until the daemon ends or standard output is closed.
fn events(connection: &Connection, out: &mut impl Write) -> Result<(), ClientError> {
    for event in Client::connect(&connection.socket)?.subscribe()? {
        let event = event?;
        match writeln!(out, "{}", event.to_json()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            written => written.map_err(ClientError::Write)?,
        }
    }
    Ok(())
}

/// A reader that closes the pipe (`| head`) is not an error.
fn write(out: &mut impl Write, text: &str) -> Result<(), ClientError> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ClientError::Write(error)),
        _ => Ok(()),
    }
}
