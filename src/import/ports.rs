//! Translates modes, ports and interfaces to `[tcp]`, `[udp]` and `interfaces`.

use super::diagnostics::quoted;
use super::document::TomlValue;
use super::options::{MODES, Options};
use super::output::{OptionLine, Output};
use crate::config::{Config, parse_interface};
use crate::types::{PortSet, PortSetError};
use std::net::IpAddr;

/// The ports that -atcp and -audp monitor if no option names them.
const CLASSIC_ADVANCED: &str = "1-1024";

/// The first port that Linux uses for its own outgoing connections by default.
const FIRST_EPHEMERAL: u16 = 32_768;

pub(super) fn translate(options: &Options, modes: Option<&Options>, output: &mut Output) {
    let modes = modes.filter(|modes| MODES.iter().any(|key| modes.get(key).is_some()));
    let misplaced: Vec<&OptionLine> = MODES.iter().filter_map(|key| options.get(key)).collect();
    for entry in &misplaced {
        let fate = if modes.is_some() {
            "left out, because that file sets the modes"
        } else {
            "used, because nothing else sets the mode"
        };
        output.add_note(
            entry,
            &format!("classic PortSentry reads this option only from /etc/default/portsentry; {fate}"),
        );
    }
    let says_mode = modes.is_some() || !misplaced.is_empty();
    let lists = ["TCP_PORTS", "UDP_PORTS", "ADVANCED_PORTS_TCP", "ADVANCED_PORTS_UDP"];
    if !says_mode && lists.iter().all(|key| options.get(key).is_none()) {
        output.document.remark("", "No option lists ports, so the built-in ports are monitored.");
        output.note_config("the file lists no ports, so the built-in ports are monitored");
        return interface(options, false, output);
    }
    if !says_mode {
        output.note_config(
            "the file sets no mode, because classic PortSentry takes it from the command line or \
             /etc/default/portsentry; \"stealth\" is written. If it ran with -atcp or -audp, write \"advanced\", or \
             name that file with --defaults",
        );
    }
    protocol("tcp", options, modes, output);
    let udp_mode = protocol("udp", options, modes, output);
    interface(options, udp_mode == Some("connect"), output);
}

/// Translates the options of one protocol and returns its mode, unless that is refused.
fn protocol(
    table: &'static str,
    options: &Options,
    modes: Option<&Options>,
    output: &mut Output,
) -> Option<&'static str> {
    let name = table.to_uppercase();
    let (ports_key, advanced_key) = (format!("{name}_PORTS"), format!("ADVANCED_PORTS_{name}"));
    let listed = port_set(&ports_key, false, options, output);
    let advanced = port_set(&advanced_key, true, options, output);
    let exclude = port_set(&format!("ADVANCED_EXCLUDE_{name}"), false, options, output);

    let mode_entry = modes.unwrap_or(options).get(&format!("{name}_MODE"));
    let is_set = [&ports_key, &advanced_key].map(|key| options.get(key).is_some());
    let (mode, remark) = match (modes, mode_entry) {
        (_, Some(entry)) => (named_mode(table, entry, output)?, format!("{} of {}", entry.origin(), entry.file)),
        (Some(modes), None) => {
            ("off", format!("{} does not set {name}_MODE, so classic PortSentry does not monitor {name}.", modes.file))
        }
        (None, None) => match is_set {
            [true, _] => {
                let remark = format!(
                    "The mode is not set. \"stealth\" is -s{table} of classic PortSentry and the default of 2.0; \
                     write \"connect\" for -{table}, \"advanced\" for -a{table}."
                );
                ("stealth", remark)
            }
            [false, true] => ("advanced", format!("The mode is not set, and neither is {ports_key}.")),
            [false, false] => ("off", format!("{ports_key} is not set.")),
        },
    };
    output.document.set(table, "mode", &TomlValue::text(mode), &remark);

    let is_advanced = mode == "advanced";
    if let Some((entry, listed)) = listed {
        output.set(table, "ports", &port_list(table, &listed), entry);
    } else if let (Some(entry), [false, _], false) = (mode_entry, is_set, is_advanced) {
        let remedy = format!("which is not set; set it, or write \"a{table}\"");
        output.refuse(entry, format!("{} monitors the ports of {ports_key}, {remedy}", quoted(&entry.value)));
    }
    let mut watched = PortSet::new();
    if let Some((entry, ports)) = advanced {
        output.set(table, "advanced_ports", &TomlValue::text(ports.to_string()), entry);
        if is_advanced && ports.iter().any(|port| port >= FIRST_EPHEMERAL) {
            let message = "the range includes ports of this host's outgoing connections (32768 and above), whose \
                           late answers look like probes; write a smaller number";
            output.add_note(entry, message);
        }
        watched = ports;
    } else if is_advanced {
        let remark = format!("{advanced_key} is not set; this is the default of classic PortSentry.");
        output.document.set(table, "advanced_ports", &TomlValue::text(CLASSIC_ADVANCED), &remark);
        watched = CLASSIC_ADVANCED.parse().unwrap_or_default();
    }
    if let Some((entry, exclude)) = exclude {
        output.set(table, "advanced_exclude", &TomlValue::text(exclude.to_string()), entry);
        if is_advanced && !watched.is_empty() && watched.without(&exclude).is_empty() {
            output.refuse(entry, format!("excludes every port of {advanced_key}; remove some ports from it"));
        }
    }
    Some(mode)
}

