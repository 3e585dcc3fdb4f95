//! Remembers which ports were in use recently: a late client of a service that has just stopped, or a late answer to a
//! socket that has just closed, is not a probe.

use std::time::Duration;

use super::host::Host;
use crate::types::{PortSet, Protocol, Tick};

/// How long a port counts as open after its listener has gone, or after this host was seen sending from it. TIME_WAIT is
/// 60 s on Linux, a resolver's last retry comes within 30 s, and clients of a service that restarts come back within a
/// minute; twice that.
pub const RECENT: Duration = Duration::from_secs(120);

/// How long a port counts as open after it answered a SYN although nothing on this host listens there: it is published
/// by DNAT, and no socket table shows it.
const PUBLISHED: Duration = Duration::from_secs(24 * 3600);

/// Until when each port counts as open.
pub(super) struct RecentPorts {
    tcp: Vec<u32>,
    udp: Vec<u32>,
}

impl RecentPorts {
    pub(super) fn new() -> Self {
        Self { tcp: vec![0; 65_536], udp: vec![0; 65_536] }
    }

    fn column(&mut self, protocol: Protocol) -> Option<&mut Vec<u32>> {
        match protocol {
            Protocol::Tcp => Some(&mut self.tcp),
            Protocol::Udp => Some(&mut self.udp),
            Protocol::Sctp | Protocol::Icmp => None,
        }
    }

    fn set(&mut self, protocol: Protocol, port: u16, until: Tick) {
        if let Some(slot) = self.column(protocol).and_then(|column| column.get_mut(usize::from(port))) {
            *slot = until.0;
        }
    }

    /// True where `port` was in use recently.
    pub(super) fn holds(&mut self, protocol: Protocol, port: u16, now: Tick) -> bool {
        self.column(protocol).and_then(|column| column.get(usize::from(port))).is_some_and(|until| *until > now.0)
    }

    /// The ports that were in use recently.
    pub(super) fn ports(&self, protocol: Protocol, now: Tick) -> PortSet {
        let column = match protocol {
            Protocol::Tcp => self.tcp.as_slice(),
            Protocol::Udp => &self.udp,
            Protocol::Sctp | Protocol::Icmp => &[],
        };
        (0..=u16::MAX).zip(column).filter(|(_, until)| **until > now.0).map(|(port, _)| port).collect()
    }

    /// Records that `port` is in use.
    pub(super) fn used(&mut self, protocol: Protocol, port: u16, now: Tick) {
        let until = now.plus(Tick::of(RECENT));
        if let Some(slot) = self.column(protocol).and_then(|column| column.get_mut(usize::from(port))) {
            *slot = until.0.max(*slot);
        }
    }

    /// Records that `port` answered a SYN although no listener is known.
    pub(super) fn published(&mut self, port: u16, now: Tick) {
        self.set(Protocol::Tcp, port, now.plus(Tick::of(PUBLISHED)));
    }

    /// Records a change of the listeners: closed ones were open until now.
    pub(super) fn listeners_changed(&mut self, old: &Host, new: &Host, now: Tick) {
        let until = now.plus(Tick::of(RECENT));
        for (protocol, before, after) in [(Protocol::Tcp, &old.tcp, &new.tcp), (Protocol::Udp, &old.udp, &new.udp)] {
            before.gone(after).iter().for_each(|port| self.set(protocol, port, until));
            // A port with a listener was not published by DNAT, so its long expiry is shortened. A port that is open on one
            // address must not look open on the others, so no expiry is extended here.
            let Some(column) = self.column(protocol) else { continue };
            for port in after.anywhere().iter() {
                if let Some(slot) = column.get_mut(usize::from(port)) {
                    *slot = until.0.min(*slot);
                }
            }
        }
    }
}
