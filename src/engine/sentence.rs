//! Condemned sources to bans and back: how long each lasts, who is blocked now, and what becomes of a ban that the kernel
//! does not hold. The evidence is the rest of the engine's business.

use super::moment::Moment;
use super::standing::Standing;
use super::subject::{Expiry, Subject};
use super::table::Key;
use super::verdict::{Ban, Verdict};
use super::{BLOCKING, CAPPED_BAN, Class, Engine, LOGGING};

impl Engine {
    /// The kernel does not block `subject` (any more): the ban failed, was lifted, or its set was flushed.
    pub fn lift(&mut self, subject: Subject) -> bool {
        self.judged.lift(Key::new(subject, BLOCKING))
    }

    /// The kernel blocks nobody any more: its set was flushed or its table is gone.
    pub fn lift_all(&mut self) {
        self.judged.clear();
    }

    /// The kernel blocks `subject` for `expiry` from now on, by somebody else's doing or from before the start.
    pub fn adopt(&mut self, now: Moment, subject: Subject, expiry: Expiry) {
        let now = self.clock(now);
        self.judged.set(Key::new(subject, BLOCKING), Standing::Blocked, expiry, now.tick());
    }

    /// Whom the kernel should be blocking now, and for how much longer: to put them back where they were swept away.
    pub fn bans(&self) -> impl Iterator<Item = (Subject, Expiry)> + '_ {
        self.judged.blocked(self.latest.tick())
    }

    pub(super) fn condemn(&mut self, now: Moment, key: Key, lane: u8, mut ban: Ban) -> Verdict {
        if lane == LOGGING {
            // Said once a window; what follows is summed up.
            let expiry = Expiry::After(self.settings.window);
            self.judged.set(key, Standing::Logged, expiry, now.tick());
            return Verdict::Scan(ban);
        }
        self.counters.bans += 1;
        let forgeable = !ban.ports.iter().any(|(_, _, class)| class == Class::Connect);
        if forgeable && !self.ceiling.take(now) {
            self.counters.capped += 1;
            self.capped = self.capped.saturating_add(1);
            self.capped_since.get_or_insert(now);
            ban.capped = true;
            ban.expiry = match ban.expiry {
                Expiry::After(span) => Expiry::After(span.min(CAPPED_BAN)),
                Expiry::Never => Expiry::After(CAPPED_BAN),
            };
        }
        self.judged.set(key, Standing::Blocked, ban.expiry, now.tick());
        Verdict::Block(ban)
    }
}
