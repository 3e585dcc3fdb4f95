//! Parses the pcap format: a header with byte order, unit of time and link type, followed by frames.

use std::io::Read;
use std::time::Duration;

use super::error::FileError;
use super::input::{ByteOrder, Fields, Input, LARGEST_FRAME, PacketBlock};
use crate::wire::LinkType;

/// The dialect of a pcap file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dialect {
    order: ByteOrder,
    /// Nanoseconds per unit of the fraction.
    unit: u32,
    /// Length of a frame's header in bytes. Kuznetzov's dialect has 8 more, for interface, protocol and packet type.
    frame_header: usize,
    link: i32,
}

const FRAME_HEADER: usize = 16;

impl Dialect {
    /// The dialect of a file that begins with `magic`.
    pub(super) fn from_magic(magic: [u8; 4]) -> Option<Self> {
        let dialect = |order, magic| {
            let (unit, frame_header) = match magic {
                0xa1b2_c3d4 => (1_000, FRAME_HEADER),
                0xa1b2_3c4d => (1, FRAME_HEADER),
                0xa1b2_cd34 => (1_000, FRAME_HEADER + 8),
                _ => return None,
            };
            Some(Self { order, unit, frame_header, link: 0 })
        };
        dialect(ByteOrder::Little, u32::from_le_bytes(magic))
            .or_else(|| dialect(ByteOrder::Big, u32::from_be_bytes(magic)))
    }

    /// Reads the file's header.
    pub(super) fn read_header<R: Read>(self, input: &mut Input<R>) -> Result<Self, FileError> {
        let header = input.next::<24>()?.unwrap_or_default();
        let [_, _, _, _, v0, v1, .., l0, l1, l2, l3] = header;
        let major = Fields { order: self.order, rest: &[v0, v1] }.u16().unwrap_or_default();
        if major != 2 {
            return Err(input.broken(format!("version {major} of the format pcap is not supported, only version 2 is")));
        }
        // The upper bits indicate whether frames end with a checksum, which is after all decoded bytes.
        let link = Fields { order: self.order, rest: &[l0, l1, l2, l3] }.u32().unwrap_or_default() & 0xffff;
        Ok(Self { link: i32::try_from(link).unwrap_or(-1), ..self })
    }

    #[inline]
    pub(super) fn next<R: Read>(&self, input: &mut Input<R>) -> Result<Option<PacketBlock>, FileError> {
        let Some(header) = input.next::<FRAME_HEADER>()? else { return Ok(None) };
        let mut fields = Fields { order: self.order, rest: &header };
        let (Some(seconds), Some(fraction), Some(captured)) = (fields.u32(), fields.u32(), fields.length()) else {
            return Ok(None);
        };
        // The formats of USB and D-Bus captures allow longer frames, which are not decoded.
        let largest = if LinkType::from_dlt(self.link).is_some() { LARGEST_FRAME } else { 128 << 20 };
        if captured > largest {
            return Err(input.broken(format!("a packet of {captured} bytes exceeds the maximum of {largest}")));
        }
        input.read_to(self.frame_header + captured)?;
        let time =
            Duration::from_secs(seconds.into()) + Duration::from_nanos(u64::from(fraction) * u64::from(self.unit));
        Ok(Some(PacketBlock { time, link: self.link, bytes: self.frame_header..self.frame_header + captured }))
    }
}
