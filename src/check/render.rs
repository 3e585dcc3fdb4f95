//! Renders the [`CheckReport`] as text, and as one JSON object with the same content.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Value, json};

use super::backends::BackendCheck;
use super::warnings::Findings;
use crate::config::{Config, DEFAULT_CONFIG, Mode, Warning};
use crate::control::line;
use crate::control::status::MonitoredPorts;
use crate::enforce::command::quoted;
use crate::engine::Protection;
use crate::types::{Expiry, Span, plain};

/// Maximum number of protected prefixes in the text.
const MAX_LISTED_PREFIXES: usize = 30;

pub(super) struct CheckReport {
    /// The file; `None` for the built-in configuration.
    pub(super) file: Option<String>,
    pub(super) config: Config,
    pub(super) tcp: CheckedPorts,
    pub(super) udp: CheckedPorts,
    pub(super) interfaces: Vec<InterfaceSummary>,
    pub(super) protected: Vec<(IpNet, Protection)>,
    pub(super) names: BTreeMap<String, Result<Vec<IpAddr>, String>>,
    pub(super) backends: Vec<BackendCheck>,
    pub(super) findings: Findings,
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

pub(super) struct InterfaceSummary {
    pub(super) name: String,
    pub(super) up: bool,
    /// Why it is not monitored; `None` if it is.
    pub(super) unwatched: Option<&'static str>,
    pub(super) addresses: Vec<IpNet>,
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
            line!(f, "backend", "{backend}: {does}{state}")?;
        }
        if let Some(address) = config.metrics.listen {
            line!(f, "metrics", "at {address}")?;
        }
        if config.notifies() {
            let (interval, command) = (Span(config.notify.interval), quoted(&config.notify.command));
            line!(f, "digests", "at most one every {interval}, sent by the command {command}")?;
        }
        for InterfaceSummary { name, up, unwatched, addresses } in &self.interfaces {
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
            || self.protected.iter().filter(|(_, why)| !matches!(why, Protection::OwnAddress | Protection::Loopback));
        for (prefix, why) in others().take(MAX_LISTED_PREFIXES) {
            line!(f, "protected", "{}: {why}", plain(*prefix))?;
        }
        match others().count().saturating_sub(MAX_LISTED_PREFIXES) {
            0 => {}
            more => line!(f, "protected", "{more} more; --json lists all")?,
        }
        for (name, found) in &self.names {
            let found = match found {
                Ok(found) if found.is_empty() => "no address".to_owned(),
                Ok(found) => joined(found),
                Err(why) => why.clone(),
            };
            line!(f, "name", "{name}: {found}")?;
        }
        for warning in &self.findings.warnings {
            line!(f, "warning", "{warning}")?;
        }
        if self.findings.wrong.is_empty() && self.findings.warnings.is_empty() {
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

pub(super) fn json(report: &CheckReport) -> Value {
    let config = &report.config;
    let interfaces = report.interfaces.iter().map(|interface| {
        json!({
            "name": interface.name,
            "up": interface.up,
            "watched": interface.unwatched.is_none(),
            "addresses": interface.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    });
    let exempt =
        report.protected.iter().map(|(prefix, why)| json!({"network": prefix.to_string(), "reason": why.to_string()}));
    let names = report.names.iter().map(|(name, found)| {
        let addresses = found.as_ref().map(|found| found.iter().map(IpAddr::to_string).collect::<Vec<_>>());
        json!({"name": name, "addresses": addresses.clone().unwrap_or_default(), "error": addresses.err()})
    });
    let warnings = report.findings.warnings.iter().map(Warning::to_string);
    json!({
        "ok": report.findings.wrong.is_empty(),
        "settings": report.file,
        "errors": report.findings.wrong,
        "warnings": warnings.collect::<Vec<_>>(),
        "notes": report.findings.notes,
        "tcp": report.tcp,
        "udp": report.udp,
        "scan_trigger": config.detect.scan_trigger,
        "window_s": config.detect.window.as_secs(),
        "expire_s": config.expire.seconds(),
        "methods": config.block.method.iter().map(|method| method.name()).collect::<Vec<_>>(),
        "backends": report.backends,
        "notify": {
            "command": config.notifies().then(|| quoted(&config.notify.command)),
            "interval_s": config.notify.interval.as_secs(),
        },
        "interfaces": config.interfaces,
        "host_interfaces": interfaces.collect::<Vec<_>>(),
        "exempt": exempt.collect::<Vec<_>>(),
        "names": names.collect::<Vec<_>>(),
    })
}
