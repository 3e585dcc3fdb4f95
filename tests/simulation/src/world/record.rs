//! Records the events of a run.

use portsentry::types::{BanTarget, Expiry, Timestamp};
use portsentry::wire::Packet;

use super::{Role, Sent, World, next_tick};
use crate::detector::{CAPPED_BAN, PacketVerdict};
use crate::kernel::Passage;
use crate::outcome::{HonestBan, MAX_MISSED};

impl World {
    pub(super) fn record(&mut self, role: Role, packet: &Packet, port: u16, passage: Passage, verdict: &PacketVerdict) {
        if passage == Passage::Trapped {
            let tick = next_tick(self.now);
            self.review_at.get_or_insert(tick);
        }
        if passage == Passage::Trapped || self.waiting {
            let sent = Sent { actor: self.current, role, step: self.step };
            self.senders.insert(BanTarget::containing(packet.source), sent);
        }
        let banned = matches!(verdict, PacketVerdict::Ban { .. });
        let source = BanTarget::containing(packet.source);
        let owner = self.owners.get(&source).copied();
        match role {
            Role::Honest(behaviour) => {
                let seen = self.outcome.honest.entry(behaviour).or_default();
                seen.packets += 1;
                seen.alarms += u64::from(matches!(verdict, PacketVerdict::LogOnly));
                seen.trapped += u64::from(passage == Passage::Trapped);
                seen.refused += u64::from(passage == Passage::Blocked);
            }
            Role::Dishonest(behaviour) => {
                let seen = self.outcome.dishonest.entry(behaviour).or_default();
                seen.packets += 1;
                let Some(part) = self.parts.get_mut(&self.current) else { return };
                let long = |expiry: &Expiry| !matches!(expiry, Expiry::After(span) if *span <= CAPPED_BAN);
                seen.long_bans += u64::from(matches!(verdict, PacketVerdict::Ban { expiry, .. } if long(expiry)));
                seen.alarms += u64::from(matches!(verdict, PacketVerdict::LogOnly));
                let reported = self.detector.reports_distributed_scan(self.now);
                // A forged packet is not a detection of its sender, unless the sender only sends forged packets.
                if !part.banned && (owner.is_none() || behaviour.starts_with("forger")) {
                    part.ports.insert(port);
                    // A ban by the trap alone is not a detection yet, because the program may lift it.
                    let is_blocked = passage == Passage::Blocked && self.detector.is_blocked(self.now, source);
                    part.banned = banned || reported || is_blocked;
                    if part.banned {
                        let ports = u32::try_from(part.ports.len()).unwrap_or(u32::MAX);
                        let place = seen.ports_before_ban.partition_point(|other| *other < ports);
                        seen.ports_before_ban.insert(place, ports);
                    }
                }
            }
            Role::Authorised(behaviour) => {
                let seen = self.outcome.authorised.entry(behaviour).or_default();
                seen.packets += 1;
                seen.refused += u64::from(passage == Passage::Blocked);
            }
            Role::Backstage => {}
        }
        self.record_ban(role, self.step, verdict);
    }

    /// Records a ban of an honest source, whose last packet was `step` and came from `role`.
    fn record_ban(&mut self, role: Role, step: u64, verdict: &PacketVerdict) {
        let PacketVerdict::Ban { target, expiry, ports, .. } = verdict else { return };
        self.record_honest_ban(self.now, (role, step), (*target, *expiry), ports.clone());
    }

    /// Records a ban that was made without a packet of its source.
    pub(super) fn record_late_ban(&mut self, target: BanTarget, verdict: &PacketVerdict) {
        if let Some(Sent { role, step, .. }) = self.senders.get(&target).copied() {
            self.record_ban(role, step, verdict);
            self.record_found(target);
        }
    }

    /// Records that a ban by the trap is shortened because the program has no verdict.
    pub(super) fn record_short_ban(&mut self, at: Timestamp, target: BanTarget) {
        self.outcome.shortened += 1;
        self.record_found(target);
        if let Some(Sent { role, step, .. }) = self.senders.get(&target).copied() {
            let ports = "what the trap counted".to_owned();
            self.record_honest_ban(at, (role, step), (target, Expiry::After(CAPPED_BAN)), ports);
        }
    }

    /// Records the detection of a source that waited while the host settled, whether or not its scan has ended.
    fn record_found(&mut self, target: BanTarget) {
        let Some(Sent { actor, role: Role::Dishonest(behaviour), .. }) = self.senders.get(&target).copied() else {
            return;
        };
        if self.owners.contains_key(&target) {
            return;
        }
        if let Some(part) = self.parts.get_mut(&actor) {
            part.banned = true;
        } else if self.missed.remove(&actor).is_some() {
            self.outcome.dishonest.entry(behaviour).or_default().found += 1;
        }
    }

    /// Lists the last packets of some undetected scans, for a replay.
    pub(super) fn name_missed(&mut self) {
        for (behaviour, step) in std::mem::take(&mut self.missed).into_values() {
            let replay = self.packet_position(step);
            let seen = self.outcome.dishonest.entry(behaviour).or_default();
            if seen.missed.len() < MAX_MISSED {
                seen.missed.push(replay);
            }
        }
    }

    /// The position of the packet `step`, for [`crate::replay`].
    fn packet_position(&self, step: u64) -> String {
        format!("{}:{}:{}:{step}", self.options.seed, self.options.pace, self.number)
    }

    fn record_honest_ban(
        &mut self,
        at: Timestamp,
        (role, step): (Role, u64),
        (target, expiry): (BanTarget, Expiry),
        ports: String,
    ) {
        let (behaviour, forged) = match (role, self.owners.get(&target)) {
            (Role::Honest(behaviour), _) => (behaviour, false),
            (Role::Dishonest(behaviour), Some(_)) => (behaviour, true),
            (Role::Authorised(behaviour), _) => {
                self.outcome.authorised.entry(behaviour).or_default().bans += 1;
                return;
            }
            _ => return,
        };
        if !forged {
            self.outcome.honest.entry(behaviour).or_default().bans += 1;
        }
        self.outcome.honest_bans.push(HonestBan {
            replay: self.packet_position(step),
            profile: self.host.profile.name,
            behaviour,
            forged,
            target: target.to_string(),
            at: at.since_origin().as_secs(),
            lasts: match expiry {
                Expiry::Never => None,
                Expiry::After(span) => Some(span.as_secs()),
            },
            ports,
        });
    }
}
