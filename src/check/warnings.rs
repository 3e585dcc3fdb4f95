//! Warns about settings that are permitted but unwise. Pure: reads only the configuration.

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use crate::config::{Config, Diagnostic, HalfOpenPolicy, Mode, Warning};
use crate::enforce::implementation;
use crate::enforce::nft::RulesetSpec;
use crate::types::{Backend, Expiry, Response};

#[derive(Default, Serialize)]
pub(super) struct Findings {
    /// Name of the configuration file in errors.
    #[serde(skip)]
    pub(super) origin: String,
    /// Errors that prevent the program from running on this host.
    #[serde(rename = "errors")]
    pub(super) wrong: Vec<Diagnostic>,
    #[serde(serialize_with = "as_texts")]
    pub(super) warnings: Vec<Warning>,
    /// Notes about skipped checks.
    pub(super) notes: Vec<String>,
}

/// Serialises a list of texts.
pub(super) fn as_texts<S: Serializer>(items: &[impl ToString], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(items.iter().map(ToString::to_string))
}

impl Findings {
    /// Adds an error about `key`, or about the whole file.
    pub(super) fn wrong<'a>(&mut self, key: impl Into<Option<&'a str>>, message: impl ToString) {
        let (file, key) = (self.origin.clone(), key.into().map(str::to_owned));
        self.wrong.push(Diagnostic { file, line: None, column: None, key, message: message.to_string() });
    }

    pub(super) fn warn(&mut self, key: &'static str, message: impl Into<String>) {
        self.warnings.push(Warning::new(key, message));
    }

    pub(super) fn add_note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }
}

pub(super) fn from_config(config: &Config) -> Vec<Warning> {
    let mut found = Vec::new();
    let mut warn = |key, message: &str| found.push(Warning::new(key, message));
    if !config.uses(Response::Block) && !config.uses(Response::RunCommand) {
        warn("tcp.block", "no source is blocked: scans are only logged");
    }
    if config.udp.mode != Mode::Off && config.udp.block != Response::Log {
        let message = "an attacker can forge the source of a datagram and so have any address blocked; false only logs";
        warn("udp.block", message);
    }
    if config.trap.udp && RulesetSpec::from_config(config).trap.is_none_or(|trap| !trap.udp) {
        let message = match (config.udp.mode, config.udp.block) {
            (Mode::Off | Mode::Connect, _) => "has no effect: udp.mode is neither \"stealth\" nor \"advanced\"",
            (_, Response::Log | Response::RunCommand) => "has no effect without udp.block = true",
            _ => "has no effect: it needs \"nft\" in block.method, and block.run.first = false",
        };
        warn("trap.udp", message);
    }
    if config.fleet.is_joined() {
        fleet(config, &mut warn);
    }
    if config.detect.scan_trigger == 0 {
        warn(
            "detect.scan_trigger",
            "0 blocks at the first probe, including a mistyped port number; 2 forgives two ports",
        );
    }
    if config.expire == Expiry::Never {
        let message = "bans never expire, although addresses change hands and sets fill up; write for example \"30d\"";
        warn("expire", message);
    }
    if !config.tcp.port_banner.is_empty() {
        warn("tcp.port_banner", "the banner reveals to each client that this host detects scans");
    }
    for (key, is_set) in
        [("block.widest_ipv4", config.block.widest_ipv4 < 32), ("block.widest_ipv6", config.block.widest_ipv6 < 64)]
    {
        if is_set && config.tcp.mode != Mode::Connect {
            let message = "has no effect: only completed connections to decoys cause bans of networks, and tcp.mode is not \
                 \"connect\"";
            warn(key, message);
        }
    }
    if config.tcp.half_open == HalfOpenPolicy::Ban {
        warn(
            "tcp.half_open",
            match config.tcp.mode {
                Mode::Connect => {
                    "an attacker can forge the source of a half-open connection; \"ignore\" counts only completed \
                     connections"
                }
                _ => "has no effect: tcp.mode is not \"connect\"",
            },
        );
    }
    if config.tcp.mode == Mode::Off {
        warn("tcp.mode", "TCP is not monitored, and the sources of UDP probes can be forged");
    }
    let strongest = Backend::ALL.into_iter().find(|backend| config.block.method.contains(backend));
    let weakness = strongest.and_then(|backend| implementation(backend).weakness());
    if let Some(weakness) = weakness.filter(|_| config.uses(Response::Block)) {
        warn("block.method", weakness);
    }
    for network in &config.allow.networks {
        match network.prefix_len() {
            0 => {
                let family = if matches!(network, IpNet::V4(_)) { "IPv4" } else { "IPv6" };
                let message =
                    format!("{network} matches every address, so no {family} source is ever blocked; remove it");
                warn("allow.networks", &message);
            }
            length if length < widest(network) => {
                warn(
                    "allow.networks",
                    &format!("{network} exempts a large part of the Internet; list smaller networks"),
                );
            }
            _ => {}
        }
    }
    if config.block.nft.size > LARGE {
        let message = format!("listing a set of {} elements can take half a minute", config.block.nft.size);
        warn("block.nft.size", &message);
    }
    if config.metrics.listen.is_some_and(|address| !address.ip().is_loopback()) {
        warn("metrics.listen", "every host that can reach this address can read the metrics");
    }
    found
}

