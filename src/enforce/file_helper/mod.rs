//! The files that only root may write, in a process of their own: lines of hosts.deny, and the opening of
//! `report.json_file`. The daemon reads packets and is not root; this process is root, reads nothing but messages of the
//! daemon, and names no file and no text that comes from it: a message says which ban, the configuration says the rest.
//!
//! Both hold an end of a `SOCK_SEQPACKET` socket. Bytes that are no message end the helper.

mod client;
mod protocol;
mod server;

pub use client::FileHelper;
#[cfg(any(test, fuzzing))]
pub(crate) use protocol::fuzz;
pub use server::{Files, Open, Refused, serve};
