//! Tests the messages between the daemon and the command helper: encoding, limits, and damaged bytes.

use proptest::collection::vec;
use proptest::prelude::*;

use std::time::Duration;

use super::*;
use crate::enforce::codec::MODES;
use crate::engine::Class;
use crate::types::{BanTarget, Expiry};

fn requests() -> Vec<Request> {
    let targets = ["192.0.2.7/32", "2001:db8::/64", "fe80::7/128", "203.0.113.0/24", "2001:db8::/48"];
    let mut requests = Vec::new();
    for (number, target) in targets.into_iter().enumerate() {
        let target = BanTarget::exactly(target.parse().unwrap()).unwrap();
        let case = BanContext { target, ..BanContext::example(target.element()) };
        let number = u64::try_from(number).unwrap();
        requests.push(Request { number, which: Which::Begin, case });
        let by_hand = BanContext::by_hand(target, Expiry::Never, case.since);
        requests.push(Request { number: u64::MAX - number, which: Which::End, case: by_hand });
    }
    for (class, mode) in Class::ALL.into_iter().zip(MODES.into_iter().cycle()) {
        let case = BanContext { class: Some(class), mode, ..BanContext::example([192, 0, 2, 7].into()) };
        requests.push(Request { number: 7, which: Which::Begin, case });
    }
    requests
}

fn answers() -> Vec<Answer> {
    let outcomes = [
        Outcome::Exited(0),
        Outcome::Exited(-1),
        Outcome::Killed(9),
        Outcome::TimedOut,
        Outcome::Stopped,
        Outcome::NotStarted("No such file or directory (os error 2)".to_owned()),
        Outcome::Unknown,
    ];
    let ran = |outcome| Ran { outcome, output: "é\\n".to_owned(), took: Duration::from_millis(1_234) };
    outcomes.map(|outcome| Answer { number: 3, command: "/bin/true 192.0.2.7".to_owned(), ran: ran(outcome) }).into()
}

fn messages() -> Vec<Vec<u8>> {
    let answers = answers();
    requests().into_iter().filter_map(Request::to_bytes).chain(answers.iter().map(Answer::to_bytes)).collect()
}

#[test]
fn message_reads_back_unchanged() {
    for request in requests() {
        let bytes = request.to_bytes().unwrap();
        assert_eq!(Request::read(&bytes), Some(request));
        assert!(bytes.len() < MAX_REQUEST_LEN, "{}", bytes.len());
        fuzz(&bytes);
    }
    for answer in answers() {
        let bytes = answer.to_bytes();
        assert_eq!(Answer::read(&bytes), Some(answer));
        fuzz(&bytes);
    }
}

#[test]
fn fuzz_corpus_has_real_messages() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/spawner");
    for (name, is_request) in [("request_", true), ("answer_", false)] {
        for number in 0..3 {
            let bytes = std::fs::read(folder.join(format!("{name}{number}"))).unwrap();
            assert_eq!((Request::read(&bytes).is_some(), Answer::read(&bytes).is_some()), (is_request, !is_request));
        }
    }
}

#[test]
fn truncated_or_padded_message_is_rejected() {
    for mut bytes in messages() {
        for end in 0..bytes.len() {
            assert!(Request::read(&bytes[..end]).is_none() && Answer::read(&bytes[..end]).is_none(), "{end}");
        }
        bytes.push(0);
        assert!(Request::read(&bytes).is_none() && Answer::read(&bytes).is_none());
    }
}

#[test]
fn request_cannot_name_a_program() {
    let whole = requests()[0].to_bytes().unwrap();
    for name in [&b"/bin/sh"[..], b"\0/bin/sh\0-c\0id", b"/"] {
        assert!(Request::read(&[&whole, name].concat()).is_none());
        assert!(Request::read(&[name, &whole].concat()).is_none());
        assert!(Request::read(name).is_none());
    }
    // The protocol has only two commands.
    for which in 2..=u8::MAX {
        let mut bytes = whole.clone();
        bytes[9] = which;
        assert!(Request::read(&bytes).is_none(), "{which}");
    }
}

#[test]
fn unknown_target_is_refused() {
    let whole = requests()[0].to_bytes().unwrap();
    assert_eq!((whole[10], whole[15]), (4, 32));
    for length in (0..8).chain(33..=u8::MAX) {
        let mut bytes = whole.clone();
        bytes[15] = length;
        assert!(Request::read(&bytes).is_none(), "{length}");
    }
}

#[test]
fn texts_are_cut_and_escaped() {
    let ran = Ran {
        outcome: Outcome::NotStarted("\u{1b}[2J\n".repeat(10_000)),
        output: "é".repeat(100_000),
        took: Duration::MAX,
    };
    let bytes = Answer { number: 1, command: "x".repeat(1 << 20), ran }.to_bytes();
    assert!(bytes.len() <= MAX_ANSWER_LEN);
    let read = Answer::read(&bytes).unwrap();
    assert_eq!((read.command.len(), read.ran.output.len()), (MAX_TEXT_LEN, MAX_TEXT_LEN));
    assert!(matches!(read.ran.outcome, Outcome::NotStarted(reason) if reason.starts_with("?[2J??[2J?")));
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
