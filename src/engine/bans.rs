//! Decides the durations and targets of bans, and tracks which ones are in force, with the histories and ceilings that
//! these decisions need. The rest of the engine collects the evidence.

use std::net::IpAddr;
use std::time::Duration;

use super::ban_table::{ActiveBan, BanTable, SUMMARY};
use super::ceiling::{Admission, BanRequest, Ceilings};
use super::class::Grade;
use super::expiry_jitter::ExpiryJitter;
use super::host::Host;
use super::key::{HashKey, Hashed, TargetKey};
use super::prefix_bans::PrefixBans;
use super::settings::Settings;
use super::strikes::{StrikeHistory, Strikes};
use super::verdict::{Ban, EngineNotice, Repeated, Verdict};
use crate::types::{BanTarget, Expiry, Protocol, Response, Tick, Timestamp, TokenBucket};

/// Maximum duration of a ban above a ceiling.
pub const CAPPED_BAN: Duration = Duration::from_secs(300);

/// Set look-ups per second that verify the bans of sources that keep sending. Limits the cost of many blocked sources;
/// each is checked within a few seconds.
const VERIFIED_PER_SECOND: u32 = 500;

/// Maximum difference between the end of a ban in the engine and in the kernel, which are read one after the other.
const ADOPTION_TOLERANCE: Duration = Duration::from_secs(3);

/// The bans in force, and what decides the next ones.
pub(super) struct Bans {
    secret: HashKey,
    pub(super) table: BanTable,
    strikes: Strikes,
    jitter: ExpiryJitter,
    prefixes: PrefixBans,
    pub(super) ceilings: Ceilings,
    verifications: TokenBucket,
    /// Since the start: packets from sources that already had a verdict, bans, and capped bans.
    pub(super) repeated: u64,
    pub(super) imposed: u64,
    pub(super) capped_total: u64,
    /// Since the last notice: sources above a ceiling that were not banned, and capped bans.
    withheld_unreported: u32,
    capped_unreported: u32,
    capped_since: Option<Timestamp>,
}

impl Bans {
    pub(super) fn new(settings: &Settings, secret: HashKey) -> Self {
        Self {
            secret,
            table: BanTable::new(settings.max_judged, settings.max_forgeable_bans, secret),
            strikes: Strikes::new(settings.max_judged, settings.escalate.forget, secret),
            jitter: ExpiryJitter::new(secret),
            prefixes: PrefixBans::new(settings.widest, settings.max_judged, settings.window, secret),
            ceilings: Ceilings::new(settings),
            verifications: TokenBucket::new(VERIFIED_PER_SECOND, Duration::from_secs(1)),
            repeated: 0,
            imposed: 0,
            capped_total: 0,
            withheld_unreported: 0,
            capped_unreported: 0,
            capped_since: None,
        }
    }

    pub(super) fn reconfigure(&mut self, settings: &Settings) {
        self.strikes.set_forget(settings.escalate.forget);
        self.prefixes.set_window(settings.window);
        self.ceilings.reconfigure(settings);
    }

    /// Pre-faults the memory that the next bans will need.
    pub(super) fn prepare(&mut self) {
        self.table.prepare();
        self.strikes.prepare();
    }

    fn key_of(&self, target: BanTarget) -> Hashed {
        TargetKey::new(target, Response::Block).under(self.secret)
    }

    /// The ban of `target`, if one should be in force.
    pub(super) fn get(&self, target: BanTarget, now: Tick) -> Option<ActiveBan> {
        self.table.ban_of(self.key_of(target), now)
    }

    /// The blocked network that contains `source`, and the slot of its ban. Cold, so that hosts without prefix bans pay
    /// nothing for it.
    #[cold]
    pub(super) fn around(&self, source: IpAddr, now: Tick) -> Option<(BanTarget, usize)> {
        let mut networks = self.prefixes.around(source).map(BanTarget::Prefix);
        networks.find_map(|network| Some((network, self.table.get(self.key_of(network), now)?)))
    }

