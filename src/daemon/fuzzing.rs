//! Reads arbitrary bytes as the answer of a name server, for a fuzz target.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Instant;

use super::{allow_names, reverse_dns};

/// Reads `bytes` as the name of an address, and as the addresses of a name on the allow-list.
pub(crate) fn names(bytes: &[u8]) {
    let name = String::from_utf8_lossy(bytes);
    if let Some(clean) = reverse_dns::clean(&name) {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        assert!(clean.bytes().all(plain) && (1..=253).contains(&clean.len()), "{clean:?}");
        assert!(clean.parse::<IpAddr>().is_err(), "{clean:?} is an address");
    }
    allow_names::fuzz(Instant::now(), &answer(bytes));
}

/// Converts the bytes to addresses: an odd first byte starts an IPv4 address, an even one an IPv6 address.
fn answer(mut bytes: &[u8]) -> Vec<SocketAddr> {
    let mut answer = Vec::new();
    while let Some((kind, rest)) = bytes.split_first() {
        if kind % 2 == 1 {
            let Some((address, rest)) = rest.split_first_chunk::<4>() else { break };
            answer.push((*address, 0).into());
            bytes = rest;
        } else {
            let Some((address, rest)) = rest.split_first_chunk::<16>() else { break };
            answer.push(SocketAddrV6::new((*address).into(), 0, 0, u32::from(kind / 2 % 2)).into());
            bytes = rest;
        }
    }
    answer
}
