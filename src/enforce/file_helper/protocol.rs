//! Defines the messages between the daemon and the file helper.

use serde::{Deserialize, Serialize};

use crate::enforce::BanContext;
use crate::enforce::helper_socket::serialize_plain;
use crate::types::BanTarget;

/// Maximum length of a message in bytes, plus some room to detect longer ones.
pub(super) const MAX_MESSAGE_LEN: usize = 64 << 10;

/// Maximum number of bans and of targets in one message: at most 52 KiB.
pub(super) const MAX_IN_MESSAGE: usize = 128;

/// A request of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum FileRequest {
    /// A part of a change of hosts.deny. Only the `last` part is answered, when the file has been replaced.
    Edit { add: Vec<BanContext>, remove: Vec<BanTarget>, last: bool },
    /// Requests a descriptor for reading hosts.deny.
    Read,
    /// Requests a descriptor for appending to `report.json_file`.
    OpenLog,
}

/// The result of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FileReply {
    /// Success, with a descriptor if one was requested.
    Done,
    /// hosts.deny does not exist.
    Missing,
    /// Failure, with the reason.
    Failed(#[serde(serialize_with = "serialize_plain")] String),
}

/// Reads any bytes as a message to either side; no message is valid for both.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    use crate::enforce::helper_socket::decode;

    let (request, answer) = (decode::<FileRequest>(bytes), decode::<FileReply>(bytes));
    assert!(request.is_none() || answer.is_none());
    if let Some(FileReply::Failed(reason)) = answer {
        assert!(bytes.len() <= MAX_MESSAGE_LEN && !reason.chars().any(crate::types::printable::is_hidden));
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::enforce::helper_socket::{encode, is};
    use crate::types::Expiry;

    fn context(source: &str) -> BanContext {
        BanContext::example(source.parse().unwrap())
    }

    fn messages() -> Vec<Vec<u8>> {
        let add = vec![context("192.0.2.7"), context("2001:db8::7")];
        let remove = ["203.0.113.0/24", "2001:db8:1::/48", "192.0.2.9/32"];
        let remove = remove.map(|text| BanTarget::exactly(text.parse().unwrap()).unwrap()).to_vec();
        let edit = |last| FileRequest::Edit { add: add.clone(), remove: remove.clone(), last };
        let many = FileRequest::Edit { add: vec![add[1]; MAX_IN_MESSAGE], remove: Vec::new(), last: true };
        let requests = [edit(false), edit(true), many, FileRequest::Read, FileRequest::OpenLog];
        let answers = [FileReply::Done, FileReply::Missing, FileReply::Failed("no space left".to_owned())];
        requests.iter().map(|one| encode(one).unwrap()).chain(answers.iter().map(|one| encode(one).unwrap())).collect()
    }

    #[test]
    fn file_messages_read_back_unchanged() {
        assert_eq!(messages().len(), 8);
        for bytes in messages() {
            assert!(is::<FileRequest>(&bytes) != is::<FileReply>(&bytes));
            fuzz(&bytes);
        }
    }

    #[test]
    fn largest_edit_fits_message() {
        let address = "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap();
        let longest = BanContext {
            target: BanTarget::exactly("2001:db8:ffff:ffff::/64".parse().unwrap()).unwrap(),
            port: u16::MAX,
            class: Some(crate::engine::Class::Fragment),
            expiry: Expiry::After(Duration::from_secs(u64::MAX)),
            since: UNIX_EPOCH + Duration::new(u64::from(u32::MAX), 999_999_999),
            ..BanContext::example(address)
        };
        let (add, remove) = (vec![longest; MAX_IN_MESSAGE], vec![longest.target; MAX_IN_MESSAGE]);
        let bytes = encode(&FileRequest::Edit { add, remove, last: false }).unwrap();
        assert!(bytes.len() <= MAX_MESSAGE_LEN && is::<FileRequest>(&bytes), "{}", bytes.len());
    }

    #[test]
    fn truncated_or_extended_message_is_none() {
        for bytes in messages() {
            for end in (0..bytes.len()).filter(|end| *end < 600 || end % 97 == 0) {
                assert!(!is::<FileRequest>(&bytes[..end]) && !is::<FileReply>(&bytes[..end]), "{end}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(!is::<FileRequest>(&longer) && !is::<FileReply>(&longer));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in vec(any::<u8>(), 0..300), start in "|\\{\"edit\":|\\{\"failed\":\"") {
            fuzz(&[start.as_bytes(), &bytes[..]].concat());
        }
    }
}
