//! Defines the engine's configuration and its counters.

use std::time::Duration;

use super::observation::Observation;
use super::prefix_bans::MaxPrefix;
use crate::config::{AckPolicy, Config, Escalation, HalfOpenPolicy, Mode, ProtocolConfig};
use crate::types::{Expiry, PortSet, Protocol, Response};

/// Monitored ports of one protocol and the reaction to scans of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolSettings {
    /// The ports that are judged from packets.
    pub ports: PortSet,
    pub response: Response,
}

/// The configurable settings of the engine.
#[derive(Clone, Debug)]
pub struct Settings {
    pub tcp: ProtocolSettings,
    /// TCP ports that decoys serve if nothing else listens there (connect mode). A completed connection is evidence.
    pub decoys: PortSet,
    pub udp: ProtocolSettings,
    /// SCTP INIT to any port counts; it blocks like TCP.
    pub sctp: bool,
    /// ICMP requests to several own addresses count; they are only logged, like UDP.
    pub icmp: bool,
    /// ACK and FIN/ACK segments count like SYNs; otherwise such scans are only logged.
    pub ack_bans: bool,
    /// Number of forgiven distinct ports within the window: 0 to 15.
    pub scan_trigger: u8,
    /// Time for which a probed port counts.
    pub window: Duration,
    /// Duration of the first ban of a target.
    pub expiry: Expiry,
    pub escalate: Escalation,
    /// Maximum width of a ban.
    pub widest: MaxPrefix,
    /// Maximum number of sources whose evidence is kept.
    pub max_sources: usize,
    /// Maximum number of judged sources that are recognised.
    pub max_judged: usize,
    /// New bans per minute on forgeable evidence.
    pub max_new_bans_per_minute: u32,
    /// Maximum number of standing bans on forgeable evidence.
    pub max_forgeable_bans: u32,
}

impl Settings {
    /// True if packets or connections to `port` are judged.
    pub(super) fn monitors_port(&self, protocol: Protocol, port: u16) -> bool {
        match protocol {
            Protocol::Tcp => self.tcp.ports.contains(port) || self.decoys.contains(port),
            Protocol::Udp => self.udp.ports.contains(port),
            Protocol::Sctp | Protocol::Icmp => false,
        }
    }

    /// The ports and the response for TCP or UDP. The response also applies to SCTP (as TCP) and ICMP (as UDP), the
    /// ports do not.
    pub(super) fn of_protocol(&self, protocol: Protocol) -> &ProtocolSettings {
        if protocol.uses_udp_settings() { &self.udp } else { &self.tcp }
    }

    /// The response for which `observation` counts. Linux answers ACK and FIN/ACK segments identically on open and
    /// closed ports, and late segments of honest peers look the same.
    pub(super) fn response_to(&self, observation: &Observation) -> Response {
        match observation.class.is_late_segment() && !self.ack_bans {
            true => Response::Log,
            false => self.of_protocol(observation.protocol).response,
        }
    }

    /// True if the port of `observation` is monitored.
    #[inline]
    pub fn monitors(&self, observation: &Observation) -> bool {
        let port = observation.port;
        match observation.protocol {
            Protocol::Tcp => self.tcp.ports.contains(port) || observation.hides_port() && !self.tcp.ports.is_empty(),
            Protocol::Udp => self.udp.ports.contains(port),
            Protocol::Sctp => self.sctp,
            Protocol::Icmp => self.icmp,
        }
    }

    /// Takes the settings from the configuration.
    pub fn from_config(config: &Config) -> Self {
        let watch = |protocol: &ProtocolConfig| ProtocolSettings {
            // In connect mode only connections accepted by a decoy are evidence, unless half-open connections count as
            // well.
            ports: match (protocol.mode, protocol.half_open) {
                (Mode::Connect, HalfOpenPolicy::Ignore) => PortSet::new(),
                _ => protocol.monitored(),
            },
            response: protocol.block,
        };
        Self {
            tcp: watch(&config.tcp),
            decoys: if config.tcp.mode == Mode::Connect { config.tcp.monitored() } else { PortSet::new() },
            udp: watch(&config.udp),
            sctp: config.detect.sctp,
            icmp: config.detect.icmp,
            ack_bans: config.detect.ack == AckPolicy::Ban,
            scan_trigger: config.detect.scan_trigger,
            window: config.detect.window,
            expiry: config.expire,
            escalate: config.escalate.clone(),
            widest: MaxPrefix { v4: config.block.widest_ipv4, v6: config.block.widest_ipv6 },
            max_sources: usize::try_from(config.detect.max_sources).unwrap_or(usize::MAX),
            // Four times the size of one set: full sets of both families fill half of it, so no active ban is ever
            // evicted. An evicted ban is not restored after a flush.
            max_judged: usize::try_from(config.block.nft.size).unwrap_or(usize::MAX).saturating_mul(4),
            max_new_bans_per_minute: config.block.max_new_bans_per_minute,
            max_forgeable_bans: config.block.max_forgeable_bans,
        }
    }
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets judged.
    pub packets: u64,
    /// Packets from sources that already had a verdict.
    pub repeated: u64,
    /// Probes that counted against a source.
    pub probes: u64,
    /// Verdicts to block.
    pub bans: u64,
    /// Short bans above the ceilings.
    pub capped: u64,
    /// Sources with enough evidence for a ban that the ceilings withheld.
    pub withheld: u64,
    /// Sources whose evidence was evicted because the table was full.
    pub evicted: u64,
    /// Look-ups in the kernel's socket tables before evidence counted.
    pub lookups: u64,
}
