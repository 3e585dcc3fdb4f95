//! Writes, in a separate process, the files that only root can write: the lines of hosts.deny, and `report.json_file`,
//! which it opens for the daemon. The daemon reads packets and is not root. The helper is root, and reads only messages
//! of the daemon. A message names bans but no files or texts; those come from the configuration.
//!
//! Daemon and helper each hold one end of a `SOCK_SEQPACKET` socket. An invalid message ends the helper.

mod client;
mod protocol;
mod server;

pub use client::FileHelper;
#[cfg(any(test, fuzzing))]
pub(crate) use protocol::fuzz;
pub use server::{Files, Open, serve};
