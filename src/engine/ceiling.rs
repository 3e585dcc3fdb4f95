//! Limits new bans for each grade of evidence: a flood of forged packets must not make this host block the Internet.
//! Above a ceiling, a source is banned only if it probed far more ports than a scan needs. Such bans are short and
//! limited to a few per minute. The last ban below a ceiling and all bans above it go to the fastest scanner.

use std::time::Duration;

use super::class::Grade;
use super::evidence::MAX_EVIDENCE;
use super::settings::Settings;
use crate::types::{DAY, MINUTE, Timestamp, TokenBucket};

/// New bans per minute on proven evidence. Handshakes cannot be forged, but a web page can make the browsers of its
/// visitors complete them.
const PROVEN_BANS_PER_MINUTE: u32 = 600;

/// Distinct ports that ban a source above a ceiling; equal to the number of ports stored. An attacker who forges many
/// sources sends only as many packets per source as are needed below the ceiling.
const RAISED_THRESHOLD: u32 = 16;
const _: () = assert!(RAISED_THRESHOLD as usize == MAX_EVIDENCE);

/// A ban above a ceiling needs [`RAISED_THRESHOLD`] ports within this time. The kernel's trap holds a slower source at
/// most 16 times, which harms the victim of forged packets less than a ban.
pub(super) const FAST_SCAN_SPAN: Duration = Duration::from_secs(5);

/// Bans per minute above the ceilings.
const SHORT_BANS_PER_MINUTE: u32 = 4;

/// 1/`KEPT_FOR_SHORT` of the maximum number of standing bans is reserved for the short bans of a day. A short ban ends
/// soon, so without this limit a flood of a day would ban thousands of sources for minutes each.
const KEPT_FOR_SHORT: u32 = 16;

/// Result of the check against the ceilings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// A full ban.
    FullBan,
    /// A capped ban: it is short, and does not count as a strike.
    CappedBan,
    /// No ban for now.
    Withheld,
}

/// Bans on evidence from before the start that count towards the ceilings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecentBans {
    /// Bans of the last minute on forgeable evidence, without the short ones of the engine.
    pub forgeable: u32,
    /// Bans of the last minute on proven evidence, without the short ones.
    pub proven: u32,
    /// Short bans of the engine in the last minute.
    pub short: u32,
    /// Short bans of the last 24 hours, and bans of the kernel's trap that the engine could not explain.
    pub short_daily: u32,
}

/// A source with enough evidence for a ban.
#[derive(Clone, Copy, Debug)]
pub(super) struct BanRequest {
    pub(super) grade: Grade,
    /// Distinct ports; probes if they hide their ports.
    pub(super) distinct: u32,
    /// True if the source probed its last ports within [`FAST_SCAN_SPAN`], or if the evidence is proven.
    pub(super) is_fast: bool,
    /// True if no other source whose ban is withheld scans faster.
    pub(super) is_fastest: bool,
}

pub(super) struct Ceilings {
    forgeable: TokenBucket,
    proven: TokenBucket,
    short: TokenBucket,
    /// The short bans of a day, and those of the kernel's trap that the engine cannot explain.
    short_daily: TokenBucket,
    per_minute: u32,
    /// Maximum number of standing bans on forgeable evidence.
    max_standing: u32,
}

