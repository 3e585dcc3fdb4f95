//! Implements the control socket, on which a running daemon answers with one JSON object per line, and the commands
//! that use it. Does not affect verdicts on packets.

pub mod address_info;
mod answer;
pub mod ban_info;
pub mod client;
pub mod commands;
pub mod fleet_info;
pub mod fleet_server;
mod format;
pub mod list;
mod listening_socket;
pub mod live_view;
mod notation;
pub mod protocol;
pub mod scoped_network;
pub mod server;
mod socket_file;
pub mod status;

use std::io::{self, Write};

pub(crate) use format::line;

/// Default path of the control socket.
pub const DEFAULT_SOCKET: &str = "/run/portsentry/portsentry.sock";

/// Writes `text` to standard output or its replacement. A reader that closes the pipe (`| head`) is not an error.
///
/// # Errors
/// Writing fails for another reason.
pub fn print(out: &mut impl Write, text: &str) -> io::Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}
