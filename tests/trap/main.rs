//! Tests the kernel's own detection and blocking: counting probes of closed ports, holding sources and blocking
//! networks; and what the program learns from it about open ports. The program runs as a process in a lab of network
//! namespaces.

#![cfg(test)]

mod both;
mod fragments;
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
use netns_lab::scan::send_surely;
use netns_lab::{Lab, eventually, slowness, soon};

/// Configuration that also counts UDP ports.
const BLOCKING: &str = "[udp]\nblock = true\n[trap]\nudp = true\n";

/// The protocol whose ports the kernel counts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// Starts the program and waits until it monitors some ports.
    fn start(self, lab: &Lab, more: &str) -> Daemon {
        let blocking = if self == Self::Udp { BLOCKING } else { "" };
        let daemon = Daemon::start_configured(lab, &format!("{more}{blocking}"), &["--expire", "24h"]);
        eventually("ports are watched", || !self.watched(lab).is_empty());
        daemon
    }

    /// The ports that the kernel monitors.
    fn watched(self, lab: &Lab) -> BTreeSet<u16> {
        lab.ports(if self == Self::Tcp { "trapped" } else { "trapped_udp" })
    }

    /// Sends one packet from `source` to each of `ports`.
    fn probe(self, lab: &Lab, host: &str, source: IpAddr, target: IpAddr, ports: &[u16]) {
        if self == Self::Tcp {
            return lab.probe(host, source, target, ports);
        }
        lab.inside(host, || {
            let socket = UdpSocket::bind((source, 0)).unwrap();
            for port in ports {
                send_surely(|| assert_eq!(socket.send_to(b"portscan", (target, *port)).unwrap(), 8));
            }
        });
    }
}

/// True once the kernel blocks `source`; on a busy machine packets may be delayed.
fn is_banned(lab: &Lab, source: impl Into<IpAddr>) -> bool {
    let source = source.into();
    soon(|| lab.banned().contains(&source))
}

/// The blocked sources after all sent packets have arrived.
fn banned_at_last(lab: &Lab) -> Vec<IpAddr> {
    std::thread::sleep(Duration::from_millis(300) * slowness());
    lab.banned()
}
