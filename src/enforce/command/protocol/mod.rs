//! Defines the protocol between the daemon and the command helper: one datagram per message. A request has no field for
//! a program, an argument or a variable; it selects one of the two configured commands and names the ban. A message
//! that deviates in any bit from the writer's output is rejected.

use super::process::{Outcome, Ran};
use crate::enforce::BanContext;
use crate::enforce::codec::{Rest, place, put_case, put_span, put_text};

/// Maximum length of a request in bytes, plus some room to detect longer ones.
pub(super) const MAX_REQUEST_LEN: usize = 128;

/// Maximum length of an answer in bytes, including its texts.
pub(super) const MAX_ANSWER_LEN: usize = 64 << 10;

/// Maximum length of the command line and of the output in bytes; the reason has its own limit.
const MAX_TEXT_LEN: usize = 16 << 10;
const MAX_REASON_LEN: usize = 4 << 10;

/// First byte of each message type, which distinguishes requests from answers.
const REQUEST: u8 = 1;
const ANSWER: u8 = 2;

/// One of the two commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::enforce) enum Which {
    /// The command for the begin of a ban.
    Begin,
    /// The command for the end of a ban.
    End,
}

const WHICH: [Which; 2] = [Which::Begin, Which::End];

/// Requests a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::enforce) struct Request {
    /// Repeated in the answer.
    pub(in crate::enforce) number: u64,
    pub(in crate::enforce) which: Which,
    /// The ban without [`BanContext::ban`], which commands do not receive.
    pub(in crate::enforce) case: BanContext,
}

/// The result of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::enforce) struct Answer {
    pub(in crate::enforce) number: u64,
    /// The command with expanded macros, on one line.
    pub(in crate::enforce) command: String,
    pub(in crate::enforce) ran: Ran,
}

impl Request {
    /// `None` for an unknown mode.
    pub(super) fn to_bytes(self) -> Option<Vec<u8>> {
        let Self { number, which, case } = self;
        let mut bytes = vec![REQUEST];
        bytes.extend(number.to_be_bytes());
        bytes.push(place(&WHICH, &which)?);
        put_case(&mut bytes, &case)?;
        Some(bytes)
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        rest.byte().filter(|kind| *kind == REQUEST)?;
        let number = rest.number()?;
        let which = rest.one_of(&WHICH)?;
        let case = rest.case()?;
        rest.0.is_empty().then_some(Self { number, which, case })
    }
}

impl Answer {
    /// Overlong texts are truncated.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let Ran { outcome, output, took } = &self.ran;
        let mut bytes = vec![ANSWER];
        bytes.extend(self.number.to_be_bytes());
        let (kind, number, reason) = match outcome {
            Outcome::Exited(status) => (0, *status, ""),
            Outcome::Killed(signal) => (1, *signal, ""),
            Outcome::TimedOut => (2, 0, ""),
            Outcome::Stopped => (3, 0, ""),
            Outcome::NotStarted(reason) => (4, 0, reason.as_str()),
            Outcome::Unknown => (5, 0, ""),
        };
        bytes.push(kind);
        bytes.extend(number.to_be_bytes());
        put_span(&mut bytes, *took);
        put_text(&mut bytes, reason, MAX_REASON_LEN);
        put_text(&mut bytes, &self.command, MAX_TEXT_LEN);
        put_text(&mut bytes, output, MAX_TEXT_LEN);
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        rest.byte().filter(|kind| *kind == ANSWER)?;
        let number = rest.number()?;
        let (kind, status) = (rest.byte()?, i32::from_be_bytes(rest.array()?));
        let took = rest.span()?;
        let reason = rest.text(MAX_REASON_LEN)?;
        let outcome = match (kind, status, reason.as_str()) {
            (0, status, "") => Outcome::Exited(status),
            (1, signal, "") => Outcome::Killed(signal),
            (2, 0, "") => Outcome::TimedOut,
            (3, 0, "") => Outcome::Stopped,
            (4, 0, _) => Outcome::NotStarted(reason),
            (5, 0, "") => Outcome::Unknown,
            _ => return None,
        };
        let (command, output) = (rest.text(MAX_TEXT_LEN)?, rest.text(MAX_TEXT_LEN)?);
        rest.0.is_empty().then_some(Self { number, command, ran: Ran { outcome, output, took } })
    }
}

/// Reads any bytes as a message to either side; a valid one must be written back identically.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) {
    if let Some(request) = Request::read(bytes) {
        assert_eq!(request.to_bytes().as_deref(), Some(bytes));
        assert!(bytes.len() <= MAX_REQUEST_LEN && Answer::read(bytes).is_none());
    }
    if let Some(answer) = Answer::read(bytes) {
        assert_eq!(answer.to_bytes(), bytes);
        assert!(bytes.len() <= MAX_ANSWER_LEN);
    }
}

#[cfg(test)]
mod tests;
