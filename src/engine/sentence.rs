//! Condemned sources to bans and back: how long each lasts, who is blocked now, and what becomes of a ban that the kernel
//! does not hold. The evidence is the rest of the engine's business.

use super::moment::Moment;
use super::standing::Standing;
use super::strikes::Struck;
use super::subject::{Expiry, Subject};
use super::table::Key;
use super::verdict::{Ban, Verdict};
use super::{BLOCKING, CAPPED_BAN, Class, Engine, LOGGING};

impl Engine {
    /// The kernel does not block `subject` (any more): the ban failed, was lifted, or its set was flushed. What was taken
    /// back before its time is no strike.
    pub fn lift(&mut self, subject: Subject) -> bool {
        let key = Key::new(subject, BLOCKING);
        self.strikes.take_back(key, self.latest.tick());
        self.judged.lift(key)
    }

    /// The kernel blocks nobody any more: its set was flushed or its table is gone. Their strikes stay.
    pub fn lift_all(&mut self) {
        self.judged.clear();
    }

    /// The kernel blocks `subject` for `expiry` from now on, by somebody else's doing or from before the start.
    pub fn adopt(&mut self, now: Moment, subject: Subject, expiry: Expiry) {
        let now = self.clock(now);
        self.judged.set(Key::new(subject, BLOCKING), Standing::Blocked, expiry, now.tick());
    }

    /// How often a subject had been banned before the start; once for each. Where the table has no room for all, who has
    /// the fewest strikes goes.
    pub fn remember(&mut self, now: Moment, struck: &Struck) {
        let now = self.clock(now);
        self.strikes.remember(Key::new(struck.subject, BLOCKING), struck.strikes, struck.last, now.tick());
    }

    /// Whom the kernel should be blocking now, and for how much longer: to put them back where they were swept away.
    pub fn bans(&self) -> impl Iterator<Item = (Subject, Expiry)> + '_ {
        self.judged.blocked(self.latest.tick())
    }

    /// Blocks, or only says so where the lane only logs.
    pub(super) fn condemn(&mut self, now: Moment, key: Key, lane: u8, mut ban: Ban) -> Verdict {
        let tick = now.tick();
        if lane == LOGGING {
            // Said once a window; what follows is summed up.
            let expiry = Expiry::After(self.settings.window);
            self.judged.set(key, Standing::Logged, expiry, tick);
            return Verdict::Scan(ban);
        }
        self.counters.bans += 1;
        let many = self.spread.is_one_of_many(tick);
        let forgeable = !ban.ports.iter().any(|(_, _, class)| class == Class::Connect);
        ban.strikes = self.strikes.count(key, tick);
        ban.expiry = self.settings.escalate.expiry(ban.expiry, ban.strikes);
        ban.capped = forgeable && !self.ceiling.take(now);
        if ban.capped {
            self.counters.capped += 1;
            self.capped = self.capped.saturating_add(1);
            self.capped_since.get_or_insert(now);
            let span = match ban.expiry {
                Expiry::After(span) => span.min(CAPPED_BAN),
                Expiry::Never => CAPPED_BAN,
            };
            ban.expiry = Expiry::After(if many { self.spread.shorter(span, key, tick) } else { span });
            self.strikes.supersede(key);
        } else {
            if many && let Expiry::After(span) = ban.expiry {
                ban.expiry = Expiry::After(self.spread.longer(span, key, tick));
            }
            self.strikes.note(key, ban.expiry, tick);
        }
        self.judged.set(key, Standing::Blocked, ban.expiry, tick);
        Verdict::Block(ban)
    }
}
