//! The operator's side: a socket on which a running daemon answers one JSON object a line, and the commands that ask it.
//! Nothing here decides anything about a packet.

pub mod client;
pub mod commands;
pub mod list;
pub mod protocol;
pub mod server;
pub mod watch;
