//! The slow back ends on real files, real processes and real sockets: lines of hosts.deny, commands, connections, and the
//! thread that does them. Files are in temporary directories, sockets in network namespaces of the tests' own.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

#[path = "hands/hosts_deny.rs"]
mod hosts_deny;

use std::time::{Duration, SystemTime};

use portsentry::enforce::Case;
use portsentry::engine::subject::{Expiry, Subject};
use portsentry::engine::{Class, Protocol};

/// A SYN scan from `source`, banned for `seconds` from now.
fn case(source: &str, seconds: u64) -> Case {
    let source = source.parse().unwrap();
    Case {
        subject: Subject::of(source),
        source,
        protocol: Protocol::Tcp,
        port: 23,
        mode: "atcp",
        class: Some(Class::Syn),
        expiry: Expiry::After(Duration::from_secs(seconds)),
        since: SystemTime::now(),
    }
}

fn subject(address: &str) -> Subject {
    Subject::of(address.parse().unwrap())
}
