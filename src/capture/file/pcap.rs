//! The pcap format: one header that says byte order, unit of time and link type, then frames.

use std::io::Read;
use std::time::Duration;

use super::source::Source;
use super::{FileError, Found, LARGEST_FRAME, Order, length};
use crate::wire::LinkType;

/// How a pcap file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dialect {
    order: Order,
    /// Nanoseconds that one unit of the fraction stands for.
    unit: u32,
    /// Bytes of a frame's header: Kuznetzov's has 8 more, for interface, protocol and packet type.
    frame_header: usize,
    link: i32,
}

const HEADER: usize = 24;
const FRAME_HEADER: usize = 16;
const KUZNETZOV_HEADER: usize = 24;

impl Dialect {
    /// The dialect of a file that begins with `magic`.
    pub(super) fn of(magic: [u8; 4]) -> Option<Self> {
        let read = |order: Order| {
            let (unit, frame_header) = match order.u32(magic) {
                0xa1b2_c3d4 => (1_000, FRAME_HEADER),
                0xa1b2_3c4d => (1, FRAME_HEADER),
                0xa1b2_cd34 => (1_000, KUZNETZOV_HEADER),
                _ => return None,
            };
            Some(Self { order, unit, frame_header, link: 0 })
        };
        read(Order::Little).or_else(|| read(Order::Big))
    }

    /// Reads the file's header.
    pub(super) fn header<R: Read>(self, source: &mut Source<R>) -> Result<Self, FileError> {
        let Some(&[_, _, _, _, v0, v1, .., l0, l1, l2, l3]) = source.array::<HEADER>(0)?.as_ref() else {
            return Err(source.truncated());
        };
        let major = self.order.u16([v0, v1]);
        if major != 2 {
            return Err(source.broken(format!("version {major} of the format pcap, where only 2 is known")));
        }
        source.take(HEADER)?;
        // The upper bits say whether frames end with a checksum, which lies behind all that is decoded.
        let link = self.order.u32([l0, l1, l2, l3]) & 0xffff;
        Ok(Self { link: i32::try_from(link).unwrap_or(-1), ..self })
    }

    #[inline]
    pub(super) fn next<R: Read>(&self, source: &mut Source<R>) -> Result<Option<Found>, FileError> {
        let Some(header) = source.array::<FRAME_HEADER>(0)? else {
            return if source.peek(1)?.is_none() { Ok(None) } else { Err(source.truncated()) };
        };
        let [s0, s1, s2, s3, f0, f1, f2, f3, c0, c1, c2, c3, ..] = header;
        let seconds = self.order.u32([s0, s1, s2, s3]);
        let fraction = u64::from(self.order.u32([f0, f1, f2, f3])) * u64::from(self.unit);
        let captured = length(self.order.u32([c0, c1, c2, c3]));
        // The formats of USB and D-Bus captures allow more, but those frames are not decoded.
        let largest = if LinkType::from_dlt(self.link).is_some() { LARGEST_FRAME } else { 128 << 20 };
        if captured > largest {
            return Err(source.broken(format!("a packet of {captured} bytes, where {largest} is the most")));
        }
        let record = self.frame_header + captured;
        if source.peek(record)?.is_none() {
            return Err(source.truncated());
        }
        let time = Duration::from_secs(seconds.into()) + Duration::from_nanos(fraction);
        Ok(Some(Found { time, link: self.link, skip: self.frame_header, length: captured, record }))
    }
}
