//! Renders the [`Report`] as text, and as one JSON object with the same content.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::backends::{BackendCheck, words};
use super::warnings::Findings;
use crate::config::{Config, ConfigError, DEFAULT_CONFIG, Mode, Notify, Protocol, Warning};
use crate::engine::Protection;
use crate::types::{Expiry, PortSet, Span, counted, plain};

/// Maximum number of protected prefixes in the text.
const SHOWN: usize = 30;

/// The result of a check.
pub(super) struct Report {
    /// The file; `None` for the built-in configuration.
    pub(super) file: Option<String>,
    pub(super) config: Config,
    pub(super) tcp: Watched,
    pub(super) udp: Watched,
    pub(super) interfaces: Vec<Interface>,
    pub(super) protected: Vec<(IpNet, Protection)>,
    pub(super) names: BTreeMap<String, Result<Vec<IpAddr>, String>>,
    pub(super) backends: Vec<BackendCheck>,
    pub(super) findings: Findings,
}

pub(super) struct Watched {
    pub(super) ports: PortSet,
    /// Ports in use, whose probes are not evidence.
    pub(super) left_out: PortSet,
    /// Ports that are in use on some addresses and monitored on the others. 0.0.0.0 and :: stand for all addresses of a
    /// family.
    pub(super) partly: Vec<(u16, IpAddr)>,
}

pub(super) struct Interface {
    pub(super) name: String,
    pub(super) up: bool,
    /// Why it is not monitored; `None` if it is.
    pub(super) unwatched: Option<&'static str>,
    pub(super) addresses: Vec<IpNet>,
}

/// One line with a label column.
fn line(out: &mut String, word: &str, rest: &str) {
    let _ = writeln!(out, "{word:<11} {rest}");
}

pub(super) fn text(report: &Report) -> String {
    let mut out = String::new();
    let config = &report.config;
    let built_in = || format!("built-in values; {DEFAULT_CONFIG} does not exist");
    line(&mut out, "config", &report.file.clone().unwrap_or_else(built_in));
    for (word, protocol, watched) in [("TCP", &config.tcp, &report.tcp), ("UDP", &config.udp, &report.udp)] {
        ports(&mut out, word, protocol, watched);
    }
    let window = Span(config.detect.window);
    let forgiven = match config.detect.scan_trigger {
        0 => "the first probe is a scan".to_owned(),
        1 => format!("1 port is forgiven within {window}, the second blocks"),
        ports => format!("{ports} distinct ports are forgiven within {window}"),
    };
    line(&mut out, "threshold", &forgiven);
    let longer = match (config.expire, config.escalate.factor) {
        (Expiry::Never, _) | (_, 1) => String::new(),
        (_, factor) => {
            let max = Span(config.escalate.max);
            format!(", {factor} times as long for each return, up to {max}")
        }
    };
    let expire = match config.expire {
        Expiry::Never => "with no end".to_owned(),
        Expiry::After(span) => format!("for {}", Span(span)),
    };
    line(&mut out, "bans", &format!("{expire}{longer}"));
    if report.backends.is_empty() {
        line(&mut out, "backend", "none");
    }
    for backend in &report.backends {
        let state = match backend.works {
            Some(true) => "",
            Some(false) => "; does not work, see the errors",
            None => "; not checked",
        };
        line(&mut out, "backend", &format!("{}: {}{state}", backend.method, backend.does));
    }
    if let Some(address) = config.metrics.listen {
        line(&mut out, "metrics", &format!("at {address}"));
    }
    if config.notifies() {
        let Notify { command, interval } = &config.notify;
        let rate = format!("at most one every {}, sent by the command {}", Span(*interval), words(command));
        line(&mut out, "digests", &rate);
    }
    for interface in &report.interfaces {
        let addresses: Vec<String> = interface.addresses.iter().map(ToString::to_string).collect();
        let state = match (interface.unwatched, interface.up) {
            (Some(why), _) => format!("not monitored: {why}"),
            (None, true) => "monitored".to_owned(),
            (None, false) => "monitored, but down".to_owned(),
        };
        line(
            &mut out,
            "interface",
            format!("{} {state}; {}", interface.name.escape_debug(), addresses.join(", ")).trim_end_matches("; "),
        );
    }
    // Own addresses are already listed with their interfaces.
    let others =
        || report.protected.iter().filter(|(_, why)| !matches!(why, Protection::OwnAddress | Protection::Loopback));
    for (prefix, why) in others().take(SHOWN) {
        line(&mut out, "protected", &format!("{}: {why}", plain(*prefix)));
    }
    match others().count().saturating_sub(SHOWN) {
        0 => {}
        more => line(&mut out, "protected", &format!("{more} more; --json lists all")),
    }
    for (name, found) in &report.names {
        let found = match found {
            Ok(found) if found.is_empty() => "no address".to_owned(),
            Ok(found) => found.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", "),
            Err(why) => why.clone(),
        };
        line(&mut out, "name", &format!("{name}: {found}"));
    }
    for warning in &report.findings.warnings {
        line(&mut out, "warning", &warning.to_string());
    }
    if report.findings.wrong.is_empty() && report.findings.warnings.is_empty() {
        line(&mut out, "result", "no problem found");
    }
    out
}

