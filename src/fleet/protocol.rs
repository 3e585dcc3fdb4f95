//! Defines the messages on the fleet socket, between the daemon and the fleet process: one JSON object per line, with
//! alternating requests and replies. Both sides use these types.
//!
//! This socket is separate from the control socket. The fleet process reads untrusted data from a server, so its
//! requests are limited: it submits and lifts reports, reports the state of its connection, and follows this host's own
//! bans. The daemon alone decides about a report.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::{Class, Grade};
pub use crate::types::LineMessage;
use crate::types::{BanTarget, nullable};

/// Maximum remaining time of a report, a lift, and a ban because of reports.
pub const MAX_REMAINING: Duration = Duration::from_secs(4 * 3_600);

/// Maximum length of a line in bytes, for both sides.
pub const MAX_FLEET_LINE_LEN: usize = 64 << 10;

/// Maximum number of reports per request: they and their outcomes fit into a line.
pub const MAX_REPORTS: usize = 128;

/// Maximum length in bytes of a class or reason that the daemon stores.
pub const MAX_TEXT_LEN: usize = 64;

/// Maximum number of authors in one [`FleetRequest::Link`].
pub const MAX_IGNORED: usize = 64;

/// A request of the fleet process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum FleetRequest {
    /// Reports of other hosts, at most [`MAX_REPORTS`].
    Reports {
        reports: Vec<FleetReport>,
        /// True if these are the last reports of a complete scan of the server.
        scan_ends: bool,
    },
    /// An operator of the fleet has lifted the ban of `target`.
    Lift { target: BanTarget },
    /// The state of the connection; sent when it changes, and as a heartbeat every [`LINK_INTERVAL_S`] seconds.
    Link {
        state: LinkState,
        /// Authors whose reports the fleet process ignores, the first [`MAX_IGNORED`].
        ignored: Vec<IgnoredAuthor>,
    },
    /// Requests this host's own bans: those in force, and then every change, one [`OwnBanEvent`] per line. No further
    /// requests follow on this connection.
    Watch {},
}

/// Heartbeat interval of the fleet process in seconds. After three intervals without a message the daemon treats the
/// process as dead.
pub const LINK_INTERVAL_S: u64 = 10;

/// A report of a ban by another host. Target and class are text that the daemon parses, so that an unknown value leads to
/// the refusal of this report and not of the whole request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetReport {
    /// The reporting host, as in the key on the server.
    pub author: String,
    /// An IPv4 address, or an IPv6 /64, as [`crate::types::BanTarget`] shows it.
    pub target: String,
    /// Remaining time in seconds: more than 0, at most four hours.
    pub remaining_s: u64,
    pub grade: Grade,
    /// Distinct ports of the evidence; for proven evidence those with a completed handshake.
    pub distinct_ports: u32,
    /// Class of the last probe, as in events.
    pub class: String,
    /// The author's sequence number of this report; later ones are higher.
    pub sequence: u64,
}

/// The connection to the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum LinkState {
    Connected,
    /// The error as a sentence.
    Away(String),
}

/// An author whose reports are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IgnoredAuthor {
    pub author: String,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "lowercase", deny_unknown_fields)]
