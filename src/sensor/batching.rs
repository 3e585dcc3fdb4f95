//! When packets come so fast that being woken for each costs more than judging it: then they are let gather for a moment.

use std::time::Duration;

use crate::types::Timestamp;

/// How long packets are counted.
const SPAN: Duration = Duration::from_millis(2);

/// Packets in a span that are a crowd: 32,000 a second. Noise and real scanners stay far below it.
const MANY: usize = 64;

/// Spans with a crowd, one after the other, that are a flood: a tenth of a second.
const LASTING: u32 = 50;

/// How long a crowd gathers: two hundred packets at a million a second, and the capture's ring holds thousands.
pub(super) const COALESCE_DELAY: Duration = Duration::from_micros(200);

/// The packets of the last moments.
#[derive(Debug, Default)]
pub(super) struct Batching {
    since: Timestamp,
    packets: usize,
    is_here: bool,
    /// Spans in a row in which it was here.
    spans: u32,
}

impl Batching {
    /// So many have come until `now`; true where the next ones should gather.
    pub(super) fn count(&mut self, now: Timestamp, packets: usize) -> bool {
        self.packets += packets;
        let span = now.since(self.since);
        if span >= SPAN {
            // A wait that was longer has thinned them.
            self.is_here = span < 4 * SPAN && self.packets >= MANY;
            self.spans = if self.is_here { self.spans.saturating_add(1) } else { 0 };
            (self.since, self.packets) = (now, 0);
        }
        self.is_here
    }

    /// True once for each flood, as soon as it is one.
    pub(super) fn begins_to_flood(&mut self) -> bool {
        let begins = self.spans == LASTING;
        // The span is counted, and not asked for again.
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
    fn a_flood_gathers_and_noise_does_not() {
        let (mut batching, mut noise) = (Batching::default(), Batching::default());
        assert!((1..1_000).filter(|step| batching.count(at(10_000_000 + step * 10), 1)).count() > 500);
        assert!(!(1..1_000).any(|step| noise.count(at(10_000_000 + step * 100), 1)));
    }

    #[test]
    fn a_crowd_that_lasts_is_a_flood_and_said_once() {
        let mut batching = Batching::default();
        let begins = (1..100_000).filter(|step| {
            batching.count(at(10_000_000 + step * 10), 1);
            batching.begins_to_flood()
        });
        let begins: Vec<u64> = begins.collect();
        assert!(matches!(begins[..], [step] if (9_000..20_000).contains(&step)), "{begins:?}");
    }

    #[test]
    fn it_is_over_at_the_first_packet_after_a_pause() {
        let mut batching = Batching::default();
        assert!((1..1_000).any(|step| batching.count(at(10_000_000 + step * 10), 1)));
        assert!(!batching.count(at(11_000_000), 1));
    }
}
