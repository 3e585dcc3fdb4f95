//! Defines the protocol between the daemon and the command helper: one datagram per message. A request has no field for
//! a program, an argument or a variable; it selects one of the two configured commands and names the ban. A message
//! that deviates in any bit from the writer's output is rejected.

use std::io;
use std::os::fd::AsFd;

use rustix::net::SendFlags;
use serde::{Deserialize, Serialize};

use super::process::Ran;
use crate::enforce::BanContext;
use crate::enforce::helper_socket::{send_message, serialize_plain};

/// Maximum length of a request in bytes, plus some room to detect longer ones.
pub(super) const MAX_REQUEST_LEN: usize = 1 << 10;

/// Maximum length of an answer in bytes: three texts, each with an escape character per byte, and some room.
pub(super) const MAX_ANSWER_LEN: usize = 128 << 10;

/// One of the two commands of `block.run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::enforce) enum ConfiguredCommand {
    /// `block.run.command`, which runs when a ban begins.
    #[serde(rename = "begin")]
    Ban,
    /// `block.run.expire_command`, which runs when a ban ends.
    #[serde(rename = "end")]
    Expiry,
}

/// Requests a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::enforce) struct CommandRequest {
    /// Repeated in the answer.
    pub(in crate::enforce) number: u64,
    pub(in crate::enforce) which: ConfiguredCommand,
    #[serde(rename = "case")]
    pub(in crate::enforce) context: BanContext,
}

/// The result of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::enforce) struct CommandAnswer {
    pub(in crate::enforce) number: u64,
    /// The command with expanded macros, on one line.
    #[serde(serialize_with = "serialize_plain")]
    pub(in crate::enforce) command: String,
    pub(in crate::enforce) ran: Ran,
}

/// Sends the result of request `number`.
pub(super) fn answer(socket: impl AsFd, number: u64, command: String, ran: Ran) -> io::Result<()> {
    send_message(socket, &CommandAnswer { number, command, ran }, SendFlags::empty())
}

