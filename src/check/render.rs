//! Defines the [`CheckReport`], which is the JSON object of `check --json`, and renders it as text.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use serde_with::{As, DisplayFromStr};

use super::backends::BackendCheck;
use super::warnings::{Findings, as_texts};
use crate::config::{Config, ConfigErrors, DEFAULT_CONFIG, Mode};
use crate::control::line;
use crate::control::status::MonitoredPorts;
use crate::enforce::command::quoted;
use crate::engine::Protection;
use crate::types::{Backend, Expiry, Span, plain};

/// Maximum number of protected prefixes in the text.
const MAX_LISTED_PREFIXES: usize = 30;

#[derive(Serialize)]
pub(super) struct CheckReport {
    pub(super) ok: bool,
    /// The file; `None` for the built-in configuration.
    #[serde(rename = "settings")]
    pub(super) file: Option<String>,
    #[serde(flatten)]
    pub(super) findings: Findings,
    pub(super) tcp: CheckedPorts,
    pub(super) udp: CheckedPorts,
    pub(super) scan_trigger: u8,
    pub(super) window_s: u64,
    pub(super) expire_s: Option<u64>,
    pub(super) methods: Vec<Backend>,
    pub(super) backends: Vec<BackendCheck>,
    pub(super) notify: NotifySummary,
    /// As configured.
    pub(super) interfaces: Vec<String>,
    pub(super) host_interfaces: Vec<InterfaceSummary>,
    pub(super) exempt: Vec<ExemptNetwork>,
    pub(super) names: Vec<AllowedName>,
    #[serde(skip)]
    pub(super) config: Config,
}

/// What `check --json` prints for an invalid configuration.
#[derive(Serialize)]
pub(super) struct InvalidConfig<'a> {
    pub(super) ok: bool,
    pub(super) errors: &'a ConfigErrors,
}

#[derive(Serialize)]
pub(super) struct NotifySummary {
    pub(super) command: Option<String>,
    pub(super) interval_s: u64,
}

#[derive(Serialize)]
pub(super) struct ExemptNetwork {
    #[serde(serialize_with = "As::<DisplayFromStr>::serialize")]
    pub(super) network: IpNet,
    #[serde(serialize_with = "As::<DisplayFromStr>::serialize")]
    pub(super) reason: Protection,
}

/// A name of the allow-list.
#[derive(Serialize)]
pub(super) struct AllowedName {
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) error: Option<String>,
}

#[derive(Serialize)]
pub(super) struct CheckedPorts {
    #[serde(flatten)]
    pub(super) monitored: MonitoredPorts,
    /// Ports that are in use on some addresses and monitored on the others.
    pub(super) partly_in_use: Vec<BoundPort>,
}

/// A port in use. 0.0.0.0 and :: stand for all addresses of a family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct BoundPort {
    pub(super) port: u16,
    pub(super) address: IpAddr,
}

#[derive(Serialize)]
pub(super) struct InterfaceSummary {
    pub(super) name: String,
    pub(super) up: bool,
    /// Why it is not monitored; `None` if it is.
    #[serde(rename = "watched", serialize_with = "is_none")]
    pub(super) unwatched: Option<&'static str>,
    #[serde(serialize_with = "as_texts")]
    pub(super) addresses: Vec<IpNet>,
}

fn is_none<T, S: Serializer>(field: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bool(field.is_none())
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.config;
        match &self.file {
            Some(file) => line!(f, "config", "{file}")?,
            None => line!(f, "config", "built-in values; {DEFAULT_CONFIG} does not exist")?,
        }
        ports(f, "TCP", &self.tcp)?;
        ports(f, "UDP", &self.udp)?;
        let window = Span(config.detect.window);
        match config.detect.scan_trigger {
            0 => line!(f, "threshold", "the first probe is a scan")?,
            1 => line!(f, "threshold", "1 port is forgiven within {window}, the second blocks")?,
            ports => line!(f, "threshold", "{ports} distinct ports are forgiven within {window}")?,
        }
        match (config.expire, config.escalate.factor) {
            (Expiry::Never, _) => line!(f, "bans", "with no end")?,
            (Expiry::After(span), 1) => line!(f, "bans", "for {}", Span(span))?,
            (Expiry::After(span), factor) => {
                let (span, max) = (Span(span), Span(config.escalate.max));
                line!(f, "bans", "for {span}, {factor} times as long for each return, up to {max}")?;
            }
        }
        if self.backends.is_empty() {
            line!(f, "backend", "none")?;
        }
        for BackendCheck { backend, works, does } in &self.backends {
            let state = match works {
                Some(true) => "",
                Some(false) => "; does not work, see the errors",
                None => "; not checked",
            };
            line!(f, "backend", "{}: {does}{state}", backend.name())?;
        }
        if let Some(address) = config.metrics.listen {
            line!(f, "metrics", "at {address}")?;
        }
        if config.notifies() {
            let (interval, command) = (Span(config.notify.interval), quoted(&config.notify.command));
            line!(f, "digests", "at most one every {interval}, sent by the command {command}")?;
        }
        for InterfaceSummary { name, up, unwatched, addresses } in &self.host_interfaces {
            let state = match (unwatched, up) {
                (Some(why), _) => format!("not monitored: {why}"),
                (None, true) => "monitored".to_owned(),
                (None, false) => "monitored, but down".to_owned(),
            };
            let text = format!("{} {state}; {}", name.escape_debug(), joined(addresses));
            line!(f, "interface", "{}", text.trim_end_matches("; "))?;
        }
        // Own addresses are already listed with their interfaces.
        let others =
            || self.exempt.iter().filter(|one| !matches!(one.reason, Protection::OwnAddress | Protection::Loopback));
        for ExemptNetwork { network, reason } in others().take(MAX_LISTED_PREFIXES) {
            line!(f, "protected", "{}: {reason}", plain(*network))?;
        }
        match others().count().saturating_sub(MAX_LISTED_PREFIXES) {
            0 => {}
            more => line!(f, "protected", "{more} more; --json lists all")?,
        }
        for AllowedName { name, addresses, error } in &self.names {
            let found = match error {
                None if addresses.is_empty() => "no address".to_owned(),
                None => joined(addresses),
                Some(why) => why.clone(),
            };
            line!(f, "name", "{name}: {found}")?;
        }
        for warning in &self.findings.warnings {
            line!(f, "warning", "{warning}")?;
        }
        if self.ok && self.findings.warnings.is_empty() {
            line!(f, "result", "no problem found")?;
        }
        Ok(())
    }
}

fn ports(
    f: &mut fmt::Formatter<'_>,
    word: &str,
    CheckedPorts { monitored, partly_in_use }: &CheckedPorts,
) -> fmt::Result {
    line!(f, word, "{}", monitored.summary())?;
    if monitored.mode == Mode::Off {
        return Ok(());
    }
    line!(f, "  ports", "{}", monitored.ports)?;
    if !monitored.left_out.is_empty() {
        line!(f, "  left out", "{}: in use", monitored.left_out)?;
    }
    if !partly_in_use.is_empty() {
        let at = partly_in_use.iter().map(|BoundPort { port, address }| match address {
            _ if !address.is_unspecified() => format!("{port} on {address}"),
            IpAddr::V4(_) => format!("{port} on IPv4"),
            IpAddr::V6(_) => format!("{port} on IPv6"),
        });
        line!(f, "  in use", "{}; monitored on all other addresses", at.collect::<Vec<_>>().join(", "))?;
    }
    Ok(())
}

fn joined(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
