//! Encodes bans, times and texts to bytes and decodes them, for the messages between the daemon and its helper
//! processes. A reader accepts exactly the output of the writer; anything else is invalid.

use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

use ipnet::IpNet;

use super::BanContext;
use crate::engine::Class;
use crate::types::printable::{is_hidden, masked_to};
use crate::types::{BanTarget, Expiry, Protocol};

/// Values of `$MODE$`: the classic mode names, and "hand" for an operator's ban.
pub(super) const MODES: [&str; 7] = ["tcp", "udp", "stcp", "sudp", "atcp", "audp", "hand"];

pub(super) fn place<T: PartialEq>(all: &[T], one: &T) -> Option<u8> {
    u8::try_from(all.iter().position(|known| known == one)?).ok()
}

fn put_address(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            bytes.push(4);
            bytes.extend(v4.octets());
        }
        IpAddr::V6(v6) => {
            bytes.push(6);
            bytes.extend(v6.octets());
        }
    }
}

/// Writes a target: its first address and its prefix length.
pub(super) fn put_target(bytes: &mut Vec<u8>, target: BanTarget) {
    put_address(bytes, target.element());
    bytes.push(target.prefix_len());
}

/// Writes a ban without [`BanContext::ban`]; `None` for an unknown mode.
pub(super) fn put_case(bytes: &mut Vec<u8>, case: &BanContext) -> Option<()> {
    put_target(bytes, case.target);
    put_address(bytes, case.source);
    bytes.push(place(&Protocol::ALL, &case.protocol)?);
    bytes.extend(case.port.to_be_bytes());
    bytes.push(place(&MODES, &case.mode)?);
    bytes.push(match case.class {
        None => 0,
        Some(class) => place(&Class::ALL, &class)?.checked_add(1)?,
    });
    match case.expiry {
        Expiry::Never => bytes.push(0),
        Expiry::After(span) => {
            bytes.push(1);
            put_span(bytes, span);
        }
    }
    put_span(bytes, case.since.duration_since(UNIX_EPOCH).unwrap_or_default());
    Some(())
}

pub(super) fn put_span(bytes: &mut Vec<u8>, span: Duration) {
    bytes.extend(span.as_secs().to_be_bytes());
    bytes.extend(span.subsec_nanos().to_be_bytes());
}

/// Terminal control characters are replaced, because a reason may quote a name that an attacker chose.
pub(super) fn put_text(bytes: &mut Vec<u8>, text: &str, longest: usize) {
    let plain = masked_to(text, '?', longest);
    bytes.extend(u32::try_from(plain.len()).unwrap_or_default().to_be_bytes());
    bytes.extend(plain.as_bytes());
}

/// The bytes not read yet.
pub(super) struct Rest<'a>(pub(super) &'a [u8]);

impl Rest<'_> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn one_of<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        all.get(usize::from(self.byte()?)).copied()
    }

    fn address(&mut self) -> Option<IpAddr> {
        match self.byte()? {
            4 => self.array::<4>().map(IpAddr::from),
            6 => self.array::<16>().map(IpAddr::from),
            _ => None,
        }
    }

    pub(super) fn span(&mut self) -> Option<Duration> {
        let (seconds, nanos) = (self.number()?, u32::from_be_bytes(self.array()?));
        (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos))
    }

    pub(super) fn text(&mut self, longest: usize) -> Option<String> {
        let length = usize::try_from(u32::from_be_bytes(self.array()?)).ok().filter(|length| *length <= longest)?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        let text = std::str::from_utf8(text).ok()?;
        (!text.chars().any(is_hidden)).then(|| text.to_owned())
    }

    pub(super) fn target(&mut self) -> Option<BanTarget> {
        BanTarget::exactly(IpNet::new(self.address()?, self.byte()?).ok()?)
    }

    pub(super) fn case(&mut self) -> Option<BanContext> {
        Some(BanContext {
            target: self.target()?,
            source: self.address()?,
            protocol: self.one_of(&Protocol::ALL)?,
            port: u16::from_be_bytes(self.array()?),
            mode: self.one_of(&MODES)?,
            class: match self.byte()? {
                0 => None,
                other => Some(*Class::ALL.get(usize::from(other) - 1)?),
            },
            expiry: match self.byte()? {
                0 => Expiry::Never,
                1 => Expiry::After(self.span()?),
                _ => return None,
            },
            since: UNIX_EPOCH.checked_add(self.span()?)?,
            ban: None,
        })
    }
}
