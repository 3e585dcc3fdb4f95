//! The bytes after a header: the length that the headers claim, and the captured bytes. A capture keeps only the first
//! bytes of a frame, so a claim beyond the captured bytes is normal; a header beyond the claim is malformed.

use super::Undecoded;

/// What an IP header carries. Behind `length` bytes `captured` may hold padding (Ethernet pads short frames), so every
/// read is checked against the length before the capture: padding is never read as a header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    captured: &'a [u8],
    length: usize,
}

impl<'a> Piece<'a> {
    /// `length` bytes, of which `captured` begins with those that are at hand.
    #[inline]
    pub(super) fn new(captured: &'a [u8], length: usize) -> Self {
        Self { captured, length }
    }

    /// Bytes that the headers claim, captured or not.
    #[inline]
    pub(super) fn length(self) -> usize {
        self.length
    }

    /// All that the headers claim; `None` where less was captured.
    #[inline]
    pub(super) fn whole(self) -> Option<&'a [u8]> {
        self.captured.get(..self.length)
    }

    /// The first `N` bytes, of a header that has at least `least` bytes by its protocol.
    ///
    /// # Errors
    ///
    /// [`Undecoded::Malformed`] where the claimed length has no room for `least` bytes, else [`Undecoded::Truncated`]
    /// where fewer than `N` were captured. The claim comes first: it holds however short the capture is.
    #[inline]
    pub(super) fn header<const N: usize>(self, least: usize) -> Result<&'a [u8; N], Undecoded> {
        if self.length < least.max(N) {
            return Err(Undecoded::Malformed);
        }
        self.captured.first_chunk().ok_or(Undecoded::Truncated)
    }

    /// What follows a header of `bytes` bytes.
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

    /// The piece as a receiver keeps it when more fragments follow: offsets count units of 8 bytes, so Linux cuts a
    /// piece of 15 bytes down to 8. Without this, 15 bytes would show flags here that the host never reads.
    #[inline]
    pub(super) fn whole_units(self) -> Self {
        Self::new(self.captured, self.length & !7)
    }
}