    /// Returns the target and the slot of the ban of `source`, whose packets count against `target`, unless the
    /// kernel's allow-list accepts them. `known` is the key of `target`.
    #[inline]
    pub(super) fn recognise(
        &self,
        source: IpAddr,
        (target, known): (BanTarget, Hashed),
        host: &Host,
        now: Tick,
    ) -> Option<(BanTarget, usize)> {
        let found = match self.table.get(known, now) {
            Some(slot) => (target, slot),
            None if matches!(target, BanTarget::Link { .. }) => self.recognise_neighbour(source, target, now)?,
            None if self.prefixes.are_free(now) => return None,
            None => self.around(source, now)?,
        };
        host.protection(source, target).is_none().then_some(found)
    }

    /// Looks for a ban of `target` without its link, as made by operators, and then for a blocked network around
    /// `source`.
    #[cold]
    fn recognise_neighbour(&self, source: IpAddr, target: BanTarget, now: Tick) -> Option<(BanTarget, usize)> {
        let every_link = target.on_every_link();
        let linkless = self.table.get(self.key_of(every_link), now);
        linkless.map(|slot| (every_link, slot)).or_else(|| self.around(source, now))
    }

    /// Counts one more packet of `source`, whose verdict is in `slot`.
    pub(super) fn repeat(
        &mut self,
        now: Timestamp,
        slot: usize,
        (source, protocol): (IpAddr, Option<Protocol>),
        (target, response): (BanTarget, Response),
    ) -> Verdict {
        self.repeated += 1;
        let (report, verify) = self.table.repeat(slot, (target, response, protocol), now.tick());
        let verify = verify && self.verifications.try_take(now);
        Verdict::Repeated(Repeated { source, target, response, protocol, report, verify })
    }

    /// Number of bans that count against `target`, including the current one.
    pub(super) fn strikes_of(&self, target: BanTarget, now: Tick) -> u32 {
        self.strikes.count(self.key_of(target), now)
    }

    /// A ban lifted before its end does not count as a strike.
    pub(super) fn lift(&mut self, target: BanTarget, now: Tick) -> bool {
        let key = self.key_of(target);
        self.strikes.take_back(key, now);
        self.prefixes.remove_record(target);
        self.table.lift(key)
    }

    /// Forgets all bans; strikes stay.
    pub(super) fn lift_all(&mut self) {
        self.table.clear();
        self.prefixes.clear();
    }

    pub(super) fn adopt(&mut self, ban: &ActiveBan, now: Tick) -> bool {
        // The kernel's set also contains bans of this engine, without their full length.
        let is_known = |known: ActiveBan| ban.length.is_none() && known.left.is_about(ban.left, ADOPTION_TOLERANCE);
        let is_new = !self.get(ban.target, now).is_some_and(is_known);
        if is_new {
            self.insert(ban, now);
        }
        is_new
    }

    /// Adds a ban of the kernel, which counts as one on forgeable evidence; false if there have been too many.
    pub(super) fn adopt_capped(&mut self, target: BanTarget, now: Timestamp) -> bool {
        let has_room = self.ceilings.charge_capped(now, self.table.forgeable(now.tick()));
        if has_room {
            let short = ActiveBan::new(target, Expiry::After(CAPPED_BAN));
            self.insert(&ActiveBan { grade: Some(Grade::Forgeable), ..short }, now.tick());
        }
        has_room
    }

    pub(super) fn remember(&mut self, history: &StrikeHistory, now: Tick) {
        let key = self.key_of(history.target);
        self.strikes.remember(key, (history.strikes, history.proven), history.last, now);
    }

    pub(super) fn has_room_for(&mut self, bans: u32, now: Timestamp) -> bool {
        self.ceilings.has_room_for(now, bans, self.table.forgeable(now.tick()))
    }

    pub(super) fn admission(&mut self, request: BanRequest, now: Timestamp) -> Admission {
        self.ceilings.admission(now, request, self.table.forgeable(now.tick()))
    }

