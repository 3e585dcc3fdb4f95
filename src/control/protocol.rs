//! Defines the messages on the control socket: one JSON object per line, with alternating requests and replies. Both
//! sides use these types. `docs/control.md` documents them for users.

use std::ops::Not;
use std::time::Duration;

use clap::Subcommand;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_with::As;

pub use super::answer::{
    Allowed, AllowedEntry, AllowedList, Answer, Blocked, Disallowed, MAX_LISTED, Reloaded, ServiceForgotten,
    TrialState, Unblocked,
};
pub use super::notation::ServicePort;
use super::notation::{Notation, read};
use super::scoped_network::{ScopedNetwork, parse_address, with_number};
use crate::config::{parse_expiry, parse_network, parse_span};
use crate::ledger::PageCursor;
pub use crate::types::LineMessage;
use crate::types::{BanTarget, Expiry, to_line};

/// Maximum length of a line in bytes, for both sides.
pub const MAX_LINE_LEN: usize = 64 << 10;

/// A request of an operator, and the command of the command line that sends it. The doc comments are the help.
#[serde_with::apply(
    Option => #[serde(default, skip_serializing_if = "Option::is_none")],
    IpNet => #[serde(with = "As::<Notation>")],
    Option<Expiry> => #[serde(with = "As::<Option<Notation>>")],
    Option<Duration> => #[serde(with = "As::<Option<Notation>>")],
    bool => #[serde(default, skip_serializing_if = "Not::not")],
)]
#[derive(Subcommand, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Show the daemon's state: ports, packets, bans, problems
    Status,
    /// Block an address or prefix
    Block {
        /// Address or prefix to block
        #[arg(value_name = "ADDRESS|PREFIX", value_parser = parse_network)]
        target: IpNet,
        /// Duration: 90m, 24h, 7d or never [default: `expire` in the configuration]
        #[arg(long, value_name = "SPAN", value_parser = parse_expiry, allow_hyphen_values = true)]
        expire: Option<Expiry>,
        /// Reason to store in the ledger and the log
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Block a protected address, too; this host's own addresses are always refused
        #[arg(long)]
        force: bool,
    },
    /// Lift the ban of an address or prefix
    #[command(
        override_usage = "portsentry unblock [OPTIONS] <ADDRESS|PREFIX>\n       portsentry unblock [OPTIONS] --all"
    )]
    Unblock {
        // In the message, the link of an address is the number of the interface.
        /// Address or prefix to unblock
        #[arg(value_name = "ADDRESS|PREFIX", value_parser = typed_target, required_unless_present = "all")]
        target: Option<ScopedNetwork>,
        /// Lift all bans
        #[arg(long, conflicts_with = "target")]
        all: bool,
    },
    /// Exempt an address or network from bans, for a time or until revoked
    Allow {
        /// Address or network to exempt
        #[arg(value_name = "ADDRESS|PREFIX", value_parser = parse_network)]
        target: IpNet,
        /// Duration: 1h, 7d [default: until `portsentry disallow`]
        #[arg(long = "for", value_name = "SPAN", value_parser = typed_allowance, allow_hyphen_values = true)]
        #[serde(rename = "for")]
        span: Option<Expiry>,
        /// Permit a network wider than an IPv4 /8 or an IPv6 /16
        #[arg(long)]
        force: bool,
    },
    /// Revoke an `allow`
    Disallow {
        /// Address or network as listed by `portsentry allowed`
        #[arg(value_name = "ADDRESS|PREFIX", value_parser = parse_network)]
        target: IpNet,
    },
    /// List addresses and networks that are exempt from bans
    Allowed,
    /// Show what is known about an address: evidence, bans, protection
    Explain {
        // In the message, the link is the number of the interface.
        /// Address to explain; a link-local one may have its link, fe80::7%eth0
        #[arg(value_parser = typed_address)]
        #[serde(deserialize_with = "read_address")]
        address: ScopedNetwork,
    },
    /// The bans in force, from the first one or from `next` of an earlier answer on.
    #[command(skip)]
    Bans { after: Option<PageCursor> },
    /// The reports of other hosts, from the first target on or after `after`.
    #[command(skip)]
    Fleet { after: Option<BanTarget> },
    /// Forget a remembered service, so that probes of its port count again
    ForgetService {
        /// Port of the service; without /tcp or /udp, both protocols
        #[arg(value_name = "PORT[/tcp|udp]")]
        port: ServicePort,
    },
    /// Only log scans for a time, then resume blocking
    #[command(override_usage = "portsentry trial [OPTIONS] <SPAN>\n       portsentry trial [OPTIONS] --end")]
    Trial {
        /// Duration: 5m, 1d, at most 30d
        #[arg(value_name = "SPAN", value_parser = parse_span, required_unless_present = "end", allow_hyphen_values = true)]
        #[serde(rename = "for")]
        span: Option<Duration>,
        /// End the trial and resume blocking
        #[arg(long, conflicts_with = "span")]
        end: bool,
    },
    /// Confirm a start with --confirm, so that blocking continues
    Confirm,
    /// Reload the configuration
    Reload,
    /// Print events as they occur, one JSON object per line
    #[command(name = "events")]
    #[serde(rename = "watch")]
    Subscribe,
}

