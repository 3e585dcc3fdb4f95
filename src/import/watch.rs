//! Modes, ports, interfaces and ignore files to `[tcp]`, `[udp]`, `interfaces` and `[allow]`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::classic::Entry;
use super::defaults::Modes;
use super::document::Value;
use super::finding::quoted;
use super::translation::Translation;
use super::{LARGEST, Source};
use crate::config::{self, Config, ignore_file, parse_interface};
use crate::types::{PortSet, PortSetError};

/// The options of one protocol.
struct Protocol {
    table: &'static str,
    ports: &'static str,
    advanced: &'static str,
    exclude: &'static str,
    /// Its modes, as classic calls them: connect, stealth, advanced.
    words: [&'static str; 3],
    mode: fn(&Modes) -> &Option<Entry>,
}

const PROTOCOLS: [Protocol; 2] = [
    Protocol {
        table: "tcp",
        ports: "TCP_PORTS",
        advanced: "ADVANCED_PORTS_TCP",
        exclude: "ADVANCED_EXCLUDE_TCP",
        words: ["tcp", "stcp", "atcp"],
        mode: |modes| &modes.tcp,
    },
    Protocol {
        table: "udp",
        ports: "UDP_PORTS",
        advanced: "ADVANCED_PORTS_UDP",
        exclude: "ADVANCED_EXCLUDE_UDP",
        words: ["udp", "sudp", "audp"],
        mode: |modes| &modes.udp,
    },
];

/// The ports of one protocol, as far as they are set.
struct Ports {
    listed: Option<(Entry, PortSet)>,
    advanced: Option<(Entry, PortSet)>,
    exclude: Option<(Entry, PortSet)>,
}

/// How a protocol is to be watched, and why.
struct Chosen {
    mode: &'static str,
    remark: String,
    /// The line that says it.
    line: Option<(String, Entry)>,
}

/// What -atcp and -audp watch where nothing is said.
const CLASSIC_ADVANCED: &str = "1-1024";

/// Where Linux begins to take the ports of its own outgoing connections.
const FIRST_EPHEMERAL: u16 = 32_768;

impl Translation {
    pub(super) fn watch(&mut self) {
        let [tcp, udp] = PROTOCOLS.each_ref().map(|protocol| self.ports(protocol));
        let mut connect_udp = false;
        let is_said = self.modes.as_ref().is_some_and(|(modes, _)| modes.tcp.is_some() || modes.udp.is_some());
        let is_empty = |ports: &Option<Ports>| matches!(ports, Some(Ports { listed: None, advanced: None, .. }));
        let nothing = !is_said && is_empty(&tcp) && is_empty(&udp);
        if nothing {
            self.document.remark("", "No option names a port: what is watched is what this program watches by itself.");
            self.notes.add(
                None,
                None,
                "names no port; what is watched is what this program watches by itself".to_owned(),
            );
        } else if !is_said {
            let message = "says no mode: classic has it from its command line or from /etc/default/portsentry. \"stealth\" is \
                           written; if it ran with -atcp or -audp, write \"advanced\", or name that file with --defaults";
            self.notes.add(None, None, message.to_owned());
        }
        for (protocol, ports) in PROTOCOLS.iter().zip([tcp, udp]) {
            if nothing {
                continue;
            }
            // With ports that are refused the mode is still read, so that what is wrong with it is said in the same run.
            let Some(chosen) = self.mode(protocol, ports.as_ref()) else { continue };
            connect_udp |= protocol.table == "udp" && chosen.mode == "connect";
            self.document.set(protocol.table, "mode", &Value::text(chosen.mode), &chosen.remark);
            if let Some(ports) = ports {
                self.protocol(protocol, ports, &chosen);
            }
        }
        self.interface(connect_udp);
    }

    /// Reads the ports of `protocol`; `None` where something is wrong with them, and said.
    fn ports(&mut self, protocol: &Protocol) -> Option<Ports> {
        let listed = self.port_set(protocol.ports, false);
        let advanced = self.port_set(protocol.advanced, true);
        let exclude = self.port_set(protocol.exclude, false);
        Some(Ports { listed: listed?, advanced: advanced?, exclude: exclude? })
    }

