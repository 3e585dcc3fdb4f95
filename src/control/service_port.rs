//! Parses and prints a service port in operators' notation: 8080, 8080/tcp, 53/udp.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::types::Protocol;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
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

impl TryFrom<String> for ServicePort {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ServicePort> for String {
    fn from(port: ServicePort) -> Self {
        port.to_string()
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
