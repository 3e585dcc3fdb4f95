//! Collects the summary of a replay: the sources that would be banned, those that would not, and the reasons. Its JSON
//! form is the last object that a replay prints.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use serde_with::{As, DisplayFromStr};

use super::port_inference::{HostPort, Sign};
use crate::clock::{BanEnd, WallTime};
use crate::engine::{Ban, Exempt, IgnoreReason, Probe, Protection, Settings, Verdict};
use crate::events::json::PortRecord;
use crate::types::{BanTarget, Expiry, Protocol, Response, Timestamp, plain};
use crate::wire::Undecoded;

/// Maximum number of sources of each kind that are listed one by one. A capture of a flood has millions.
const MAX_LISTED: usize = 10_000;

/// Maximum number of ports of a suspect that are listed.
const MAX_LISTED_PORTS: usize = 32;

/// The results so far. The order of the fields is the order of the JSON keys.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(tag = "event", rename = "summary")]
pub(super) struct Summary {
    #[serde(rename = "time", skip_serializing_if = "Option::is_none")]
    pub(super) last: Option<WallTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first: Option<WallTime>,
    /// Frames of any kind.
    pub(super) packets: u64,
    pub(super) configuration: String,
    /// The settings that decide which sources are scanners.
    pub(super) settings: Deciding,
    /// The addresses and networks whose ports were judged. If empty, all were, each address as a separate host.
    pub(super) local: Vec<String>,
    /// Hosts that were taken for gateways.
    pub(super) gateways: BTreeSet<IpAddr>,
    /// Sources that would be banned, in order of their bans; a source is listed once for each ban.
    pub(super) blocked: Vec<ScannerSummary>,
    /// Sources that were only logged.
    pub(super) logged: Vec<ScannerSummary>,
    /// Sources below the threshold.
    #[serde(serialize_with = "values")]
    pub(super) suspects: BTreeMap<(BanTarget, Protocol), Suspect>,
    /// Sources that are never blocked.
    #[serde(rename = "spared", serialize_with = "values")]
    pub(super) exempt: BTreeMap<IpAddr, ExemptSource>,
    /// Number of sources that are not listed because there are too many.
    pub(super) unlisted: u64,
    /// Packets from sources that were already judged.
    pub(super) repeated: u64,
    /// Packets that are not evidence, by reason.
    pub(super) innocent: BTreeMap<NoEvidence, u64>,
    /// Ports that were considered open and received packets.
    #[serde(serialize_with = "values")]
    pub(super) open: BTreeMap<HostPort, Open>,
    /// Frames that could not be decoded.
    pub(super) undecoded: UndecodedFrames,
    /// Frames of unsupported link types, by the number of the type.
    pub(super) unknown_links: BTreeMap<i32, u64>,
    /// True if more ports were in use than could be remembered.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) forgot_ports: bool,
    /// Index of the latest list entry of each target.
    #[serde(skip)]
    latest: HashMap<(BanTarget, bool), usize>,
}

/// The settings that decide which sources are scanners.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Deciding {
    scan_trigger: u8,
    window_s: u64,
    /// `None`: bans never expire.
    expire_s: Option<u64>,
    /// Number of monitored ports.
    tcp_ports: u32,
    udp_ports: u32,
}

impl fmt::Display for Deciding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = |seconds| humantime::format_duration(Duration::from_secs(seconds)).to_string();
        let expire = self.expire_s.map_or_else(|| "never".to_owned(), span);
        write!(
            f,
            "detect.scan_trigger = {}, detect.window = \"{}\", expire = \"{expire}\"; monitored ports: tcp {}, udp {}",
            self.scan_trigger,
            span(self.window_s),
            self.tcp_ports,
            self.udp_ports
        )
    }
}

/// A source that was judged: blocked or only logged.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ScannerSummary {
    #[serde(rename = "subject")]
    pub(super) target: BanTarget,
    source: IpAddr,
    pub(super) time: WallTime,
    pub(super) first: WallTime,
    pub(super) reason: String,
    pub(super) ports: Vec<PortRecord>,
    /// The hosts whose ports it probed, up to the list limit.
    pub(super) victims: BTreeSet<IpAddr>,
    /// Packets that it sent afterwards, while the ban or log entry was in force.
    #[serde(rename = "later_packets")]
    pub(super) later: u64,
    /// End of the ban; `None` if the source was only logged.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<BanEnd>,
    /// Length of the ban; `None` if the source was only logged.
    #[serde(skip)]
    pub(super) expiry: Option<Expiry>,
}

