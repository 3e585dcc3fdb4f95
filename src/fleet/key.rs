//! Builds and strictly parses the names of keys and channels on the fleet's server. Other hosts write these names.
//!
//! | name | written by | read by |
//! |---|---|---|
//! | `portsentry:FLEET:ban:HOST:TARGET` | the host itself | all |
//! | `portsentry:FLEET:lift:TARGET` | the operator | all |
//! | `portsentry:FLEET:news:HOST` (channel) | the host itself | all |
//! | `portsentry:FLEET:news:@operator` (channel) | the operator | all |
//!
//! The author of a report is the host in its key: the server's ACL permits no other user to write there
//! ([`Keyspace::acl_line`]).

use std::fmt;

use crate::config::parse_fleet_name;
use crate::types::BanTarget;

/// Maximum length of a well-formed key in bytes: two names of 63 bytes and the longest target.
pub const MAX_KEY_LEN: usize = 256;

/// Replaces the host name in the channel of the operator's notices. No host can have this name.
const OPERATOR: &str = "@operator";

/// The name of a host in the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Box<str>);

impl HostName {
    /// Parses a host name.
    ///
    /// # Errors
    /// A message if `text` is too long or has characters other than `a-z`, `0-9` and `-`.
    pub fn parse(text: &str) -> Result<Self, String> {
        parse_fleet_name(text).map(|name| Self(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The author of a key or of a notice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FleetAuthor {
    Host(HostName),
    Operator,
}

impl fmt::Display for FleetAuthor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => write!(f, "host {host}"),
            Self::Operator => f.write_str("the operator"),
        }
    }
}

/// A well-formed key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ValkeyKey {
    pub author: FleetAuthor,
    /// One IPv4 address, an IPv6 /64, or one address of a shared /64; never a network.
    pub target: BanTarget,
}

/// A key that is refused, with its author if the key names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadKey {
    pub author: Option<FleetAuthor>,
    pub reason: &'static str,
}

/// The key and channel names of one fleet.
#[derive(Clone, Debug)]
pub struct Keyspace {
    /// `portsentry:FLEET:`
    prefix: String,
}

impl Keyspace {
    /// Creates the names of the fleet `name`, which [`parse_fleet_name`] has accepted.
    pub fn new(name: &str) -> Self {
        Self { prefix: format!("portsentry:{name}:") }
    }

    /// The key of a report, or of a lift.
    pub fn key(&self, key: &ValkeyKey) -> String {
        let ValkeyKey { author, target } = key;
        match author {
            FleetAuthor::Host(host) => format!("{}ban:{host}:{target}", self.prefix),
            FleetAuthor::Operator => format!("{}lift:{target}", self.prefix),
        }
    }

    /// The channel on which `author` publishes its notices.
    pub fn channel(&self, author: &FleetAuthor) -> String {
        match author {
            FleetAuthor::Host(host) => format!("{}news:{host}", self.prefix),
            FleetAuthor::Operator => format!("{}news:{OPERATOR}", self.prefix),
        }
    }

    /// Pattern of the keys of all reports.
    pub fn reports(&self) -> String {
        format!("{}ban:*", self.prefix)
    }

    /// Pattern of the keys of all lifts.
    pub fn lifts(&self) -> String {
        format!("{}lift:*", self.prefix)
    }

    /// Pattern of the channels of all notices.
    pub fn channels(&self) -> String {
        format!("{}news:*", self.prefix)
    }

    /// The line of the server's ACL file for the user of `author`. Both kinds of user may read all of the fleet. A host
    /// may write only its own reports and notices, so the host in a key is its author; the operator may write only
    /// lifts and their notices.
    ///
    /// Publishing and subscribing have separate selectors: a single selector that permits subscribing to all channels
    /// would also permit publishing on all of them.
    pub fn acl_line(&self, author: &FleetAuthor, user: &str, password: &str) -> String {
        let (reports, lifts, channel) = (self.reports(), self.lifts(), self.channel(author));
        let own = match author {
            FleetAuthor::Host(host) => {
                let (mine, channels) = (format!("{}ban:{host}:*", self.prefix), self.channels());
                format!("%R~{lifts} %W~{mine} (+publish &{channel}) (+psubscribe &{channels})")
            }
            FleetAuthor::Operator => format!("%RW~{lifts} (+publish &{channel})"),
        };
        format!(
            "user {user} reset on >{password} resetchannels -@all +ping +scan +getrange +pttl +set +del %R~{reports} \
             {own}"
        )
    }

