//! Serialises the networks, durations and service ports of control messages in the notation of the configuration.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};
use serde_with::{DeserializeAs, DeserializeFromStr, SerializeAs, SerializeDisplay};

use crate::config::{parse_expiry, parse_network, parse_span};
use crate::types::{Expiry, Protocol, plain};

/// For `serde_with::As`: the notation of the configuration.
pub(super) struct Notation;

/// Reads text with `parse`, whose error is a sentence with the remedy.
pub(super) fn read<'de, D: Deserializer<'de>, T>(
    text: D,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    parse(&Cow::<str>::deserialize(text)?).map_err(D::Error::custom)
}

impl SerializeAs<IpNet> for Notation {
    fn serialize_as<S: Serializer>(network: &IpNet, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&plain(*network))
    }
}

impl<'de> DeserializeAs<'de, IpNet> for Notation {
    fn deserialize_as<D: Deserializer<'de>>(text: D) -> Result<IpNet, D::Error> {
        read(text, parse_network)
    }
}

impl SerializeAs<Duration> for Notation {
    fn serialize_as<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*span))
    }
}

impl<'de> DeserializeAs<'de, Duration> for Notation {
    fn deserialize_as<D: Deserializer<'de>>(text: D) -> Result<Duration, D::Error> {
        read(text, parse_span)
    }
}

impl SerializeAs<Expiry> for Notation {
    fn serialize_as<S: Serializer>(expiry: &Expiry, serializer: S) -> Result<S::Ok, S::Error> {
        match expiry {
            Expiry::Never => serializer.serialize_str("never"),
            Expiry::After(span) => Self::serialize_as(span, serializer),
        }
    }
}

impl<'de> DeserializeAs<'de, Expiry> for Notation {
    fn deserialize_as<D: Deserializer<'de>>(text: D) -> Result<Expiry, D::Error> {
        read(text, parse_expiry)
    }
}

/// A service port in operators' notation: 8080, 8080/tcp, 53/udp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SerializeDisplay, DeserializeFromStr)]
pub struct ServicePort {
    pub port: u16,
    /// `None`: TCP and UDP.
    pub protocol: Option<Protocol>,
}

impl FromStr for ServicePort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a port; write for example \"8080\", \"8080/tcp\" or \"53/udp\"");
        let (port, protocol) = match text.split_once('/') {
            None => (text, None),
            Some((port, "tcp")) => (port, Some(Protocol::Tcp)),
            Some((port, "udp")) => (port, Some(Protocol::Udp)),
            Some(_) => return Err(wrong()),
        };
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|port| *port > 0 && digits).ok_or_else(wrong)?;
        Ok(Self { port, protocol })
    }
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Some(protocol) => write!(f, "{}/{}", self.port, protocol.key()),
            None => write!(f, "{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_port_reads_back_as_written() {
        for text in ["1", "65535", "8080/tcp", "53/udp"] {
            assert_eq!(text.parse::<ServicePort>().unwrap().to_string(), text);
        }
        for text in ["", "0", "+80", "65536", "80/sctp", "80/", "/tcp", "80/tcp/udp", "http"] {
            let error = text.parse::<ServicePort>().unwrap_err();
            assert!(error.ends_with("write for example \"8080\", \"8080/tcp\" or \"53/udp\""), "{error}");
        }
    }
}
