//! Computes the durations of bans, tracks which ones are in force, and applies changes reported by the kernel. The rest
//! of the engine collects the evidence.

use std::net::IpAddr;
use std::time::Duration;

use super::ban_table::{ActiveBan, Standing};
use super::ceiling::Room;
use super::key::{Hashed, Track};
use super::strikes::StrikeHistory;
use super::verdict::{Ban, Verdict};
use super::{CAPPED_BAN, Engine, Grade, Host, RecentBans};
use crate::types::{BanTarget, Expiry, Tick, Timestamp};

impl Engine {
    /// Records that the kernel no longer blocks `target`: the ban failed, was lifted, or its set was flushed. A
    /// ban lifted before its end does not count as a strike.
    pub fn lift(&mut self, target: BanTarget) -> bool {
        let key = self.key_of(target, Track::Block);
        self.strikes.take_back(key, self.latest.tick());
        self.prefix_bans.forgive(target);
        self.ban_table.lift(key)
    }

    /// Records that the kernel no longer blocks any source: its set was flushed or its table removed. Strikes stay.
    pub fn lift_all(&mut self) {
        self.ban_table.clear();
        self.prefix_bans.clear();
    }

    /// Records that the kernel holds `ban`, added by another program or by an earlier run.
    pub fn adopt(&mut self, now: Timestamp, ban: &ActiveBan) {
        let now = self.clock(now);
        // The kernel's set also contains bans of this engine, without their full length.
        let is_known = |known: ActiveBan| ban.length.is_none() && about_the_same(known.left, ban.left);
        if self.standing_of(now, ban.target).is_some_and(is_known) {
            return;
        }
        self.block(ban, now.tick());
    }

    /// The ban of `target`, if one should be in force.
    #[must_use]
    pub fn standing_of(&self, now: Timestamp, target: BanTarget) -> Option<ActiveBan> {
        self.ban_table.ban_of(self.key_of(target, Track::Block), self.latest.max(now).tick())
    }

    /// True if `target` is recognised as blocked.
    #[must_use]
    pub fn is_blocked(&self, now: Timestamp, target: BanTarget) -> bool {
        let standing = self.ban_table.get(self.key_of(target, Track::Block), self.latest.max(now).tick());
        standing.is_some_and(|(_, standing)| standing == Standing::Blocked)
    }

    /// True if a ban of a network that contains `address` is in force.
    #[must_use]
    pub fn is_in_blocked_network(&self, now: Timestamp, address: IpAddr) -> bool {
        self.recognise_network(self.latest.max(now), address).is_some()
    }

    /// Adds the ban history of a target from before the start; call it once per target. A full table evicts the target
    /// with the fewest strikes.
    pub fn remember(&mut self, now: Timestamp, struck: &StrikeHistory) {
        let now = self.clock(now);
        let key = self.key_of(struck.target, Track::Block);
        self.strikes.remember(key, (struck.strikes, struck.proven), struck.last, now.tick());
    }

    /// Counts bans from before the start towards the ceilings; call it once.
    pub fn recall_bans(&mut self, now: Timestamp, recent: RecentBans) {
        let now = self.clock(now);
        self.ceilings.recall(now, recent);
    }