/// The mode in the line `entry`; `None` if it is refused.
fn named_mode(table: &str, entry: &OptionLine, output: &mut Output) -> Option<&'static str> {
    let mode = match entry.value.trim().trim_start_matches('-').strip_suffix(table) {
        Some("") => "connect",
        Some("s") => "stealth",
        Some("a") => "advanced",
        _ => {
            let (value, name) = (quoted(&entry.value), table.to_uppercase());
            output.refuse(entry, format!("{value} is not a mode of {name}; write {table}, s{table} or a{table}"));
            return None;
        }
    };
    Some(mode)
}

/// Parses a list of ports; `None` if it is not set or is refused. If `is_limit` is true, a number stands for all ports
/// up to it.
fn port_set<'o>(
    key: &str,
    is_limit: bool,
    options: &'o Options,
    output: &mut Output,
) -> Option<(&'o OptionLine<'o>, PortSet)> {
    let entry = options.get(key)?;
    let value = entry.value.trim();
    let is_limit = is_limit && value.bytes().all(|byte| byte.is_ascii_digit());
    let text = if is_limit { format!("1-{value}") } else { value.to_owned() };
    let (wrong, remedy) = match text.parse() {
        Ok(ports) => return Some((entry, ports)),
        Err(PortSetError::NotAPort(_)) if is_limit => {
            (value.to_owned(), "is not a port; write a number from 1 to 65535")
        }
        Err(PortSetError::NotAPort(wrong)) => {
            (wrong, "is not a port; write numbers from 1 to 65535, as in \"1,7,9,11-15\"")
        }
        Err(PortSetError::Backwards(wrong)) => (wrong, "is a reversed range; write the smaller port first"),
    };
    output.refuse(entry, format!("{} {remedy}", quoted(&wrong)));
    None
}

/// Formats `ports` as the name of a classic list if they are one, otherwise as a list of ports.
fn port_list(table: &str, ports: &PortSet) -> TomlValue {
    let is_named = |name: &&str| {
        let config = Config::parse("", &format!("{table}.ports = \"{name}\""));
        config.is_ok_and(|config| *ports == if table == "tcp" { config.tcp.ports } else { config.udp.ports })
    };
    let name = ["bare-bones", "aware", "everything"].into_iter().find(is_named);
    name.map_or_else(|| TomlValue::text(ports.to_string()), TomlValue::text)
}

/// Translates the option of 2.0b1 that contains the address of the only interface to monitor.
fn interface(options: &Options, connects_udp: bool, output: &mut Output) {
    let Some(entry) = options.get("INTERFACE_ADDRESS") else { return };
    let value = entry.value.trim();
    if value.parse::<IpAddr>().is_ok() {
        let why = "interfaces are selected by name, not by address. Every interface is monitored; to monitor one, \
                   write for example interfaces = [\"eth0\"]";
        return output.left_out("", entry, why);
    }
    match parse_interface(value) {
        Ok(_) if connects_udp => {
            let why = "the UDP sockets of connect mode receive from every interface; write udp.mode = \"stealth\" to \
                       monitor only one";
            output.left_out("", entry, why);
        }
        Ok(name) => output.set("", "interfaces", &TomlValue::Texts(vec![name]), entry),
        Err(_) => output.refuse(
            entry,
            format!("{} is not an address; write an address, or make the line a comment with #", quoted(value)),
        ),
    }
}
