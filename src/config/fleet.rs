//! Defines the table `[fleet]`: the server that shares bans between hosts, the name of this host, and the reports that
//! this host accepts from others. The fleet process uses the connection settings, the daemon uses the rest; both read
//! the same file.

use super::parse::{self, any, like, optional, quoted_excerpt, text, values, whole_path, within};
use super::table::table;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use std::fmt;
use std::path::PathBuf;
use std::sync::LazyLock;
use toml::Value;

/// Maximum length of the name of a fleet or a host, in bytes. Both names are part of every key on the server.
pub const MAX_NAME_LEN: usize = 63;

/// The port of the server if the URL has none.
const DEFAULT_PORT: u16 = 6379;

table! {
    /// Bans that hosts share through Valkey or Redis.
    Fleet {
        /// `None`: this host is in no fleet.
        url: Option<FleetUrl> = None, "url";
        /// Part of every key on the server.
        name: String = "fleet".to_owned(), "name";
        /// This host's name in the fleet. Empty only if there is no URL.
        host: String = String::new(), "host";
        /// The user on the server; empty: the host's name. Read it with [`Fleet::user`].
        user: String = String::new(), "user";
        /// The file with the user's password, for its owner alone.
        credentials: PathBuf = PathBuf::from("/etc/portsentry/fleet.password"), "credentials";
        /// Certificates of the authorities that may sign the server's certificate; `None`: those that the system
        /// trusts.
        ca_file: Option<PathBuf> = None, "ca_file";
        /// Whether reports of other hosts are only judged and logged, without blocking.
        shadow: bool = true, "parse::switch";
        /// The socket on which the daemon receives reports from the fleet process.
        socket: PathBuf = PathBuf::from("/run/portsentry/fleet.sock"), "socket";
        accept: FleetAccept = FleetAccept::default();
    }
}

table! {
    /// Which reports of other hosts lead to bans on this host.
    FleetAccept {
        /// Whether one author is enough for a ban on proven evidence. Otherwise two are required.
        single: bool = false, "parse::switch";
        /// Number of distinct authors that a ban on forgeable evidence requires; 0: no such bans.
        forgeable_authors: u32 = 0, "forgeable_authors";
        /// Maximum number of targets that one author may report in an hour.
        max_per_author_per_hour: u32 = 30, "parse::number::<1, 100_000, _, _>";
        /// Maximum number of bans in an hour, for the reports of all authors.
        max_bans_per_hour: u32 = 600, "parse::number::<1, 1_000_000, _, _>";
        /// Maximum number of bans in each of the sets `fleet` and `fleet6`.
        size: u32 = 16_384, "parse::number::<1, 1_048_576, _, _>";
    }
}

values! {
    url(value) -> Option<FleetUrl> {
        let expected = "the URL of a server; write \"rediss://valkey.example.org:6379\", or \"\" for none";
        text(value, expected, |text| if text.is_empty() { Ok(None) } else { parse_url(text).map(Some) })
    }
    name(value) -> String { text(value, "the name of a fleet; write for example \"fleet\"", parse_fleet_name) }
    host(value) -> String { text(value, "this host's name in the fleet; write for example \"web-1\"", name_or_none) }
    user(value) -> String { text(value, "a user of the fleet's server; write for example \"web-1\"", name_or_none) }
    credentials(value) -> PathBuf {
        like(value, "an absolute path; write for example \"/etc/portsentry/fleet.password\"", whole_path)
    }
    ca_file(value) -> Option<PathBuf> {
        let expected = "an absolute path; write for example \"/etc/portsentry/fleet-ca.pem\", or \"\" for none";
        optional(value, expected, whole_path)
    }
    socket(value) -> PathBuf {
        let expected = "an absolute path; write for example \"/run/portsentry/fleet.sock\"";
        like(value, expected, |text| whole_path(text).filter(|path| path.file_name().is_some()))
    }
    forgeable_authors(value) -> u32 {
        match within(value, 0, 64)? {
            // An author could then ban any address with three forged packets.
            1 => Err("is too low, because one host could have any forged address banned; write 0, or 2 to 64".to_owned()),
            authors => Ok(authors),
        }
    }
}

/// As [`parse_fleet_name`], but an empty text is accepted.
fn name_or_none(text: &str) -> Result<String, String> {
    if text.is_empty() { Ok(String::new()) } else { parse_fleet_name(text) }
}

impl Fleet {
    pub fn is_joined(&self) -> bool {
        self.url.is_some()
    }

    /// The user on the server.
    pub fn user(&self) -> &str {
        if self.user.is_empty() { &self.host } else { &self.user }
    }
}

