//! An address or network in operators' notation. The link of a link-local address may follow, as its number or as the
//! name of an interface: fe80::7%2, fe80::7%eth0.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};
use serde_with::{DeserializeFromStr, SerializeDisplay};

use crate::config::{parse_interface, parse_network};
use crate::types::{BanTarget, plain, shared64};

/// An address or network, on one link or on all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SerializeDisplay, DeserializeFromStr)]
pub struct ScopedNetwork {
    pub network: IpNet,
    /// Index of the interface of a link-local address; `None`: every link.
    pub link: Option<u32>,
}

impl ScopedNetwork {
    /// Parses what an operator types on this host: the link may also be the name of an interface.
    ///
    /// # Errors
    /// A sentence with the remedy.
    pub fn parse_typed(text: &str) -> Result<Self, String> {
        with_number(text)?.parse()
    }

    /// The target of a ban of exactly these addresses.
    ///
    /// # Errors
    /// A sentence, if they cannot be banned.
    pub fn target(self) -> Result<BanTarget, String> {
        match self.link {
            Some(link) => Ok(BanTarget::on(self.network.addr(), link)),
            None => BanTarget::from_prefix(self.network),
        }
    }

    /// True if a ban of `target` concerns some of these addresses.
    pub fn overlaps(self, target: BanTarget) -> bool {
        if let (Some(link), BanTarget::Link { interface, .. }) = (self.link, target)
            && link != interface
        {
            return false;
        }
        let network = target.network();
        network.contains(&self.network) || self.network.contains(&network)
    }
}

impl From<BanTarget> for ScopedNetwork {
    fn from(target: BanTarget) -> Self {
        let link = if let BanTarget::Link { interface, .. } = target { Some(interface) } else { None };
        Self { network: target.network(), link }
    }
}

/// A link is a number, because the daemon may not know the interfaces of the client.
impl FromStr for ScopedNetwork {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match split_link(text) {
            None => Ok(Self { network: parse_network(text)?, link: None }),
            Some((address, link)) => match link.parse() {
                Ok(number @ 1..) => Ok(Self { network: parse_network(address)?, link: Some(number) }),
                _ => Err(no_link(text, address)),
            },
        }
    }
}

impl fmt::Display for ScopedNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&plain(self.network))?;
        self.link.iter().try_for_each(|link| write!(f, "%{link}"))
    }
}

/// Parses an address, with or without its link.
pub(super) fn parse_address(text: &str) -> Result<ScopedNetwork, String> {
    match text.parse::<ScopedNetwork>() {
        Ok(found) if found.network.prefix_len() == found.network.max_prefix_len() => Ok(found),
        Err(error) if text.contains('%') => Err(error),
        _ => Err(format!(
            "{text:?} is not an address; write for example \"192.0.2.7\". `portsentry list PREFIX` shows the bans in a \
             network"
        )),
    }
}

/// `text` with the number of the interface instead of its name.
///
/// # Errors
/// This host has no such interface.
pub(super) fn with_number(text: &str) -> Result<String, String> {
    match split_link(text) {
        Some((address, name)) if !name.bytes().all(|byte| byte.is_ascii_digit()) => {
            let number = parse_interface(name)
                .ok()
                .and_then(|name| name_to_index(socket(AddressFamily::UNIX, SocketType::DGRAM, None).ok()?, &name).ok());
            number.map(|number| format!("{address}%{number}")).ok_or_else(|| no_link(text, address))
        }
        _ => Ok(text.to_owned()),
    }
}

/// Splits the link off a link-local address.
fn split_link(text: &str) -> Option<(&str, &str)> {
    text.trim().split_once('%').filter(|(address, _)| address.parse().is_ok_and(shared64::is_link_local))
}

fn no_link(text: &str, address: &str) -> String {
    format!(
        "{text:?} names no link of this host; write the number or the name of an interface after the \"%\", as `ip link` \
         prints them, or {address}, which is that address on every link"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ScopedNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn link_is_part_of_address() {
        for text in ["192.0.2.7", "198.51.100.0/24", "2001:db8::/48", "fe80::7", "fe80::7%2", "fe80::7%4294967295"] {
            assert_eq!(parse(text).to_string(), text);
        }
        for text in ["fe80::7%", "fe80::7%0", "fe80::7%4294967296", "fe80::7%eth0", "fe80::7%-1"] {
            let error = text.parse::<ScopedNetwork>().unwrap_err();
            assert!(error.contains("or fe80::7, which is that address on every link"), "{text}: {error}");
        }
        for text in ["2001:db8::7%2", "192.0.2.7%2", "%2", "fe80::/64%2"] {
            let error = text.parse::<ScopedNetwork>().unwrap_err();
            assert!(error.contains("is not an address or network"), "{text}: {error}");
        }
    }

    #[test]
    fn interface_name_is_replaced_with_number() {
        assert_eq!(ScopedNetwork::parse_typed("fe80::7%lo"), Ok(parse("fe80::7%1")));
        assert_eq!(ScopedNetwork::parse_typed("fe80::7%9"), Ok(parse("fe80::7%9")), "a link may be gone");
        for text in ["fe80::7%nosuchlink", "fe80::7%a-name-that-is-too-long", "fe80::7%"] {
            assert!(ScopedNetwork::parse_typed(text).unwrap_err().contains("names no link of this host"), "{text}");
        }
    }

    #[test]
    fn link_selects_bans_of_that_link() {
        let overlaps = |asked: &str, ban: &str| parse(asked).overlaps(ban.parse().unwrap());
        assert!(overlaps("fe80::7%2", "fe80::7%2") && !overlaps("fe80::7%2", "fe80::7%3"));
        assert!(overlaps("fe80::7", "fe80::7%2") && overlaps("fe80::7", "fe80::7%3"), "every link");
        assert!(overlaps("fe80::7%2", "fe80::7/128"), "a ban on every link is also one on this link");
        assert!(!overlaps("fe80::7%2", "fe80::8%2"));
        assert!(overlaps("198.51.100.0/24", "198.51.100.7") && overlaps("198.51.100.7", "198.51.100.0/24"));
        assert!(!overlaps("198.51.100.7", "2001:db8::/64"));
    }

    #[test]
    fn target_has_link_of_address() {
        let target = |text: &str| parse(text).target().map(|target| target.to_string());
        assert_eq!(target("fe80::7%2").as_deref(), Ok("fe80::7%2"));
        assert_eq!(target("fe80::7").as_deref(), Ok("fe80::7/128"));
        assert_eq!(target("fe80::7%4096").as_deref(), Ok("fe80::7/128"), "such links are not told apart");
        assert_eq!(target("2001:db8::7").as_deref(), Ok("2001:db8::/64"));
        assert!(target("0.0.0.0/0").is_err());
    }
}
