//! Runs the commands that talk to the running daemon: sends each as a request, and prints the answer as text or as one
//! JSON object.

use std::io::{self, Write};
use std::time::Duration;

use serde_json::json;

use super::client::{Client, ClientError};
use super::options::{Connection, ControlCommand};
use super::print;
use super::protocol::Request;

/// Sends the request and writes the answer.
///
/// # Errors
/// The daemon does not run, or did not carry out the request.
pub fn run(command: &ControlCommand, out: &mut impl Write) -> Result<(), ClientError> {
    let text = |span: &Option<Duration>| span.map(|span| humantime::format_duration(span).to_string());
    let (request, connection) = match command {
        ControlCommand::Status(connection) => (Request::Status, connection),
        ControlCommand::Block { target, expire, reason, force, connection } => {
            let (target, expire, reason) = (target.to_string(), expire.clone(), reason.clone());
            (Request::Block { target, expire, reason, force: *force }, connection)
        }
        ControlCommand::Unblock { target, all, connection } => {
            (Request::Unblock { target: target.clone(), all: *all }, connection)
        }
        ControlCommand::Allow { target, span, force, connection } => {
            (Request::Allow { target: target.to_string(), span: text(span), force: *force }, connection)
        }
        ControlCommand::Disallow { target, connection } => {
            (Request::Disallow { target: target.to_string() }, connection)
        }
        ControlCommand::Allowed(connection) => (Request::Allowed, connection),
        ControlCommand::Explain { address, connection } => {
            (Request::Explain { address: address.to_string() }, connection)
        }
        ControlCommand::ForgetService { port, connection } => (Request::ForgetService { port: *port }, connection),
        ControlCommand::Trial { span, end, connection } => (Request::Trial { span: text(span), end: *end }, connection),
        ControlCommand::Confirm(connection) => (Request::Confirm, connection),
        ControlCommand::Reload(connection) => (Request::Reload, connection),
        ControlCommand::Events(connection) => return events(connection, out),
    };
    let answer = match Client::connect(&connection.socket).and_then(|mut client| client.ask(&request)) {
        Ok(answer) => answer,
        // A program that requests the status also gets JSON if there is no daemon.
        Err(error @ ClientError::NotRunning(_)) if connection.json && request == Request::Status => {
            let reply = json!({"running": false, "reason": error.to_string()});
            print(out, &format!("{reply}\n")).map_err(ClientError::Write)?;
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
    print(out, &text).map_err(ClientError::Write)
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
