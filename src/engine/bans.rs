//! Condemned sources to bans and back: how long each lasts, who is blocked now, and what becomes of a ban that the kernel
//! does not hold. The evidence is the rest of the engine's business.

use std::net::IpAddr;
use std::time::Duration;

use super::ban_table::{ActiveBan, Standing};
use super::key::{Hashed, Track};
use super::strikes::StrikeHistory;
use super::verdict::{Ban, Verdict};
use super::{CAPPED_BAN, Class, Engine, Host};
use crate::types::{BanTarget, Expiry, Tick, Timestamp};

impl Engine {
    /// The kernel does not block `subject` (any more): the ban failed, was lifted, or its set was flushed. What was taken
    /// back before its time is no strike.
    pub fn lift(&mut self, subject: BanTarget) -> bool {
        let key = self.key_of(subject, Track::Block);
        self.strikes.take_back(key, self.latest.tick());
        self.prefix_bans.forgive(subject);
        self.ban_table.lift(key)
    }

    /// The kernel blocks nobody any more: its set was flushed or its table is gone. Their strikes stay.
    pub fn lift_all(&mut self) {
        self.ban_table.clear();
        self.prefix_bans.clear();
    }

    /// The kernel holds `ban`, by somebody else's doing or from before the start.
    pub fn adopt(&mut self, now: Timestamp, ban: &ActiveBan) {
        let now = self.clock(now);
        // Whoever read the kernel's set has read bans of this engine's own in it, and knows less about them.
        let is_known = |known: ActiveBan| ban.length.is_none() && about_the_same(known.left, ban.left);
        if self.standing_of(now, ban.subject).is_some_and(is_known) {
            return;
        }
        self.block(ban, now.tick());
    }

    /// The ban of `subject`, if one should be in force.
    #[must_use]
    pub fn standing_of(&self, now: Timestamp, subject: BanTarget) -> Option<ActiveBan> {
        self.ban_table.ban_of(self.key_of(subject, Track::Block), self.latest.max(now).tick())
    }

    /// True where `subject` is recognised as blocked.
    #[must_use]
    pub fn is_blocked(&self, now: Timestamp, subject: BanTarget) -> bool {
        let standing = self.ban_table.get(self.key_of(subject, Track::Block), self.latest.max(now).tick());
        standing.is_some_and(|(_, standing)| standing == Standing::Blocked)
    }

    /// True if a ban of a network around `address` is in force.
    #[must_use]
    pub fn is_in_blocked_network(&self, now: Timestamp, address: IpAddr) -> bool {
        self.recognise_network(self.latest.max(now), address).is_some()
    }

    /// How often a subject had been banned before the start; once for each. Where the table has no room for all, who has
    /// the fewest strikes goes.
    pub fn remember(&mut self, now: Timestamp, struck: &StrikeHistory) {
        let now = self.clock(now);
        let key = self.key_of(struck.subject, Track::Block);
        self.strikes.remember(key, struck.strikes, struck.last, now.tick());
    }

    /// Whom the kernel should be blocking now: to put them back where they were swept away.
    pub fn bans(&self) -> impl Iterator<Item = ActiveBan> + '_ {
        self.ban_table.blocked(self.latest.tick())
    }

    /// Gives `out` some of those whom the kernel should be blocking now, at most `n`, others at each call until all had
    /// their turn: for a comparison with the kernel that goes on all the time and costs next to nothing. Bans in their
    /// last ten seconds are left out. Bans that the caller has not carried out yet are not.
    pub fn sample(&mut self, now: Timestamp, out: &mut impl FnMut(BanTarget), n: usize) {
        let now = self.clock(now);
        self.ban_table.sample(now.tick(), n, out);
    }

    fn block(&mut self, ban: &ActiveBan, now: Tick) {
        let key = self.key_of(ban.subject, Track::Block);
        self.ban_table.block(key, ban, now);
        if let BanTarget::Prefix(network) = ban.subject {
            self.prefix_bans.stands(network, now.end(ban.left), now);
        }
    }

    /// Blocks, or only says so where the track only logs.
    pub(super) fn condemn(&mut self, now: Timestamp, track: Track, mut ban: Ban, host: &Host) -> Verdict {
        let tick = now.tick();
        let key = self.key_of(ban.probe.subject, track);
        if track != Track::Block {
            // Said once a window, or told once a ban; what follows is summed up.
            let expiry = if track == Track::Tell { ban.expiry } else { Expiry::After(self.settings.window) };
            self.ban_table.set(key, Standing::Logged, expiry, tick);
            return Verdict::LogOnly(ban);
        }
        self.counters.bans += 1;
        let many = self.jitter.is_one_of_many(tick);
        let forgeable = !ban.ports.iter().any(|(_, _, class)| class == Class::Connect);
        ban.strikes = self.strikes.count(key, tick);
        ban.capped = forgeable && !self.ceiling.take(now);
        let may = |network| !host.allow.touches(network) && !host.local.touches(network);
        if ban.capped {
            // Forged evidence must blame nobody for his neighbours.
            self.counters.capped += 1;
            self.capped = self.capped.saturating_add(1);
            self.capped_since.get_or_insert(now);
            let span = match ban.expiry {
                Expiry::After(span) => span.min(CAPPED_BAN),
                Expiry::Never => CAPPED_BAN,
            };
            ban.expiry = Expiry::After(if many { self.jitter.shorter(span, key.key, tick) } else { span });
            self.strikes.supersede(key);
        } else if let Some(network) = self.prefix_bans.widen(ban.probe.subject, tick, may) {
            // It takes in people whom nobody has seen doing anything: each time as short as the first.
            (ban.probe.subject, ban.strikes) = (BanTarget::Prefix(network), 0);
            ban.expiry = self.spread_out(ban.expiry, many, key, tick);
        } else {
            let expiry = self.settings.escalate.expiry(ban.expiry, ban.strikes);
            ban.expiry = self.spread_out(expiry, many, key, tick);
            self.strikes.note(key, ban.expiry, tick);
            self.prefix_bans.note(ban.probe.subject, tick);
        }
        self.block(&ActiveBan::whole(ban.probe.subject, ban.expiry), tick);
        Verdict::Block(ban)
    }

    fn spread_out(&self, expiry: Expiry, many: bool, key: Hashed, now: Tick) -> Expiry {
        match expiry {
            Expiry::After(span) if many => Expiry::After(self.jitter.longer(span, key.key, now)),
            expiry => expiry,
        }
    }
}

/// True for the same end, read a moment apart.
fn about_the_same(one: Expiry, other: Expiry) -> bool {
    match (one, other) {
        (Expiry::After(one), Expiry::After(other)) => one.abs_diff(other) < Duration::from_secs(3),
        (one, other) => one == other,
    }
}
