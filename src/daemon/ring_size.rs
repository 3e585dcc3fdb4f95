//! Chooses the size of the capture's ring buffer: small, so that an idle daemon uses little memory, and large while the
//! packet rate is so high that a short wait for the processor would lose packets.

use std::time::{Duration, Instant};

use crate::capture::live::Ring;

/// Packets per second that need the large ring buffer. A scan reaches this rate only for moments.
const HIGH_RATE: f64 = 20_000.0;

/// Time with a low packet rate before the usual ring buffer returns: floods come in waves, and each change compiles a
/// filter.
const CALM_TIME: Duration = Duration::from_secs(60);

/// Current ring buffer, and the time of the last high packet rate.
pub(super) struct RingSizer {
    pub(super) ring: Ring,
    flood: Option<Instant>,
    last: Instant,
    frames: u64,
    dropped: u64,
    /// Time until which no larger ring buffer is requested after a failure.
    refused: Option<Instant>,
}

impl RingSizer {
    pub(super) fn new(now: Instant) -> Self {
        Self { ring: Ring::Usual, flood: None, last: now, frames: 0, dropped: 0, refused: None }
    }

    /// Called when the sensor reports a high packet rate.
    pub(super) fn flood_begins(&mut self, now: Instant) {
        self.flood = Some(now);
    }

    /// Returns the ring buffer that should replace the current one, given the total numbers of captured and dropped
    /// frames.
    pub(super) fn wanted(&mut self, now: Instant, frames: u64, dropped: u64) -> Option<Ring> {
        let span = now.saturating_duration_since(self.last).as_secs_f64();
        let new = frames.wrapping_sub(self.frames);
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let is_fast = new as f64 > HIGH_RATE * span.max(1.0);
        if is_fast || dropped != self.dropped {
            self.flood = Some(now);
        }
        (self.last, self.frames, self.dropped) = (now, frames, dropped);
        self.flood = self.flood.filter(|last| now.saturating_duration_since(*last) < CALM_TIME);
        self.refused = self.refused.filter(|until| *until > now);
        let wanted = if self.flood.is_some() { Ring::Large } else { Ring::Usual };
        (wanted != self.ring && self.refused.is_none()).then_some(wanted)
    }

    pub(super) fn refused(&mut self, now: Instant) {
        self.refused = now.checked_add(CALM_TIME);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn ring_grows_for_flood_only() {
        let mut now = Instant::now();
        let mut sizer = RingSizer::new(now);
        now += SECOND;
        assert_eq!(sizer.wanted(now, 10_000, 0), None);
        now += SECOND;
        assert_eq!(sizer.wanted(now, 40_000, 0), Some(Ring::Large));
        sizer.ring = Ring::Large;
        for _ in 1..60 {
            now += SECOND;
            assert_eq!(sizer.wanted(now, 40_000, 0), None);
        }
        now += SECOND;
        assert_eq!(sizer.wanted(now, 40_000, 0), Some(Ring::Usual));
    }

    #[test]
    fn single_lost_packet_enlarges_ring() {
        let now = Instant::now();
        assert_eq!(RingSizer::new(now).wanted(now + SECOND, 10, 1), Some(Ring::Large));
    }

    #[test]
    fn short_burst_is_not_a_rate() {
        let now = Instant::now();
        let mut sizer = RingSizer::new(now);
        assert_eq!(sizer.wanted(now + Duration::from_millis(10), 1_000, 0), None);
        sizer.flood_begins(now + Duration::from_millis(20));
        assert_eq!(sizer.wanted(now + Duration::from_millis(20), 2_000, 0), Some(Ring::Large));
    }

    #[test]
    fn refused_ban_is_requested_again_later() {
        let now = Instant::now();
        let mut sizer = RingSizer::new(now);
        sizer.flood_begins(now);
        assert_eq!(sizer.wanted(now, 0, 0), Some(Ring::Large));
        sizer.refused(now);
        assert_eq!(sizer.wanted(now + SECOND, 1_000_000, 0), None);
        sizer.flood_begins(now + CALM_TIME);
        assert_eq!(sizer.wanted(now + CALM_TIME, 1_000_000, 0), Some(Ring::Large));
    }
}
