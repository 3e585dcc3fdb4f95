//! Draws configurations and their surroundings at random: for every key, valid values, values that are valid on some
//! hosts, and values that the parser refuses.

use std::collections::BTreeMap;

use simulation::chance::Chance;

/// Key, values that are valid on any host, values that depend on the host, and values that the parser refuses. `DIR` is
/// the lab's directory, whose files [`crate::check_and_start`] creates. Another program has the ports 2323 and 9800. The
/// interface `nosuch0` does not exist.
type Key = (&'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str]);

const DURATIONS: &[&str] = &["\"1s\"", "\"90m\"", "\"30d\""];
const NO_DURATIONS: &[&str] = &["\"0s\"", "\"-1h\"", "\"11 years\"", "5", "\"never ever\""];
const SWITCH: &[&str] = &["true", "false"];
const NO_SWITCH: &[&str] = &["\"yes\"", "1"];
const MODES: &[&str] = &["\"off\"", "\"connect\"", "\"stealth\"", "\"advanced\"", "\"advanced\""];
const BLOCKS: &[&str] = &["true", "false", "\"run\""];
const COMMANDS: &[&str] = &["[]", "[\"/bin/true\"]", "[\"/bin/true\", \"$TARGET$\", \"$PORT$\"]", "[\"DIR/program\"]"];
const OTHER_COMMANDS: &[&str] = &[
    "[\"/nosuch/program\"]",
    "[\"/etc\"]",
    "[\"DIR/plain\"]",
    "[\"DIR/open\"]",
    "[\"DIR/theirs\"]",
    "[\"DIR/closed/program\"]",
    "[\"/bin/true\", \"$TARGER$\"]",
    "[\"/bin/$TARGET$\"]",
    "[\"\"]",
];
const NO_COMMANDS: &[&str] = &["\"/bin/true\"", "[\"true\"]", "[\"./true\"]", "[1]"];

pub(crate) const KEYS: &[Key] = &[
    ("expire", &["\"1s\"", "\"24h\"", "\"3650d\"", "\"never\""], &[], NO_DURATIONS),
    (
        "interfaces",
        &["[]", "[\"attacker\"]", "[\"!nosuch0\"]"],
        &["[\"nosuch0\"]", "[\"attacker\", \"nosuch0\"]", "[\"lo\"]", "[\"!attacker\"]", "[\"!attacker\", \"!lo\"]"],
        &["[\"any\"]", "\"attacker\"", "[\"attacker\", \"!lo\"]"],
    ),
    (
        "nat64",
        &["[]", "[\"2001:db8:64::/96\"]", "[\"2001:db8:64::/64\", \"2001:db8:65::/96\"]"],
        &["[\"fd77::/64\"]"],
        &["[\"192.0.2.0/24\"]", "[\"::/96\"]", "[\"2001:db8::/32\"]"],
    ),
    ("tcp.mode", MODES, &[], &["\"quiet\"", "0"]),
    (
        "tcp.ports",
        &["\"aware\"", "\"bare-bones\"", "\"everything\"", "\"23,79\"", "\"6000-6005\"", "\"1-65535\""],
        &["\"2323\"", "\"23,2323\"", "\"9800,2323\"", "\"9801\"", "\"9801,80\""],
        &["\"\"", "\"0\"", "\"5-1\"", "\"70000\"", "23"],
    ),
    ("tcp.advanced_ports", &["\"1-1024\"", "\"1-65535\""], &["\"2323\"", "\"113\""], &["1024", "\"\""]),
    ("tcp.advanced_exclude", &["\"\"", "\"113,139\""], &["\"1-65534\"", "\"1-1024\""], &["\"x\"", "\"1-65535\""]),
    ("tcp.block", BLOCKS, &[], &["\"yes\""]),
    ("tcp.port_banner", &["\"\"", "\"Go away.\\r\\n\""], &[], &["1"]),
    ("tcp.half_open", &["\"ignore\"", "\"ban\""], &[], &["true"]),
    ("udp.mode", MODES, &[], &["\"quiet\""]),
    (
        "udp.ports",
        &["\"aware\"", "\"bare-bones\"", "\"everything\"", "\"69,6900\"", "\"6900\""],
        &["\"2323\"", "\"69,2323\"", "\"6900-8000\""],
        &["\"\"", "\"http\""],
    ),
    ("udp.advanced_ports", &["\"1-1024\"", "\"1-65535\""], &["\"2323\"", "\"68\""], &["1024"]),
    ("udp.advanced_exclude", &["\"\"", "\"67,68\""], &["\"1-65534\""], &["\"x\""]),
    ("udp.block", BLOCKS, &[], &["\"no\""]),
    ("udp.port_banner", &["\"\""], &[], &["\"Go away.\""]),
    ("udp.half_open", &["\"ignore\""], &[], &["\"ban\""]),
    ("detect.scan_trigger", &["0", "2", "15"], &[], &["16", "-1", "\"2\""]),
    ("detect.window", DURATIONS, &[], &["\"31d\"", "\"0s\""]),
    ("detect.max_sources", &["1024", "65536", "1048576"], &[], &["1000", "16777217"]),
    ("detect.sctp", SWITCH, &[], NO_SWITCH),
    ("detect.icmp", SWITCH, &[], NO_SWITCH),
    ("detect.ack", &["\"report\"", "\"ban\""], &[], &["true"]),
    (
        "allow.networks",
        &["[]", "[\"192.0.2.7\"]", "[\"10.77.1.2\", \"2001:db8::/32\"]", "[\"0.0.0.0/0\", \"::/0\"]"],
        &["[\"192.0.2.0/24\", \"192.0.2.128/25\", \"192.0.2.9\"]", "[\"::ffff:192.0.2.0/120\"]"],
        &["[\"monitor.example.org\"]", "[\"192.0.2.0/33\"]"],
    ),
    ("allow.names", &["[]", "[\"localhost\"]"], &["[\"monitor.invalid\"]"], &["[\"192.0.2.7\"]", "[\"a b\"]"]),
    (
        "allow.files",
        &["[]", "[\"DIR/ignore\"]", "[\"DIR/secret\"]", "[\"DIR/closed/ignore\"]", "[\"/dev/null\"]"],
        &[
            "[\"/nosuch/ignore\"]",
            "[\"DIR/directory\"]",
            "[\"DIR/wrong\"]",
            "[\"DIR/open\"]",
            "[\"DIR/theirs\"]",
            "[\"DIR/link\"]",
            "[\"DIR/ignore\", \"DIR/missing\"]",
        ],
        &["[\"ignore\"]"],
    ),
    (
        "block.method",
        &["[\"nft\"]", "[\"nft\", \"route\"]", "[\"route\"]", "[\"hosts-deny\"]", "[\"nft\", \"hosts-deny\"]"],
        &["[\"run\"]", "[\"nft\", \"run\"]", "[\"run\", \"hosts-deny\", \"route\", \"nft\"]"],
        &["[]", "[\"nft\", \"nft\"]", "[\"iptables\"]"],
    ),
    ("block.max_new_bans_per_minute", &["1", "60", "1000000"], &[], &["0"]),
    ("block.max_forgeable_bans", &["1", "4096", "1000000"], &[], &["1000001"]),
    ("block.widest_ipv4", &["24", "30", "32"], &[], &["31", "16"]),
    ("block.widest_ipv6", &["48", "56", "64"], &[], &["52"]),
    ("block.nft.action", &["\"drop\"", "\"reject\""], &[], &["\"deny\""]),
    (
        "block.nft.log_drops",
        &["\"\"", "\"3/minute\"", "\"1/day\"", "\"1000/second\""],
        &["\"1000000/second\""],
        &["\"3\""],
    ),
    ("block.nft.end_connections", SWITCH, &[], NO_SWITCH),
    ("block.nft.size", &["1", "131072", "200000"], &[], &["0", "16777217"]),
    ("block.route.kind", &["\"blackhole\"", "\"unreachable\"", "\"prohibit\""], &[], &["\"drop\""]),
    (
        "block.route.via",
        &["\"10.77.1.77\"", "\"fd77:0:0:1::77\""],
        &["\"192.0.2.254\"", "\"2001:db8::254\"", "\"10.77.1.1\"", "\"10.77.1.255\""],
        &["\"0.0.0.0\"", "\"gateway\""],
    ),
    (
        "block.hosts_deny.file",
        &["\"DIR/hosts.deny\"", "\"DIR/closed/hosts.deny\"", "\"DIR/missing.deny\""],
        &[
            "\"DIR/none/hosts.deny\"",
            "\"DIR/directory\"",
            "\"DIR/link\"",
            "\"DIR/foreign/hosts.deny\"",
            "\"/proc/hosts.deny\"",
        ],
        &["\"hosts.deny\""],
    ),
    (
        "block.hosts_deny.line",
        &["\"ALL: $TARGET$\"", "\"sshd: $TARGET$\""],
        &["\"ALL: $TARGET$ $PORT$\""],
        &["\"ALL\""],
    ),
    ("block.run.command", COMMANDS, OTHER_COMMANDS, NO_COMMANDS),
    ("block.run.expire_command", COMMANDS, OTHER_COMMANDS, NO_COMMANDS),
    ("block.run.first", SWITCH, &[], NO_SWITCH),
    ("block.run.timeout", &["\"1s\"", "\"10m\""], &[], &["\"11m\"", "\"0s\""]),
    ("block.run.at_once", &["1", "64"], &[], &["0", "65"]),
    ("escalate.factor", &["1", "100"], &[], &["0"]),
    ("escalate.max", DURATIONS, &[], NO_DURATIONS),
    ("escalate.max_forgeable", DURATIONS, &[], NO_DURATIONS),
    ("escalate.forget", DURATIONS, &[], NO_DURATIONS),
    ("trap.tcp", SWITCH, &[], NO_SWITCH),
    ("trap.udp", SWITCH, &[], NO_SWITCH),
    ("trap.hold", &["\"0s\"", "\"100ms\"", "\"900ms\""], &[], &["\"1s\"", "\"150ms\""]),
    (
        "metrics.listen",
        &["\"\"", "\"127.0.0.1:9801\"", "\"[::1]:9801\"", "\"0.0.0.0:9801\"", "\"[::]:9801\""],
        &[
            "\"127.0.0.1:9800\"",
            "\"[::]:9800\"",
            "\"[::ffff:127.0.0.1]:9800\"",
            "\"192.0.2.1:9801\"",
            "\"127.0.0.1:80\"",
            "\"10.77.1.1:443\"",
            "\"[fe80::1]:9801\"",
            "\"127.0.0.1:0\"",
            "\"127.0.0.1:6003\"",
        ],
        &["\"9777\"", "\"localhost:9777\""],
    ),
    ("report.resolve_host", SWITCH, &[], NO_SWITCH),
    (
        "report.json_file",
        &["\"\"", "\"DIR/events.json\"", "\"DIR/closed/events.json\"", "\"STATE/events.json\""],
        &[
            "\"DIR/absent/events.json\"",
            "\"DIR/directory\"",
            "\"DIR/link\"",
            "\"DIR/foreign/events.json\"",
            "\"/proc/events.json\"",
            "\"STATE/ledger.sqlite\"",
        ],
        &["\"events.json\""],
    ),
    ("report.log", &["\"auto\"", "\"stderr\"", "\"journal\"", "\"syslog\""], &[], &["\"file\""]),
    ("report.single_probes", SWITCH, &[], NO_SWITCH),
    ("report.facility", &["\"daemon\"", "\"local7\""], &[], &["\"local8\""]),
    (
        "fleet.url",
        &["\"\"", "\"rediss://192.0.2.9:6379\"", "\"unix:///nosuch/fleet.sock\""],
        &["\"rediss://attacker.invalid\""],
        &["\"redis://192.0.2.9:6379\"", "\"rediss://\""],
    ),
    ("fleet.name", &["\"fleet\"", "\"a-1\""], &[], &["\"\"", "\"A\""]),
    ("fleet.host", &["\"web-1\"", "\"web-2\"", "\"\""], &[], &["\"Web\""]),
    ("fleet.user", &["\"web-1\"", "\"\""], &[], &["\"a b\""]),
    (
        "fleet.credentials",
        &["\"DIR/secret\""],
        &["\"/nosuch/password\"", "\"DIR/open\"", "\"DIR/directory\""],
        &["\"password\""],
    ),
    ("fleet.ca_file", &["\"\""], &["\"/nosuch/ca.pem\"", "\"DIR/ignore\""], &["\"ca.pem\""]),
    ("fleet.shadow", SWITCH, &[], NO_SWITCH),
    (
        "fleet.socket",
        &["\"DIR/fleet/fleet.sock\""],
        &[
            "\"DIR/fleet.sock\"",
            "\"/proc/fleet/s.sock\"",
            "\"DIR/mixed/s.sock\"",
            "\"DIR/directory\"",
            "\"DIR/plain/s.sock\"",
            "\"/proc/s.sock\"",
        ],
        &["\"s.sock\"", "\"/\""],
    ),
    ("fleet.accept.single", SWITCH, &[], NO_SWITCH),
    ("fleet.accept.forgeable_authors", &["0", "2", "64"], &[], &["1", "65"]),
    ("fleet.accept.max_per_author_per_hour", &["1", "100000"], &[], &["0"]),
    ("fleet.accept.max_bans_per_hour", &["1", "1000000"], &[], &["0"]),
    ("fleet.accept.size", &["1", "16384"], &[], &["0"]),
    ("notify.command", COMMANDS, OTHER_COMMANDS, NO_COMMANDS),
    ("notify.interval", &["\"10s\"", "\"1d\""], &[], &["\"9s\"", "\"2d\""]),
];

/// Keys that are always drawn, because their built-in values are files of this machine.
const ALWAYS: &[&str] = &["block.hosts_deny.file", "fleet.socket"];

/// Prefixes of keys that have no effect without other keys, with these keys.
const NEEDS: &[(&str, &[(&str, &str)])] = &[
    ("fleet.", &[("fleet.url", "\"rediss://192.0.2.9:6379\""), ("fleet.host", "\"web-1\"")]),
    ("block.run.", &[("block.method", "[\"nft\", \"run\"]"), ("block.run.command", "[\"/bin/true\"]")]),
    ("block.hosts_deny.", &[("block.method", "[\"hosts-deny\"]")]),
    ("block.route.", &[("block.method", "[\"route\"]")]),
    ("tcp.ports", &[("tcp.mode", "\"connect\"")]),
    ("udp.ports", &[("udp.mode", "\"connect\"")]),
];

/// The surroundings of a configuration. The first value of each list below is the usual one.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// The value of `--state-dir`.
    pub(crate) state: &'static str,
    /// The value of `--socket`.
    pub(crate) socket: &'static str,
    /// Whether the host has the package's user.
    pub(crate) has_user: bool,
    /// Commands that `nft` runs before the start.
    pub(crate) table: &'static str,
    /// Mode and owner of the configuration file.
    pub(crate) file: (u32, u32),
}