    /// Parses a key from the server. Accepts only the form that [`Keyspace::key`] writes, so that each target has one
    /// key.
    ///
    /// # Errors
    /// The reason, and the author for the log, if the key names one.
    pub fn parse(&self, key: &[u8]) -> Result<ValkeyKey, BadKey> {
        let bad = |author, reason| BadKey { author, reason };
        let text = String::from_utf8_lossy(key);
        let rest = text.strip_prefix(&self.prefix).ok_or(bad(None, "it belongs to another fleet"))?;
        let (author, target) = match rest.strip_prefix("lift:") {
            Some(target) => (FleetAuthor::Operator, target),
            None => {
                let rest = rest.strip_prefix("ban:").ok_or(bad(None, "it is neither a report nor a lift"))?;
                let (host, target) = rest.split_once(':').ok_or(bad(None, "it has no target"))?;
                let host = HostName::parse(host).map_err(|_| bad(None, "it has no valid host name"))?;
                (FleetAuthor::Host(host), target)
            }
        };
        if key.len() > MAX_KEY_LEN {
            return Err(bad(Some(author), "it is too long"));
        }
        match target.parse() {
            Ok(BanTarget::Prefix(_)) => {
                Err(bad(Some(author), "its network is wider than an IPv4 address or an IPv6 /64"))
            }
            Ok(target) => Ok(ValkeyKey { author, target }),
            Err(_) => Err(bad(Some(author), "its target is not an address")),
        }
    }

    /// The author of the notices on a channel.
    pub fn parse_channel(&self, channel: &[u8]) -> Option<FleetAuthor> {
        let channel = std::str::from_utf8(channel).ok()?;
        match channel.strip_prefix(&self.prefix)?.strip_prefix("news:")? {
            OPERATOR => Some(FleetAuthor::Operator),
            host => HostName::parse(host).ok().map(FleetAuthor::Host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> FleetAuthor {
        FleetAuthor::Host(HostName::parse(name).unwrap())
    }

    #[test]
    fn key_reads_back_as_written() {
        let keys = Keyspace::new("lab");
        for author in [host("web-1"), FleetAuthor::Operator] {
            for target in ["203.0.113.7", "2001:db8:1:2::/64", "64:ff9b::cb00:7109/128"] {
                let key = ValkeyKey { author: author.clone(), target: target.parse().unwrap() };
                assert_eq!(keys.parse(keys.key(&key).as_bytes()), Ok(key));
            }
            assert_eq!(keys.parse_channel(keys.channel(&author).as_bytes()), Some(author));
        }
        let key = ValkeyKey { author: host("web-1"), target: "203.0.113.7".parse().unwrap() };
        assert_eq!(keys.key(&key), "portsentry:lab:ban:web-1:203.0.113.7");
        assert_eq!(keys.channel(&host("web-1")), "portsentry:lab:news:web-1");
    }

    #[test]
    fn malformed_key_is_refused_with_author() {
        let keys = Keyspace::new("lab");
        for target in [
            "0.0.0.0/0",
            "203.0.113.0/24",
            "::/0",
            "2001:db8::/48",
            "203.0.113.7/32",
            "203.0.113.07",
            "2001:DB8:1:2::/64",
            "2001:db8:1:2::7/64",
            "2001:db8:1:2::7",
            " 203.0.113.7",
            "203.0.113.7\n",
            "203.0.113.7:x",
            "*",
            "",
            "localhost",
        ] {
            let read = keys.parse(format!("portsentry:lab:ban:web-1:{target}").as_bytes());
            assert_eq!(read.unwrap_err().author, Some(host("web-1")), "{target:?}");
        }
        let long = format!("portsentry:lab:ban:web-1:{}", "7".repeat(1 << 20));
        assert_eq!(keys.parse(long.as_bytes()), Err(BadKey { author: Some(host("web-1")), reason: "it is too long" }));
        for key in [
            "portsentry:other:ban:a:203.0.113.7",
            "portsentry:lab:ban:A:203.0.113.7",
            "portsentry:lab:ban:203.0.113.7",
            "x",
        ] {
            assert_eq!(keys.parse(key.as_bytes()).unwrap_err().author, None, "{key}");
        }
        assert!(keys.parse(b"portsentry:lab:ban:a:\xff").is_err());
    }

    #[test]
    fn channel_of_non_member_is_refused() {
        let keys = Keyspace::new("lab");
        for channel in ["portsentry:lab:news:", "portsentry:lab:news:A", "portsentry:other:news:a", "news:a"] {
            assert_eq!(keys.parse_channel(channel.as_bytes()), None, "{channel}");
        }
    }

    #[test]
    fn host_writes_and_publishes_as_itself() {
        let keys = Keyspace::new("lab");
        let line = keys.acl_line(&host("web-1"), "web-1", "secret");
        assert_eq!(
            line,
            "user web-1 reset on >secret resetchannels -@all +ping +scan +getrange +pttl +set +del \
             %R~portsentry:lab:ban:* %R~portsentry:lab:lift:* %W~portsentry:lab:ban:web-1:* \
             (+publish &portsentry:lab:news:web-1) (+psubscribe &portsentry:lab:news:*)"
        );
        let line = keys.acl_line(&FleetAuthor::Operator, "operator", "secret");
        assert!(line.contains("%RW~portsentry:lab:lift:* (+publish &portsentry:lab:news:@operator)"), "{line}");
    }
}