impl Ceilings {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            forgeable: TokenBucket::new(settings.max_new_bans_per_minute, MINUTE),
            proven: TokenBucket::new(PROVEN_BANS_PER_MINUTE, MINUTE),
            short: TokenBucket::new(SHORT_BANS_PER_MINUTE, MINUTE),
            short_daily: short_daily(settings.max_forgeable_bans),
            per_minute: settings.max_new_bans_per_minute,
            max_standing: settings.max_forgeable_bans,
        }
    }

    /// Applies new settings. A bucket whose size does not change keeps its tokens.
    pub(super) fn reconfigure(&mut self, settings: &Settings) {
        if settings.max_new_bans_per_minute != self.per_minute {
            self.forgeable = TokenBucket::new(settings.max_new_bans_per_minute, MINUTE);
            self.per_minute = settings.max_new_bans_per_minute;
        }
        if settings.max_forgeable_bans != self.max_standing {
            self.short_daily = short_daily(settings.max_forgeable_bans);
            self.max_standing = settings.max_forgeable_bans;
        }
    }

    /// Takes the tokens for bans from before the start. Each bucket then has at most as many as it would have without
    /// the restart.
    pub(super) fn restore(&mut self, now: Timestamp, recent: RecentBans) {
        for (bucket, bans) in [
            (&mut self.forgeable, recent.forgeable),
            (&mut self.proven, recent.proven),
            (&mut self.short, recent.short),
            (&mut self.short_daily, recent.short_daily),
        ] {
            (0..bans.min(bucket.available(now))).for_each(|_| _ = bucket.try_take(now));
        }
    }

    /// Maximum number of standing full bans on forgeable evidence.
    fn max_full(&self) -> u32 {
        self.max_standing - self.max_standing / KEPT_FOR_SHORT
    }

    /// Returns the kind of ban that the ceilings allow, given the number of `standing` forgeable bans.
    pub(super) fn admission(&self, now: Timestamp, request: BanRequest, standing: u32) -> Admission {
        let (bucket, full, short) = match request.grade {
            Grade::Forgeable => (&self.forgeable, standing < self.max_full(), standing < self.max_standing),
            Grade::Proven => (&self.proven, true, true),
        };
        // The last one is kept for the fastest scanner.
        let least = if request.is_fastest { 1 } else { 2 };
        if full && bucket.available(now) >= least {
            Admission::FullBan
        } else if short
            && request.distinct >= RAISED_THRESHOLD
            && request.is_fast
            && request.is_fastest
            && self.short.available(now) > 0
            && self.short_daily.available(now) > 0
        {
            Admission::CappedBan
        } else {
            Admission::Withheld
        }
    }

    /// Takes the token for one ban.
    pub(super) fn charge(&mut self, now: Timestamp, grade: Grade, room: Admission) {
        let _ = match (room, grade) {
            (Admission::FullBan, Grade::Forgeable) => self.forgeable.try_take(now),
            (Admission::FullBan, Grade::Proven) => self.proven.try_take(now),
            (Admission::CappedBan | Admission::Withheld, _) => {
                self.short.try_take(now) & self.short_daily.try_take(now)
            }
        };
    }

    /// Takes a token for a forgeable ban that is already in force, if one is left. False if the ceiling of forgeable
    /// bans in force is reached, or if the short bans of this day are used up.
    pub(super) fn charge_capped(&mut self, now: Timestamp, standing: u32) -> bool {
        let _ = self.forgeable.try_take(now);
        standing < self.max_standing && self.short_daily.try_take(now)
    }

    /// True if there is room for `bans` more full bans on forgeable evidence. If the ceiling per minute is lower than
    /// `bans`, room for that many is enough.
    pub(super) fn has_room_for(&self, now: Timestamp, bans: u32, standing: u32) -> bool {
        let bans = bans.min(self.per_minute);
        self.forgeable.available(now) >= bans && standing.saturating_add(bans) <= self.max_full()
    }
}

