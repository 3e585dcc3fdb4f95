//! Defines the messages on the control socket: one JSON object per line, with alternating requests and replies. Both
//! sides use these types. `docs/control.md` documents them for users.

use std::ops::Not;

use serde::{Deserialize, Serialize};

pub use super::answer::{
    Allowances, Allowed, AllowedEntry, Answer, Blocked, Disallowed, MAX_LISTED, Reloaded, ServiceForgotten, TrialState,
    Unblocked,
};
pub use super::format::LineMessage;
use super::format::to_line;
use super::service_port::ServicePort;

/// Maximum length of a line in bytes, for both sides.
pub const MAX_LINE_LEN: usize = 64 << 10;

/// A request of an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    Status,
    /// Ban an address or a prefix.
    Block {
        target: String,
        /// In the format of `--expire`; the configured time if omitted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expire: Option<String>,
        /// A note for the ledger.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Also blocks a protected target; own addresses are always refused.
        #[serde(default, skip_serializing_if = "Not::not")]
        force: bool,
    },
    /// Lift the ban of `target`, or every ban with `all`.
    Unblock {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
        #[serde(default, skip_serializing_if = "Not::not")]
        all: bool,
    },
    /// Never block an address or network, for `span` or until revoked.
    Allow {
        target: String,
        #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
        span: Option<String>,
        /// Also accepts a network so large that hardly anything would be blocked.
        #[serde(default, skip_serializing_if = "Not::not")]
        force: bool,
    },
    /// Revoke the allowance of a network.
    Disallow {
        target: String,
    },
    /// List the allowed networks.
    Allowed,
    /// Explain an address; a link-local one may be followed by the number of its link.
    Explain {
        address: String,
    },
    /// List the bans in force, from the first one or from `next` of an earlier answer on.
    Bans {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// List the reports of other hosts, from the first target on or after `after`.
    Fleet {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// Forget the services of this host on a port, so that the closed port is evidence again.
    #[serde(rename = "forget-service")]
    ForgetService {
        port: ServicePort,
    },
    /// Only log for `span`, or block again with `end`.
    Trial {
        #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
        span: Option<String>,
        #[serde(default, skip_serializing_if = "Not::not")]
        end: bool,
    },
    /// Confirm the trial of `--confirm`: the configuration stays.
    Confirm,
    /// Read the configuration again.
    Reload,
    /// Send every event from now on, one per line.
    #[serde(rename = "watch")]
    Subscribe,
}

impl LineMessage for Request {
    const INVALID: (&str, &str) = ("invalid request", "; see control.md in /usr/share/doc/portsentry-nft/docs");
}

impl Request {
    /// True for a request that changes state: only root and the daemon's own user may send it.
    pub fn changes(&self) -> bool {
        !matches!(
            self,
            Self::Status
                | Self::Explain { .. }
                | Self::Allowed
                | Self::Bans { .. }
                | Self::Fleet { .. }
                | Self::Subscribe
        )
    }

    fn parse_answer(&self, line: &[u8]) -> serde_json::Result<Answer> {
        Ok(match self {
            Self::Status => Answer::Status(serde_json::from_slice(line)?),
            Self::Block { .. } => Answer::Blocked(serde_json::from_slice(line)?),
            Self::Unblock { .. } => Answer::Unblocked(serde_json::from_slice(line)?),
            Self::Allow { .. } => Answer::Allowed(serde_json::from_slice(line)?),
            Self::Disallow { .. } => Answer::Disallowed(serde_json::from_slice(line)?),
            Self::Allowed => Answer::Allowances(serde_json::from_slice(line)?),
            Self::Explain { .. } => Answer::Explained(serde_json::from_slice(line)?),
            Self::Bans { .. } => Answer::Bans(serde_json::from_slice(line)?),
            Self::Fleet { .. } => Answer::FleetBans(serde_json::from_slice(line)?),
            Self::ForgetService { .. } => Answer::ServiceForgotten(serde_json::from_slice(line)?),
            Self::Reload => Answer::Reloaded(serde_json::from_slice(line)?),
            Self::Trial { .. } => Answer::Trial(serde_json::from_slice(line)?),
            Self::Confirm => Answer::Confirmed {},
            Self::Subscribe => Answer::Subscribed {},
        })
    }
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ErrorKind {
    /// The request is invalid.
    Usage,
    /// The user lacks permission.
    Denied,
    /// A condition prevents it, for example a protected address.
    Refused,
    /// It was tried and failed.
    Failed,
    /// The configuration is invalid.
    Configuration,
}

/// A failed request, with a message for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct Failure {
    pub kind: ErrorKind,
    pub error: String,
}

impl Failure {
    pub fn new(kind: ErrorKind, error: impl ToString) -> Self {
        Self { kind, error: error.to_string() }
    }
}

/// The daemon's reply to one request.
pub type Reply = Result<Answer, Failure>;

/// The serialised form of a reply: `ok` and the fields of the answer or failure.
#[derive(Serialize)]
struct Envelope<T> {
    ok: bool,
    #[serde(flatten)]
    content: T,
}

#[derive(Deserialize)]
struct Outcome {
    ok: bool,
}

pub fn reply_to_line(reply: &Reply) -> String {
    match reply {
        Ok(content) => to_line(&Envelope { ok: true, content }),
        Err(content) => to_line(&Envelope { ok: false, content }),
    }
}

/// Parses the reply to `request`.
///
/// # Errors
/// A description of the error, including the name of a missing field.
pub fn parse_reply(line: &[u8], request: &Request) -> Result<Reply, String> {
    let reply = serde_json::from_slice(line).and_then(|Outcome { ok }| {
        Ok(if ok { Ok(request.parse_answer(line)?) } else { Err(serde_json::from_slice(line)?) })
    });
    reply.map_err(|error| {
        let hint = "the daemon may have another version than this program; restart portsentry after an upgrade";
        format!("cannot parse the daemon's answer: {error}; {hint}")
    })
}

#[cfg(test)]
mod tests {
    use super::super::ban_info::BanPage;
    use super::*;

    fn reads(line: &str, request: &Request) {
        assert_eq!(Request::parse(line.as_bytes()).as_ref(), Ok(request), "{line}");
        assert_eq!(Request::parse(request.to_line().as_bytes()).as_ref(), Ok(request), "{line}");
    }

    #[test]
    fn request_reads_back_as_written() {
        reads(r#"{"command":"status"}"#, &Request::Status);
        let target = || "192.0.2.7".to_owned();
        let block = Request::Block { target: target(), expire: Some("2h".to_owned()), reason: None, force: false };
        reads(r#"{"command":"block","target":"192.0.2.7","expire":"2h"}"#, &block);
        reads(
            r#"{"command":"unblock","target":"192.0.2.7"}"#,
            &Request::Unblock { target: Some(target()), all: false },
        );
        reads(r#"{"command":"unblock","all":true}"#, &Request::Unblock { target: None, all: true });
        let allow = Request::Allow { target: target(), span: Some("1h".to_owned()), force: false };
        reads(r#"{"command":"allow","target":"192.0.2.7","for":"1h"}"#, &allow);
        reads(r#"{"command":"explain","address":"192.0.2.7"}"#, &Request::Explain { address: target() });
        reads(r#"{"command":"disallow","target":"192.0.2.7"}"#, &Request::Disallow { target: target() });
        reads(r#"{"command":"allowed"}"#, &Request::Allowed);
        reads(r#"{"command":"bans"}"#, &Request::Bans { after: None });
        reads(r#"{"command":"bans","after":"never.7"}"#, &Request::Bans { after: Some("never.7".to_owned()) });
        let trial = |span: Option<&str>, end| Request::Trial { span: span.map(str::to_owned), end };
        reads(r#"{"command":"trial","for":"5m"}"#, &trial(Some("5m"), false));
        reads(r#"{"command":"trial","end":true}"#, &trial(None, true));
        for (word, request) in
            [("confirm", Request::Confirm), ("reload", Request::Reload), ("watch", Request::Subscribe)]
        {
            reads(&format!("{{\"command\":\"{word}\"}}"), &request);
        }
    }

    #[test]
    fn invalid_request_is_refused_with_sentence() {
        for line in ["", "status", "{}", r#"{"command":"format"}"#, r#"{"command":"block"}"#, "[1]", "\u{0}"] {
            let error = Request::parse(line.as_bytes()).expect_err(line);
            assert!(error.starts_with("invalid request: "), "{error}");
        }
        let misspelt = r#"{"command":"block","target":"192.0.2.7","forse":true}"#;
        assert!(Request::parse(misspelt.as_bytes()).unwrap_err().contains("forse"));
    }

    #[test]
    fn reply_with_any_text_is_read() {
        let reloaded = Reloaded { changed: vec!["two\nlines".to_owned()], needs_restart: Vec::new() };
        for (request, reply) in [
            (Request::Confirm, Ok(Answer::Confirmed {})),
            (Request::Reload, Ok(Answer::Reloaded(reloaded))),
            (Request::Status, Ok(Answer::Status(Box::default()))),
            (Request::Explain { address: String::new() }, Ok(Answer::Explained(Box::default()))),
            (Request::Bans { after: None }, Ok(Answer::Bans(BanPage::default()))),
            (Request::Reload, Err(Failure::new(ErrorKind::Denied, "no\nway"))),
        ] {
            let line = reply_to_line(&reply);
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert_eq!(parse_reply(line.as_bytes(), &request), Ok(reply));
        }
        for line in ["", "{}", "{\"ok\":1}", "[]"] {
            assert!(parse_reply(line.as_bytes(), &Request::Confirm).is_err(), "{line}");
        }
    }

    #[test]
    fn missing_reply_field_is_named_error() {
        let status = reply_to_line(&Ok(Answer::Status(Box::default())));
        for (part, key) in [
            ("\"seen\":0,", "seen"),
            ("\"probes\":0,", "probes"),
            ("\"trial_left_s\":null,", "trial_left_s"),
            (",\"last_event\":null", "last_event"),
        ] {
            let line = status.replacen(part, "", 1);
            assert_ne!(line, status, "{key}");
            let error = parse_reply(line.as_bytes(), &Request::Status).unwrap_err();
            assert!(error.contains(&format!("missing field `{key}`")) && error.contains("version"), "{error}");
        }
    }

    #[test]
    fn all_users_may_only_read() {
        assert!(!Request::Status.changes() && !Request::Subscribe.changes() && !Request::Allowed.changes());
        assert!(!Request::Bans { after: None }.changes() && !Request::Fleet { after: None }.changes());
        assert!(Request::Disallow { target: String::new() }.changes());
        assert!(Request::Confirm.changes() && Request::Unblock { target: None, all: true }.changes());
    }
}
