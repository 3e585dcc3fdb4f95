//! Parses the pcapng format: sections of blocks. Each section has its byte order and interfaces, each interface its
//! link type and unit of time. Blocks without packets are skipped without being parsed.

use std::io::Read;
use std::time::Duration;

use super::error::FileError;
use super::input::{ByteOrder, Fields, Input, LARGEST_FRAME, MAX_TIME, PacketBlock};

/// The first four bytes of a section header block, the same in both byte orders.
pub(super) const SECTION: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

const INTERFACE: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// Length of the type and length fields before a block's body. The length is repeated after the body.
const BLOCK_HEADER_LEN: usize = 8;
const BLOCK_OVERHEAD: usize = BLOCK_HEADER_LEN + 4;
/// The maximum length of a block that is parsed: a frame and its options, which are usually comments.
const LARGEST_BLOCK: usize = LARGEST_FRAME + (1 << 20);
/// The maximum number of interfaces per section, far above any real machine.
const INTERFACES: usize = 65_536;

/// The current section.
#[derive(Debug, Default)]
pub(super) struct Section {
    order: ByteOrder,
    interfaces: Vec<CaptureInterface>,
    /// Time of the last frame, used for frames without a time.
    time: Duration,
}

#[derive(Clone, Copy, Debug)]
struct CaptureInterface {
    link: i32,
    /// Maximum captured length of a packet.
    snap: usize,
    /// Units of time per second.
    units: u128,
    /// Seconds to add to every time.
    offset: i64,
}

impl Section {
    /// Reads blocks until one contains a packet.
    pub(super) fn next<R: Read>(&mut self, input: &mut Input<R>) -> Result<Option<PacketBlock>, FileError> {
        loop {
            let Some(header) = input.next::<BLOCK_OVERHEAD>()? else { return Ok(None) };
            let [k0, k1, k2, k3, l0, l1, l2, l3, magic @ ..] = header;
            let begins = [k0, k1, k2, k3] == SECTION;
            if begins {
                // The byte order also applies to the length of the section header itself.
                self.order = match magic {
                    [0x4d, 0x3c, 0x2b, 0x1a] => ByteOrder::Little,
                    [0x1a, 0x2b, 0x3c, 0x4d] => ByteOrder::Big,
                    _ => return Err(input.broken("a section header has no byte-order magic")),
                };
            }
            let mut fields = Fields { order: self.order, rest: &header };
            let (Some(kind), Some(total)) = (fields.u32(), fields.length()) else { return Ok(None) };
            if total < BLOCK_OVERHEAD || !total.is_multiple_of(4) {
                let what = format!("{total} is not a valid block length");
                return Err(input.broken(what));
            }
            if begins {
                self.begin(input, total)?;
                continue;
            }
            if !matches!(kind, INTERFACE | OBSOLETE_PACKET | SIMPLE_PACKET | ENHANCED_PACKET) {
                input.skip_to(total)?;
                continue;
            }
            if total > LARGEST_BLOCK {
                return Err(input.broken(format!("a block of {total} bytes exceeds the maximum of {LARGEST_BLOCK}")));
            }
            input.read_to(total)?;
            let block = input.record.as_slice();
            if !block.ends_with(&[l0, l1, l2, l3]) {
                return Err(input.broken("the two length fields of a block differ"));
            }
            let rest = block.get(BLOCK_HEADER_LEN..total - 4).unwrap_or_default();
            let mut body = Fields { order: self.order, rest };
            let read = match kind {
                INTERFACE => self.interface(&mut body).map(|()| None),
                SIMPLE_PACKET => self.simple(&mut body).map(Some),
                _ => self.packet(&mut body, kind == ENHANCED_PACKET).map(Some),
            };
            if let Some(found) = read.map_err(|what| input.broken(what))? {
                self.time = found.time;
                return Ok(Some(found));
            }
        }
    }

    fn begin<R: Read>(&mut self, input: &mut Input<R>, total: usize) -> Result<(), FileError> {
        const MIN_LEN: usize = 28;
        if total < MIN_LEN {
            return Err(input.broken("a section header is too short"));
        }
        input.read_to(MIN_LEN)?;
        let version = input.record.get(BLOCK_OVERHEAD..).unwrap_or_default();
        let major = Fields { order: self.order, rest: version }.u16().unwrap_or_default();
        if major != 1 {
            return Err(
                input.broken(format!("version {major} of the format pcapng is not supported, only version 1 is"))
            );
        }
        self.interfaces.clear();
        input.skip_to(total)
    }

