//! Reads frames from a capture file, pcap in all its dialects or pcapng, as a stream, so that memory does not depend on
//! the file's size. Returns every frame with its time and link type, and does not decode it. For a broken file, returns
//! all frames before the damage, then an error with its position. docs/dependencies.md explains why no library is used.
//!
//! References: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng, and `pcap/dlt.h`.

mod error;
mod input;
mod pcap;
mod pcapng;

use std::fs::File;
use std::io::{Read, Take};
use std::path::Path;
use std::time::Duration;

pub use error::FileError;
pub use input::MAX_TIME;
use input::{Input, PacketBlock};

/// One captured frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Position of the frame in the file, from 1.
    pub number: u64,
    /// Time of capture, since the Unix epoch. A frame without a time gets that of the frame before. At most
    /// [`MAX_TIME`].
    pub time: Duration,
    /// The link type, as a LINKTYPE number.
    pub link: i32,
    pub bytes: &'a [u8],
    /// Offset of the end of this frame in the file.
    pub end: u64,
}

pub struct Reader<R> {
    input: Input<R>,
    format: Format,
}

enum Format {
    Pcap(pcap::Dialect),
    Pcapng(pcapng::Section),
}

impl Reader<Take<File>> {
    /// Opens a capture, and reads no more than its present length: a file that grows has no end.
    ///
    /// # Errors
    /// If the file cannot be opened, is not a capture, or ends inside its header.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        // Checked before opening, because opening a FIFO waits for a writer.
        if !std::fs::metadata(path).map_err(FileError::Open)?.is_file() {
            return Err(FileError::NotAFile);
        }
        let file = File::open(path).map_err(FileError::Open)?;
        let length = file.metadata().map_err(FileError::Open)?.len();
        Self::new(file.take(length))
    }
}

impl<R: Read> Reader<R> {
    /// Reads a capture from `reader`. The reads are large, so `reader` need not be buffered.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn new(mut reader: R) -> Result<Self, FileError> {
        let mut head = Vec::new();
        reader.by_ref().take(4).read_to_end(&mut head).map_err(|error| FileError::Read { offset: 0, error })?;
        let magic = match *head.as_slice() {
            [] => return Err(FileError::Empty),
            [a, b, c, d] => [a, b, c, d],
            _ => return Err(FileError::NotACapture),
        };
        let mut input = Input::new(head, reader);
        let format = if magic == pcapng::SECTION {
            Format::Pcapng(pcapng::Section::default())
        } else if let Some(dialect) = pcap::Dialect::from_magic(magic) {
            Format::Pcap(dialect.read_header(&mut input)?)
        } else {
            return Err(compression(magic).map_or(FileError::NotACapture, FileError::Compressed));
        };
        Ok(Self { input, format })
    }

    /// The next frame; `None` at the end of the file.
    ///
    /// # Errors
    /// If the file is broken or cannot be read. No frame can be read after an error.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FileError> {
        let found = match &mut self.format {
            Format::Pcap(dialect) => dialect.next(&mut self.input),
            Format::Pcapng(section) => section.next(&mut self.input),
        };
        let Some(PacketBlock { time, link, bytes }) = found? else { return Ok(None) };
        self.input.packets += 1;
        let Input { packets: number, record, .. } = &self.input;
        let bytes = record.get(bytes).unwrap_or_default();
        Ok(Some(Frame { number: *number, time: time.min(MAX_TIME), link, bytes, end: self.input.end() }))
    }
}

fn compression(magic: [u8; 4]) -> Option<&'static str> {
    match magic {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x1f, 0x9d, ..] => Some("compress"),
        [0x28, 0xb5, 0x2f, 0xfd] => Some("zstd"),
        [0xfd, b'7', b'z', b'X'] => Some("xz"),
        [b'B', b'Z', b'h', _] => Some("bzip2"),
        [0x04, 0x22, 0x4d, 0x18] => Some("lz4"),
        [b'P', b'K', 3, 4] => Some("zip"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
