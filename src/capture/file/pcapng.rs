//! The pcapng format: sections of blocks, each section with its byte order and interfaces, each interface with its link
//! type and unit of time. Blocks without packets are passed over, whatever is in them.

use std::io::Read;
use std::time::Duration;

use super::source::Source;
use super::{FileError, Found, LARGEST_FRAME, Order, length};

/// The first four bytes of a section, the same in both byte orders.
pub(super) const SECTION: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

const INTERFACE: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// Type and length before a block's body, and the length again behind it.
const AROUND: usize = 12;
/// The largest block that is looked into: a frame and its options, which are comments at most.
const LARGEST_BLOCK: usize = LARGEST_FRAME + (1 << 20);
/// The most interfaces of a section that are remembered; no machine has so many.
const INTERFACES: usize = 65_536;

/// The section that is being read.
#[derive(Debug, Default)]
pub(super) struct Section {
    order: Order,
    interfaces: Vec<Interface>,
    /// Time of the last frame, for those that have none.
    time: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link: i32,
    /// Largest captured length; 0 is no limit.
    snap: u32,
    /// Units of time in a second.
    units: u128,
    /// Seconds to be added to every time.
    offset: i64,
}

impl Section {
    /// Reads blocks up to the next one with a packet.
    pub(super) fn next<R: Read>(&mut self, source: &mut Source<R>) -> Result<Option<Found>, FileError> {
        loop {
            let Some(kind) = source.array::<4>(0)? else {
                return if source.peek(1)?.is_none() { Ok(None) } else { Err(source.truncated()) };
            };
            if kind == SECTION {
                self.begin(source)?;
                continue;
            }
            let Some(claim) = source.array::<4>(4)? else { return Err(source.truncated()) };
            let total = block_length(self.order, claim, source)?;
            let kind = self.order.u32(kind);
            if !matches!(kind, INTERFACE | OBSOLETE_PACKET | SIMPLE_PACKET | ENHANCED_PACKET) {
                source.skip(total as u64)?;
                continue;
            }
            if total > LARGEST_BLOCK {
                return Err(source.broken(format!("a block of {total} bytes, where {LARGEST_BLOCK} is the most")));
            }
            let Some(block) = source.peek(total)? else { return Err(source.truncated()) };
            let body = block.get(8..total - 4).unwrap_or_default();
            let behind = block.get(total - 4..).and_then(<[u8]>::first_chunk);
            if behind != Some(&claim) {
                return Err(source.broken("the block's two lengths differ"));
            }
            let read = match kind {
                INTERFACE => self.interface(body).map(|interface| {
                    self.interfaces.push(interface);
                    None
                }),
                ENHANCED_PACKET => self.enhanced(body, total).map(Some),
                OBSOLETE_PACKET => self.obsolete(body, total).map(Some),
                _ => self.simple(body, total).map(Some),
            };
            match read {
                Ok(Some(found)) => {
                    self.time = found.time;
                    return Ok(Some(found));
                }
                Ok(None) if self.interfaces.len() > INTERFACES => {
                    return Err(source.broken(format!("more than {INTERFACES} interfaces")));
                }
                Ok(None) => source.skip(total as u64)?,
                Err(what) => return Err(source.broken(what)),
            }
        }
    }

    /// Reads a section's header: its byte order holds for its own length, too.
    fn begin<R: Read>(&mut self, source: &mut Source<R>) -> Result<(), FileError> {
        let Some([l0, l1, l2, l3, magic @ ..]) = source.array::<8>(4)? else { return Err(source.truncated()) };
        let order = match magic {
            [0x4d, 0x3c, 0x2b, 0x1a] => Order::Little,
            [0x1a, 0x2b, 0x3c, 0x4d] => Order::Big,
            _ => return Err(source.broken("a section without its byte-order magic")),
        };
        let total = block_length(order, [l0, l1, l2, l3], source)?;
        let Some([v0, v1]) = source.array(12)? else { return Err(source.truncated()) };
        if total < 28 {
            return Err(source.broken("a section's header that is too short"));
        }
        let major = order.u16([v0, v1]);
        if major != 1 {
            return Err(source.broken(format!("version {major} of the format pcapng, where only 1 is known")));
        }
        source.skip(total as u64)?;
        self.order = order;
        self.interfaces.clear();
        Ok(())
    }

