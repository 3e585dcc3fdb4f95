//! Bytes of a file, in pieces of any length, with the place where they stand. Knows no format.

use std::io::{ErrorKind, Read};

use super::FileError;

/// Bytes that are asked for at once. Large, so that the system's part in reading a gigabyte is small.
const CHUNK: usize = 256 * 1024;

/// A reader and what has been read ahead of it.
pub(super) struct Source<R> {
    reader: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    offset: u64,
}

impl<R: Read> Source<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, buffer: vec![0; CHUNK], start: 0, end: 0, offset: 0 }
    }

    /// How many bytes have been taken.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next `count` bytes, which stay there; `None` where the file ends before. The caller bounds `count`, and so
    /// the memory that this takes.
    #[inline]
    pub(super) fn peek(&mut self, count: usize) -> Result<Option<&[u8]>, FileError> {
        if self.end - self.start < count && !self.fill(count)? {
            return Ok(None);
        }
        Ok(self.buffer.get(self.start..self.start + count))
    }

    /// The `N` bytes that begin `skip` bytes from here.
    #[inline]
    pub(super) fn array<const N: usize>(&mut self, skip: usize) -> Result<Option<[u8; N]>, FileError> {
        let bytes = self.peek(skip + N)?;
        Ok(bytes.and_then(|bytes| bytes.get(skip..)).and_then(|rest| rest.first_chunk().copied()))
    }

    /// The next `count` bytes, which have been peeked at before.
    #[inline]
    pub(super) fn take(&mut self, count: usize) -> Result<&[u8], FileError> {
        if self.end - self.start < count && !self.fill(count)? {
            return Err(self.truncated());
        }
        let from = self.start;
        self.start += count;
        self.offset += count as u64;
        Ok(self.buffer.get(from..self.start).unwrap_or_default())
    }

    /// Passes over `count` bytes, however many.
    pub(super) fn skip(&mut self, count: u64) -> Result<(), FileError> {
        let mut left = count;
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            if self.peek(step)?.is_none() {
                return Err(self.truncated());
            }
            self.take(step)?;
            left -= step as u64;
        }
        Ok(())
    }

    /// The file ends inside what begins here.
    pub(super) fn truncated(&self) -> FileError {
        FileError::Truncated { frames: 0, start: self.offset, offset: self.offset + (self.end - self.start) as u64 }
    }

    /// What begins here is wrong.
    pub(super) fn broken(&self, what: impl Into<String>) -> FileError {
        FileError::Broken { frames: 0, offset: self.offset, what: what.into() }
    }

    /// Reads until `count` bytes are there; false where the file ends before.
    #[cold]
    fn fill(&mut self, count: usize) -> Result<bool, FileError> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.end < count {
            // Twice what has been read, as long as that goes on: a length that lies takes no more memory than there are bytes.
            if self.end == self.buffer.len() {
                self.buffer.resize(count.min(2 * self.end), 0);
            }
            match self.reader.read(self.buffer.get_mut(self.end..).unwrap_or_default()) {
                Ok(0) => return Ok(false),
                Ok(read) => self.end += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(FileError::Read { offset: self.offset + self.end as u64, error }),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_lies_takes_no_more_memory_than_there_are_bytes() {
        let bytes = vec![7; 3 * CHUNK + 5];
        let mut source = Source::new(&bytes[..100]);
        assert!(source.peek(128 << 20).unwrap().is_none());
        assert_eq!(source.buffer.len(), CHUNK);
        let mut source = Source::new(&bytes[..]);
        assert!(source.peek(128 << 20).unwrap().is_none());
        assert!(source.buffer.len() <= 2 * bytes.len());
        assert_eq!(source.peek(bytes.len()).unwrap(), Some(&bytes[..]));
        source.take(100).unwrap();
        assert_eq!(source.peek(bytes.len() - 100).unwrap(), Some(&bytes[100..]));
    }
}
