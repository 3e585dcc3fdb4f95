//! Implements the control socket, on which a running daemon answers with one JSON object per line, and the commands
//! that use it. Does not affect verdicts on packets.

pub mod address_info;
mod answer;
pub mod ban_info;
pub mod client;
pub mod commands;
pub mod fleet_info;
pub mod fleet_protocol;
pub mod fleet_server;
mod format;
pub mod list;
mod listening_socket;
pub mod live_view;
pub mod options;
pub mod protocol;
pub mod scoped_network;
pub mod server;
pub mod service_port;
mod socket_file;
pub mod status;

/// Default path of the control socket.
pub const DEFAULT_SOCKET: &str = "/run/portsentry/portsentry.sock";
