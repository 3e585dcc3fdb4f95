//! Defines the keys of portsentry.toml: one struct per table and one line per key, with name, type, built-in value, and
//! the function of `parse` that reads it. Every table refuses unknown keys. `consistency` checks combinations of keys.

use super::choices::{AckPolicy, Facility, HalfOpenPolicy, LogTarget, Mode};
use super::fleet::Fleet;
use super::table::table;
use super::{parse, port_lists};
use crate::types::{Action, Backend, DAY, Expiry, PortSet, Rate, Response, RouteKind};
use ipnet::{IpNet, Ipv6Net};
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

table! {
    /// The whole configuration.
    Config {
        expire: Expiry = Expiry::After(DAY), "parse::expiry";
        /// Empty: every interface with an address, including interfaces that appear later.
        interfaces: Vec<String> = Vec::new(), "parse::interfaces";
        /// Prefixes of NAT64 translators besides 64:ff9b::/96, /64 to /96. Each address in them is one source.
        nat64: Vec<Ipv6Net> = Vec::new(), "parse::nat64";
        tcp: ProtocolConfig = ProtocolConfig::tcp(), "tcp::Keys::deserialize";
        udp: ProtocolConfig = ProtocolConfig::udp(), "udp::Keys::deserialize";
        detect: Detect = Detect::default();
        allow: Allow = Allow::default();
        block: Block = Block::default();
        escalate: Escalation = Escalation::default();
        trap: Trap = Trap::default();
        metrics: Metrics = Metrics::default();
        report: Report = Report::default();
        fleet: Fleet = Fleet::default();
        notify: Notify = Notify::default();
    }
}

table! {
    /// When probes count as a scan.
    Detect {
        /// Distinct ports that are forgiven; 0: the first probe is a scan.
        scan_trigger: u8 = 2, "parse::number::<0, 15, _, _>";
        window: Duration = Duration::from_secs(1_800), "parse::window";
        max_sources: u32 = 65_536, "parse::number::<1_024, 16_777_216, _, _>";
        sctp: bool = false, "parse::switch";
        icmp: bool = false, "parse::switch";
        /// Linux gives the same answer to these segments on open and on closed ports.
        ack: AckPolicy = AckPolicy::Report, "parse::ack_policy";
    }
}

table! {
    /// Which sources are never blocked, in addition to those that are always protected.
    Allow {
        /// Host bits are zero. With 0.0.0.0/0 or ::/0 no source of that family is blocked.
        networks: Vec<IpNet> = Vec::new(), "parse::networks";
        /// In lower case, not resolved.
        names: Vec<String> = Vec::new(), "parse::names";
        files: Vec<PathBuf> = Vec::new(), "parse::files";
    }
}

table! {
    /// How bans are enforced.
    Block {
        /// In the order in which they are tried: at least one, without duplicates.
        method: Vec<Backend> = vec![Backend::Nft], "parse::backends";
        /// Limit for bans on forgeable evidence, including bans by the kernel's trap.
        max_new_bans_per_minute: u32 = 60, "parse::number::<1, { Rate::MAX as i64 }, _, _>";
        /// Maximum number of simultaneous bans on forgeable evidence.
        max_forgeable_bans: u32 = 4_096, "parse::number::<1, 1_000_000, _, _>";
        /// Length of the widest IPv4 prefix that is banned if several of its addresses scan; 32: no prefix is banned.
        widest_ipv4: u8 = 32, "parse::widest_ipv4";
        /// The same for IPv6; 64: no wider prefix is banned.
        widest_ipv6: u8 = 64, "parse::widest_ipv6";
        nft: NftBlock = NftBlock::default();
        route: RouteKind = RouteKind::Blackhole, "route";
        hosts_deny: HostsDeny = HostsDeny::default();
        run: Run = Run::default();
    }
}

table! {
    /// The nftables backend.
    NftBlock {
        action: Action = Action::Drop, "parse::action";
        /// Whether all TCP connections of a blocked source with this host are closed, including connections to its
        /// services.
        end_connections: bool = true, "parse::switch";
        /// Rate of log messages about dropped packets; `None`: none.
        log_drops: Option<Rate> = None, "parse::log_rate";
        /// Maximum number of bans in each of the two sets.
        size: u32 = 131_072, "parse::number::<1, 16_777_216, _, _>";
    }
}

table! {
    /// The hosts.deny backend.
    HostsDeny {
        file: PathBuf = PathBuf::from("/etc/hosts.deny"), "parse::deny_file";
        line: String = parse::DEFAULT_DENY_LINE.to_owned(), "parse::deny_line";
    }
}

table! {
    /// The command backend. It does not use a shell.
    Run {
        command: Vec<String> = Vec::new(), "parse::command";
        /// Runs when a ban ends; empty: none.
        expire_command: Vec<String> = Vec::new(), "parse::command";
        /// Whether the other backends wait until `command` has ended.
        first: bool = false, "parse::switch";
        timeout: Duration = Duration::from_secs(30), "parse::time_limit";
        at_once: usize = 4, "parse::number::<1, 64, _, _>";
    }
}

