//! Reads frames from a capture file: pcap in all its dialects and pcapng, as a stream, so that memory does not depend on
//! the file's size. Gives every frame with its time and link type; decodes nothing. A broken file gives all frames before
//! the break and then an error that says where it is. docs/dependencies.md says why no library does this.
//!
//! References: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng, and `pcap/dlt.h`.

mod input;
mod pcap;
mod pcapng;

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use input::Input;

/// One captured frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its place in the file, from 1.
    pub number: u64,
    /// When it was captured, since the Unix epoch; what has no time of its own has that of the frame before. At most
    /// [`LATEST`].
    pub time: Duration,
    /// What the link layer looks like, as a LINKTYPE number.
    pub link: i32,
    /// The bytes that were captured.
    pub bytes: &'a [u8],
    /// Bytes of the file up to the end of this frame.
    pub end: u64,
}

/// The latest time that a frame can have, in the year 9892: later ones come from broken files, and there must be room
/// for the end of a ban in what people can read (up to the year 9999).
pub const LATEST: Duration = Duration::from_secs(250_000_000_000);

/// Why a capture file cannot be read, or not further.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be opened.
    #[error("cannot be opened: {0}")]
    Open(io::Error),
    /// A pipe or a directory: it cannot be read twice.
    #[error("is no regular file, and it has to be read twice; save the capture to a file first")]
    NotAFile,
    /// There is nothing in it.
    #[error("is empty; a capture begins with a header")]
    Empty,
    /// It is compressed.
    #[error("is compressed with {0}; unpack it first")]
    Compressed(&'static str),
    /// It begins like no capture.
    #[error("is no capture; write one in the formats pcap or pcapng (tcpdump -w, dumpcap)")]
    NotACapture,
    /// It ends inside a header, a block or a frame.
    #[error("ends early, at byte {offset} inside what begins at byte {start}, after {frames} whole packets")]
    Truncated {
        /// Frames before.
        frames: u64,
        /// Where the incomplete piece begins.
        start: u64,
        /// Where the file ends.
        offset: u64,
    },
    /// It contradicts itself.
    #[error("is broken at byte {offset}, after {frames} whole packets: {what}")]
    Broken {
        /// Frames before.
        frames: u64,
        /// Where the broken piece begins.
        offset: u64,
        what: String,
    },
    /// The disk or whatever is below it failed.
    #[error("cannot be read at byte {offset}: {error}")]
    Read { offset: u64, error: io::Error },
}

/// A capture that is being read.
pub struct Reader<R> {
    input: Input<R>,
    format: Format,
}

enum Format {
    Pcap(pcap::Dialect),
    Pcapng(pcapng::Section),
}

/// The largest frame of a link type that is decoded: libpcap's MAXIMUM_SNAPLEN. A longer one is a broken length.
const LARGEST_FRAME: usize = 262_144;

impl Reader<File> {
    /// Opens a capture.
    ///
    /// # Errors
    /// What cannot be opened, and what is no capture or begins with half a header.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        // Before it is opened: that of a FIFO waits for a writer.
        if !std::fs::metadata(path).map_err(FileError::Open)?.is_file() {
            return Err(FileError::NotAFile);
        }
        Self::new(File::open(path).map_err(FileError::Open)?)
    }
}

impl<R: Read> Reader<R> {
    /// A capture that comes out of `reader`. Reads in large pieces: give it the bare file.
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
    /// Where the file breaks or cannot be read. Nothing can be read behind that.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FileError> {
        let found = match &mut self.format {
            Format::Pcap(dialect) => dialect.next(&mut self.input),
            Format::Pcapng(section) => section.next(&mut self.input),
        };
        let Some(Found { time, link, bytes }) = found? else { return Ok(None) };
        self.input.packets += 1;
        let Input { packets: number, record, .. } = &self.input;
        let bytes = record.get(bytes).unwrap_or_default();
        Ok(Some(Frame { number: *number, time: time.min(LATEST), link, bytes, end: self.input.end() }))
    }
}

/// A frame and where its bytes lie in the record that the input holds.
struct Found {
    time: Duration,
    link: i32,
    bytes: Range<usize>,
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

/// Byte order of a file or of a section of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Order {
    #[default]
    Little,
    Big,
}

#[cfg(test)]
mod tests;
