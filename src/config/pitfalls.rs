//! Finds configurations that are valid but do not work as expected on this host: they never ban, or they monitor ports
//! that the host's own connections use.

use std::fmt;

use super::{Config, Mode, ProtocolConfig};
use crate::types::{PORT_GROUPS, PortSet, Response};

/// A warning about a valid setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub key: &'static str,
    /// The effect of the setting, and a better choice.
    pub message: String,
}

impl Warning {
    pub fn new(key: &'static str, message: impl Into<String>) -> Self {
        Self { key, message: message.into() }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

/// The pitfalls of `config` on this host. `tcp` and `udp` are its ports in use, whose probes lead to no ban;
/// `ephemeral` are the ports that the kernel assigns to outgoing connections.
pub fn pitfalls(config: &Config, tcp: &PortSet, udp: &PortSet, ephemeral: &PortSet) -> Vec<Warning> {
    let mut found = Vec::new();
    let closed = |protocol: &ProtocolConfig, in_use: &PortSet| match protocol.block {
        Response::Block => protocol.monitored().without(in_use),
        Response::Log | Response::RunCommand => PortSet::new(),
    };
    let ports = counting(&closed(&config.tcp, tcp), &closed(&config.udp, udp));
    let forgiven = config.detect.scan_trigger;
    if config.uses(Response::Block) && ports <= u32::from(forgiven) {
        let lower = match ports.checked_sub(1) {
            Some(lower) => format!("write {lower} or less, or monitor more ports"),
            None => "monitor ports that no service uses".to_owned(),
        };
        let message = format!(
            "no scan of this host can cause a ban: only {ports} closed ports are monitored (a group of related ports \
             counts as one), and scan_trigger = {forgiven} forgives as many; {lower}"
        );
        found.push(Warning::new("detect.scan_trigger", message));
    }
    let keys = [
        (&config.tcp, ["tcp.ports", "tcp.advanced_ports"], "tcp.advanced_exclude"),
        (&config.udp, ["udp.ports", "udp.advanced_ports"], "udp.advanced_exclude"),
    ];
    for (protocol, [listed, advanced], exclude) in keys {
        let key = if protocol.mode == Mode::Advanced { advanced } else { listed };
        let watched = protocol.monitored();
        let own = watched.len() - watched.without(ephemeral).len();
        // A small number of ephemeral ports is probably listed on purpose.
        if own > MAX_INTENDED_PORTS {
            let message = format!(
                "{own} of these ports are in the range of this host's outgoing connections ({ephemeral}, \
                 net.ipv4.ip_local_port_range), so late answers can look like a scan; remove them, for example with \
                 {exclude}"
            );
            found.push(Warning::new(key, message));
        }
    }
    found
}

/// The maximum number of these closed ports that count against one source. If all of them are related ports, each group
/// counts once.
fn counting(tcp: &PortSet, udp: &PortSet) -> u32 {
    let related: PortSet = PORT_GROUPS.into_iter().flatten().copied().collect();
    if !udp.is_empty() || !tcp.without(&related).is_empty() {
        return tcp.len() + udp.len();
    }
    let groups = PORT_GROUPS.iter().filter(|group| group.iter().any(|port| tcp.contains(*port)));
    groups.map(|_| 1).sum()
}

/// The number of ephemeral ports that an operator may have listed on purpose.
const MAX_INTENDED_PORTS: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str, in_use: &str) -> Vec<&'static str> {
        let set = |text: &str| text.parse::<PortSet>().unwrap();
        let (tcp, udp, ephemeral) = (set(in_use), PortSet::new(), set("32768-60999"));
        let config = Config::parse("portsentry.toml", text).unwrap();
        pitfalls(&config, &tcp, &udp, &ephemeral).into_iter().map(|pitfall| pitfall.key).collect()
    }

    #[test]
    fn host_that_cannot_ban_is_named() {
        let honeypot = "[tcp]\nmode = \"stealth\"\nports = \"23,2323\"\n[udp]\nmode = \"off\"\n";
        assert_eq!(keys(honeypot, "22"), ["detect.scan_trigger"]);
        assert_eq!(keys(&format!("{honeypot}[detect]\nscan_trigger = 1\n"), "22"), [""; 0]);
        assert_eq!(keys(&honeypot.replace("2323", "2323,5555"), "22"), [""; 0]);
        assert_eq!(keys(&honeypot.replace("2323", "2323,5555"), "5555"), ["detect.scan_trigger"], "one is in use");
        assert_eq!(
            keys(&honeypot.replace("23,2323", "25,110,143,993"), "22"),
            ["detect.scan_trigger"],
            "related ports count as one"
        );
        assert_eq!(
            keys(&honeypot.replace("2323", "25,110"), "22"),
            [""; 0],
            "with an unrelated port each of them counts"
        );
        assert_eq!(keys(&honeypot.replace("[udp]", "block = false\n[udp]"), "22"), [""; 0], "it is not meant to ban");
        let both = honeypot.replace("mode = \"off\"", "mode = \"stealth\"\nports = \"69\"\nblock = true");
        assert_eq!(keys(&both, "22"), [""; 0], "ports of both protocols count together");
    }

    #[test]
    fn own_client_ports_are_reported() {
        assert_eq!(keys("", "22"), [""; 0], "the built-in ports avoid client ports");
        assert_eq!(keys("[tcp]\nadvanced_ports = \"1-65535\"\n", "22"), ["tcp.advanced_ports"]);
        assert_eq!(keys("[udp]\nadvanced_ports = \"1-65535\"\n", "22"), ["udp.advanced_ports"]);
        assert_eq!(
            keys("[tcp]\nadvanced_ports = \"1-1024,40000\"\n", "22"),
            [""; 0],
            "a single port is listed on purpose"
        );
    }
}