    /// Counts a source that is not banned because of the ceilings.
    pub(super) fn withhold(&mut self, now: Timestamp) {
        self.withheld_unreported = self.withheld_unreported.saturating_add(1);
        self.capped_since.get_or_insert(now);
    }

    /// The notice about sources above the ceilings, once it is due.
    pub(super) fn capped_notice(&mut self, now: Timestamp) -> Option<EngineNotice> {
        self.capped_since.take_if(|since| now.since(*since) >= SUMMARY)?;
        let bans = std::mem::take(&mut self.capped_unreported);
        let withheld = std::mem::take(&mut self.withheld_unreported);
        Some(EngineNotice::Capped { bans, withheld })
    }

    /// Time of the next notice.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        let summary = self.table.next_due().map(|tick| Timestamp::at(tick.duration()));
        summary.into_iter().chain(self.capped_since.map(|since| since.after(SUMMARY))).min()
    }

    fn insert(&mut self, ban: &ActiveBan, now: Tick) {
        self.table.block(self.key_of(ban.target), ban, now);
        if let BanTarget::Prefix(network) = ban.target {
            self.prefixes.add(network, now.end(ban.left), now);
        }
    }

    /// Bans the source, or records it as log-only if the response is not to block.
    pub(super) fn begin(
        &mut self,
        now: Timestamp,
        response: Response,
        mut ban: Ban,
        room: Admission,
        (settings, host): (&Settings, &Host),
    ) -> Verdict {
        let tick = now.tick();
        let key = TargetKey::new(ban.probe.target, response).under(self.secret);
        if response != Response::Block {
            // Reported once per window or once per ban; later packets are only summarised.
            let expiry = if response == Response::RunCommand { ban.expiry } else { Expiry::After(settings.window) };
            self.table.log_only(key, expiry, tick);
            return Verdict::LogOnly(ban);
        }
        let many = self.jitter.is_one_of_many(tick);
        ban.strikes = self.strikes.count(key, tick);
        let proven = ban.grade == Grade::Proven;
        self.ceilings.charge(now, ban.grade, room);
        ban.capped = room == Admission::CappedBan;
        self.imposed += 1;
        self.capped_total += u64::from(ban.capped);
        let may = |network| !host.allow.overlaps(network) && !host.local.overlaps(network);
        if ban.capped {
            self.capped_unreported = self.capped_unreported.saturating_add(1);
            self.capped_since.get_or_insert(now);
            let span = ban.expiry.span().map_or(CAPPED_BAN, |span| span.min(CAPPED_BAN));
            ban.expiry = Expiry::After(if many { self.jitter.shorter(span, key.key, tick) } else { span });
            self.strikes.supersede(key);
        } else if proven && let Some(network) = self.prefixes.widen(ban.probe.target, tick, may) {
            // The network includes sources that have sent nothing, so its ban always lasts as long as a first ban.
            (ban.probe.target, ban.strikes) = (BanTarget::Prefix(network), 0);
            ban.expiry = self.jittered(ban.expiry, many, key, tick);
        } else {
            // A ban on proven evidence may last a month, so strikes on forgeable evidence must not lengthen it.
            let strikes = if proven { self.strikes.proven(key, tick) } else { ban.strikes };
            let expiry = settings.escalate.expiry(ban.expiry, strikes, ban.grade);
            ban.expiry = self.jittered(expiry, many, key, tick);
            self.strikes.record(key, ban.expiry, ban.grade, tick);
            // Forged packets must not block the network of the source that they claim.
            if proven {
                self.prefixes.record(ban.probe.target, tick);
            }
        }
        self.insert(&ActiveBan { grade: Some(ban.grade), ..ActiveBan::new(ban.probe.target, ban.expiry) }, tick);
        Verdict::Block(ban)
    }

    fn jittered(&self, expiry: Expiry, many: bool, key: Hashed, now: Tick) -> Expiry {
        match expiry {
            Expiry::After(span) if many => Expiry::After(self.jitter.longer(span, key.key, now)),
            expiry => expiry,
        }
    }
}
