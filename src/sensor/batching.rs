//! Adaptive batching: above 32,000 packets/s the sensor sleeps 200 µs between batches, because a wake-up per packet
//! costs more than judging the packet.

use std::time::Duration;

use crate::types::Timestamp;

/// Interval over which packets are counted.
const RATE_WINDOW: Duration = Duration::from_millis(2);

/// Packets per interval from which a wake-up per packet is too expensive: 32,000 packets/s. Background noise and real
/// scanners stay far below it.
const BUSY_PACKETS: usize = 64;

/// Consecutive fast intervals that count as a flood: 100 ms.
const FLOOD_SPANS: u32 = 50;

/// Sleep between batches. 200 packets arrive meanwhile at 1,000,000 packets/s; the ring buffer of the capture holds
/// thousands.
pub(super) const COALESCE_DELAY: Duration = Duration::from_micros(200);

#[derive(Debug, Default)]
pub(super) struct Batching {
    since: Timestamp,
    packets: usize,
    is_fast: bool,
    /// Consecutive intervals with many packets.
    spans: u32,
}

impl Batching {
    /// Counts the packets of a batch; returns true if the sensor should sleep for [`COALESCE_DELAY`] before the next
    /// one.
    pub(super) fn count(&mut self, now: Timestamp, packets: usize) -> bool {
        self.packets += packets;
        let span = now.since(self.since);
        if span >= RATE_WINDOW {
            // A longer interval means that the rate was lower.
            self.is_fast = span < 4 * RATE_WINDOW && self.packets >= BUSY_PACKETS;
            self.spans = if self.is_fast { self.spans.saturating_add(1) } else { 0 };
            (self.since, self.packets) = (now, 0);
        }
        self.is_fast
    }

    /// True once for each flood.
    pub(super) fn begins_to_flood(&mut self) -> bool {
        let begins = self.spans == FLOOD_SPANS;
        // Prevents a second report for the same interval.
        self.spans += u32::from(begins);
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Timestamp {
        Timestamp::at(Duration::from_micros(micros))
    }

    #[test]
    fn flood_is_batched_and_noise_is_not() {
        let (mut batching, mut noise) = (Batching::default(), Batching::default());
        assert!((1..1_000).filter(|step| batching.count(at(10_000_000 + step * 10), 1)).count() > 500);
        assert!(!(1..1_000).any(|step| noise.count(at(10_000_000 + step * 100), 1)));
    }

    #[test]
    fn lasting_load_is_reported_as_flood_once() {
        let mut batching = Batching::default();
        let begins = (1..100_000).filter(|step| {
            batching.count(at(10_000_000 + step * 10), 1);
            batching.begins_to_flood()
        });
        let begins: Vec<u64> = begins.collect();
        assert!(matches!(begins[..], [step] if (9_000..20_000).contains(&step)), "{begins:?}");
    }

    #[test]
    fn flood_ends_at_first_packet_after_pause() {
        let mut batching = Batching::default();
        assert!((1..1_000).any(|step| batching.count(at(10_000_000 + step * 10), 1)));
        assert!(!batching.count(at(11_000_000), 1));
    }
}