/// A source below the threshold.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Suspect {
    /// The target that a ban would have.
    #[serde(rename = "subject")]
    pub(super) target: BanTarget,
    #[serde(rename = "proto")]
    pub(super) protocol: Protocol,
    /// The probed ports, up to the list limit.
    pub(super) ports: BTreeSet<u16>,
    /// Highest number of distinct ports that counted at one time.
    #[serde(rename = "distinct_ports")]
    pub(super) distinct: u8,
    needed: u16,
    /// The hosts whose ports it probed, up to the list limit.
    pub(super) victims: BTreeSet<IpAddr>,
    /// Number of probes, including repeated ports.
    pub(super) probes: u64,
}

/// A source that is never blocked.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ExemptSource {
    pub(super) source: IpAddr,
    #[serde(rename = "reason", serialize_with = "As::<DisplayFromStr>::serialize")]
    pub(super) protection: Protection,
    /// The probed ports, up to the list limit.
    #[serde(serialize_with = "values")]
    pub(super) ports: BTreeMap<(Protocol, u16), PortRecord>,
    pub(super) probes: u64,
}

/// A port that was considered open.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Open {
    pub(super) address: IpAddr,
    #[serde(flatten)]
    pub(super) port: PortRecord,
    pub(super) reason: Sign,
    pub(super) packets: u64,
}

/// Why a packet is not evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum NoEvidence {
    Engine(IgnoreReason),
    /// Nothing in the capture answers the packet, so its port is not known to be closed.
    Unanswered,
}

impl Serialize for NoEvidence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Engine(why) => why.serialize(serializer),
            Self::Unanswered => serializer.serialize_str("unanswered"),
        }
    }
}

/// Frames that contain no IP packet, are too short or are inconsistent.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct UndecodedFrames {
    pub(super) not_ip: u64,
    pub(super) truncated: u64,
    pub(super) malformed: u64,
}

fn values<K, V: Serialize, S: Serializer>(map: &BTreeMap<K, V>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(map.values())
}

impl Summary {
    pub(super) fn new(settings: &Settings, configuration: String, local: &[IpNet]) -> Self {
        let local = local.iter().copied().map(plain).collect();
        let settings = Deciding {
            scan_trigger: settings.scan_trigger,
            window_s: settings.window.as_secs(),
            expire_s: settings.expiry.seconds(),
            tcp_ports: settings.tcp.ports.len(),
            udp_ports: settings.udp.ports.len(),
        };
        Self { settings, configuration, local, ..Self::default() }
    }

    /// Number of distinct ports that counts as a scan.
    pub(super) fn needed(&self) -> u16 {
        u16::from(self.settings.scan_trigger) + 1
    }

    /// True if `target` is listed as blocked or logged.
    pub(super) fn has_judged(&self, target: BanTarget) -> bool {
        [true, false].iter().any(|blocked| self.latest.contains_key(&(target, *blocked)))
    }

    /// The link types of the frames, if none of them is supported.
    pub(super) fn unread_link(&self) -> Option<String> {
        let unread: u64 = self.unknown_links.values().sum();
        let links: Vec<_> = self.unknown_links.keys().map(ToString::to_string).collect();
        (unread > 0 && unread == self.packets).then(|| links.join(", "))
    }

    pub(super) fn add_open(&mut self, port: HostPort, sign: Sign) {
        if self.open.len() < MAX_LISTED || self.open.contains_key(&port) {
            let (protocol, address, number) = port;
            let fresh = Open { address, port: PortRecord::from(&(protocol, number)), reason: sign, packets: 0 };
            self.open.entry(port).or_insert(fresh).packets += 1;
        }
    }

    pub(super) fn count_packet(&mut self, time: SystemTime) {
        self.packets += 1;
        self.first.get_or_insert(WallTime(time));
        self.last = Some(WallTime(time));
    }

