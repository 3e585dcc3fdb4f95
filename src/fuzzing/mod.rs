//! Provides the functions that fuzz targets call: they pass arbitrary bytes to each reader of packets, kernel replies,
//! operator input and files. Each must accept all input, and checks that the results do not exceed what the bytes can
//! hold. The tests run them over the corpus, truncated at every length and with every byte changed; `fuzz/fuzz_targets`
//! has a program for each.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::capture::file::Reader;
use crate::config::{Config, ignore_file};
use crate::control::protocol::{LineMessage as _, Request, parse_reply, reply_to_line};
use crate::control::scoped_network::ScopedNetwork;
use crate::import::{self, InputFile, Sources};
use crate::{daemon, enforce, fleet, host, ledger, netlink};

#[cfg(test)]
mod tests;

/// A reader of any bytes.
pub type Target = fn(&[u8]);

/// Each target by its name, which is also that of its corpus.
pub const TARGETS: [(&str, Target); 14] = [
    ("capture", capture),
    ("config", config),
    ("control", control),
    ("dns_names", dns_names),
    ("fleet", fleet),
    ("helpers", helpers),
    ("host_files", host_files),
    ("hosts_deny", hosts_deny),
    ("ignore_file", ignore_file),
    ("import", import),
    ("ledger", ledger),
    ("nft", nft),
    ("rtnetlink", rtnetlink),
    ("sock_diag", sock_diag),
];

/// A capture file, pcap or pcapng.
pub fn capture(bytes: &[u8]) {
    let Ok(mut reader) = Reader::new(bytes) else { return };
    let (mut frames, mut end) = (0, 0);
    while let Ok(Some(frame)) = reader.next_frame() {
        frames += 1;
        assert_eq!(frame.number, frames);
        assert!(frame.end > end, "each frame lies behind the one before");
        assert!(usize::try_from(frame.end).is_ok_and(|end| end <= bytes.len()) && frame.bytes.len() < bytes.len());
        end = frame.end;
    }
}

/// A configuration file.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Config::parse("portsentry.toml", text) {
        Ok(config) => drop((config.tcp.monitored(), config.udp.monitored())),
        Err(errors) => assert!(!errors.to_string().is_empty()),
    }
}

/// A request and a reply on the control socket.
pub fn control(bytes: &[u8]) {
    if let Ok(request) = Request::parse(bytes) {
        let line = request.to_line();
        assert_eq!(line.matches('\n').count(), 1, "{line:?}");
        assert_eq!(Request::parse(line.as_bytes()).as_ref(), Ok(&request));
    }
    let address = IpNet::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let address = ScopedNetwork { network: address, link: None };
    for request in [Request::Status, Request::Explain { address }, Request::Allowed, Request::Reload, Request::Confirm]
    {
        if let Ok(reply) = parse_reply(bytes, &request) {
            let line = reply_to_line(&reply);
            assert_eq!(line.matches('\n').count(), 1, "{line:?}");
            assert_eq!(parse_reply(line.as_bytes(), &request), Ok(reply));
        }
    }
}

/// The system's files with name servers, leases and sessions.
pub fn host_files(bytes: &[u8]) {
    host::resolv_conf::fuzz(bytes);
    host::dhcp_leases::fuzz(bytes);
    host::sessions::fuzz(bytes);
}

/// Data that other hosts write to the fleet's server.
pub fn fleet(bytes: &[u8]) {
    fleet::fuzz(bytes);
}

pub fn hosts_deny(bytes: &[u8]) {
    enforce::hosts_deny::fuzz(bytes);
}

/// A file of networks that are never blocked.
pub fn ignore_file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(networks) = ignore_file::parse("portsentry.ignore", &text) {
        assert!(networks.len() <= bytes.len());
        let again = networks.iter().map(|network| format!("{network}\n")).collect::<String>();
        assert_eq!(ignore_file::parse("portsentry.ignore", &again).ok(), Some(networks));
    }
}

/// The files of classic PortSentry, with a zero byte between them: the settings, the defaults, the ignore file.
pub fn import(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |byte| *byte == 0).map(<[u8]>::to_vec);
    let mut source = |name: &str| parts.next().map(|bytes| InputFile { name: name.to_owned(), bytes });
    let config = source("portsentry.conf").unwrap_or_default();
    let sources = Sources {
        config,
        defaults: source("portsentry.default"),
        ignore: source("portsentry.ignore").into_iter().collect(),
    };
    if let Ok(import) = import::translate(&sources, &|_| Ok(bytes.to_vec())) {
        let read = Config::parse("portsentry.toml", &import.toml);
        assert!(read.is_ok(), "{}\n{read:?}", import.toml);
    }
}

/// A ledger: a database file, or else a row.
pub fn ledger(bytes: &[u8]) {
    if bytes.starts_with(b"SQLite") { ledger::fuzzing::database(bytes) } else { ledger::fuzzing::row(bytes) }
}

/// Answers of name servers.
pub fn dns_names(bytes: &[u8]) {
    daemon::fuzzing::names(bytes);
}

/// Replies and notifications of nf_tables.
pub fn nft(bytes: &[u8]) {
    netlink::nft::fuzzing::read(bytes);
    netlink::socket::fuzz(bytes);
}

/// The kernel's messages about links, addresses and routes.
pub fn rtnetlink(bytes: &[u8]) {
    host::network::fuzz(bytes);
    netlink::routes::fuzz(bytes);
}

/// The kernel's messages about sockets and tracked flows.
pub fn sock_diag(bytes: &[u8]) {
    netlink::conntrack::fuzz(bytes);
    netlink::sock_diag::fuzz(bytes);
}

/// The messages between the daemon and its helper processes.
pub fn helpers(bytes: &[u8]) {
    enforce::command::fuzz_protocol(bytes);
    enforce::command::fuzz_notification(bytes);
    enforce::file_helper::fuzz(bytes);
}