/// The address of the server. Network URLs require TLS, because reports and the password cross the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FleetUrl {
    /// TLS over TCP, `rediss://HOST:PORT`. An IPv6 address is stored without brackets.
    Tls { host: String, port: u16 },
    /// A socket on this host, `unix:///PATH`.
    Unix(PathBuf),
}

impl fmt::Display for FleetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls { host, port } if host.contains(':') => write!(f, "rediss://[{host}]:{port}"),
            Self::Tls { host, port } => write!(f, "rediss://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

pub(super) fn parse_url(text: &str) -> Result<FleetUrl, String> {
    const EXPECTED: &str = "the URL of a server; write \"rediss://valkey.example.org:6379\", \"unix:///run/valkey/fleet.sock\", or \"\" for none";
    let wrong = || format!("{} is not {EXPECTED}", quoted_excerpt(text));
    if text.starts_with("redis://") {
        return Err(format!(
            "{} uses no encryption; write \"rediss://…\", or \"unix:///…\" for a local socket",
            quoted_excerpt(text)
        ));
    }
    if let Some(path) = text.strip_prefix("unix://") {
        let path = whole_path(path).filter(|path| path.file_name().is_some());
        return path.map(FleetUrl::Unix).ok_or_else(wrong);
    }
    let server = text.strip_prefix("rediss://").ok_or_else(wrong)?;
    if server.contains('@') {
        return Err("contains a user or a password; set the user in fleet.user, and write the password to the file \
             fleet.credentials"
            .to_owned());
    }
    let server = server.strip_suffix('/').unwrap_or(server);
    let (host, port) = match server.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((host, port))) if host.parse::<std::net::Ipv6Addr>().is_ok() => {
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(wrong)?) })
        }
        Some(_) => return Err(wrong()),
        None => server.split_once(':').map_or((server, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Some(DEFAULT_PORT), |port| port.parse().ok().filter(|port| *port != 0)).ok_or_else(wrong)?;
    let is_address = host.parse::<std::net::IpAddr>().is_ok();
    let host = if is_address { host.to_owned() } else { parse::parse_name(host).map_err(|_| wrong())? };
    Ok(FleetUrl::Tls { host, port })
}

/// Parses the name of a fleet, a host or a user. The name becomes part of keys and patterns on the server, where other
/// characters have a special meaning.
pub fn parse_fleet_name(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=MAX_NAME_LEN).contains(&text.len()) && text.bytes().all(fits) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} is not the name of a fleet, host or user; write 1 to {MAX_NAME_LEN} of a-z, 0-9 and \"-\", for example \"web-1\"",
        quoted_excerpt(text)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_reads_back_as_shown() {
        for (text, shown) in [
            ("rediss://valkey.example.org:6380", "rediss://valkey.example.org:6380"),
            ("rediss://valkey.example.org", "rediss://valkey.example.org:6379"),
            ("rediss://192.0.2.7:1/", "rediss://192.0.2.7:1"),
            ("rediss://[2001:db8::7]:6379", "rediss://[2001:db8::7]:6379"),
            ("rediss://[2001:db8::7]", "rediss://[2001:db8::7]:6379"),
            ("unix:///run/valkey/fleet.sock", "unix:///run/valkey/fleet.sock"),
        ] {
            let url = parse_url(text).unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(parse_url(shown), Ok(url));
        }
    }

    #[test]
    fn wrong_url_is_refused() {
        for text in [
            "valkey.example.org",
            "https://valkey.example.org",
            "rediss://",
            "rediss://:6379",
            "rediss://host:0",
            "rediss://host:65536",
            "rediss://host:6379/0",
            "rediss://[2001:db8::7]6379",
            "rediss://2001:db8::7",
            "rediss://[host]:6379",
            "unix://run/valkey.sock",
            "unix:///",
        ] {
            let error = parse_url(text).unwrap_err();
            assert!(error.contains("is not the URL of a server; write"), "{text}: {error}");
        }
        assert!(parse_url("redis://host:6379").unwrap_err().contains("uses no encryption"));
        assert!(parse_url("rediss://user:secret@host").unwrap_err().contains("fleet.credentials"));
    }

    #[test]
    fn name_with_pattern_characters_is_refused() {
        assert_eq!(parse_fleet_name("web-1").as_deref(), Ok("web-1"));
        for text in ["", "Web", "web.1", "web:1", "web*", "a b", "wéb", &"a".repeat(64)] {
            assert!(parse_fleet_name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn user_is_host_unless_named() {
        let fleet = Fleet { host: "web-1".to_owned(), ..Fleet::default() };
        assert_eq!(fleet.user(), "web-1");
        assert_eq!(Fleet { user: "sentry".to_owned(), ..fleet }.user(), "sentry");
    }
}