pub enum FleetReply {
    /// One outcome for each report, in the order of the request.
    Reports { outcomes: Vec<ReportOutcome> },
    /// Whether a ban was lifted.
    Lifted { lifted: bool },
    /// The state was recorded.
    Noted,
    /// Events follow.
    Watching,
    /// The request was refused as a whole.
    Refused { reason: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase", deny_unknown_fields)]
pub enum ReportOutcome {
    /// The target is blocked because of this report and the existing ones.
    Accepted,
    /// The target would be blocked if this host were not in shadow mode.
    Shadowed,
    /// The report counts; reports of this many more authors are needed.
    Waiting { authors: u32 },
    /// The report does not count.
    Refused { reason: String },
}

/// A change of this host's own bans on evidence. Excludes bans by operators and bans because of reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase", deny_unknown_fields)]
pub enum OwnBanEvent {
    Ban {
        target: BanTarget,
        /// Remaining time in seconds; null: no end.
        #[serde(deserialize_with = "nullable")]
        remaining_s: Option<u64>,
        grade: Grade,
        /// Distinct ports of the evidence; for proven evidence those with a completed handshake.
        distinct_ports: u32,
        class: Class,
    },
    /// An operator of this host has lifted it, or the target has become protected or allowed.
    Lift { target: BanTarget },
    /// This many events were lost because they were not read; reconnect for the bans in force.
    Lost { events: u64 },
}

impl LineMessage for FleetRequest {
    const INVALID: (&str, &str) = ("refused: invalid request on the fleet socket", "");
}

impl LineMessage for FleetReply {
    const INVALID: (&str, &str) = ("cannot parse the daemon's answer", RESTART);
}

impl LineMessage for OwnBanEvent {
    const INVALID: (&str, &str) = ("cannot parse the daemon's event", RESTART);
}

const RESTART: &str = "; restart portsentry and portsentry-fleet after an upgrade";

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> FleetReport {
        FleetReport {
            author: "web-1".to_owned(),
            target: "192.0.2.7".to_owned(),
            remaining_s: 14_400,
            grade: Grade::Proven,
            distinct_ports: 5,
            class: "connect".to_owned(),
            sequence: u64::MAX,
        }
    }

    #[test]
    fn fleet_request_reads_back_as_written() {
        let one = r#"{"author":"web-1","target":"192.0.2.7","remaining_s":14400,"grade":"proven","distinct_ports":5,"class":"connect","sequence":18446744073709551615}"#;
        let ignored = vec![IgnoredAuthor { author: "web-2".to_owned(), reason: "keys without a TTL".to_owned() }];
        for (line, request) in [
            (
                format!(r#"{{"command":"reports","reports":[{one}],"scan_ends":true}}"#),
                FleetRequest::Reports { reports: vec![report()], scan_ends: true },
            ),
            (
                r#"{"command":"lift","target":"192.0.2.7"}"#.to_owned(),
                FleetRequest::Lift { target: "192.0.2.7".parse().unwrap() },
            ),
            (
                r#"{"command":"link","state":"connected","ignored":[{"author":"web-2","reason":"keys without a TTL"}]}"#
                    .to_owned(),
                FleetRequest::Link { state: LinkState::Connected, ignored },
            ),
            (
                r#"{"command":"link","state":{"away":"refused"},"ignored":[]}"#.to_owned(),
                FleetRequest::Link { state: LinkState::Away("refused".to_owned()), ignored: Vec::new() },
            ),
            (r#"{"command":"watch"}"#.to_owned(), FleetRequest::Watch {}),
        ] {
            assert_eq!(FleetRequest::parse(line.as_bytes()).as_ref(), Ok(&request));
            assert_eq!(request.to_line(), format!("{line}\n"));
        }
    }

    #[test]
    fn unknown_command_or_field_is_refused() {
        for line in [
            r#"{"command":"status"}"#,
            r#"{"command":"unblock","all":true}"#,
            r#"{"command":"watch","all":true}"#,
            r#"{"command":"lift"}"#,
            r#"{"command":"lift","target":"192.0.2.7","force":true}"#,
            r#"{"command":"reports","reports":[{"author":"a"}]}"#,
            r#"{"command":"reports","reports":[]}"#,
            r#"{"command":"link","state":"connected"}"#,
            "[]",
            "",
        ] {
            assert!(FleetRequest::parse(line.as_bytes()).is_err(), "{line}");
        }
        for (part, other) in [("\"proven\"", "\"certain\""), (":5,", ":-5,"), (":14400,", ":1e9,")] {
            let line = FleetRequest::Reports { reports: vec![report()], scan_ends: false }.to_line();
            assert!(FleetRequest::parse(line.replace(part, other).as_bytes()).is_err(), "{part}");
        }
    }

    #[test]
    fn reply_and_event_read_back() {
        let outcomes = vec![
            ReportOutcome::Accepted,
            ReportOutcome::Shadowed,
            ReportOutcome::Waiting { authors: 1 },
            ReportOutcome::Refused { reason: "protected".to_owned() },
        ];
        for reply in [
            FleetReply::Reports { outcomes },
            FleetReply::Lifted { lifted: true },
            FleetReply::Noted,
            FleetReply::Watching,
            FleetReply::Refused { reason: "too many".to_owned() },
        ] {
            assert_eq!(FleetReply::parse(reply.to_line().as_bytes()), Ok(reply));
        }
        let ban = |remaining_s| OwnBanEvent::Ban {
            target: "2001:db8::/64".parse().unwrap(),
            remaining_s,
            grade: Grade::Forgeable,
            distinct_ports: 3,
            class: Class::Syn,
        };
        for event in [
            ban(None),
            ban(Some(1)),
            OwnBanEvent::Lift { target: "192.0.2.7".parse().unwrap() },
            OwnBanEvent::Lost { events: 3 },
        ] {
            assert_eq!(OwnBanEvent::parse(event.to_line().as_bytes()), Ok(event));
        }
    }

    #[test]
    fn largest_batch_fits_into_line() {
        let report = FleetReport {
            author: "a".repeat(crate::config::MAX_NAME_LEN),
            target: "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff/128".to_owned(),
            class: "c".repeat(MAX_TEXT_LEN),
            distinct_ports: u32::MAX,
            ..report()
        };
        let request = FleetRequest::Reports { reports: vec![report; MAX_REPORTS], scan_ends: true };
        assert!(request.to_line().len() <= MAX_FLEET_LINE_LEN);
        let refused = ReportOutcome::Refused { reason: "r".repeat(4 * MAX_TEXT_LEN) };
        let reply = FleetReply::Reports { outcomes: vec![refused; MAX_REPORTS] };
        assert!(reply.to_line().len() <= MAX_FLEET_LINE_LEN);
    }
}