    /// A list of ports; `below`: a number stands for all ports up to it.
    fn port_set(&mut self, key: &str, below: bool) -> Option<Option<(Entry, PortSet)>> {
        let Some(entry) = self.get(key) else { return Some(None) };
        let value = entry.value.trim();
        let number = below && value.bytes().all(|byte| byte.is_ascii_digit());
        let text = if number { format!("1-{value}") } else { value.to_owned() };
        match text.parse() {
            Ok(ports) => return Some(Some((entry, ports))),
            Err(PortSetError::NotAPort(_)) if number => {
                let message = format!("{} is no port; write a number from 1 to 65535", quoted(value));
                self.refuse(&entry, message);
            }
            Err(PortSetError::NotAPort(wrong)) => {
                let message =
                    format!("{} is no port; write numbers from 1 to 65535, as in \"1,7,9,11-15\"", quoted(&wrong));
                self.refuse(&entry, message);
            }
            Err(PortSetError::Backwards(wrong)) => {
                let message = format!("{} runs backwards; write the smaller port first", quoted(&wrong));
                self.refuse(&entry, message);
            }
        }
        None
    }

    fn mode(&mut self, protocol: &Protocol, ports: Option<&Ports>) -> Option<Chosen> {
        let name = protocol.table.to_uppercase();
        let said = self.modes.as_ref().filter(|(modes, _)| modes.tcp.is_some() || modes.udp.is_some());
        let Some((modes, file)) = said else {
            let (mode, remark) = match ports.map(|ports| (&ports.listed, &ports.advanced))? {
                (Some(_), _) => {
                    let [connect, stealth, advanced] = protocol.words;
                    let remark = format!(
                        "Nothing says the mode. \"stealth\" is classic's -{stealth}, and what 2.0 does by itself; write \
                         \"connect\" for -{connect}, \"advanced\" for -{advanced}."
                    );
                    ("stealth", remark)
                }
                (None, Some(_)) => ("advanced", format!("Nothing says the mode, and {} is not set.", protocol.ports)),
                (None, None) => ("off", format!("{} is not set.", protocol.ports)),
            };
            return Some(Chosen { mode, remark, line: None });
        };
        let file = file.clone();
        let Some(entry) = (protocol.mode)(modes).clone() else {
            let remark = format!("{file} says no {name}_MODE, so that classic does not watch it.");
            return Some(Chosen { mode: "off", remark, line: None });
        };
        let modes = ["connect", "stealth", "advanced"];
        let Some((_, mode)) = protocol.words.iter().zip(modes).find(|(word, _)| **word == entry.value) else {
            let [connect, stealth, advanced] = protocol.words;
            let message =
                format!("{} is no mode of {name}; write {connect}, {stealth} or {advanced}", quoted(&entry.value));
            self.refuse_mode(&file, &entry, message);
            return None;
        };
        Some(Chosen { mode, remark: format!("{} of {file}", entry.origin()), line: Some((file, entry)) })
    }

    fn protocol(&mut self, protocol: &Protocol, ports: Ports, chosen: &Chosen) {
        let (table, advanced) = (protocol.table, chosen.mode == "advanced");
        match &ports.listed {
            Some((entry, listed)) => self.set(table, "ports", &list(table, listed), entry),
            None if advanced || chosen.mode == "off" => {}
            None => {
                if let Some((file, entry)) = &chosen.line {
                    let message = format!(
                        "{} watches the ports of {}, which is not set; list them there, or write \"{}\"",
                        quoted(&entry.value),
                        protocol.ports,
                        protocol.words[2]
                    );
                    self.refuse_mode(file, entry, message);
                }
            }
        }
        let watched = match ports.advanced {
            Some((entry, watched)) => {
                self.set(table, "advanced_ports", &Value::text(watched.to_string()), &entry);
                if advanced && watched.iter().any(|port| port >= FIRST_EPHEMERAL) {
                    let message = "reaches into the ports of this host's own connections, from 32768 on: late answers to \
                                   them would look like probes; write a smaller one";
                    self.note(&entry, message);
                }
                watched
            }
            None if advanced => {
                let remark = format!("{} is not set; this is what classic does then.", protocol.advanced);
                self.document.set(table, "advanced_ports", &Value::text(CLASSIC_ADVANCED), &remark);
                CLASSIC_ADVANCED.parse().unwrap_or_default()
            }
            None => PortSet::new(),
        };
        if let Some((entry, exclude)) = ports.exclude {
            self.set(table, "advanced_exclude", &Value::text(exclude.to_string()), &entry);
            if advanced && watched.without(&exclude).is_empty() {
                let message = format!("leaves no port of {} to watch; take some out of it", protocol.advanced);
                self.refuse(&entry, message);
            }
        }
    }