fn ports(out: &mut String, word: &str, protocol: &Protocol, watched: &Watched) {
    if protocol.mode == Mode::Off {
        return line(out, word, "off");
    }
    let ports = counted(watched.ports.len(), "port");
    line(out, word, &format!("{}, {ports}, scans are {}", protocol.mode.name(), protocol.block.effect()));
    line(out, "  ports", &watched.ports.to_string());
    if !watched.left_out.is_empty() {
        line(out, "  left out", &format!("{}: in use", watched.left_out));
    }
    if !watched.partly.is_empty() {
        let at: Vec<String> = watched
            .partly
            .iter()
            .map(|(port, address)| match address {
                _ if !address.is_unspecified() => format!("{port} on {address}"),
                IpAddr::V4(_) => format!("{port} on IPv4"),
                IpAddr::V6(_) => format!("{port} on IPv6"),
            })
            .collect();
        line(out, "  in use", &format!("{}; monitored on all other addresses", at.join(", ")));
    }
}

/// Renders errors as JSON.
pub(super) fn errors<'a>(errors: impl Iterator<Item = &'a ConfigError>) -> Value {
    let object = |ConfigError { file, position, key, message }: &ConfigError| {
        let (line, column) = position.map(|position| (position.line, position.column)).unzip();
        json!({"file": file, "line": line, "column": column, "key": key, "message": message})
    };
    errors.map(object).collect::<Vec<_>>().into()
}

pub(super) fn json(report: &Report) -> Value {
    let config = &report.config;
    let watched = |protocol: &Protocol, watched: &Watched| {
        let partly = watched.partly.iter().map(|(port, address)| json!({"port": port, "address": address.to_string()}));
        json!({
            "mode": protocol.mode.name(),
            "block": protocol.block,
            "ports": watched.ports.to_string(),
            "count": watched.ports.len(),
            "left_out": watched.left_out.to_string(),
            "partly_in_use": partly.collect::<Vec<_>>(),
        })
    };
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
        "errors": errors(report.findings.wrong.iter()),
        "warnings": warnings.collect::<Vec<_>>(),
        "notes": report.findings.notes,
        "tcp": watched(&config.tcp, &report.tcp),
        "udp": watched(&config.udp, &report.udp),
        "scan_trigger": config.detect.scan_trigger,
        "window_s": config.detect.window.as_secs(),
        "expire_s": config.expire.seconds(),
        "methods": config.block.method.iter().map(|method| method.name()).collect::<Vec<_>>(),
        "backends": report.backends,
        "notify": {
            "command": config.notifies().then(|| words(&config.notify.command)),
            "interval_s": config.notify.interval.as_secs(),
        },
        "interfaces": config.interfaces,
        "host_interfaces": interfaces.collect::<Vec<_>>(),
        "exempt": exempt.collect::<Vec<_>>(),
        "names": names.collect::<Vec<_>>(),
    })
}
