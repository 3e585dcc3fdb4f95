//! Defines the evidence of one probed port, packed into 64 bits, and the list of ports of a ban.

use super::class::Class;
use crate::types::{Protocol, Tick};

/// Distinct ports stored per source; the maximum of `scan_trigger` is one less.
pub const MAX_EVIDENCE: usize = 16;

/// One probed port: time, protocol, port and class, packed into 64 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Evidence(u64);

const LOOKED_UP: u64 = 0x80;
/// The checksum of the packet could not be verified, so that its flags may be damaged.
const UNVERIFIED_CHECKSUM: u64 = 0x40;
const CLASS: u8 = 0x3f;

impl Evidence {
    /// The contents of an unused slot.
    pub(super) const NONE: Self = Self(0);

    pub(super) fn new(at: Tick, protocol: Protocol, port: u16, class: Class) -> Self {
        Self(u64::from(at.0) << 32 | u64::from(port) << 16 | (protocol as u64) << 8 | class as u64)
    }

    pub(super) fn at(self) -> Tick {
        Tick((self.0 >> 32) as u32)
    }

    pub(super) fn port(self) -> u16 {
        let [_, _, low, high, ..] = self.0.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    pub(super) fn protocol(self) -> Option<Protocol> {
        let [_, code, ..] = self.0.to_le_bytes();
        Protocol::from_code(code)
    }

    pub(super) fn class(self) -> Option<Class> {
        let [code, ..] = self.0.to_le_bytes();
        Class::from_code(code & CLASS)
    }

    /// Marks it as not enough for a ban on its own, regardless of its class.
    pub(super) fn with_unverified_checksum(self) -> Self {
        Self(self.0 | UNVERIFIED_CHECKSUM)
    }

    /// Marks it as checked against the kernel's socket table.
    pub(super) fn looked_up(self) -> Self {
        Self(self.0 | LOOKED_UP)
    }

    pub(super) fn is_looked_up(self) -> bool {
        self.0 & LOOKED_UP != 0
    }

    pub(super) fn is_about(self, protocol: Protocol, port: u16) -> bool {
        self.protocol() == Some(protocol) && self.port() == port
    }

    /// True for a TCP segment whose port is hidden by fragmentation or by long extension headers.
    pub(super) fn hides_port(self) -> bool {
        self.port() == 0 && self.class() == Some(Class::Fragment)
    }

    pub(super) fn same_port(self, other: Self) -> bool {
        (self.0 ^ other.0) & 0xffff_ff00 == 0
    }

    /// This evidence after the probe `new` of the same port. The later time counts, and the conclusive one of the two
    /// classes.
    pub(super) fn renewed(self, new: Self) -> Self {
        let class = if self.is_conclusive() { self } else { new };
        Self(new.0 & !0xff | class.0 & 0x7f | self.0 & LOOKED_UP)
    }

    pub(super) fn is_conclusive(self) -> bool {
        self.0 & UNVERIFIED_CHECKSUM == 0 && self.class().is_some_and(Class::is_conclusive)
    }
}

/// A copy of `items`, so that the table that they are in can be changed.
pub(super) fn taken(items: impl Iterator<Item = Evidence>) -> [Option<Evidence>; MAX_EVIDENCE] {
    let mut taken = [None; MAX_EVIDENCE];
    taken.iter_mut().zip(items).for_each(|(place, item)| *place = Some(item));
    taken
}

/// The ports of a ban's evidence, in storage order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    items: [(Protocol, u16, Class); MAX_EVIDENCE],
    len: usize,
}

impl Ports {
    pub(super) fn collect(items: impl Iterator<Item = (Protocol, u16, Class)>) -> Self {
        let mut ports = Self { items: [(Protocol::Tcp, 0, Class::Syn); MAX_EVIDENCE], len: 0 };
        for (place, item) in ports.items.iter_mut().zip(items) {
            *place = item;
            ports.len += 1;
        }
        ports
    }

    /// Protocol, port and class of each.
    pub fn iter(&self) -> impl Iterator<Item = (Protocol, u16, Class)> + Clone + '_ {
        self.items.iter().take(self.len).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_reads_back_unchanged() {
        let item = Evidence::new(Tick(77), Protocol::Udp, 65_535, Class::Udp).looked_up();
        assert_eq!((item.at(), item.port()), (Tick(77), 65_535));
        assert_eq!((item.protocol(), item.class()), (Some(Protocol::Udp), Some(Class::Udp)));
        assert!(item.is_looked_up());
    }
}