    /// 2.0b1 takes the address of the one interface to watch.
    fn interface(&mut self, connect_udp: bool) {
        let Some(entry) = self.get("INTERFACE_ADDRESS") else { return };
        let value = entry.value.trim();
        if value.parse::<IpAddr>().is_ok() {
            let why = "interfaces are named here, not their addresses; without it every one is watched, or write for example \
                       interfaces = [\"eth0\"]";
            return self.left_out("", &entry, why);
        }
        match parse_interface(value) {
            Ok(_) if connect_udp => {
                let why = "UDP's connect mode hears every interface and cannot tell which; write udp.mode = \"stealth\" to \
                           watch only one";
                self.left_out("", &entry, why);
            }
            Ok(name) => self.set("", "interfaces", &Value::Texts(vec![name]), &entry),
            Err(_) => self.refuse(&entry, format!("{} is no address; write one, or put # before it", quoted(value))),
        }
    }

    pub(super) fn allow(&mut self, ignore: &[Source], is_there: &dyn Fn(&Path) -> bool) {
        let named = self.get("IGNORE_FILE");
        if !ignore.is_empty() {
            if let Some(entry) = &named {
                self.document.remark("allow", &format!("{}: its place take the networks below.", entry.origin()));
            }
            return self.networks(ignore);
        }
        let Some(entry) = named else { return };
        let path = entry.value.trim();
        if !Path::new(path).is_absolute() {
            let why = "it depends on where classic was started; write its whole path into allow.files, or name it with --ignore";
            return self.left_out("allow", &entry, why);
        }
        let made_of = format!("{path}.static");
        if is_there(Path::new(&made_of)) {
            let remark = format!(
                "{}\nDebian makes that file of this one and of the host's own addresses, which need no entry here.",
                entry.origin()
            );
            return self.document.set("allow", "files", &Value::Texts(vec![made_of]), &remark);
        }
        self.set("allow", "files", &Value::Texts(vec![path.to_owned()]), &entry);
    }

    fn networks(&mut self, ignore: &[Source]) {
        let mut networks = BTreeSet::new();
        for source in ignore {
            let found = self.beside(source, |source, errors, notes| {
                if source.bytes.len() > LARGEST {
                    errors.add(None, None, "is larger than 1 MiB; name a portsentry.ignore".to_owned());
                    return Vec::new();
                }
                // What is not UTF-8 can only be a comment; elsewhere it is no network.
                let found = match ignore_file::parse(&source.name, &String::from_utf8_lossy(&source.bytes)) {
                    Ok(found) => found,
                    Err(wrong) => {
                        for error in wrong.iter() {
                            errors.add(error.position.map(|position| position.line), None, error.message.clone());
                        }
                        return Vec::new();
                    }
                };
                let (everyone, found): (Vec<IpNet>, Vec<IpNet>) = found.into_iter().partition(|net| net.prefix_len() == 0);
                for network in everyone {
                    let message = format!(
                        "{network} is left out: it means everyone, and nobody would be blocked; classic takes it for one address"
                    );
                    notes.add(None, None, message);
                }
                found
            });
            networks.extend(found);
        }
        let texts: Vec<String> = networks.iter().map(network).collect();
        let names: Vec<&str> = ignore.iter().map(|source| source.name.as_str()).collect();
        let remark = format!("The entries of {}. Own addresses and loopback need none.", names.join(", "));
        self.document.set("allow", "networks", &Value::Texts(texts), &remark);
    }
}

fn network(network: &IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() { network.addr().to_string() } else { network.to_string() }
}

/// A classic list by its name, any other as it is.
fn list(table: &str, ports: &PortSet) -> Value {
    let named = ["bare-bones", "aware", "everything"].into_iter().find(|name| {
        let config = Config::parse("", &format!("{table}.ports = \"{name}\""));
        config.is_ok_and(|config| {
            let protocol: &config::Protocol = if table == "tcp" { &config.tcp } else { &config.udp };
            protocol.ports == *ports
        })
    });
    named.map_or_else(|| Value::text(ports.to_string()), Value::text)
}