const STATES: &[&str] =
    &["DIR/state", "DIR/deep/state", "DIR/mixed", "DIR/foreign", "DIR/plain", "/proc/portsentry", "/proc"];
const SOCKETS: &[&str] = &[
    "DIR/socket",
    "DIR/deep/socket",
    "DIR/mixed/socket",
    "DIR/directory",
    "DIR/plain/socket",
    "/proc/portsentry/socket",
];
const TABLES: &[&str] = &[
    "table inet portsentry; delete table inet portsentry",
    "",
    "table inet portsentry { chain other { counter; }; }",
    "table inet portsentry { set blocked { type ipv6_addr; }; }",
    "table inet portsentry { set blocked { type ipv4_addr; size 7; flags timeout; }; }",
    "table ip portsentry { chain other { counter; }; }",
];
const FILES: &[(u32, u32)] = &[(0o644, 0), (0o600, 0), (0o666, 0), (0o664, 0), (0o640, 4_242), (0o000, 0)];

/// Draws the same values in every run with the same seed.
pub(crate) struct Draws(Chance);

impl Draws {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Chance::new(seed, "draws", 0))
    }

    fn one_in(&mut self, times: u32) -> bool {
        self.0.below(times) == 0
    }

    /// A configuration with one key per line: valid values, in two of three configurations a value that depends on the
    /// host, and in one of eight a value that is always refused.
    pub(crate) fn configuration(&mut self) -> String {
        let mut drawn = BTreeMap::new();
        for (key, fits, ..) in KEYS {
            if self.one_in(8) || ALWAYS.contains(key) {
                drawn.insert(*key, self.0.pick(fits));
            }
        }
        if !self.one_in(3) {
            let of_host: Vec<_> = KEYS.iter().filter(|(_, _, of_host, _)| !of_host.is_empty()).collect();
            let (key, _, of_host, _) = self.0.pick(&of_host);
            for (_, needs) in NEEDS.iter().filter(|(prefix, _)| key.starts_with(prefix)) {
                drawn.extend(needs.iter().copied());
            }
            drawn.insert(key, self.0.pick(of_host));
        }
        if self.one_in(8) {
            let (key, _, _, wrong) = self.0.pick(KEYS);
            drawn.insert(key, self.0.pick(wrong));
        }
        drawn.iter().map(|(key, value)| format!("{key} = {value}\n")).collect()
    }

    /// Surroundings in which at most one value is unusual.
    pub(crate) fn surroundings(&mut self) -> Surroundings {
        let unusual = self.0.below(12);
        Surroundings {
            state: if unusual == 0 { self.0.pick(STATES) } else { STATES[0] },
            socket: if unusual == 1 { self.0.pick(SOCKETS) } else { SOCKETS[0] },
            table: if unusual == 2 { self.0.pick(TABLES) } else { self.0.pick(&TABLES[..2]) },
            file: if unusual == 3 { self.0.pick(FILES) } else { FILES[0] },
            has_user: self.one_in(2),
        }
    }
}
