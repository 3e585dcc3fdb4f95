//! The protocol between the daemon and the command helper: one datagram per message. A request has no field for a
//! program, an argument or a variable; it selects one of the two configured commands and names the ban. A message
//! that deviates in any bit from what the other side writes is rejected.

use super::process::{Outcome, Ran};
use crate::enforce::BanContext;
use crate::enforce::codec::{Rest, place, put_case, put_span, put_text};

/// The longest request in bytes, and a little more, so that what is too long is seen to be.
pub(super) const LONGEST_REQUEST: usize = 128;

/// The longest answer in bytes: its texts, and room for the rest.
pub(super) const LONGEST_ANSWER: usize = 64 << 10;

/// The longest command line and output, and the longest reason, in bytes.
const LONGEST_TEXT: usize = 16 << 10;
const LONGEST_REASON: usize = 4 << 10;

/// The first byte of each, so that neither is taken for the other.
const REQUEST: u8 = 1;
const ANSWER: u8 = 2;

/// Which of the two commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::enforce) enum Which {
    /// The one for a ban that begins.
    Begin,
    /// The one for a ban that is over.
    End,
}

const WHICH: [Which; 2] = [Which::Begin, Which::End];

/// Run a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::enforce) struct Request {
    /// It stands in the answer.
    pub(in crate::enforce) number: u64,
    pub(in crate::enforce) which: Which,
    /// The ban, without [`BanContext::ban`], which no command hears of.
    pub(in crate::enforce) case: BanContext,
}

/// A command has ended, or was never started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::enforce) struct Answer {
    pub(in crate::enforce) number: u64,
    /// The command, its macros replaced, on one line.
    pub(in crate::enforce) command: String,
    pub(in crate::enforce) ran: Ran,
}

impl Request {
    /// `None` for a mode that has no word.
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
    /// Texts that are too long are cut.
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
        put_text(&mut bytes, reason, LONGEST_REASON);
        put_text(&mut bytes, &self.command, LONGEST_TEXT);
        put_text(&mut bytes, output, LONGEST_TEXT);
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        rest.byte().filter(|kind| *kind == ANSWER)?;
        let number = rest.number()?;
        let (kind, status) = (rest.byte()?, i32::from_be_bytes(rest.take()?));
        let took = rest.span()?;
        let reason = rest.text(LONGEST_REASON)?;
        let outcome = match (kind, status, reason.as_str()) {
            (0, status, "") => Outcome::Exited(status),
            (1, signal, "") => Outcome::Killed(signal),
            (2, 0, "") => Outcome::TimedOut,
            (3, 0, "") => Outcome::Stopped,
            (4, 0, _) => Outcome::NotStarted(reason),
            (5, 0, "") => Outcome::Unknown,
            _ => return None,
        };
        let (command, output) = (rest.text(LONGEST_TEXT)?, rest.text(LONGEST_TEXT)?);
        rest.0.is_empty().then_some(Self { number, command, ran: Ran { outcome, output, took } })
    }
}

/// Any bytes as a message to either side. What is one is written as it was.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) {
    if let Some(request) = Request::read(bytes) {
        assert_eq!(request.to_bytes().as_deref(), Some(bytes));
        assert!(bytes.len() <= LONGEST_REQUEST && Answer::read(bytes).is_none());
    }
    if let Some(answer) = Answer::read(bytes) {
        assert_eq!(answer.to_bytes(), bytes);
        assert!(bytes.len() <= LONGEST_ANSWER);
    }
}

#[cfg(test)]
mod tests;