/// Reads any bytes as a message to either side; no message is valid for both.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    use crate::enforce::helper_socket::{MAX_TEXT_LEN, decode};

    let (request, answer) = (decode::<CommandRequest>(bytes), decode::<CommandAnswer>(bytes));
    assert!(request.is_none_or(|_| bytes.len() <= MAX_REQUEST_LEN && answer.is_none()));
    if let Some(CommandAnswer { command, ran, .. }) = answer {
        assert!(bytes.len() <= MAX_ANSWER_LEN && command.len().max(ran.output.len()) <= MAX_TEXT_LEN);
        assert!(!command.chars().chain(ran.output.chars()).any(crate::types::printable::is_hidden));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::process::ExitOutcome;
    use super::*;
    use crate::config::Mode;
    use crate::enforce::helper_socket::{MAX_TEXT_LEN, decode, encode, is};
    use crate::engine::Class;
    use crate::types::{BanTarget, Expiry};

    fn requests() -> Vec<CommandRequest> {
        let targets = ["192.0.2.7/32", "2001:db8::/64", "fe80::7/128", "203.0.113.0/24", "2001:db8::/48"];
        let mut requests = Vec::new();
        for (number, target) in targets.into_iter().enumerate() {
            let target = BanTarget::exactly(target.parse().unwrap()).unwrap();
            let context = BanContext { target, ..BanContext::example(target.element()) };
            let number = u64::try_from(number).unwrap();
            requests.push(CommandRequest { number, which: ConfiguredCommand::Ban, context });
            let by_hand = BanContext::by_hand(target, Expiry::Never, context.since);
            requests.push(CommandRequest {
                number: u64::MAX - number,
                which: ConfiguredCommand::Expiry,
                context: by_hand,
            });
        }
        let modes = [None, Some(Mode::Connect), Some(Mode::Stealth), Some(Mode::Advanced), Some(Mode::Off)];
        for (class, mode) in Class::ALL.iter().copied().zip(modes.into_iter().cycle()) {
            let context = BanContext { class: Some(class), mode, ..BanContext::example([192, 0, 2, 7].into()) };
            requests.push(CommandRequest { number: 7, which: ConfiguredCommand::Ban, context });
        }
        requests
    }

    fn answers() -> Vec<CommandAnswer> {
        let outcomes = [
            ExitOutcome::Exited(0),
            ExitOutcome::Exited(-1),
            ExitOutcome::Killed(9),
            ExitOutcome::TimedOut,
            ExitOutcome::Stopped,
            ExitOutcome::NotStarted("No such file or directory (os error 2)".to_owned()),
            ExitOutcome::Unknown,
        ];
        let ran = |outcome| Ran { outcome, output: "é\\n".to_owned(), took: Duration::from_millis(1_234) };
        outcomes
            .map(|outcome| CommandAnswer { number: 3, command: "/bin/true 192.0.2.7".to_owned(), ran: ran(outcome) })
            .into()
    }

    fn messages() -> Vec<Vec<u8>> {
        let requests = requests().into_iter().map(|request| encode(&request).unwrap());
        requests.chain(answers().iter().map(|answer| encode(answer).unwrap())).collect()
    }

    #[test]
    fn message_reads_back_unchanged() {
        for request in requests() {
            let bytes = encode(&request).unwrap();
            assert_eq!(decode(&bytes), Some(request));
            assert!(bytes.len() < MAX_REQUEST_LEN, "{}", bytes.len());
            fuzz(&bytes);
        }
        for answer in answers() {
            let bytes = encode(&answer).unwrap();
            assert_eq!(decode(&bytes), Some(answer));
            fuzz(&bytes);
        }
    }

    #[test]
    fn fuzz_corpus_has_real_messages() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/helpers");
        for (name, requests) in [("request_", true), ("answer_", false)] {
            for number in 0..3 {
                let bytes = std::fs::read(directory.join(format!("{name}{number}"))).unwrap();
                assert_eq!((is::<CommandRequest>(&bytes), is::<CommandAnswer>(&bytes)), (requests, !requests));
            }
        }
    }

    #[test]
    fn truncated_or_padded_message_is_rejected() {
        for mut bytes in messages() {
            for end in 0..bytes.len() {
                assert!(!is::<CommandRequest>(&bytes[..end]) && !is::<CommandAnswer>(&bytes[..end]), "{end}");
            }
            bytes.push(0);
            assert!(!is::<CommandRequest>(&bytes) && !is::<CommandAnswer>(&bytes));
        }
    }

    #[test]
    fn request_cannot_name_a_program() {
        let whole = encode(&requests()[0]).unwrap();
        for name in [&b"/bin/sh"[..], b"\0/bin/sh\0-c\0id", b"/", b" ", b"\n"] {
            assert!(
                !is::<CommandRequest>(&[&whole, name].concat())
                    && !is::<CommandRequest>(&[name, &whole].concat())
                    && !is::<CommandRequest>(name)
            );
        }
        let text = String::from_utf8(whole).unwrap();
        for (part, other) in [
            (r#""which":"begin""#, r#""which":"/bin/sh""#),
            (r#""which":"begin""#, r#""which":"begin","program":"/bin/sh""#),
            (r#""port":23"#, r#""port":23,"program":"/bin/sh""#),
            (r#""mode":"advanced""#, r#""mode":"hand""#),
            (":", ": "),
        ] {
            assert!(text.contains(part) && !is::<CommandRequest>(text.replacen(part, other, 1).as_bytes()), "{other}");
        }
    }

    #[test]
    fn unknown_target_is_refused() {
        let whole = String::from_utf8(encode(&requests()[0]).unwrap()).unwrap();
        let target = r#""target":"192.0.2.7""#;
        assert!(whole.contains(target));
        for length in 0..=u8::MAX {
            let other = format!(r#""target":"192.0.2.7/{length}""#);
            assert!(!is::<CommandRequest>(whole.replace(target, &other).as_bytes()), "{length}");
        }
    }

    #[test]
    fn texts_are_cut_and_escaped() {
        let ran = Ran {
            outcome: ExitOutcome::NotStarted("\u{1b}[2J\n".repeat(10_000)),
            output: "é".repeat(100_000),
            took: Duration::MAX,
        };
        let bytes = encode(&CommandAnswer { number: 1, command: "\"".repeat(1 << 20), ran }).unwrap();
        assert!(bytes.len() <= MAX_ANSWER_LEN);
        let read: CommandAnswer = decode(&bytes).unwrap();
        assert_eq!((read.command.len(), read.ran.output.len()), (MAX_TEXT_LEN, MAX_TEXT_LEN));
        assert!(matches!(read.ran.outcome, ExitOutcome::NotStarted(reason) if reason.starts_with("?[2J??[2J?")));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_cause_no_panic(bytes in vec(any::<u8>(), 0..200)) {
            fuzz(&bytes);
        }

        #[test]
        fn changed_message_is_another_or_none(
            which in any::<prop::sample::Index>(),
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut bytes = which.get(&messages()).clone();
            for (at, byte) in changes {
                *at.get_mut(&mut bytes) = byte;
            }
            fuzz(&bytes);
        }
    }
}
