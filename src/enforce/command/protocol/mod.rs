//! The protocol between the daemon and the command helper: one datagram per message. A request has no field for a
//! program, an argument or a variable; it selects one of the two configured commands and names the ban. A message
//! that deviates in any bit from what the other side writes is rejected.

use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

use ipnet::IpNet;

use super::process::{Outcome, Ran};
use crate::enforce::BanContext;
use crate::engine::Class;
use crate::types::printable::{is_hidden, masked_to};
use crate::types::{BanTarget, Expiry, Protocol};

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

/// What stands for `$MODE$`: the classic words, and a ban by hand.
const MODES: [&str; 7] = ["tcp", "udp", "stcp", "sudp", "atcp", "audp", "hand"];

const PROTOCOLS: [Protocol; 4] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp];

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
        put_address(&mut bytes, case.subject.element());
        bytes.push(case.subject.prefix_len());
        put_address(&mut bytes, case.source);
        bytes.push(place(&PROTOCOLS, &case.protocol)?);
        bytes.extend(case.port.to_be_bytes());
        bytes.push(place(&MODES, &case.mode)?);
        bytes.push(match case.class {
            None => 0,
            Some(class) => place(&Class::ALL, &class)?.checked_add(1)?,
        });
        match case.expiry {
            Expiry::Never => bytes.push(0),
            Expiry::After(span) => {
                bytes.push(1);
                put_span(&mut bytes, span);
            }
        }
        put_span(&mut bytes, case.since.duration_since(UNIX_EPOCH).unwrap_or_default());
        Some(bytes)
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        rest.byte().filter(|kind| *kind == REQUEST)?;
        let number = rest.number()?;
        let which = rest.one_of(&WHICH)?;
        let network = IpNet::new(rest.address()?, rest.byte()?).ok()?;
        let case = BanContext {
            subject: BanTarget::exactly(network)?,
            source: rest.address()?,
            protocol: rest.one_of(&PROTOCOLS)?,
            port: u16::from_be_bytes(rest.take()?),
            mode: rest.one_of(&MODES)?,
            class: match rest.byte()? {
                0 => None,
                other => Some(*Class::ALL.get(usize::from(other) - 1)?),
            },
            expiry: match rest.byte()? {
                0 => Expiry::Never,
                1 => Expiry::After(rest.span()?),
                _ => return None,
            },
            since: UNIX_EPOCH.checked_add(rest.span()?)?,
            ban: None,
        };
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

fn place<T: PartialEq>(all: &[T], one: &T) -> Option<u8> {
    u8::try_from(all.iter().position(|known| known == one)?).ok()
}

fn put_address(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            bytes.push(4);
            bytes.extend(v4.octets());
        }
        IpAddr::V6(v6) => {
            bytes.push(6);
            bytes.extend(v6.octets());
        }
    }
}

fn put_span(bytes: &mut Vec<u8>, span: Duration) {
    bytes.extend(span.as_secs().to_be_bytes());
    bytes.extend(span.subsec_nanos().to_be_bytes());
}

/// Whatever drives a terminal is replaced; a reason may quote a name that an attacker chose.
fn put_text(bytes: &mut Vec<u8>, text: &str, longest: usize) {
    let plain = masked_to(text, '?', longest);
    bytes.extend(u32::try_from(plain.len()).unwrap_or_default().to_be_bytes());
    bytes.extend(plain.as_bytes());
}

/// What is not read yet.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take().map(|[byte]| byte)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        all.get(usize::from(self.byte()?)).copied()
    }

    fn address(&mut self) -> Option<IpAddr> {
        match self.byte()? {
            4 => self.take::<4>().map(IpAddr::from),
            6 => self.take::<16>().map(IpAddr::from),
            _ => None,
        }
    }

    fn span(&mut self) -> Option<Duration> {
        let (seconds, nanos) = (self.number()?, u32::from_be_bytes(self.take()?));
        (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos))
    }

    fn text(&mut self, longest: usize) -> Option<String> {
        let length = usize::try_from(u32::from_be_bytes(self.take()?)).ok().filter(|length| *length <= longest)?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        let text = std::str::from_utf8(text).ok()?;
        (!text.chars().any(is_hidden)).then(|| text.to_owned())
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
