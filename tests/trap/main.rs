//! What the kernel does beyond the sets of single sources: it counts closed ports by itself, and blocks whole networks; and
//! what the program learns of open ports from it.
//! Against the program as a process in a lab of network namespaces.

#![cfg(test)]

mod both;
mod hold;
mod innocents;
mod lacking;
mod learning;
mod model;
mod networks;
mod own_source;
mod sources;
mod tcp;
mod udp;

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use netns_lab::daemon::Daemon;
use netns_lab::{Lab, TIMEOUT, eventually, slowness, within};

/// Settings with which UDP ports are counted as well.
const BLOCKING: &str = "[udp]\nblock = true\n[trap]\nudp = true\n";

/// Whose ports the kernel counts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// Starts the program, and waits until it watches some ports.
    fn start(self, lab: &Lab, more: &str) -> Daemon {
        let blocking = if self == Self::Udp { BLOCKING } else { "" };
        let daemon = Daemon::start_configured(lab, &format!("{more}{blocking}"), &["--expire", "24h"]);
        eventually("ports are watched", || !self.watched(lab).is_empty());
        daemon
    }

    /// The ports that the kernel watches.
    fn watched(self, lab: &Lab) -> BTreeSet<u16> {
        lab.ports(if self == Self::Tcp { "trapped" } else { "trapped_udp" })
    }

    /// Sends one packet from `source` to each of `ports`.
    fn touch(self, lab: &Lab, host: &str, source: IpAddr, target: IpAddr, ports: &[u16]) {
        if self == Self::Tcp {
            return lab.touch(host, source, target, ports);
        }
        lab.inside(host, || {
            let socket = UdpSocket::bind((source, 0)).unwrap();
            for port in ports {
                assert_eq!(socket.send_to(b"portscan", (target, *port)).unwrap(), 8);
            }
        });
    }
}

/// True once the kernel blocks `source`: packets in a lab may wait for a busy machine.
fn is_banned(lab: &Lab, source: impl Into<IpAddr>) -> bool {
    let source = source.into();
    within(TIMEOUT, || lab.banned().contains(&source).then_some(())).is_some()
}

/// The sources that the kernel blocks, once all has come that was sent.
fn banned_at_last(lab: &Lab) -> Vec<IpAddr> {
    std::thread::sleep(Duration::from_millis(300) * slowness());
    lab.banned()
}