/// A full bucket and what it gains in a day make up the reserved share.
fn short_daily(max_standing: u32) -> TokenBucket {
    TokenBucket::new(max_standing / KEPT_FOR_SHORT / 2, DAY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::scene::builtin;
    use crate::types::at;

    /// The request of a fast scanner.
    fn request(grade: Grade, distinct: u32) -> BanRequest {
        BanRequest { grade, distinct, is_fast: true, is_fastest: true }
    }

    /// Takes a place if the ceilings have room.
    fn charge(ceilings: &mut Ceilings, now: Timestamp, request: BanRequest) -> Admission {
        let room = ceilings.admission(now, request, 0);
        if room != Admission::Withheld {
            ceilings.charge(now, request.grade, room);
        }
        room
    }

    #[test]
    fn flood_gets_few_short_bans() {
        let mut ceilings = Ceilings::new(&builtin());
        let mut count = |room, distinct, now| {
            (0..1_000).filter(|_| charge(&mut ceilings, now, request(Grade::Forgeable, distinct)) == room).count()
        };
        assert_eq!(count(Admission::FullBan, 3, at(1)), 60);
        assert_eq!(count(Admission::CappedBan, 15, at(1)), 0, "below the raised threshold");
        assert_eq!(count(Admission::CappedBan, 16, at(1)), 4);
        assert_eq!(
            (count(Admission::FullBan, 3, at(2)), count(Admission::CappedBan, 16, at(2))),
            (1, 0),
            "one more per second"
        );
    }

    #[test]
    fn restart_fills_no_bucket() {
        let mut ceilings = Ceilings::new(&builtin());
        ceilings.restore(at(1), RecentBans { forgeable: 59, proven: 598, short: 3, short_daily: 120 });
        let mut count = |room, grade, distinct, now| {
            (0..1_000).filter(|_| charge(&mut ceilings, now, request(grade, distinct)) == room).count()
        };
        assert_eq!(count(Admission::FullBan, Grade::Forgeable, 3, at(1)), 1);
        assert_eq!(count(Admission::FullBan, Grade::Proven, 3, at(1)), 2);
        assert_eq!(count(Admission::CappedBan, Grade::Forgeable, 16, at(1)), 1);
        let short: usize =
            (1..10).map(|minute| count(Admission::CappedBan, Grade::Forgeable, 16, at(1 + 60 * minute))).sum();
        assert_eq!(short, 7, "128 are in the bucket of a day");
        ceilings.restore(at(2_000), RecentBans { short_daily: u32::MAX, ..RecentBans::default() });
        assert_eq!(ceilings.short_daily.available(at(2_000)), 0);
    }

    #[test]
    fn last_ban_goes_to_fastest_source() {
        let mut ceilings = Ceilings::new(&builtin());
        let mut bans = |now, distinct, is_fastest| {
            let request = BanRequest { is_fastest, ..request(Grade::Forgeable, distinct) };
            (0..1_000).filter(|_| charge(&mut ceilings, now, request) != Admission::Withheld).count()
        };
        assert_eq!((bans(at(1), 20, false), bans(at(1), 3, true)), (59, 1));
        assert_eq!((bans(at(2), 20, false), bans(at(2), 20, true)), (0, 5), "one below the ceiling and four above");
    }

    #[test]
    fn ceiling_reserves_room_for_short_bans() {
        let mut ceilings = Ceilings::new(&builtin());
        let room = |ceilings: &Ceilings, standing| ceilings.admission(at(1), request(Grade::Forgeable, 16), standing);
        assert_eq!(
            [3_839, 3_840, 4_095].map(|n| room(&ceilings, n)),
            [Admission::FullBan, Admission::CappedBan, Admission::CappedBan]
        );
        assert_eq!(room(&ceilings, 4_096), Admission::Withheld);
        assert!(ceilings.charge_capped(at(1), 4_095) && !ceilings.charge_capped(at(1), 4_096));
        let proven = ceilings.admission(at(1), request(Grade::Proven, 3), 4_096);
        assert_eq!(proven, Admission::FullBan, "proven bans do not count");
        assert!(ceilings.has_room_for(at(1), 10, 3_830) && !ceilings.has_room_for(at(1), 10, 3_831));
    }

    #[test]
    fn proven_evidence_has_its_own_ceiling() {
        let mut ceilings = Ceilings::new(&builtin());
        let mut full = |grade| {
            (0..1_000).filter(|_| charge(&mut ceilings, at(1), request(grade, 3)) == Admission::FullBan).count()
        };
        assert_eq!((full(Grade::Proven), full(Grade::Forgeable)), (600, 60));
    }
}
