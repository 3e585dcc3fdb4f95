//! Checks combinations of keys that are valid separately but contradict each other. A detector must never report that
//! it is active while it monitors or blocks nothing.

use super::{BlockPolicy, Config, Mode};
use crate::types::Backend;

/// Maximum length of `allow.names`: each name is resolved repeatedly, and its addresses are compared after every change
/// of this host's network.
const MAX_NAMES: usize = 64;

/// The dotted key to correct, and a sentence that says how.
pub(super) type Contradiction = (String, String);

pub(super) fn contradictions(config: &Config) -> Vec<Contradiction> {
    let mut found = Vec::new();
    let mut refuse = |key: &str, message: &str| found.push((key.to_owned(), message.to_owned()));
    for (name, protocol) in [("tcp", &config.tcp), ("udp", &config.udp)] {
        let key = if protocol.mode == Mode::Advanced { "advanced_ports" } else { "ports" };
        if protocol.mode != Mode::Off && protocol.watched().is_empty() {
            let message = format!("no port is left to watch; list one, or write mode = \"off\" under [{name}]");
            refuse(&format!("{name}.{key}"), &message);
        }
    }
    if config.tcp.mode == Mode::Off && config.udp.mode == Mode::Off {
        refuse("tcp.mode", "off like udp.mode, so that nothing would be watched; write \"advanced\" for one of them");
    }
    if config.udp.mode == Mode::Connect && !config.interfaces.is_empty() {
        refuse(
            "interfaces",
            "a socket of UDP's connect mode hears every interface and cannot tell which; leave the list empty, or write \
             mode = \"stealth\" under [udp]",
        );
    }
    let left_out = config.interfaces.iter().filter(|name| name.starts_with('!')).count();
    if left_out > 0 && left_out < config.interfaces.len() {
        refuse(
            "interfaces",
            "names interfaces to watch and others to leave out; write the ones to watch, or only \"!NAME\" for those to \
             leave out",
        );
    }
    let names = config.allow.names.len();
    if names > MAX_NAMES {
        let remedy = "write the networks of some of them under allow.networks";
        refuse("allow.names", &format!("{names} names are more than {MAX_NAMES}; {remedy}"));
    }
    let methods = &config.block.method;
    if methods.is_empty() {
        refuse(
            "block.method",
            "an empty list blocks no source; write [\"nft\"], or block = false under [tcp] and [udp] to only log",
        );
    }
    if methods.iter().any(|method| methods.iter().filter(|other| *other == method).count() > 1) {
        refuse("block.method", "names one way twice; write each once");
    }
    let run = &config.block.run;
    for (key, command) in [
        ("block.run.command", &run.command),
        ("block.run.expire_command", &run.expire_command),
        ("notify.command", &config.notify.command),
    ] {
        // PATH is not searched, because the daemon can change the firewall.
        if command.first().is_some_and(|program| !program.starts_with('/')) {
            refuse(key, "the program needs its whole path; write for example \"/usr/local/sbin/on-scan\"");
        }
    }
    let runs = methods.contains(&Backend::Command)
        || [&config.tcp, &config.udp].into_iter().any(|protocol| protocol.block == BlockPolicy::Run);
    if runs && run.command.is_empty() {
        refuse(
            "block.run.command",
            "no command is left to run; write for example [\"/usr/local/sbin/on-scan\", \"$TARGET$\"]",
        );
    }
    if config.fleet.is_joined() && config.fleet.host.is_empty() {
        refuse("fleet.host", "a host in a fleet needs a name there; write for example host = \"web-1\" under [fleet]");
    }
    if config.fleet.is_joined() && !methods.contains(&Backend::Nft) {
        refuse("fleet.url", "bans of a fleet are kept in nftables; add \"nft\" to block.method, or write url = \"\"");
    }
    found
}