/// The shortest length of a prefix that still belongs to a single organisation.
fn widest(network: &IpNet) -> u8 {
    match network {
        IpNet::V4(_) => 8,
        IpNet::V6(_) => 20,
    }
}

/// Number of elements above which a set is slow to read.
const LARGE: u32 = 500_000;

fn fleet(config: &Config, warn: &mut impl FnMut(&'static str, &str)) {
    if !config.uses(Response::Block) {
        warn("fleet.shadow", "reports of other hosts block nothing, because this host only logs scans");
    } else if config.fleet.shadow {
        warn("fleet.shadow", "reports of other hosts are only logged; false blocks the addresses that they report");
    }
    if config.fleet.accept.single {
        warn(
            "fleet.accept.single",
            "one compromised host of the fleet can have 30 addresses an hour blocked here; false requires reports of \
             two hosts",
        );
    }
    if config.fleet.accept.forgeable_authors > 0 {
        warn(
            "fleet.accept.forgeable_authors",
            "three forged packets are enough to make a host report any address; 0 accepts only proven evidence",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Vec<&'static str> {
        from_config(&Config::parse("portsentry.toml", text).unwrap()).into_iter().map(|warning| warning.key).collect()
    }

    #[test]
    fn built_in_settings_cause_no_warning() {
        assert_eq!(from_config(&Config::default()), []);
        assert!(keys("[metrics]\nlisten = \"127.0.0.1:9777\"\n[allow]\nnetworks = [\"10.0.0.0/8\"]\n").is_empty());
    }

    #[test]
    fn unwise_setting_is_named_by_key() {
        for (text, key) in [
            ("[udp]\nblock = true\n", "udp.block"),
            ("[tcp]\nblock = false\n", "tcp.block"),
            ("[tcp]\nmode = \"off\"\n[udp]\nblock = true\n", "tcp.mode"),
            ("[tcp]\nport_banner = \"go away\"\n", "tcp.port_banner"),
            ("[tcp]\nhalf_open = \"ban\"\n", "tcp.half_open"),
            ("[tcp]\nmode = \"connect\"\nhalf_open = \"ban\"\n", "tcp.half_open"),
            ("expire = \"never\"\n", "expire"),
            ("[detect]\nscan_trigger = 0\n", "detect.scan_trigger"),
            ("[allow]\nnetworks = [\"0.0.0.0/0\"]\n", "allow.networks"),
            ("[allow]\nnetworks = [\"2000::/3\"]\n", "allow.networks"),
            ("[block]\nmethod = [\"hosts-deny\"]\n", "block.method"),
            ("[block]\nmethod = [\"route\"]\n", "block.method"),
            ("[block.nft]\nsize = 1000000\n", "block.nft.size"),
            ("[metrics]\nlisten = \"0.0.0.0:9777\"\n", "metrics.listen"),
        ] {
            assert!(keys(text).contains(&key), "{text}");
        }
        assert!(!keys("[block]\nmethod = [\"hosts-deny\", \"nft\"]\n").contains(&"block.method"));
        assert!(
            !keys("[udp]\nmode = \"off\"\nblock = true\n").contains(&"udp.block"),
            "a protocol that is off has no effect"
        );
    }

    #[test]
    fn ineffective_udp_trap_names_required_key() {
        let warning = |text: &str| {
            let found = from_config(&Config::parse("portsentry.toml", &format!("[trap]\nudp = true\n{text}")).unwrap());
            found.into_iter().find(|warning| warning.key == "trap.udp").map(|warning| warning.message)
        };
        for (text, part) in [
            ("", "udp.block = true"),
            ("[udp]\nblock = \"run\"\n[block.run]\ncommand = [\"/bin/true\"]\n", "udp.block = true"),
            ("[udp]\nmode = \"connect\"\nports = \"69\"\nblock = true\n", "udp.mode"),
            ("[udp]\nblock = true\n[block]\nmethod = [\"route\"]\n", "block.method"),
        ] {
            assert!(warning(text).is_some_and(|message| message.contains(part)), "{text}");
        }
        assert_eq!(warning("[udp]\nblock = true\n"), None);
    }
}
