//! The engine's configuration, and its counters.

use std::time::Duration;

use super::prefix_bans::MaxPrefix;
use super::strikes::Escalation;
use crate::config::{AckPolicy, BlockPolicy, Config, HalfOpenPolicy, Mode, Protocol as ProtocolConfig};
use crate::types::{Expiry, PortSet, Protocol};

/// What the packets of one protocol are watched for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// The ports that are judged from packets.
    pub ports: PortSet,
    /// What becomes of a source that scans them.
    pub response: Response,
}

/// What becomes of a scanner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Response {
    /// It is only logged, once a window.
    #[default]
    Log,
    /// It is only reported, once for as long as a ban would last.
    Tell,
    /// It is blocked.
    Block,
}

/// What an operator can set.
#[derive(Clone, Debug)]
pub struct Settings {
    pub tcp: Watch,
    /// TCP ports that decoys serve where nothing else does (connect mode). A connection that one completes is evidence.
    pub decoys: PortSet,
    pub udp: Watch,
    /// SCTP INIT to any port counts; blocks like TCP.
    pub sctp: bool,
    /// ICMP requests to several own addresses count; they only log, like UDP.
    pub icmp: bool,
    /// ACK and FIN/ACK segments count like SYNs; otherwise their scans are only logged.
    pub ack_bans: bool,
    /// Distinct ports that are forgiven within the window: 0 to [`EVIDENCE`] - 1.
    pub scan_trigger: u8,
    /// How long a touched port counts.
    pub window: Duration,
    /// How long a subject's first ban lasts.
    pub expiry: Expiry,
    /// How bans of a subject grow that comes again.
    pub escalate: Escalation,
    /// How wide a ban may become.
    pub widest: MaxPrefix,
    /// Sources whose evidence is kept at one time.
    pub max_sources: usize,
    /// Judged sources that are recognised at one time.
    pub max_judged: usize,
    /// New bans a minute on forgeable evidence.
    pub max_new_bans_per_minute: u32,
    /// Bans on forgeable evidence that stand at one time.
    pub max_forgeable_bans: u32,
}

impl Settings {
    /// The same, but scans are only logged.
    #[must_use]
    pub fn log_only(mut self) -> Self {
        (self.tcp.response, self.udp.response) = (Response::Log, Response::Log);
        self
    }

    /// True where packets to `port` are judged, or connections to it.
    pub(super) fn watches(&self, protocol: Protocol, port: u16) -> bool {
        match protocol {
            Protocol::Tcp => self.tcp.ports.contains(port) || self.decoys.contains(port),
            Protocol::Udp => self.udp.ports.contains(port),
            Protocol::Sctp | Protocol::Icmp => false,
        }
    }

    /// What the operator configured.
    #[must_use]
    pub fn from_config(config: &Config) -> Self {
        let watch = |protocol: &ProtocolConfig| Watch {
            // In connect mode only what a decoy accepts is evidence, unless half-open connections are to be.
            ports: match (protocol.mode, protocol.half_open) {
                (Mode::Connect, HalfOpenPolicy::Ignore) => PortSet::new(),
                _ => protocol.watched(),
            },
            response: match protocol.block {
                BlockPolicy::Yes => Response::Block,
                BlockPolicy::No => Response::Log,
                BlockPolicy::Run => Response::Tell,
            },
        };
        Self {
            tcp: watch(&config.tcp),
            decoys: if config.tcp.mode == Mode::Connect { config.tcp.watched() } else { PortSet::new() },
            udp: watch(&config.udp),
            sctp: config.detect.sctp,
            icmp: config.detect.icmp,
            ack_bans: config.detect.ack == AckPolicy::Ban,
            scan_trigger: config.detect.scan_trigger,
            window: config.detect.window,
            expiry: config.expire,
            escalate: Escalation {
                factor: config.escalate.factor,
                max: config.escalate.max,
                max_forgeable: config.escalate.max_forgeable,
                forget: config.escalate.forget,
            },
            widest: MaxPrefix { v4: config.block.widest_ipv4, v6: config.block.widest_ipv6 },
            max_sources: usize::try_from(config.detect.max_sources).unwrap_or(usize::MAX),
            // Four times what one set holds: full sets of both families are half of it, so no active ban is ever evicted. An
            // evicted ban is not put back after a flush.
            max_judged: usize::try_from(config.block.nft.size).unwrap_or(usize::MAX).saturating_mul(4),
            max_new_bans_per_minute: config.block.max_new_bans_per_minute,
            max_forgeable_bans: config.block.max_forgeable_bans,
        }
    }
}

/// What has been counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets judged.
    pub packets: u64,
    /// Packets from sources that had been judged.
    pub repeated: u64,
    /// Probes that counted against a source.
    pub probes: u64,
    /// Verdicts to block.
    pub bans: u64,
    /// Short bans above the ceilings.
    pub capped: u64,
    /// Sources that did enough for a ban and were not banned, because of the ceilings.
    pub withheld: u64,
    /// Sources whose evidence had to go for another's because the table was full.
    pub evicted: u64,
    /// Questions to the kernel's socket tables before evidence counted.
    pub lookups: u64,
}
