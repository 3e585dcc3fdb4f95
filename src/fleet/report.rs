//! Defines the values on the server: reports, lifts and notices, as JSON with a version. Other hosts write them, so
//! they are parsed strictly and with a length limit.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::protocol::MAX_REMAINING;
use crate::engine::{Class, Grade};
use crate::types::BanTarget;

/// Maximum length of a value or notice, in bytes.
pub const MAX_VALUE_LEN: usize = 256;

const VERSION: u32 = 1;

/// A host's report about a source: the value of a report's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BanReport {
    /// Class of the last probe.
    pub class: Class,
    /// Number of distinct closed ports that count towards the grade.
    pub ports: u32,
    pub grade: Grade,
    /// Sequence number of the author's notice about this report.
    pub sequence: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReportWire<'a> {
    v: u32,
    #[serde(borrow)]
    class: Cow<'a, str>,
    ports: u32,
    #[serde(borrow)]
    grade: Cow<'a, str>,
    seq: u64,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

impl BanReport {
    pub fn to_json(&self) -> String {
        let (class, grade) = (self.class.key().into(), self.grade.key().into());
        json(&ReportWire { v: VERSION, class, ports: self.ports, grade, seq: self.sequence })
    }

    /// Parses the value of a report's key.
    ///
    /// # Errors
    /// The reason as a sentence: the value is too long, has another version, or differs in form from the output of
    /// [`BanReport::to_json`].
    pub fn parse(value: &[u8]) -> Result<Self, &'static str> {
        let ReportWire { class, ports, grade, seq, .. } = parse(value)?;
        let class = class.parse().map_err(|_| "its class is unknown")?;
        let grade = grade.parse().map_err(|_| "its evidence grade is unknown")?;
        Ok(Self { class, ports, grade, sequence: seq })
    }
}

/// Announces that a key has changed. Only the value of the key is authoritative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetNotice {
    /// One more than in the author's previous notice; a gap means that a notice was missed.
    pub sequence: u64,
    pub target: BanTarget,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoticeWire<'a> {
    v: u32,
    seq: u64,
    #[serde(borrow)]
    target: Cow<'a, str>,
}

impl FleetNotice {
    pub fn to_json(&self) -> String {
        json(&NoticeWire { v: VERSION, seq: self.sequence, target: self.target.to_string().into() })
    }

    /// Parses the text of a notice.
    ///
    /// # Errors
    /// As for [`BanReport::parse`].
    pub fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let NoticeWire { seq, target, .. } = parse(text)?;
        match target.parse() {
            Ok(BanTarget::Prefix(_)) | Err(_) => Err("its target is not an address or an IPv6 /64"),
            Ok(target) => Ok(Self { sequence: seq, target }),
        }
    }
}

/// The value of a lift's key.
pub fn lift_json() -> String {
    json(&LiftWire { v: VERSION })
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LiftWire {
    v: u32,
}

/// Checks the value of a lift's key.
///
/// # Errors
/// As for [`BanReport::parse`].
pub fn parse_lift(value: &[u8]) -> Result<(), &'static str> {
    parse::<LiftWire>(value).map(drop)
}

fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, &'static str> {
    if text.len() > MAX_VALUE_LEN {
        return Err("it is too long");
    }
    let malformed = |_| "it is not JSON of the expected form";
    let Version { v } = serde_json::from_slice(text).map_err(malformed)?;
    if v != VERSION {
        return Err("it is of an incompatible version");
    }
    serde_json::from_slice(text).map_err(malformed)
}

fn json(value: &impl Serialize) -> String {
    // Cannot fail: the value consists of numbers and strings.
    serde_json::to_string(value).unwrap_or_default()
}

/// Converts a PTTL reply in milliseconds to the remaining time of a key.
///
/// # Errors
/// The key has expired, never expires, or expires later than [`MAX_REMAINING`] allows.
pub fn remaining(pttl: i64) -> Result<Duration, &'static str> {
    match u64::try_from(pttl).map(Duration::from_millis) {
        Ok(remaining) if remaining <= MAX_REMAINING => Ok(remaining),
        Ok(_) => Err("it expires in more than four hours"),
        Err(_) if pttl == -1 => Err("it never expires"),
        Err(_) => Err("it has expired"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"v":1,"class":"connect","ports":7,"grade":"proven","seq":42}"#;

    #[test]
    fn report_reads_back_as_written() {
        let report = BanReport { class: Class::Connect, ports: 7, grade: Grade::Proven, sequence: 42 };
        assert_eq!(report.to_json(), TEXT);
        for class in Class::ALL.iter().copied() {
            for grade in Grade::ALL {
                let report = BanReport { class, ports: u32::MAX, grade, sequence: u64::MAX };
                assert_eq!(BanReport::parse(report.to_json().as_bytes()), Ok(report));
                assert!(report.to_json().len() <= MAX_VALUE_LEN);
            }
        }
        let notice = FleetNotice { sequence: 42, target: "2001:db8:1:2::/64".parse().unwrap() };
        assert_eq!(notice.to_json(), r#"{"v":1,"seq":42,"target":"2001:db8:1:2::/64"}"#);
        assert_eq!(FleetNotice::parse(notice.to_json().as_bytes()), Ok(notice));
        assert_eq!((lift_json().as_str(), parse_lift(lift_json().as_bytes())), (r#"{"v":1}"#, Ok(())));
    }

    #[test]
    fn malformed_report_is_refused_at_every_length() {
        for end in 0..TEXT.len() {
            assert!(BanReport::parse(&TEXT.as_bytes()[..end]).is_err(), "{}", &TEXT[..end]);
        }
        for (from, to) in [
            ("\"v\":1", "\"v\":2"),
            ("\"v\":1", "\"v\":1,\"more\":1"),
            ("\"v\":1", "\"v\":1,\"v\":1"),
            ("connect", "Connect"),
            ("proven", "certain"),
            (":7", ":-7"),
            (":7", ":4294967296"),
            (":7", ":7.0"),
            (":7", ":\"7\""),
            (":42", ":18446744073709551616"),
            ("}", "}{"),
            ("}", "}]"),
        ] {
            assert!(BanReport::parse(TEXT.replacen(from, to, 1).as_bytes()).is_err(), "{from} -> {to}");
        }
        let long = format!("{TEXT}{}", " ".repeat(MAX_VALUE_LEN));
        assert_eq!(BanReport::parse(long.as_bytes()), Err("it is too long"));
        assert!(FleetNotice::parse(br#"{"v":1,"seq":1,"target":"0.0.0.0/0"}"#).is_err());
        assert!(parse_lift(b"1").is_err());
    }

    #[test]
    fn key_without_bounded_end_is_refused() {
        assert_eq!(remaining(14_400_000), Ok(MAX_REMAINING));
        assert_eq!(remaining(0), Ok(Duration::ZERO));
        for pttl in [-1, -2, 14_400_001, i64::MAX, i64::MIN] {
            assert!(remaining(pttl).is_err(), "{pttl}");
        }
    }
}