    pub(super) fn count_undecoded(&mut self, why: Undecoded) {
        *match why {
            Undecoded::NotIp => &mut self.undecoded.not_ip,
            Undecoded::Truncated => &mut self.undecoded.truncated,
            Undecoded::Malformed => &mut self.undecoded.malformed,
        } += 1;
    }

    pub(super) fn count_no_evidence(&mut self, why: NoEvidence) {
        *self.innocent.entry(why).or_default() += 1;
    }

    pub(super) fn add_verdict(&mut self, verdict: &Verdict, time: SystemTime, now: Timestamp) {
        match verdict {
            Verdict::Ignored(why) => self.count_no_evidence(NoEvidence::Engine(*why)),
            Verdict::Probe(probe) => self.add_suspect(probe),
            Verdict::Exempt(exempt) => self.add_exempt(exempt),
            Verdict::Block(ban) => self.add_judged(ban, true, time, now),
            Verdict::LogOnly(ban) => self.add_judged(ban, false, time, now),
            Verdict::Repeated(repeated) => {
                self.repeated += 1;
                let blocked = repeated.response == Response::Block;
                let list = if blocked { &mut self.blocked } else { &mut self.logged };
                let judged = self.latest.get(&(repeated.target, blocked)).and_then(|index| list.get_mut(*index));
                if let Some(judged) = judged {
                    judged.later += 1;
                }
            }
        }
    }

    fn add_suspect(&mut self, probe: &Probe) {
        let (target, protocol) = (probe.target, probe.observation.protocol);
        if self.suspects.len() >= MAX_LISTED && !self.suspects.contains_key(&(target, protocol)) {
            self.unlisted += u64::from(probe.probes == 1);
            return;
        }
        let needed = self.needed();
        let (ports, victims) = (BTreeSet::new(), BTreeSet::new());
        let fresh = || Suspect { target, protocol, ports, distinct: 0, needed, victims, probes: 0 };
        let suspect = self.suspects.entry((target, protocol)).or_insert_with(fresh);
        suspect.distinct = suspect.distinct.max(probe.distinct);
        suspect.probes += 1;
        if suspect.ports.len() < MAX_LISTED_PORTS {
            suspect.ports.insert(probe.observation.port);
        }
        if suspect.victims.len() < MAX_LISTED_PORTS {
            suspect.victims.insert(probe.observation.destination);
        }
    }

    fn add_exempt(&mut self, exempt: &Exempt) {
        let source = exempt.observation.source;
        if self.exempt.len() >= MAX_LISTED && !self.exempt.contains_key(&source) {
            self.unlisted += u64::from(exempt.report == Some(1));
            return;
        }
        let fresh = ExemptSource { source, protection: exempt.protection, ports: BTreeMap::new(), probes: 0 };
        let listed = self.exempt.entry(source).or_insert(fresh);
        listed.probes += 1;
        if listed.ports.len() < MAX_LISTED_PORTS {
            let port = (exempt.observation.protocol, exempt.observation.port);
            listed.ports.insert(port, PortRecord::from(&port));
        }
    }

    fn add_judged(&mut self, ban: &Ban, blocked: bool, time: SystemTime, now: Timestamp) {
        let target = ban.probe.target;
        let mut victims = BTreeSet::from([ban.probe.observation.destination]);
        for (protocol, ..) in ban.ports.iter() {
            victims.extend(self.suspects.remove(&(target, protocol)).into_iter().flat_map(|suspect| suspect.victims));
        }
        let list = if blocked { &mut self.blocked } else { &mut self.logged };
        if list.len() >= MAX_LISTED {
            self.unlisted += 1;
            return;
        }
        self.latest.insert((target, blocked), list.len());
        list.push(ScannerSummary {
            target,
            source: target.element(),
            time: WallTime(time),
            first: WallTime(time.checked_sub(now.since(ban.first)).unwrap_or(SystemTime::UNIX_EPOCH)),
            reason: ban.reason(),
            ports: ban.ports.iter().map(PortRecord::from).collect(),
            victims,
            later: 0,
            expires: blocked.then(|| BanEnd::new(ban.expiry, time)),
            expiry: blocked.then_some(ban.expiry),
        });
    }
}
