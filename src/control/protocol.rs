//! What the operator's commands and the daemon say to each other: one JSON object a line, a request and its reply in
//! turns. `docs/control.md` is the same for people. Carries out nothing.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The longest line that either side takes, in bytes.
pub const LONGEST_LINE: usize = 64 << 10;

/// What the operator wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// How the daemon is.
    Status,
    /// Block an address or a prefix.
    Block {
        /// Whom.
        target: String,
        /// For how long, as `--expire` has it; what the settings say where it is left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expire: Option<String>,
        /// Why, for the ledger.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Also one that is protected; own addresses never.
        #[serde(default, skip_serializing_if = "is_false")]
        force: bool,
    },
    /// Lift the ban of an address or prefix, or all of them.
    Unblock {
        /// Whose; `None` with `all`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
        /// Everybody's.
        #[serde(default, skip_serializing_if = "is_false")]
        all: bool,
    },
    /// Never block an address or network, until the daemon ends or for a time.
    Allow {
        /// Whom.
        target: String,
        /// For how long; until the daemon ends where it is left out.
        #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
        span: Option<String>,
    },
    /// Everything that is known about an address.
    Explain {
        /// Which one.
        address: String,
    },
    /// The settings may stay: ends the trial that `--confirm` began.
    Confirm,
    /// Read the settings again.
    Reload,
    /// Every event from now on, one a line.
    Watch,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Request {
    /// Reads one line.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(line).map_err(|error| format!("this is no request: {error}; see docs/control.md"))
    }

    /// The request as one line.
    #[must_use]
    pub fn to_line(&self) -> String {
        // Only strings and switches in it: there is nothing that could not be written.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }

    /// True for what changes anything: only root and the daemon's own user may ask for it.
    #[must_use]
    pub fn changes(&self) -> bool {
        !matches!(self, Self::Status | Self::Explain { .. } | Self::Watch)
    }
}

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Refusal {
    /// It makes no sense.
    Usage,
    /// It is not the asking user's to ask for.
    Denied,
    /// The address is protected, or something else stands against it.
    Refused,
    /// It was tried.
    Failed,
    /// The settings are wrong.
    Configuration,
}

/// The daemon's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done, with what there is to tell.
    Done(Map<String, Value>),
    /// Not done.
    Not {
        /// What kind of failure it is.
        kind: Refusal,
        /// A sentence for the operator.
        error: String,
    },
}

impl Reply {
    /// Done, and nothing to tell.
    #[must_use]
    pub fn done() -> Self {
        Self::Done(Map::new())
    }

    /// Not done, because of `error`.
    #[must_use]
    pub fn not(kind: Refusal, error: impl ToString) -> Self {
        Self::Not { kind, error: error.to_string() }
    }

    /// Reads one line.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let unreadable = |error: &dyn std::fmt::Display| format!("the daemon's answer cannot be read: {error}");
        let mut fields: Map<String, Value> = serde_json::from_slice(line).map_err(|error| unreadable(&error))?;
        match fields.remove("ok") {
            Some(Value::Bool(true)) => Ok(Self::Done(fields)),
            Some(Value::Bool(false)) => {
                let kind = fields.remove("kind").map(serde_json::from_value).and_then(Result::ok);
                let error = fields.remove("error").and_then(|error| error.as_str().map(str::to_owned));
                Ok(Self::Not { kind: kind.unwrap_or(Refusal::Failed), error: error.unwrap_or_default() })
            }
            _ => Err(unreadable(&"it does not say whether it is ok")),
        }
    }

    /// The reply as one line.
    #[must_use]
    pub fn to_line(&self) -> String {
        let mut object = Map::new();
        match self {
            Self::Done(fields) => {
                object.insert("ok".to_owned(), true.into());
                object.extend(fields.clone());
            }
            Self::Not { kind, error } => {
                object.insert("ok".to_owned(), false.into());
                object.insert("kind".to_owned(), serde_json::to_value(kind).unwrap_or_default());
                object.insert("error".to_owned(), error.as_str().into());
            }
        }
        format!("{}\n", Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reads(line: &str, request: &Request) {
        assert_eq!(Request::parse(line.as_bytes()).as_ref(), Ok(request), "{line}");
        assert_eq!(Request::parse(request.to_line().as_bytes()).as_ref(), Ok(request), "{line}");
    }

    #[test]
    fn every_request_is_read_as_it_is_written() {
        reads(r#"{"command":"status"}"#, &Request::Status);
        let target = || "192.0.2.7".to_owned();
        let block = Request::Block { target: target(), expire: Some("2h".to_owned()), reason: None, force: false };
        reads(r#"{"command":"block","target":"192.0.2.7","expire":"2h"}"#, &block);
        reads(
            r#"{"command":"unblock","target":"192.0.2.7"}"#,
            &Request::Unblock { target: Some(target()), all: false },
        );
        reads(r#"{"command":"unblock","all":true}"#, &Request::Unblock { target: None, all: true });
        let allow = Request::Allow { target: target(), span: Some("1h".to_owned()) };
        reads(r#"{"command":"allow","target":"192.0.2.7","for":"1h"}"#, &allow);
        reads(r#"{"command":"explain","address":"192.0.2.7"}"#, &Request::Explain { address: target() });
        for (word, request) in [("confirm", Request::Confirm), ("reload", Request::Reload), ("watch", Request::Watch)] {
            reads(&format!("{{\"command\":\"{word}\"}}"), &request);
        }
    }

    #[test]
    fn what_is_no_request_is_refused_with_a_sentence() {
        for line in ["", "status", "{}", r#"{"command":"format"}"#, r#"{"command":"block"}"#, "[1]", "\u{0}"] {
            let error = Request::parse(line.as_bytes()).expect_err(line);
            assert!(error.starts_with("this is no request: "), "{error}");
        }
        let misspelt = r#"{"command":"block","target":"192.0.2.7","forse":true}"#;
        assert!(Request::parse(misspelt.as_bytes()).unwrap_err().contains("forse"));
    }

    #[test]
    fn a_reply_is_read_back_whatever_stands_in_it() {
        let Value::Object(fields) = json!({"bans": 3, "text": "two\nlines"}) else { panic!() };
        for reply in [Reply::done(), Reply::Done(fields), Reply::not(Refusal::Denied, "no\nway")] {
            let line = reply.to_line();
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert_eq!(Reply::parse(line.as_bytes()), Ok(reply));
        }
        for line in ["", "{}", "{\"ok\":1}", "[]"] {
            assert!(Reply::parse(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn only_looking_is_for_everybody() {
        assert!(!Request::Status.changes() && !Request::Watch.changes());
        assert!(Request::Confirm.changes() && Request::Unblock { target: None, all: true }.changes());
    }
}