    fn interface(&mut self, body: &mut Fields) -> Result<(), String> {
        let (Some(link), Some(_reserved), Some(snap)) = (body.u16(), body.u16(), body.length()) else {
            return Err("an interface block is too short".to_owned());
        };
        if self.interfaces.len() >= INTERFACES {
            return Err(format!("a section has more than {INTERFACES} interfaces"));
        }
        // 0 means no limit.
        let snap = if snap == 0 { usize::MAX } else { snap };
        let mut interface = CaptureInterface { link: link.into(), snap, units: 1_000_000, offset: 0 };
        // An unreadable option ends the list of options. Times in the default unit are better than no times.
        while let (Some(kind @ 1..), Some(size)) = (body.u16(), body.u16()) {
            let size = usize::from(size);
            let Some(value) = body.rest.get(..size) else { break };
            match (kind, value) {
                (9, [exponent]) => interface.units = units_in_a_second(*exponent),
                (14, value) => {
                    if let Some(bytes) = value.first_chunk() {
                        interface.offset = match self.order {
                            ByteOrder::Little => i64::from_le_bytes(*bytes),
                            ByteOrder::Big => i64::from_be_bytes(*bytes),
                        };
                    }
                }
                _ => {}
            }
            body.rest = body.rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
        self.interfaces.push(interface);
        Ok(())
    }

    /// Parses an enhanced packet block, or the obsolete packet block. The latter has an interface number of 16 bits,
    /// and a drop count in the other 16.
    fn packet(&self, body: &mut Fields, enhanced: bool) -> Result<PacketBlock, String> {
        let mut read = || {
            let interface = match enhanced {
                true => body.u32()?,
                false => (u32::from(body.u16()?), body.u16()?).0,
            };
            let ticks = u64::from(body.u32()?) << 32 | u64::from(body.u32()?);
            let (captured, _original) = (body.length()?, body.u32()?);
            Some((interface, ticks, captured))
        };
        let (interface, ticks, captured) = read().ok_or("a packet block is too short")?;
        let Some(from) = usize::try_from(interface).ok().and_then(|place| self.interfaces.get(place)) else {
            return Err(format!("a packet names interface {interface}, which the section does not describe"));
        };
        if captured > body.rest.len() {
            return Err(format!(
                "a packet of {captured} bytes exceeds its block, which has room for {}",
                body.rest.len()
            ));
        }
        let start = BLOCK_HEADER_LEN + 20;
        Ok(PacketBlock { time: from.time(ticks), link: from.link, bytes: start..start + captured })
    }

    /// Parses a simple packet block: a packet of the first interface, without a time, cut at the interface's limit.
    fn simple(&self, body: &mut Fields) -> Result<PacketBlock, String> {
        let original = body.length().ok_or("a packet block is too short")?;
        let from = self.interfaces.first().ok_or("a packet comes before the first interface block")?;
        let captured = original.min(from.snap).min(body.rest.len());
        let start = BLOCK_HEADER_LEN + 4;
        Ok(PacketBlock { time: self.time, link: from.link, bytes: start..start + captured })
    }
}

impl CaptureInterface {
    fn time(&self, ticks: u64) -> Duration {
        let ticks = u128::from(ticks);
        let seconds = i128::try_from(ticks / self.units).unwrap_or(i128::MAX).saturating_add(self.offset.into());
        let Ok(seconds) = u64::try_from(seconds.max(0)) else { return MAX_TIME };
        // The fraction is less than one second, so it fits. If the multiplication overflows, the fraction is
        // negligible.
        let nanos = (ticks % self.units).checked_mul(1_000_000_000).map_or(0, |scaled| scaled / self.units);
        Duration::new(seconds.min(MAX_TIME.as_secs()), u32::try_from(nanos).unwrap_or(0))
    }
}

/// Units per second: a power of 10, or a power of 2 if the highest bit is set. A value that overflows becomes the
/// maximum, because 64 bits of ticks are then always less than one second.
fn units_in_a_second(exponent: u8) -> u128 {
    let base: u128 = if exponent & 0x80 == 0 { 10 } else { 2 };
    base.checked_pow(u32::from(exponent & 0x7f)).unwrap_or(u128::MAX)
}