    fn interface(&self, body: &[u8]) -> Result<Interface, String> {
        let Some((&[l0, l1, _, _, s0, s1, s2, s3], options)) = body.split_first_chunk() else {
            return Err("an interface that is too short".to_owned());
        };
        let (mut units, mut offset) = (1_000_000, 0);
        let mut rest = options;
        // What cannot be read ends the options: times in the usual unit are better than none.
        while let Some((&[k0, k1, n0, n1], behind)) = rest.split_first_chunk() {
            let (kind, size) = (self.order.u16([k0, k1]), usize::from(self.order.u16([n0, n1])));
            let Some(value) = behind.get(..size) else { break };
            match (kind, value) {
                (0, _) => break,
                (9, [exponent]) => units = units_in_a_second(*exponent),
                (14, value) => {
                    if let Some(bytes) = value.first_chunk() {
                        offset = match self.order {
                            Order::Little => i64::from_le_bytes(*bytes),
                            Order::Big => i64::from_be_bytes(*bytes),
                        };
                    }
                }
                _ => {}
            }
            rest = behind.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
        let link = self.order.u16([l0, l1]).into();
        Ok(Interface { link, snap: self.order.u32([s0, s1, s2, s3]), units, offset })
    }

    fn enhanced(&self, body: &[u8], total: usize) -> Result<Found, String> {
        let Some((&[i0, i1, i2, i3, fixed @ ..], data)) = body.split_first_chunk::<20>() else {
            return Err("a packet block that is too short".to_owned());
        };
        self.packet(self.order.u32([i0, i1, i2, i3]), fixed, data, total)
    }

    /// The packet block of the format's first drafts: its interface has 16 bits, the other 16 count drops.
    fn obsolete(&self, body: &[u8], total: usize) -> Result<Found, String> {
        let Some((&[i0, i1, _, _, fixed @ ..], data)) = body.split_first_chunk::<20>() else {
            return Err("a packet block that is too short".to_owned());
        };
        self.packet(self.order.u16([i0, i1]).into(), fixed, data, total)
    }

    /// What both have behind the interface: time, captured length, length on the wire.
    fn packet(&self, interface: u32, fixed: [u8; 16], data: &[u8], total: usize) -> Result<Found, String> {
        let [h0, h1, h2, h3, l0, l1, l2, l3, c0, c1, c2, c3, ..] = fixed;
        let high = u64::from(self.order.u32([h0, h1, h2, h3]));
        let low = u64::from(self.order.u32([l0, l1, l2, l3]));
        let captured = length(self.order.u32([c0, c1, c2, c3]));
        let Some(from) = self.interfaces.get(length(interface)) else {
            return Err(format!("a packet of interface {interface}, which the section does not describe"));
        };
        if captured > data.len() {
            return Err(format!("a packet of {captured} bytes in a block with room for {}", data.len()));
        }
        let skip = 8 + 20;
        Ok(Found { time: from.time(high << 32 | low), link: from.link, skip, length: captured, record: total })
    }

    /// A packet of the first interface, without a time, cut at the interface's limit.
    fn simple(&self, body: &[u8], total: usize) -> Result<Found, String> {
        let Some((&original, data)) = body.split_first_chunk() else {
            return Err("a packet block that is too short".to_owned());
        };
        let Some(from) = self.interfaces.first() else {
            return Err("a packet before any interface".to_owned());
        };
        let limit = if from.snap == 0 { usize::MAX } else { length(from.snap) };
        let captured = length(self.order.u32(original)).min(limit).min(data.len());
        Ok(Found { time: self.time, link: from.link, skip: 8 + 4, length: captured, record: total })
    }
}

impl Interface {
    fn time(&self, ticks: u64) -> Duration {
        let ticks = u128::from(ticks);
        let seconds = i128::try_from(ticks / self.units).unwrap_or(i128::MAX).saturating_add(self.offset.into());
        let Ok(seconds) = u64::try_from(seconds.max(0)) else { return super::LATEST };
        // The fraction is less than one second: it fits, and where the units are too many to multiply it is too small
        // to matter.
        let nanos = (ticks % self.units).checked_mul(1_000_000_000).map_or(0, |scaled| scaled / self.units);
        Duration::new(seconds.min(super::LATEST.as_secs()), u32::try_from(nanos).unwrap_or(0))
    }
}

/// Units in a second: the exponent of 10, or of 2 where the uppermost bit is set. More than 64 bits of ticks can count
/// are all the same.
fn units_in_a_second(exponent: u8) -> u128 {
    let base: u128 = if exponent & 0x80 == 0 { 10 } else { 2 };
    base.checked_pow(u32::from(exponent & 0x7f)).unwrap_or(u128::MAX)
}

/// The length of a block that begins here.
fn block_length<R: Read>(order: Order, claim: [u8; 4], source: &Source<R>) -> Result<usize, FileError> {
    let total = length(order.u32(claim));
    if total < AROUND || !total.is_multiple_of(4) {
        return Err(source.broken(format!("a block of {total} bytes, which is no length that a block can have")));
    }
    Ok(total)
}