table! {
    /// Longer bans for repeat offenders: each ban lasts `factor` times as long as the one before.
    Escalation {
        /// 1: all bans have the same duration.
        factor: u32 = 2, "parse::number::<1, 100, _, _>";
        /// The maximum duration of an escalated ban; the configured first ban may be longer.
        max: Duration = 30 * DAY, "parse::long_span";
        /// The same for bans on forgeable evidence.
        max_forgeable: Duration = 4 * DAY, "parse::long_span";
        /// How long a ban counts after its end; after 90 days an address has often changed hands.
        forget: Duration = 90 * DAY, "parse::long_span";
    }
}

table! {
    /// For which protocols the kernel itself counts probes and blocks, and for how long it holds their sources.
    Trap {
        tcp: bool = true, "parse::switch";
        udp: bool = false, "parse::switch";
        /// Zero: sources are not held. Always less than one second, the time after which a SYN is retransmitted.
        hold: Duration = Duration::from_millis(900), "parse::hold";
    }
}

table! {
    /// Metrics for Prometheus.
    Metrics {
        /// `None`: no listener.
        listen: Option<SocketAddr> = None, "parse::listen";
    }
}

table! {
    /// What is logged, and the destination of the log.
    Report {
        /// Whether log lines contain the host name of the source, as in classic PortSentry. The owner of the address
        /// controls that name.
        resolve_host: bool = false, "parse::switch";
        /// The file for events as JSON; `None`: no file.
        json_file: Option<PathBuf> = None, "parse::json_file";
        log: LogTarget = LogTarget::Auto, "parse::log_target";
        /// Whether each probe that is not enough for a ban gets a log line. Otherwise one line per day reports their
        /// number.
        single_probes: bool = true, "parse::switch";
        facility: Facility = Facility::Daemon, "parse::facility";
    }
}

table! {
    /// Digests of bans, sent to a command. It does not use a shell.
    Notify {
        /// Receives a digest as JSON on its standard input; empty: none.
        command: Vec<String> = Vec::new(), "parse::command";
        /// The time from the first ban of a digest until the digest is sent.
        interval: Duration = Duration::from_secs(900), "parse::interval";
    }
}

/// How one protocol is monitored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolConfig {
    pub mode: Mode,
    /// Ports of the modes connect and stealth.
    pub ports: PortSet,
    pub advanced_ports: PortSet,
    pub advanced_exclude: PortSet,
    pub block: Response,
    /// Sent to clients in connect mode; always empty for UDP.
    pub port_banner: String,
    /// Whether connect mode also judges packets. For TCP only.
    pub half_open: HalfOpenPolicy,
}

/// Defines how serde reads [`ProtocolConfig`] from the table of one protocol. The keys are the same for both protocols;
/// the built-in values, the named port lists and the banner differ.
macro_rules! protocol_table {
    ($table:ident, $builtin:path, $ports:literal, $port_banner:literal, $half_open:literal) => {
        mod $table {
            use crate::config::schema::*;

            fn builtin() -> ProtocolConfig {
                $builtin()
            }

            #[derive(Deserialize)]
            #[serde(remote = "ProtocolConfig", default = "builtin", deny_unknown_fields)]
            pub(super) struct Keys {
                #[serde(deserialize_with = "parse::mode")]
                mode: Mode,
                #[serde(deserialize_with = $ports)]
                ports: PortSet,
                #[serde(deserialize_with = "parse::advanced_ports")]
                advanced_ports: PortSet,
                #[serde(deserialize_with = "parse::ports")]
                advanced_exclude: PortSet,
                #[serde(deserialize_with = "parse::block_policy")]
                block: Response,
                #[serde(deserialize_with = $port_banner)]
                port_banner: String,
                #[serde(deserialize_with = $half_open)]
                half_open: HalfOpenPolicy,
            }
        }
    };
}

protocol_table!(tcp, ProtocolConfig::tcp, "parse::tcp_ports", "parse::port_banner", "parse::half_open");
protocol_table!(udp, ProtocolConfig::udp, "parse::udp_ports", "parse::no_port_banner", "parse::no_half_open");

impl ProtocolConfig {
    fn tcp() -> Self {
        Self::builtin(&port_lists::TCP, Response::Block)
    }

    /// UDP is only logged by default: the source of a datagram is easily forged, and a ban would hit the forged
    /// address.
    fn udp() -> Self {
        Self::builtin(&port_lists::UDP, Response::Log)
    }

    fn builtin(lists: &port_lists::Lists, block: Response) -> Self {
        Self {
            mode: Mode::Advanced,
            ports: port_lists::set(lists.aware),
            advanced_ports: port_lists::set(lists.advanced),
            advanced_exclude: port_lists::set(lists.advanced_exclude),
            block,
            port_banner: String::new(),
            half_open: HalfOpenPolicy::Ignore,
        }
    }

    /// The ports that this mode monitors, including ports in use.
    pub fn monitored(&self) -> PortSet {
        match self.mode {
            Mode::Off => PortSet::new(),
            Mode::Connect | Mode::Stealth => self.ports.clone(),
            Mode::Advanced => self.advanced_ports.without(&self.advanced_exclude),
        }
    }
}

/// Reads the table `block.route`. A gateway replaces a kind.
fn route<'de, D: serde::Deserializer<'de>>(source: D) -> Result<RouteKind, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Keys {
        #[serde(deserialize_with = "parse::route_kind")]
        kind: RouteKind,
        #[serde(deserialize_with = "parse::route_via")]
        via: Option<IpAddr>,
    }
    Keys::deserialize(source).map(|keys| keys.via.map_or(keys.kind, RouteKind::Via))
}
