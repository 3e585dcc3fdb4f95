//! Holds the bytes after a header: the length that the headers claim, and the captured bytes. A capture contains only
//! the first bytes of a frame, so a claimed length beyond the captured bytes is normal. A header beyond the claimed
//! length is malformed.

use super::error::Undecoded;

/// The payload of an IP header. After `length` bytes, `captured` may contain padding (Ethernet pads short frames).
/// Every read is checked against the length before the capture, so that padding is never read as a header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    captured: &'a [u8],
    length: usize,
}

impl<'a> Piece<'a> {
    /// A payload of `length` bytes, of which `captured` contains the first ones.
    #[inline]
    pub(super) fn new(captured: &'a [u8], length: usize) -> Self {
        Self { captured, length }
    }

    /// The length that the headers claim, captured or not.
    #[inline]
    pub(super) fn length(self) -> usize {
        self.length
    }

    /// All bytes that the headers claim; `None` if fewer were captured.
    #[inline]
    pub(super) fn whole(self) -> Option<&'a [u8]> {
        self.captured.get(..self.length)
    }

    /// The first `N` bytes of a header that has at least `least` bytes in its protocol.
    ///
    /// # Errors
    ///
    /// [`Undecoded::Malformed`] if the claimed length is less than `least` bytes, otherwise [`Undecoded::Truncated`] if
    /// fewer than `N` bytes were captured. The claimed length is checked first, because it does not depend on the
    /// length of the capture.
    #[inline]
    pub(super) fn header<const N: usize>(self, least: usize) -> Result<&'a [u8; N], Undecoded> {
        if self.length < least.max(N) {
            return Err(Undecoded::Malformed);
        }
        self.captured.first_chunk().ok_or(Undecoded::Truncated)
    }

    /// The bytes after a header of `bytes` bytes.
    ///
    /// # Errors
    ///
    /// As [`Piece::header`].
    #[inline]
    pub(super) fn behind(self, bytes: usize) -> Result<Self, Undecoded> {
        let length = self.length.checked_sub(bytes).ok_or(Undecoded::Malformed)?;
        let captured = self.captured.get(bytes..).ok_or(Undecoded::Truncated)?;
        Ok(Self { captured, length })
    }

    /// The first `length` bytes, at most as many as the headers claim.
    #[inline]
    pub(super) fn first(self, length: usize) -> Self {
        Self::new(self.captured, length.min(self.length))
    }

    /// The piece as a receiver keeps it if more fragments follow. Offsets count units of 8 bytes, so Linux cuts a piece
    /// of 15 bytes down to 8. Without this cut, the decoder would see flags in 15 bytes that the host never reads.
    #[inline]
    pub(super) fn whole_units(self) -> Self {
        Self::new(self.captured, self.length & !7)
    }
}
