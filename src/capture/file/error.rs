//! Defines the errors of capture files.

use std::io;

/// Why a capture file cannot be read, or cannot be read further.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot open the file: {0}")]
    Open(io::Error),
    #[error("not a regular file, and the capture is read twice; save it to a file first")]
    NotAFile,
    #[error("the file is empty; write a capture with tcpdump -w or dumpcap")]
    Empty,
    #[error("the file is compressed with {0}; decompress it first")]
    Compressed(&'static str),
    #[error("the file is not in the format pcap or pcapng; write a capture with tcpdump -w or dumpcap")]
    NotACapture,
    #[error(
        "the file is truncated: it ends at byte {offset}, inside the record that begins at byte {start}; complete packets: {frames}"
    )]
    Truncated {
        frames: u64,
        /// Offset of the incomplete part.
        start: u64,
        /// Offset of the end of the file.
        offset: u64,
    },
    #[error("the file is damaged at byte {offset}: {what}; complete packets before it: {frames}")]
    Broken {
        frames: u64,
        /// Offset of the broken part.
        offset: u64,
        what: String,
    },
    #[error("cannot read the file at byte {offset}: {error}")]
    Read { offset: u64, error: io::Error },
}