    /// All bans that the kernel should hold now, to restore them after a flush.
    pub fn bans(&self) -> impl Iterator<Item = ActiveBan> + '_ {
        self.ban_table.blocked(self.latest.tick())
    }

    /// The number of bans that the kernel should hold at `now`. In a large table, bans of the last 50 ms may be missing.
    pub fn count_bans(&mut self, now: Timestamp) -> usize {
        let now = self.clock(now);
        self.ban_table.count(now.tick())
    }

    /// True if the ceilings have room for `bans` more bans on forgeable evidence, which the kernel makes without the
    /// engine.
    pub fn has_room_for(&mut self, now: Timestamp, bans: u32) -> bool {
        let now = self.clock(now);
        let standing = self.ban_table.forgeable(now.tick());
        self.ceilings.has_room_for(now, bans, standing)
    }

    /// Records that the kernel has banned `target` for reasons that this engine does not see. The ban ends after
    /// [`CAPPED_BAN`] and counts as a ban on forgeable evidence. False if there have been too many short bans: then the
    /// caller lifts it.
    #[must_use]
    pub fn adopt_short(&mut self, now: Timestamp, target: BanTarget) -> bool {
        let now = self.clock(now);
        if !self.ceilings.charge_short(now) {
            return false;
        }
        let short = ActiveBan::whole(target, Expiry::After(CAPPED_BAN));
        self.block(&ActiveBan { grade: Some(Grade::Forgeable), ..short }, now.tick());
        true
    }

    /// Passes at most `n` of the targets that the kernel should block now to `out`; successive calls cycle through all
    /// targets, for a continuous, cheap reconciliation. Bans in their last ten seconds are left out; bans that the
    /// caller has not applied yet are included.
    pub fn sample(&mut self, now: Timestamp, out: &mut impl FnMut(BanTarget), n: usize) {
        let now = self.clock(now);
        self.ban_table.sample(now.tick(), n, out);
    }

    fn block(&mut self, ban: &ActiveBan, now: Tick) {
        let key = self.key_of(ban.target, Track::Block);
        self.ban_table.block(key, ban, now);
        if let BanTarget::Prefix(network) = ban.target {
            self.prefix_bans.add(network, now.end(ban.left), now);
        }
    }

    /// Bans the source, or records it as log-only if the track only logs.
    pub(super) fn impose_ban(
        &mut self,
        now: Timestamp,
        track: Track,
        mut ban: Ban,
        room: Room,
        host: &Host,
    ) -> Verdict {
        let tick = now.tick();
        let key = self.key_of(ban.probe.target, track);
        if track != Track::Block {
            // Reported once per window or once per ban; later packets are only summarised.
            let expiry = if track == Track::Tell { ban.expiry } else { Expiry::After(self.settings.window) };
            self.ban_table.set(key, Standing::Logged, expiry, tick);
            return Verdict::LogOnly(ban);
        }
        self.counters.bans += 1;
        let many = self.jitter.is_one_of_many(tick);
        ban.strikes = self.strikes.count(key, tick);
        let proven = ban.grade == Grade::Proven;
        self.ceilings.charge(now, ban.grade, room);
        ban.capped = room == Room::Short;
        let may = |network| !host.allow.touches(network) && !host.local.touches(network);
        if ban.capped {
            self.counters.capped += 1;
            self.capped = self.capped.saturating_add(1);
            self.capped_since.get_or_insert(now);
            let span = match ban.expiry {
                Expiry::After(span) => span.min(CAPPED_BAN),
                Expiry::Never => CAPPED_BAN,
            };
            ban.expiry = Expiry::After(if many { self.jitter.shorter(span, key.key, tick) } else { span });
            self.strikes.supersede(key);
        } else if proven && let Some(network) = self.prefix_bans.widen(ban.probe.target, tick, may) {
            // The network includes sources that have sent nothing, so its ban always lasts as long as a first ban.
            (ban.probe.target, ban.strikes) = (BanTarget::Prefix(network), 0);
            ban.expiry = self.jittered(ban.expiry, many, key, tick);
        } else {
            // Forgeable evidence must not lengthen a ban that may last a month.
            let strikes = if proven { self.strikes.proven(key, tick) } else { ban.strikes };
            let expiry = self.settings.escalate.expiry(ban.expiry, strikes, ban.grade);
            ban.expiry = self.jittered(expiry, many, key, tick);
            self.strikes.record(key, ban.expiry, ban.grade, tick);
            // Forged packets must not block the network of the source that they claim.
            if proven {
                self.prefix_bans.record(ban.probe.target, tick);
            }
        }
        self.block(&ActiveBan { grade: Some(ban.grade), ..ActiveBan::whole(ban.probe.target, ban.expiry) }, tick);
        Verdict::Block(ban)
    }

    fn jittered(&self, expiry: Expiry, many: bool, key: Hashed, now: Tick) -> Expiry {
        match expiry {
            Expiry::After(span) if many => Expiry::After(self.jitter.longer(span, key.key, now)),
            expiry => expiry,
        }
    }
}

/// True if both have about the same end, allowing for the time between the two readings.
fn about_the_same(one: Expiry, other: Expiry) -> bool {
    match (one, other) {
        (Expiry::After(one), Expiry::After(other)) => one.abs_diff(other) < Duration::from_secs(3),
        (one, other) => one == other,
    }
}
