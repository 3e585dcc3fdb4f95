//! Verdicts to what a replay says at its end: whom it would have blocked, whom it left alone, and why.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::SystemTime;

use crate::engine::{Ban, Class, Exempt, IgnoreReason, Probe, Protection, Verdict};
use crate::events::json::reason;
use crate::types::{BanTarget, Expiry, Protocol, Timestamp};
use crate::wire::Undecoded;

/// Sources of each kind that are listed one by one; a capture of a flood has millions.
const LISTED: usize = 10_000;

/// Ports of a suspect that are listed.
const PORTS: usize = 32;

/// A source that was judged: blocked, or only logged.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Who.
    pub subject: BanTarget,
    /// When it was judged.
    pub time: SystemTime,
    /// When its first probe came.
    pub first: SystemTime,
    /// For how long; `None` where it was only logged.
    pub expiry: Option<Expiry>,
    /// Why, as a sentence.
    pub reason: String,
    /// The evidence.
    pub ports: Vec<(Protocol, u16, Class)>,
    /// Packets that it sent afterwards, while the judgement stood.
    pub later: u64,
}

/// A source below the threshold.
#[derive(Clone, Debug, Default)]
pub struct Left {
    /// The most distinct ports that counted at one time.
    pub distinct: u8,
    /// Its probes, the same port again included.
    pub probes: u64,
    /// The ports, as many as are listed.
    pub ports: BTreeSet<u16>,
}

/// A source that is never blocked.
#[derive(Clone, Debug)]
pub struct Protected {
    /// Why.
    pub protection: Protection,
    /// Its probes.
    pub probes: u64,
    /// The ports, as many as are listed.
    pub ports: BTreeSet<(Protocol, u16)>,
}

/// What has been seen so far.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// How many distinct ports are forgiven.
    pub scan_trigger: u8,
    /// Frames of any kind.
    pub packets: u64,
    /// Times of the first frame and of the last.
    pub span: Option<(SystemTime, SystemTime)>,
    /// Who would have been blocked, in this order; the same source once for each ban.
    pub blocked: Vec<Judged>,
    /// Who was only logged.
    pub logged: Vec<Judged>,
    /// Who stayed below the threshold.
    pub suspects: BTreeMap<(BanTarget, Protocol), Left>,
    /// Who is never blocked.
    pub spared: BTreeMap<IpAddr, Protected>,
    /// Sources beyond those that are listed.
    pub unlisted: u64,
    /// Packets that were no evidence, by reason.
    pub innocent: BTreeMap<IgnoreReason, u64>,
    /// Packets from sources that had been judged.
    pub repeated: u64,
    /// Frames that hold no IP, end too early, or contradict themselves.
    pub undecoded: [u64; 3],
    /// Frames of link types that are not read, by their number.
    pub unknown_links: BTreeMap<i32, u64>,
    /// More ports were in use than could be remembered.
    pub forgot_ports: bool,
    /// Where each subject's latest judgement is listed.
    latest: HashMap<(BanTarget, bool), usize>,
}

impl Summary {
    pub(super) fn new(scan_trigger: u8) -> Self {
        Self { scan_trigger, ..Self::default() }
    }

    pub(super) fn packet(&mut self, time: SystemTime) {
        self.packets += 1;
        let (first, _) = self.span.unwrap_or((time, time));
        self.span = Some((first, time));
    }

    pub(super) fn unknown_link(&mut self, link: i32) {
        *self.unknown_links.entry(link).or_default() += 1;
    }

    pub(super) fn undecoded(&mut self, why: Undecoded) {
        let [not_ip, truncated, malformed] = &mut self.undecoded;
        *match why {
            Undecoded::NotIp => not_ip,
            Undecoded::Truncated => truncated,
            Undecoded::Malformed => malformed,
        } += 1;
    }

    pub(super) fn innocent(&mut self, why: IgnoreReason) {
        *self.innocent.entry(why).or_default() += 1;
    }

    pub(super) fn verdict(&mut self, verdict: &Verdict, time: SystemTime, now: Timestamp) {
        match verdict {
            Verdict::Ignored(why) => self.innocent(*why),
            Verdict::Probe(probe) => self.suspect(probe),
            Verdict::Exempt(spared) => self.spare(spared),
            Verdict::Block(ban) => self.judge(ban, true, time, now),
            Verdict::LogOnly(ban) => self.judge(ban, false, time, now),
            Verdict::Repeated(repeated) => {
                self.repeated += 1;
                let blocked = repeated.standing == crate::engine::Standing::Blocked;
                let list = if blocked { &mut self.blocked } else { &mut self.logged };
                let judged = self.latest.get(&(repeated.subject, blocked)).and_then(|index| list.get_mut(*index));
                if let Some(judged) = judged {
                    judged.later += 1;
                }
            }
        }
    }

    fn suspect(&mut self, probe: &Probe) {
        let key = (probe.subject, probe.sighting.protocol);
        if self.suspects.len() >= LISTED && !self.suspects.contains_key(&key) {
            self.unlisted += u64::from(probe.probes == 1);
            return;
        }
        let left = self.suspects.entry(key).or_default();
        left.distinct = left.distinct.max(probe.distinct);
        left.probes += 1;
        if left.ports.len() < PORTS {
            left.ports.insert(probe.sighting.port);
        }
    }

    fn spare(&mut self, spared: &Exempt) {
        let source = spared.sighting.source;
        if self.spared.len() >= LISTED && !self.spared.contains_key(&source) {
            self.unlisted += u64::from(spared.report == Some(1));
            return;
        }
        let fresh = Protected { protection: spared.protection, probes: 0, ports: BTreeSet::new() };
        let protected = self.spared.entry(source).or_insert(fresh);
        protected.probes += 1;
        if protected.ports.len() < PORTS {
            protected.ports.insert((spared.sighting.protocol, spared.sighting.port));
        }
    }

    fn judge(&mut self, ban: &Ban, blocked: bool, time: SystemTime, now: Timestamp) {
        let subject = ban.probe.subject;
        for (protocol, ..) in ban.ports.iter() {
            self.suspects.remove(&(subject, protocol));
        }
        let list = if blocked { &mut self.blocked } else { &mut self.logged };
        if list.len() >= LISTED {
            self.unlisted += 1;
            return;
        }
        self.latest.insert((subject, blocked), list.len());
        list.push(Judged {
            subject,
            time,
            first: time.checked_sub(now.since(ban.first)).unwrap_or(SystemTime::UNIX_EPOCH),
            expiry: blocked.then_some(ban.expiry),
            reason: reason(ban),
            ports: ban.ports.iter().collect(),
            later: 0,
        });
    }
}

/// An innocence as JSON has it.
#[must_use]
pub(super) fn key(why: IgnoreReason) -> &'static str {
    match why {
        IgnoreReason::Own => "own",
        IgnoreReason::NoRequest => "no_request",
        IgnoreReason::NotUnicast => "for_nobody",
        IgnoreReason::NotOurs => "not_ours",
        IgnoreReason::NoSource => "no_source",
        IgnoreReason::NotMonitored => "not_monitored",
        IgnoreReason::Open => "open",
        IgnoreReason::RecentlyOpen => "recently_open",
        IgnoreReason::OtherInterface => "other_interface",
    }
}
