//! Defines the protocol between the daemon and the command helper: one datagram per message. A request has no field for
//! a program, an argument or a variable; it selects one of the two configured commands and names the ban. A message
//! that deviates in any bit from the writer's output is rejected.

use std::io;
use std::os::fd::AsFd;

use rustix::io::retry_on_intr;
use rustix::net::{SendFlags, send};
use serde::{Deserialize, Serialize};

use super::process::Ran;
use crate::enforce::BanContext;
use crate::enforce::helper_socket::{encode, plain};

/// Maximum length of a request in bytes, plus some room to detect longer ones.
pub(super) const MAX_REQUEST_LEN: usize = 1 << 10;

/// Maximum length of an answer in bytes: three texts, each with an escape character per byte, and some room.
pub(super) const MAX_ANSWER_LEN: usize = 128 << 10;

/// One of the two commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::enforce) enum Which {
    /// The command for the begin of a ban.
    Begin,
    /// The command for the end of a ban.
    End,
}

/// Requests a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::enforce) struct Request {
    /// Repeated in the answer.
    pub(in crate::enforce) number: u64,
    pub(in crate::enforce) which: Which,
    pub(in crate::enforce) case: BanContext,
}

/// The result of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::enforce) struct Answer {
    pub(in crate::enforce) number: u64,
    /// The command with expanded macros, on one line.
    #[serde(serialize_with = "plain")]
    pub(in crate::enforce) command: String,
    pub(in crate::enforce) ran: Ran,
}

/// Sends the result of request `number`.
pub(super) fn answer(socket: impl AsFd, number: u64, command: String, ran: Ran) -> io::Result<()> {
    let bytes = encode(&Answer { number, command, ran })?;
    Ok(retry_on_intr(|| send(&socket, &bytes, SendFlags::NOSIGNAL)).map(drop)?)
}

/// Reads any bytes as a message to either side; no message is valid for both.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) {
    use crate::enforce::helper_socket::{MAX_TEXT_LEN, decode};

    let (request, answer) = (decode::<Request>(bytes), decode::<Answer>(bytes));
    assert!(request.is_none_or(|_| bytes.len() <= MAX_REQUEST_LEN && answer.is_none()));
    if let Some(Answer { command, ran, .. }) = answer {
        assert!(bytes.len() <= MAX_ANSWER_LEN && command.len().max(ran.output.len()) <= MAX_TEXT_LEN);
        assert!(!command.chars().chain(ran.output.chars()).any(crate::types::printable::is_hidden));
    }
}

#[cfg(test)]
mod tests;
