//! Encodes and decodes the messages between the daemon and the file helper, one datagram each.

use crate::enforce::BanContext;
use crate::enforce::codec::{Rest, put_case, put_target, put_text};
use crate::types::BanTarget;

/// Maximum length of a message in bytes, plus some room to detect longer ones.
pub(super) const MAX_MESSAGE_LEN: usize = 64 << 10;

/// Maximum length of a reason in bytes.
const MAX_REASON_LEN: usize = 4 << 10;

/// Maximum number of bans and of targets in one message: at most 37 KiB.
pub(super) const MAX_IN_MESSAGE: usize = 512;

/// First byte of each message type, which distinguishes requests from answers.
const REQUEST: u8 = 3;
const ANSWER: u8 = 4;

/// A request of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// A part of a change of hosts.deny. Only the `last` part is answered, when the file has been replaced.
    Edit { add: Vec<BanContext>, remove: Vec<BanTarget>, last: bool },
    /// Requests a descriptor for reading hosts.deny.
    Read,
    /// Requests a descriptor for appending to `report.json_file`.
    OpenLog,
}

/// The result of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Success, with a descriptor if one was requested.
    Done,
    /// hosts.deny does not exist.
    Missing,
    /// Failure, with the reason.
    Failed(String),
}

impl Request {
    /// `None` for an unknown mode, or for more than [`MAX_IN_MESSAGE`] bans or targets.
    pub(super) fn to_bytes(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![REQUEST];
        match self {
            Self::Edit { add, remove, last } => {
                bytes.extend([0, u8::from(*last)]);
                bytes.extend(count(add.len())?);
                add.iter().try_for_each(|case| put_case(&mut bytes, case))?;
                bytes.extend(count(remove.len())?);
                remove.iter().for_each(|target| put_target(&mut bytes, *target));
            }
            Self::Read => bytes.push(1),
            Self::OpenLog => bytes.push(2),
        }
        Some(bytes)
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        rest.byte().filter(|kind| *kind == REQUEST)?;
        let request = match rest.byte()? {
            0 => {
                let last = rest.one_of(&[false, true])?;
                let add = (0..length(&mut rest)?).map(|_| rest.case()).collect::<Option<_>>()?;
                let remove = (0..length(&mut rest)?).map(|_| rest.target()).collect::<Option<_>>()?;
                Self::Edit { add, remove, last }
            }
            1 => Self::Read,
            2 => Self::OpenLog,
            _ => return None,
        };
        rest.0.is_empty().then_some(request)
    }
}

impl Answer {
    /// An overlong reason is truncated.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let (kind, reason) = match self {
            Self::Done => (0, ""),
            Self::Missing => (1, ""),
            Self::Failed(reason) => (2, reason.as_str()),
        };
        let mut bytes = vec![ANSWER, kind];
        put_text(&mut bytes, reason, MAX_REASON_LEN);
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        rest.byte().filter(|kind| *kind == ANSWER)?;
        let (kind, reason) = (rest.byte()?, rest.text(MAX_REASON_LEN)?);
        let answer = match (kind, reason.as_str()) {
            (0, "") => Self::Done,
            (1, "") => Self::Missing,
            (2, _) => Self::Failed(reason),
            _ => return None,
        };
        rest.0.is_empty().then_some(answer)
    }
}

fn count(length: usize) -> Option<[u8; 2]> {
    u16::try_from(length).ok().filter(|_| length <= MAX_IN_MESSAGE).map(u16::to_be_bytes)
}

fn length(rest: &mut Rest<'_>) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(rest.array()?))).filter(|length| *length <= MAX_IN_MESSAGE)
}

/// Reads any bytes as a message to either side; a valid one must be written back identically.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Some(request) = Request::read(bytes) {
        assert_eq!(request.to_bytes().as_deref(), Some(bytes));
        assert!(bytes.len() <= MAX_MESSAGE_LEN && Answer::read(bytes).is_none());
    }
    if let Some(answer) = Answer::read(bytes) {
        assert_eq!(answer.to_bytes(), bytes);
        assert!(bytes.len() <= MAX_MESSAGE_LEN);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn case(source: &str) -> BanContext {
        BanContext::example(source.parse().unwrap())
    }

    fn messages() -> Vec<Vec<u8>> {
        let add = vec![case("192.0.2.7"), case("2001:db8::7")];
        let remove = ["203.0.113.0/24", "2001:db8:1::/48", "192.0.2.9/32"];
        let remove = remove.map(|text| BanTarget::exactly(text.parse().unwrap()).unwrap()).to_vec();
        let edit = |last| Request::Edit { add: add.clone(), remove: remove.clone(), last };
        let many = Request::Edit { add: vec![add[1]; MAX_IN_MESSAGE], remove: Vec::new(), last: true };
        let requests = [edit(false), edit(true), many, Request::Read, Request::OpenLog];
        let answers = [Answer::Done, Answer::Missing, Answer::Failed("no space left".to_owned())];
        requests.iter().filter_map(Request::to_bytes).chain(answers.iter().map(Answer::to_bytes)).collect()
    }

    #[test]
    fn file_messages_read_back_unchanged() {
        assert_eq!(messages().len(), 8);
        for bytes in messages() {
            assert!(Request::read(&bytes).is_some() != Answer::read(&bytes).is_some());
            fuzz(&bytes);
        }
    }

    #[test]
    fn truncated_or_extended_message_is_none() {
        for bytes in messages() {
            for end in (0..bytes.len()).filter(|end| *end < 600 || end % 97 == 0) {
                assert!(Request::read(&bytes[..end]).is_none() && Answer::read(&bytes[..end]).is_none(), "{end}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(Request::read(&longer).is_none() && Answer::read(&longer).is_none());
        }
        let add = vec![case("192.0.2.7"); MAX_IN_MESSAGE + 1];
        assert!(Request::Edit { add, remove: Vec::new(), last: true }.to_bytes().is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in vec(any::<u8>(), 0..300), kind in 3_u8..5, of in 0_u8..4) {
            fuzz(&[&[kind, of], &bytes[..]].concat());
        }
    }
}
