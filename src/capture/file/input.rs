//! Reads the bytes of a capture file record by record, and tracks the position for error messages.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::ops::Range;
use std::time::Duration;

use super::error::FileError;

/// Bytes per read. Large, so that a capture of a gigabyte needs few system calls.
const CHUNK: usize = 256 * 1024;

/// The latest time of a frame, in the year 9892. Later times come from broken files, and the end of a ban must stay
/// printable (up to the year 9999).
pub const MAX_TIME: Duration = Duration::from_secs(250_000_000_000);

/// The maximum length of a frame that is decoded: libpcap's MAXIMUM_SNAPLEN. A longer frame has a broken length field.
pub(super) const LARGEST_FRAME: usize = 262_144;

/// Byte order of a file or of a section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ByteOrder {
    #[default]
    Little,
    Big,
}

/// A frame, with the range of its bytes in the record of the input.
pub(super) struct PacketBlock {
    pub(super) time: Duration,
    pub(super) link: i32,
    pub(super) bytes: Range<usize>,
}

/// A reader and the record that is being read from it.
pub(super) struct Input<R> {
    reader: BufReader<Chain<Cursor<Vec<u8>>, R>>,
    /// The bytes of the record that have been read so far.
    pub(super) record: Vec<u8>,
    /// Offset of the start of the record.
    start: u64,
    /// Number of packets before the record.
    pub(super) packets: u64,
}

impl<R: Read> Input<R> {
    /// An input of the bytes `head`, which were already read from `reader`, followed by the rest of `reader`.
    pub(super) fn new(head: Vec<u8>, reader: R) -> Self {
        let reader = BufReader::with_capacity(CHUNK, Cursor::new(head).chain(reader));
        Self { reader, record: Vec::new(), start: 0, packets: 0 }
    }

    /// Starts the next record and reads its header of `N` bytes; `None` at the end of the file.
    #[inline]
    pub(super) fn next<const N: usize>(&mut self) -> Result<Option<[u8; N]>, FileError> {
        self.start = self.end();
        self.record.clear();
        match self.read_to(N) {
            Ok(()) => Ok(self.record.first_chunk().copied()),
            Err(FileError::Truncated { .. }) if self.record.is_empty() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads until the record has `length` bytes. A false length allocates no more memory than the file has bytes.
    #[inline]
    pub(super) fn read_to(&mut self, length: usize) -> Result<(), FileError> {
        let missing = length.saturating_sub(self.record.len());
        let buffered = self.reader.buffer();
        if let Some(bytes) = buffered.get(..missing) {
            self.record.extend_from_slice(bytes);
            self.reader.consume(missing);
            return Ok(());
        }
        let read = self.reader.by_ref().take(missing as u64).read_to_end(&mut self.record);
        match read.map_err(|error| FileError::Read { offset: self.end(), error })? {
            read if read < missing => Err(self.truncated(0)),
            _ => Ok(()),
        }
    }

    /// Skips the rest of a record of `length` bytes.
    pub(super) fn skip_to(&mut self, length: usize) -> Result<(), FileError> {
        let missing = length.saturating_sub(self.record.len()) as u64;
        let skipped = io::copy(&mut self.reader.by_ref().take(missing), &mut io::sink())
            .map_err(|error| FileError::Read { offset: self.end(), error })?;
        if skipped < missing {
            return Err(self.truncated(skipped));
        }
        self.start += skipped;
        Ok(())
    }

    /// Offset of the end of the bytes read so far.
    #[inline]
    pub(super) fn end(&self) -> u64 {
        self.start + self.record.len() as u64
    }

    /// The error for a file that ends inside the record, `skipped` bytes after the bytes that were kept.
    fn truncated(&self, skipped: u64) -> FileError {
        FileError::Truncated { frames: self.packets, start: self.start, offset: self.end() + skipped }
    }

    /// The error for a malformed record.
    pub(super) fn broken(&self, what: impl Into<String>) -> FileError {
        FileError::Broken { frames: self.packets, offset: self.start, what: what.into() }
    }
}

/// Reads fields one after the other; returns `None` if the bytes end too early.
pub(super) struct Fields<'a> {
    pub(super) order: ByteOrder,
    pub(super) rest: &'a [u8],
}

impl Fields<'_> {
    pub(super) fn u16(&mut self) -> Option<u16> {
        let big = u16::from_be_bytes(self.array()?);
        Some(if self.order == ByteOrder::Big { big } else { big.swap_bytes() })
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        let big = u32::from_be_bytes(self.array()?);
        Some(if self.order == ByteOrder::Big { big } else { big.swap_bytes() })
    }

    /// A length in the file as a length in memory.
    pub(super) fn length(&mut self) -> Option<usize> {
        usize::try_from(self.u32()?).ok()
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*array)
    }
}
