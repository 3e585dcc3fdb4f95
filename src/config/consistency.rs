//! Checks combinations of keys that are valid separately but contradict each other. A detector must never report that
//! it is active while it monitors or blocks nothing.

use super::{Config, Mode};
use crate::types::{Backend, Response};

/// Maximum length of `allow.names`: each name is resolved repeatedly, and its addresses are compared after every change
/// of this host's network.
const MAX_NAMES: usize = 64;

/// The dotted keys to correct, each with a sentence that says how.
pub(super) fn contradictions(config: &Config) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut refuse = |key: &str, message: &str| found.push((key.to_owned(), message.to_owned()));
    for (name, protocol) in [("tcp", &config.tcp), ("udp", &config.udp)] {
        let key = if protocol.mode == Mode::Advanced { "advanced_ports" } else { "ports" };
        if protocol.mode != Mode::Off && protocol.monitored().is_empty() {
            let message = format!("no port is left to monitor; list one, or write mode = \"off\" under [{name}]");
            refuse(&format!("{name}.{key}"), &message);
        }
    }
    if config.tcp.mode == Mode::Off && config.udp.mode == Mode::Off {
        refuse(
            "tcp.mode",
            "both tcp.mode and udp.mode are \"off\", so no port would be monitored; write \"advanced\" for one of \
             them",
        );
    }
    if config.udp.mode == Mode::Connect && !config.interfaces.is_empty() {
        refuse(
            "interfaces",
            "the UDP sockets of connect mode receive from every interface; leave the list empty, or write mode = \
             \"stealth\" under [udp]",
        );
    }
    let left_out = config.interfaces.iter().filter(|name| name.starts_with('!')).count();
    if left_out > 0 && left_out < config.interfaces.len() {
        refuse(
            "interfaces",
            "the list mixes interfaces to monitor and \"!NAME\" entries to exclude; use only one kind",
        );
    }
    let names = config.allow.names.len();
    if names > MAX_NAMES {
        let remedy = "move some of them to allow.networks as addresses";
        refuse("allow.names", &format!("the list has {names} names, more than the maximum of {MAX_NAMES}; {remedy}"));
    }
    let backends = &config.block.method;
    if backends.is_empty() {
        refuse(
            "block.method",
            "the list is empty, so no source would be blocked; write [\"nft\"]; to only log, write block = false \
             under [tcp] and [udp]",
        );
    }
    if backends.iter().any(|backend| backends.iter().filter(|other| *other == backend).count() > 1) {
        refuse("block.method", "a backend is listed twice; write each once");
    }
    let run = &config.block.run;
    for (key, command) in [
        ("block.run.command", &run.command),
        ("block.run.expire_command", &run.expire_command),
        ("notify.command", &config.notify.command),
    ] {
        // A program found through PATH could be another one than intended, and would run as a user that can change the
        // firewall.
        if command.first().is_some_and(|program| !program.starts_with('/')) {
            refuse(key, "the path of the program is not absolute; write for example \"/usr/local/sbin/on-scan\"");
        }
    }
    let runs = backends.contains(&Backend::Command)
        || [&config.tcp, &config.udp].into_iter().any(|protocol| protocol.block == Response::RunCommand);
    if runs && run.command.is_empty() {
        refuse(
            "block.run.command",
            "the configuration runs a command, but none is set; write for example [\"/usr/local/sbin/on-scan\", \
             \"$TARGET$\"]",
        );
    }
    if config.fleet.is_joined() && config.fleet.host.is_empty() {
        refuse("fleet.host", "this host has no name in the fleet; write for example host = \"web-1\" under [fleet]");
    }
    if config.fleet.is_joined() && !backends.contains(&Backend::Nft) {
        refuse(
            "fleet.url",
            "bans of the fleet need nftables; add \"nft\" to block.method, or leave the fleet with url = \"\"",
        );
    }
    found
}