// Parsers for arguments of the command line only. A link may be the name of an interface, and a parse error is a usage
// error.

fn typed_target(text: &str) -> Result<ScopedNetwork, String> {
    let target = ScopedNetwork::parse_typed(text)?;
    target.target().map(|_| target)
}

fn typed_address(text: &str) -> Result<ScopedNetwork, String> {
    parse_address(&with_number(text)?)
}

fn read_address<'de, D: Deserializer<'de>>(text: D) -> Result<ScopedNetwork, D::Error> {
    read(text, parse_address)
}

fn typed_allowance(text: &str) -> Result<Expiry, String> {
    match text.trim() {
        "never" => Err("write a duration, for example \"1h\"; permanent entries belong in allow.networks of \
         portsentry.toml"
            .to_owned()),
        text => parse_span(text).map(Expiry::After),
    }
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

    pub fn usage(error: impl ToString) -> Self {
        Self::new(ErrorKind::Usage, error)
    }

    pub fn refused(error: impl ToString) -> Self {
        Self::new(ErrorKind::Refused, error)
    }

    pub fn failed(error: impl ToString) -> Self {
        Self::new(ErrorKind::Failed, error)
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
struct OkFlag {
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
    let reply = serde_json::from_slice(line).and_then(|OkFlag { ok }| {
        Ok(if ok { Ok(request.parse_answer(line)?) } else { Err(serde_json::from_slice(line)?) })
    });
    reply.map_err(|error| {
        let hint = "the daemon may have another version than this program; restart portsentry after an upgrade";
        format!("cannot parse the daemon's answer: {error}; {hint}")
    })
}

#[cfg(test)]
mod tests {
    use super::super::address_info::AddressInfo;
    use super::super::ban_info::BanPage;
    use super::*;

    fn reads(line: &str, request: &Request) {
        assert_eq!(Request::parse(line.as_bytes()).as_ref(), Ok(request), "{line}");
        assert_eq!(Request::parse(request.to_line().as_bytes()).as_ref(), Ok(request), "{line}");
    }

    #[test]
    fn request_reads_back_as_written() {
        reads(r#"{"command":"status"}"#, &Request::Status);
        let address: ScopedNetwork = "192.0.2.7".parse().unwrap();
        let (target, hour) = (address.network, Duration::from_secs(3600));
        let block = Request::Block { target, expire: Some(Expiry::After(2 * hour)), reason: None, force: false };
        reads(r#"{"command":"block","target":"192.0.2.7","expire":"2h"}"#, &block);
        reads(r#"{"command":"unblock","target":"192.0.2.7"}"#, &Request::Unblock { target: Some(address), all: false });
        reads(r#"{"command":"unblock","all":true}"#, &Request::Unblock { target: None, all: true });
        let allow = Request::Allow { target, span: Some(Expiry::After(hour)), force: false };
        reads(r#"{"command":"allow","target":"192.0.2.7","for":"1h"}"#, &allow);
        reads(r#"{"command":"explain","address":"192.0.2.7"}"#, &Request::Explain { address });
        reads(r#"{"command":"disallow","target":"192.0.2.7"}"#, &Request::Disallow { target });
        reads(r#"{"command":"allowed"}"#, &Request::Allowed);
        reads(r#"{"command":"bans"}"#, &Request::Bans { after: None });
        reads(r#"{"command":"bans","after":"never.7"}"#, &Request::Bans { after: Some("never.7".parse().unwrap()) });
        let minutes = Some(Duration::from_secs(300));
        reads(r#"{"command":"trial","for":"5m"}"#, &Request::Trial { span: minutes, end: false });
        reads(r#"{"command":"trial","end":true}"#, &Request::Trial { span: None, end: true });
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
        let explained = AddressInfo::unsuspected("192.0.2.7");
        let reloaded = Reloaded { changed: vec!["two\nlines".to_owned()], needs_restart: Vec::new() };
        for (request, reply) in [
            (Request::Confirm, Ok(Answer::Confirmed {})),
            (Request::Reload, Ok(Answer::Reloaded(reloaded))),
            (Request::Status, Ok(Answer::Status(Box::default()))),
            (Request::Explain { address: explained.address }, Ok(Answer::Explained(Box::new(explained)))),
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
        assert!(Request::Disallow { target: "192.0.2.7/32".parse().unwrap() }.changes());
        assert!(Request::Confirm.changes() && Request::Unblock { target: None, all: true }.changes());
    }
}
