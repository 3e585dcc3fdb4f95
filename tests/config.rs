//! Tests the configuration from an operator's view: the meaning of a file, and the messages about errors in it.

#![cfg(test)]

use portsentry::config::{
    AckPolicy, Block, Config, Escalation, Facility, Fleet, FleetAccept, FleetUrl, HostsDeny, LogTarget, Mode, NftBlock,
    Notify, Report, Run, parse_expiry, parse_name,
};
use portsentry::types::{Action, Backend, Expiry, Response, RouteKind};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn read(text: &str) -> Config {
    Config::parse("portsentry.toml", text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The lines of the errors of `text`, without the file's name at their start.
fn refused(text: &str) -> Vec<String> {
    let errors = Config::parse("portsentry.toml", text).expect_err(text).to_string();
    errors.lines().map(|line| line.strip_prefix("portsentry.toml:").expect(line).to_owned()).collect()
}

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn empty_file_means_built_in_settings() {
    let config = read("");
    assert_eq!(config, Config::default());
    assert_eq!(config.expire, Expiry::After(Duration::from_secs(86_400)));
    assert_eq!((config.tcp.block, config.udp.block), (Response::Block, Response::Log));
    assert_eq!((config.detect.scan_trigger, config.detect.window.as_secs()), (2, 1_800));
    let watched = config.tcp.monitored();
    assert!(watched.contains(1) && watched.contains(1024) && watched.contains(3389));
    assert!(!watched.contains(113) && !watched.contains(139) && !watched.contains(50_000));
    assert!(!config.udp.monitored().contains(67) && config.udp.monitored().contains(53));
}

#[test]
fn every_key_sets_what_it_names() {
    let config = read(
        "expire = \"never\"\ninterfaces = [\"eth0\", \"wlan0.5\"]\nnat64 = [\"2001:db8:64::/96\"]\n\
         [tcp]\nmode = \"stealth\"\nports = \"7,9,9,11-13\"\nadvanced_ports = \"1-20\"\nadvanced_exclude = \"5\"\nblock = false\n\
         [udp]\nmode = \"off\"\nports = \"everything\"\nblock = true\n\
         [detect]\nscan_trigger = 0\nwindow = \"1h 30m\"\nmax_sources = 1_024\nsctp = true\nicmp = true\nack = \"ban\"\n\
         [allow]\nnetworks = [\"10.0.0.5/24\", \"192.0.2.7\", \"2001:DB8::1\", \"0.0.0.0/0\"]\n\
         names = [\"Monitor.example.org\", \"_x-1.example.\"]\nfiles = [\"/etc/hosts.ok\"]\n\
         [block]\nmethod = [\"route\", \"hosts-deny\", \"run\", \"nft\"]\nmax_new_bans_per_minute = 1\nmax_forgeable_bans = 9\nwidest_ipv4 = 24\n\
         widest_ipv6 = 48\n[block.nft]\naction = \"reject\"\nlog_drops = \"3/minute\"\nend_connections = false\nsize = 7\n\
         [block.route]\nkind = \"prohibit\"\n[block.hosts_deny]\nfile = \"/tmp/deny\"\nline = \"ALL: $TARGET$ : DENY\"\n\
         [block.run]\ncommand = [\"/bin/echo\", \"$TARGET$\"]\nexpire_command = [\"/bin/true\"]\nfirst = true\n\
         timeout = \"5s\"\nat_once = 2\n[escalate]\nfactor = 3\nmax = \"7d\"\nmax_forgeable = \"2d\"\nforget = \"1d\"\n\
         [trap]\ntcp = true\nudp = false\n[metrics]\nlisten = \"[::1]:9777\"\n\
         [report]\nresolve_host = true\njson_file = \"/var/log/events.json\"\nlog = \"syslog\"\nfacility = \"local3\"\nsingle_probes = false\n\
         [notify]\ncommand = [\"/bin/cat\"]\ninterval = \"1h\"\n",
    );
    assert_eq!(config.expire, Expiry::Never);
    assert_eq!(config.interfaces, ["eth0", "wlan0.5"]);
    assert_eq!(config.nat64, ["2001:db8:64::/96".parse().unwrap()]);
    assert_eq!((config.tcp.mode, config.tcp.monitored().to_string()), (Mode::Stealth, "7,9,11-13".to_owned()));
    assert_eq!((config.tcp.block, config.udp.block), (Response::Log, Response::Block));
    assert!(config.udp.monitored().is_empty() && config.udp.ports.contains(2049));
    assert_eq!((config.detect.scan_trigger, config.detect.window.as_secs()), (0, 5_400));
    assert_eq!((config.detect.max_sources, config.detect.sctp, config.detect.icmp), (1_024, true, true));
    assert_eq!(config.detect.ack, AckPolicy::Ban);
    let networks: Vec<String> = config.allow.networks.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/24", "192.0.2.7/32", "2001:db8::1/128", "0.0.0.0/0"]);
    assert_eq!(config.allow.names, ["monitor.example.org", "_x-1.example."]);
    assert_eq!(config.allow.files, [PathBuf::from("/etc/hosts.ok")]);
    let rate = "3/minute".parse().unwrap();
    let expected = Block {
        method: vec![Backend::Route, Backend::HostsDeny, Backend::Command, Backend::Nft],
        max_new_bans_per_minute: 1,
        max_forgeable_bans: 9,
        widest_ipv4: 24,
        widest_ipv6: 48,
        nft: NftBlock { action: Action::Reject, log_drops: Some(rate), end_connections: false, size: 7 },
        route: RouteKind::Prohibit,
        hosts_deny: HostsDeny { file: PathBuf::from("/tmp/deny"), line: "ALL: $TARGET$ : DENY".to_owned() },
        run: Run {
            command: vec!["/bin/echo".to_owned(), "$TARGET$".to_owned()],
            expire_command: vec!["/bin/true".to_owned()],
            first: true,
            timeout: Duration::from_secs(5),
            at_once: 2,
        },
    };
    assert_eq!(config.block, expected);
    let (max, forget) = (Duration::from_secs(7 * 86_400), Duration::from_secs(86_400));
    assert_eq!(config.escalate, Escalation { factor: 3, max, max_forgeable: Duration::from_secs(2 * 86_400), forget });
    assert_eq!(
        read("block.route.via = \"192.0.2.254\"").block.route,
        RouteKind::Via(std::net::Ipv4Addr::new(192, 0, 2, 254).into())
    );
    assert_eq!(config.metrics.listen, Some("[::1]:9777".parse().unwrap()));
    assert_eq!(config.notify, Notify { command: vec!["/bin/cat".to_owned()], interval: Duration::from_secs(3_600) });
    let json_file = Some(PathBuf::from("/var/log/events.json"));
    assert_eq!(
        config.report,
        Report {
            resolve_host: true,
            json_file,
            log: LogTarget::Syslog,
            facility: Facility::Local3,
            single_probes: false
        }
    );
    assert_eq!(read("report.json_file = \"\"\nreport.log = \"auto\"").report, Report::default());
    let advanced = read("[tcp]\nadvanced_ports = \"1-20\"\nadvanced_exclude = \"5\"\n").tcp;
    assert_eq!(advanced.monitored().to_string(), "1-4,6-20");
    assert_eq!(read("tcp.mode = \"connect\"\n").tcp.monitored(), Config::default().tcp.ports);
}

#[test]
fn wrong_value_is_refused_with_remedy() {
    let table = [
        ("[detect]\n\nwindow = \"90x\"\n", "3:10: detect.window: \"90x\" is not a duration; write for example \"90s\""),
        (
            "expire = \"tomorrow\"",
            "1:10: expire: \"tomorrow\" is not a duration; write for example \"24h\", or \"never\"",
        ),
        ("expire = 24", "1:10: expire: 24 is not a duration; write for example \"24h\", or \"never\""),
        ("expire = \"999ms\"", "1:10: expire: \"999ms\" is shorter than one second; write \"1s\" or more"),
        ("expire = \"11 years\"", "1:10: expire: \"11 years\" is longer than ten years; write \"never\""),
        ("detect.window = \"31d\"", "1:17: detect.window: \"31d\" is longer than 30 days; write \"30d\" or less"),
        ("detect.window = \"0s\"", "1:17: detect.window: \"0s\" is shorter than one second; write \"1s\" or more"),
        (
            "notify.interval = \"9s\"",
            "1:19: notify.interval: \"9s\" is shorter than ten seconds; write \"10s\" or more",
        ),
        ("notify.interval = \"25h\"", "1:19: notify.interval: \"25h\" is longer than one day; write \"1d\" or less"),
        (
            "notify.command = [\"mail\"]",
            "1:18: notify.command: the path of the program is not absolute; write for example \"/usr/local/sbin/on-scan\"",
        ),
        ("detect.scan_trigger = 16", "1:23: detect.scan_trigger: 16 is out of range; write a number from 0 to 15"),
        ("detect.scan_trigger = -1", "1:23: detect.scan_trigger: -1 is out of range; write a number from 0 to 15"),
        ("detect.scan_trigger = \"2\"", "1:23: detect.scan_trigger: \"2\" is in quotes; write a number from 0 to 15"),
        (
            "detect.max_sources = 99999999999999999999",
            "1:22: detect.max_sources: 99999999999999999999 is out of range; write a number from 1024 to 16777216",
        ),
        ("detect.sctp = \"yes\"", "1:15: detect.sctp: \"yes\" is not a boolean; write true or false"),
        (
            "block.max_new_bans_per_minute = 0",
            "1:33: block.max_new_bans_per_minute: 0 is out of range; write a number from 1 to 1000000",
        ),
        (
            "block.nft.size = 0x1000001",
            "1:18: block.nft.size: 0x1000001 is out of range; write a number from 1 to 16777216",
        ),
        ("interfaces = \"eth0\"", "1:14: interfaces: \"eth0\" is not a list; write for example [\"eth0\"]"),
        (
            "interfaces = [\"eth0\", \"a/b\"]",
            "1:23: interfaces: \"a/b\" is not an interface name; write 1 to 15 bytes without blanks, \"/\" and \
             \":\", for example \"eth0\"",
        ),
        (
            "nat64 = [\"2001:db8::/48\"]",
            "1:10: nat64: \"2001:db8::/48\" is not the prefix of a NAT64 translator; write an IPv6 /96 (or /64), for example \"2001:db8:64::/96\"",
        ),
        (
            "interfaces = [\"any\"]",
            "1:15: interfaces: \"any\" is not an interface; without a name, every interface is monitored",
        ),
        (
            "tcp.mode = \"stelth\"",
            "1:12: tcp.mode: \"stelth\" is not a mode; write \"off\", \"connect\", \"stealth\" or \"advanced\"",
        ),
        (
            "detect.ack = \"block\"",
            "1:14: detect.ack: \"block\" is not a policy for ACK segments; write \"report\" or \"ban\"",
        ),
        (
            "tcp.ports = \"1,70000\"",
            "1:13: tcp.ports: \"70000\" is not a port; write numbers from 1 to 65535 and ranges, for example \"1,7,9,11-15\"",
        ),
        ("tcp.ports = 80", "1:13: tcp.ports: 80 is a number; write the list in quotes: \"80\""),
        (
            "udp.ports = \"Aware\"",
            "1:13: udp.ports: \"Aware\" is not a port; write numbers from 1 to 65535 and ranges, for example \"1,7,9,11-15\"",
        ),
        (
            "tcp.advanced_ports = 1024",
            "1:22: tcp.advanced_ports: 1024 is a number; write \"1-1024\" for the ports 1 to 1024",
        ),
        (
            "tcp.advanced_ports = \"9-3\"",
            "1:22: tcp.advanced_ports: \"9-3\" is a reversed range; write the smaller port first, for example \"11-15\"",
        ),
        (
            "tcp.advanced_exclude = \"x\"",
            "1:24: tcp.advanced_exclude: \"x\" is not a port; write numbers from 1 to 65535 and ranges, for example \"1,7,9,11-15\"",
        ),
        ("tcp.block = \"no\"", "1:13: tcp.block: \"no\" is not valid here; write true, false or \"run\""),
        (
            "[allow]\nnetworks = [\n  \"192.0.2.1\",\n  \"192.0.2.256\",\n]",
            "4:3: allow.networks: \"192.0.2.256\" is not an address or network; write for example \"192.0.2.7\" or \"198.51.100.0/24\"",
        ),
        (
            "allow.names = [\"ok\", \"192.0.2.7\"]",
            "1:22: allow.names: \"192.0.2.7\" is not a host name; move it to allow.networks",
        ),
        (
            "allow.names = [\"a b\"]",
            "1:16: allow.names: \"a b\" is not a host name; write for example \"monitor.example.org\"",
        ),
        (
            "allow.names = [\"m\u{fc}nchen.example\"]",
            "1:16: allow.names: \"m\u{fc}nchen.example\" has letters other than a to z; write the name in its DNS \
             form, \"xn--...\"",
        ),
        ("allow.names = \"a\"", "1:15: allow.names: \"a\" is not a list; write for example [\"monitor.example.org\"]"),
        (
            "allow.files = [\"ignore\"]",
            "1:16: allow.files: \"ignore\" is not an absolute path; write for example \"/etc/portsentry/portsentry.ignore\"",
        ),
        (
            "block.method = [\"iptables\"]",
            "1:17: block.method: \"iptables\" is not a backend; write \"nft\", \"route\", \"hosts-deny\" or \"run\"",
        ),
        (
            "block.nft.action = \"tarpit\"",
            "1:20: block.nft.action: \"tarpit\" is not an action; write \"drop\" or \"reject\"",
        ),
        (
            "block.nft.log_drops = \"3/week\"",
            "1:23: block.nft.log_drops: \"3/week\" is not a rate; write for example \"3/minute\" (second, minute, hour, day), \
             or \"\" for none",
        ),
        ("block.widest_ipv6 = 60", "1:21: block.widest_ipv6: 60 is not supported; write 48, 56 or 64"),
        ("block.widest_ipv4 = 31", "1:21: block.widest_ipv4: 31 is out of range; write 24 to 30, or 32"),
        ("block.widest_ipv4 = 23", "1:21: block.widest_ipv4: 23 is out of range; write a number from 24 to 32"),
        (
            "block.route.via = \"333.444.555.666\"",
            "1:19: block.route.via: \"333.444.555.666\" is not a gateway address; write an unused address, for \
             example \"192.0.2.254\"",
        ),
        (
            "block.route.via = \"255.255.255.255\"",
            "1:19: block.route.via: \"255.255.255.255\" is not a gateway address; write an unused address, for \
             example \"192.0.2.254\"",
        ),
        (
            "block.hosts_deny.line = \"ALL: ALL\"",
            "1:25: block.hosts_deny.line: \"ALL: ALL\" is not a line for TCP wrappers; write for example \"ALL: $TARGET$\"",
        ),
        (
            "block.hosts_deny.line = \"ALL: $TARGET$\\nALL: ALL\"",
            "1:25: block.hosts_deny.line: \"ALL: $TARGET$\\nALL: ALL\" is not a line for TCP wrappers; write for example \
             \"ALL: $TARGET$\"",
        ),
        (
            "block.hosts_deny.line = \" # ALL: $TARGET$\"",
            "1:25: block.hosts_deny.line: \" # ALL: $TARGET$\" is not a line for TCP wrappers; write for example \
             \"ALL: $TARGET$\"",
        ),
        (
            "block.hosts_deny.line = \"ALL: $TARGET$ \\\\\"",
            "1:25: block.hosts_deny.line: \"ALL: $TARGET$ \\\\\" is not a line for TCP wrappers; write for example \
             \"ALL: $TARGET$\"",
        ),
        (
            "block.hosts_deny.line = \"\"",
            "1:25: block.hosts_deny.line: \"\" is not a line for TCP wrappers; write for example \"ALL: $TARGET$\"",
        ),
        (
            "block.hosts_deny.file = \"hosts.deny\"",
            "1:25: block.hosts_deny.file: \"hosts.deny\" is not an absolute path; write for example \"/etc/hosts.deny\"",
        ),
        (
            "block.hosts_deny.file = \"/\"",
            "1:25: block.hosts_deny.file: \"/\" is not the path of a file; write for example \"/etc/hosts.deny\"",
        ),
        (
            "block.hosts_deny.file = \"/etc/..\"",
            "1:25: block.hosts_deny.file: \"/etc/..\" is not the path of a file; write for example \"/etc/hosts.deny\"",
        ),
        (
            "block.run.command = [\"/bin/x\", \"a\\u0000b\"]",
            "1:32: block.run.command: \"a\\0b\" is too long or contains a NUL; write at most 1024 bytes",
        ),
        ("block.run.at_once = 0", "1:21: block.run.at_once: 0 is out of range; write a number from 1 to 64"),
        ("block.run.at_once = 65", "1:21: block.run.at_once: 65 is out of range; write a number from 1 to 64"),
        (
            "block.run.timeout = \"11m\"",
            "1:21: block.run.timeout: \"11m\" is longer than ten minutes; write \"10m\" or less",
        ),
        (
            "metrics.listen = 9777",
            "1:18: metrics.listen: 9777 is not an address with a port; write for example \"127.0.0.1:9777\" or \
             \"[::1]:9777\", or \"\" for none",
        ),
        (
            "report.json_file = \"events.json\"",
            "1:20: report.json_file: \"events.json\" is not an absolute path; write for example \
             \"/var/log/portsentry/events.json\", or \"\" for none",
        ),
        (
            "report.facility = \"local9\"",
            "1:19: report.facility: \"local9\" is not a syslog facility; write \"user\", \"daemon\", \"auth\", \
             \"authpriv\", \"local0\", \"local1\", \"local2\", \"local3\", \"local4\", \"local5\", \"local6\" or \
             \"local7\"",
        ),
        (
            "report.log = \"/dev/log\"",
            "1:14: report.log: \"/dev/log\" is not a log destination; write \"auto\", \"stderr\", \"journal\" or \
             \"syslog\"",
        ),
        ("escalate.factor = 0", "1:19: escalate.factor: 0 is out of range; write a number from 1 to 100"),
        ("escalate.factor = 1.5", "1:19: escalate.factor: 1.5 is not a whole number; write a number from 1 to 100"),
        (
            "tcp.ports = [23, 24]",
            "1:13: tcp.ports: a list is not valid here; write the ports as one text, for example \"1,7,9,11-15\"",
        ),
        // The missing command is not reported again.
        (
            "block.run.command = \"/bin/true\"\nblock.method = [\"run\"]",
            "1:21: block.run.command: \"/bin/true\" is not a list; write for example [\"/usr/local/sbin/on-scan\", \"$TARGET$\"]",
        ),
        ("escalate.max = \"11y\"", "1:16: escalate.max: \"11y\" is longer than ten years; write less"),
        ("tcp = true", "1:7: tcp: true is not a table; write [tcp] on a line of its own"),
        ("allow = []", "1:9: allow: a list is not a table; write [allow] on a line of its own"),
        ("[[block.nft]]", "1:1: block.nft: a list is not a table; write [block.nft] on a line of its own"),
        (
            "expire = \"\\u001b[2J\"",
            "1:10: expire: \"\\u{1b}[2J\" is not a duration; write for example \"24h\", or \"never\"",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(refused(text), [expected], "{text}");
    }
}

#[test]
fn hosts_deny_line_fits_tcp_wrappers() {
    let line = |length: usize| format!("ALL: $TARGET$ : {}", "x".repeat(length - 16));
    let config = |length| format!("[block.hosts_deny]\nline = \"{}\"", line(length));
    assert_eq!(read(&config(512)).block.hosts_deny.line, line(512));
    let refusal = refused(&config(513));
    let message = "is too long with 513 bytes; write 512 or fewer";
    let is_about = |text: &String| text.starts_with("2:8: block.hosts_deny.line: ") && text.ends_with(message);
    assert!(refusal.len() == 1 && refusal.iter().all(is_about), "{refusal:?}");
}

#[test]
fn banner_is_for_tcp_only() {
    assert_eq!(read("tcp.port_banner = \"Go away.\\r\\n\"").tcp.port_banner, "Go away.\r\n");
    let longest = "x".repeat(1_024);
    assert_eq!(read(&format!("tcp.port_banner = \"{longest}\"")).tcp.port_banner, longest);
    let refusal = refused(&format!("tcp.port_banner = \"{longest}y\""));
    let message = "is too long with 1025 bytes; write 1024 or fewer";
    assert!(refusal.len() == 1 && refusal[0].starts_with("1:19: tcp.port_banner: ") && refusal[0].ends_with(message));
    assert_eq!(
        refused("udp.port_banner = \"go\""),
        [
            "1:19: udp.port_banner: \"go\" is refused, because answers to datagrams would go to forged sources; write \"\""
        ]
    );
}

#[test]
fn log_rate_shares_bounds_of_ruleset() {
    let rate = |text: &str| read(&format!("block.nft.log_drops = \"{text}\"")).block.nft.log_drops;
    assert_eq!(rate(" 3 / hour "), "3/hour".parse().ok());
    assert_eq!(rate("1000000/second").map(|rate| rate.to_string()).as_deref(), Some("1000000/second"));
    assert_eq!(rate(" "), None);
    assert_eq!(refused("block.nft.log_drops = \"1000001/second\"").len(), 1);
}

#[test]
fn trap_is_set_per_protocol() {
    for (text, expected) in
        [("", (true, false)), ("trap.udp = true", (true, true)), ("trap.tcp = false\ntrap.udp = true", (false, true))]
    {
        let trap = read(text).trap;
        assert_eq!((trap.tcp, trap.udp), expected, "{text}");
    }
    assert_eq!(refused("trap.udp = 1").len(), 1);
}

#[test]
fn fleet_keys_set_what_they_name() {
    let fleet = read(
        "[fleet]\nurl = \"rediss://valkey.example.org\"\nname = \"prod\"\nhost = \"web-1\"\nuser = \"sentry\"\n\
         credentials = \"/run/secret\"\nca_file = \"/etc/ca.pem\"\nshadow = false\nsocket = \"/run/x.sock\"\n\
         [fleet.accept]\nsingle = true\nforgeable_authors = 3\nmax_per_author_per_hour = 7\nmax_bans_per_hour = 8\nsize = 9\n",
    )
    .fleet;
    let expected = Fleet {
        url: Some(FleetUrl::Tls { host: "valkey.example.org".to_owned(), port: 6_379 }),
        name: "prod".to_owned(),
        host: "web-1".to_owned(),
        user: "sentry".to_owned(),
        credentials: "/run/secret".into(),
        ca_file: Some("/etc/ca.pem".into()),
        shadow: false,
        socket: "/run/x.sock".into(),
        accept: FleetAccept {
            single: true,
            forgeable_authors: 3,
            max_per_author_per_hour: 7,
            max_bans_per_hour: 8,
            size: 9,
        },
    };
    assert_eq!(fleet, expected);
    let builtin = read("").fleet;
    assert!(!builtin.is_joined() && builtin.shadow && !builtin.accept.single && builtin.accept.forgeable_authors == 0);
}

#[test]
fn wrong_fleet_key_names_remedy() {
    let joined = "[fleet]\nurl = \"unix:///run/valkey/fleet.sock\"\n";
    for (text, expected) in [
        (
            "[fleet]\nhost = \"Web.1\"",
            "2:8: fleet.host: \"Web.1\" is not the name of a fleet, host or user; write 1 to 63",
        ),
        (
            "[fleet]\nurl = \"redis://h:6379\"",
            "2:7: fleet.url: \"redis://h:6379\" uses no encryption; write \"rediss://",
        ),
        (
            "[fleet]\nurl = \"rediss://a:b@h\"",
            "2:7: fleet.url: \"rediss://a:b@h\" contains a user or a password; set the user",
        ),
        (
            "[fleet.accept]\nforgeable_authors = 1",
            "2:21: fleet.accept.forgeable_authors: 1 is too low, because one host",
        ),
        ("[fleet]\nsocket = \"fleet.sock\"", "2:10: fleet.socket: \"fleet.sock\" is not an absolute path"),
        (joined, "fleet.host: this host has no name in the fleet; write for example host = \"web-1\""),
        (
            &format!("{joined}host = \"a\"\n[block]\nmethod = [\"route\"]"),
            "2:7: fleet.url: bans of the fleet need nftables; add \"nft\" to block.method",
        ),
    ] {
        let errors = refused(text);
        assert!(errors.len() == 1 && errors[0].trim_start().contains(expected), "{text}: {errors:?}");
    }
}

#[test]
fn unknown_key_suggests_nearest_key() {
    for (text, expected) in [
        ("[detect]\nwindw = \"1h\"", "2:1: detect.windw: unknown key; did you mean \"detect.window\"?"),
        ("scan-trigger = 2", "1:1: scan-trigger: unknown key; did you mean \"detect.scan_trigger\"?"),
        ("tcp.MODE = \"off\"", "1:5: tcp.MODE: unknown key; did you mean \"tcp.mode\"?"),
        ("[tpc]\nmode = \"off\"", "1:2: tpc: unknown key; did you mean \"tcp\"?"),
        ("[alow]\n", "1:2: alow: unknown key; did you mean \"allow\"?"),
        (
            "TCP_PORTS=\"1,7\"",
            "1:1: TCP_PORTS: an option of classic PortSentry; `portsentry import FILE` translates a classic portsentry.conf",
        ),
        (
            "[block.nft]\nflavour = 1",
            "2:1: block.nft.flavour: unknown key; remove it, the keys of this table are action, end_connections, \
             log_drops, size",
        ),
        (
            "\"\\u001b]\" = 1",
            "1:1: \\u{1b}]: unknown key; remove it, the keys of this table are expire, interfaces, nat64, tcp, udp, \
             detect, allow, block, escalate, trap, metrics, report, fleet, notify",
        ),
    ] {
        assert_eq!(refused(text), [expected], "{text}");
    }
}

#[test]
fn repeated_key_or_table_names_both() {
    assert_eq!(
        refused("expire = \"1h\"\nexpire = \"2h\"\n"),
        ["2:1: the key \"expire\" is defined twice; keep one of the two lines"]
    );
    let table = refused("[metrics]\nlisten = \"\"\n[metrics]\nlisten = \"\"\n");
    assert_eq!(table[0], "3:2: the table \"metrics\" is defined twice; write its keys under the first one");
}

#[test]
fn interfaces_are_monitored_or_excluded() {
    assert_eq!(read("interfaces = [\"!docker0\"]").interfaces, ["!docker0"]);
    let mixed = refused("interfaces = [\"eth0\", \"!docker0\"]");
    assert!(mixed[0].contains("the list mixes interfaces to monitor and"), "{mixed:?}");
    assert!(refused("interfaces = [\"!\"]")[0].contains("is not an interface name"));
}

#[test]
fn invalid_toml_is_refused_with_position() {
    let remedy = "; write key = \"text\", key = 5, key = true or [table]";
    for (text, expected) in [
        ("expire = 24h\n", "1:10: \"24h\": string values must be quoted, expected literal string"),
        ("\nexpire \"24h\"\n", "2:8: key with no value, expected `=`"),
        ("[tcp\nmode = \"of\"\n", "1:5: unclosed table, expected `]`"),
        ("interfaces = [\"eth0\"", "1:21: unclosed array, expected `]`"),
    ] {
        assert_eq!(refused(text), [format!("{expected}{remedy}")], "{text}");
    }
}

#[test]
fn all_errors_of_file_are_in_order() {
    let text = "expier = \"1h\"\nexpire = 24h\n\n[detect]\nwindow = \"90x\"\nscan_trigger = 99\n\n[tcp]\nmode = \"loud\"\n\
                [allow]\nnetworks = [\"a\", \"::1\", \"b\"]\n";
    let places: Vec<String> =
        refused(text).iter().map(|line| line.splitn(4, ':').take(3).collect::<Vec<_>>().join(":")).collect();
    assert_eq!(
        places,
        [
            "1:1: expier",
            "2:10: \"24h\"",
            "5:10: detect.window",
            "6:16: detect.scan_trigger",
            "9:8: tcp.mode",
            "11:13: allow.networks",
            "11:25: allow.networks"
        ]
    );
}

#[test]
fn ineffective_settings_are_refused() {
    for (text, expected) in [
        (
            "tcp.advanced_ports = \"\"",
            "1:22: tcp.advanced_ports: no port is left to monitor; list one, or write mode = \"off\" under [tcp]",
        ),
        (
            "[udp]\nmode = \"stealth\"\nports = \" \"",
            "3:9: udp.ports: no port is left to monitor; list one, or write mode = \"off\" under [udp]",
        ),
        (
            "tcp.advanced_exclude = \"1-65535\"",
            " tcp.advanced_ports: no port is left to monitor; list one, or write mode = \"off\" under [tcp]",
        ),
        (
            "tcp.mode = \"off\"\nudp.mode = \"off\"",
            "1:12: tcp.mode: both tcp.mode and udp.mode are \"off\", so no port would be monitored; write \"advanced\" for one of them",
        ),
        (
            "interfaces = [\"eth0\"]\nudp.mode = \"connect\"",
            "1:14: interfaces: the UDP sockets of connect mode receive from every interface; leave the list empty, \
             or write mode = \"stealth\" under [udp]",
        ),
        (
            "block.method = []",
            "1:16: block.method: the list is empty, so no source would be blocked; write [\"nft\"]; to only log, \
             write block = false under [tcp] and [udp]",
        ),
        ("block.method = [\"nft\", \"nft\"]", "1:16: block.method: a backend is listed twice; write each once"),
        (
            "tcp.block = \"run\"",
            " block.run.command: the configuration runs a command, but none is set; write for example [\"/usr/local/sbin/on-scan\", \"$TARGET$\"]",
        ),
        (
            "block.run.command = [\"on-scan\"]",
            "1:21: block.run.command: the path of the program is not absolute; write for example \"/usr/local/sbin/on-scan\"",
        ),
        (
            "block.run.expire_command = [\"off-ban\"]",
            "1:28: block.run.expire_command: the path of the program is not absolute; write for example \"/usr/local/sbin/on-scan\"",
        ),
    ] {
        assert_eq!(refused(text), [expected], "{text}");
    }
}

#[test]
fn columns_count_characters_and_ignore_bom() {
    assert!(refused("interfaces = [\"ü\", \"a b\"]")[0].starts_with("1:20: "));
    assert_eq!(read("\u{feff}expire = \"1h\"\r\n[tcp]\r\nblock = false\r\n").tcp.block, Response::Log);
}

#[test]
fn expiry_is_one_second_to_ten_years() {
    for (text, seconds) in
        [("1s", 1), ("24h", 86_400), ("7d", 604_800), ("90m", 5_400), ("1h 30m", 5_400), ("10 years", 315_576_000)]
    {
        assert_eq!(parse_expiry(text), Ok(Expiry::After(Duration::from_secs(seconds))), "{text}");
    }
    assert_eq!(parse_expiry("never"), Ok(Expiry::Never));
    for wrong in ["", "0", "0s", "24", "-1h", "1 fortnight", "Never!", "11y", "99999999999999999999s"] {
        assert!(parse_expiry(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn unreadable_file_names_error_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let message = |path: &Path| {
        let message = Config::load(path).unwrap_err().to_string();
        message.strip_prefix(&path.display().to_string()).expect("the file comes first").to_owned()
    };
    assert_eq!(
        message(&dir.path().join("none.toml")),
        ": cannot read the file: No such file or directory (os error 2); create it, or name another file"
    );
    assert_eq!(
        message(dir.path()),
        ": cannot read the file: Is a directory (os error 21); name a file in this directory"
    );
    let binary = dir.path().join("binary.toml");
    std::fs::write(&binary, b"expire = \"1h\"\n# \xff\n").unwrap();
    assert_eq!(message(&binary), ":2:3: invalid UTF-8; save the file as UTF-8");
    assert_eq!(message(Path::new("/dev/zero")), ": the file is larger than 16 MiB; name a text file");
}

#[test]
fn name_is_valid_dns_not_address() {
    let label = "a".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
    for right in ["a", "a.b", "a.b.", "1.example", "x_y.example", "_dmarc.example", "xn--mnchen-3ya.example", &longest]
    {
        assert_eq!(parse_name(right), Ok(right.to_owned()), "{right}");
    }
    assert_eq!(parse_name(&format!("{longest}.")), Ok(format!("{longest}.")), "the final dot is ignored");
    for wrong in [
        "",
        ".",
        "..",
        ".a",
        "a..b",
        "-a.example",
        "a-.example",
        "a b",
        "a/b",
        "a:b",
        "*.example",
        "a\n",
        &format!("{label}a"),
        &format!("{longest}a"),
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "a.0X7f",
        "192.0.2.256",
        "192.0.2.7",
        "192.0.2.7.",
        "2001:db8::7",
        "10.0.0.0/8",
    ] {
        assert!(parse_name(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn too_many_names_are_refused() {
    let list = |count: usize| {
        let names: Vec<String> = (0..count).map(|number| format!("\"h{number}.example\"")).collect();
        format!("allow.names = [{}]", names.join(", "))
    };
    assert_eq!(read(&list(64)).allow.names.len(), 64);
    let expected = "1:15: allow.names: the list has 65 names, more than the maximum of 64; move some of them to allow.networks \
         as addresses";
    assert_eq!(refused(&list(65)), [expected]);
}

/// The kernel's clock has ticks of 1 to 10 ms, and a SYN is retransmitted after a second.
#[test]
fn hold_accepts_tenths_below_a_second() {
    let hold = |text: &str| format!("[trap]\nhold = {text}\n");
    for (text, millis) in [("\"0s\"", 0), ("\"100ms\"", 100), ("\"900ms\"", 900)] {
        let config = Config::parse("portsentry.toml", &hold(text)).unwrap();
        assert_eq!(config.trap.hold.as_millis(), millis);
    }
    for text in ["\"1s\"", "\"950ms\"", "\"1ms\"", "\"1h\"", "\"\"", "\"long\"", "0", "true"] {
        let errors = refused(&hold(text));
        assert!(errors.len() == 1 && errors[0].contains("\"100ms\" to \"900ms\""), "{text}: {errors:?}");
    }
}

#[test]
fn endless_ignore_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
    let allow = read(&format!("allow.files = [{fifo:?}, \"/dev/zero\"]")).allow;
    let errors = allow.read().unwrap_err().to_string();
    let message = "not a regular file; name a text file";
    assert_eq!(errors, format!("{}: {message}\n/dev/zero: {message}", fifo.display()));
}

#[test]
fn allow_list_joins_networks_and_files() {
    let dir = tempfile::tempdir().unwrap();
    let [good, bad, none] = ["good", "bad", "none"].map(|name| dir.path().join(name));
    std::fs::write(&good, "192.0.2.7 # monitor\r\n10.0.0.5/255.0.0.0").unwrap();
    std::fs::write(&bad, "localhost\n").unwrap();
    let mut allow = read(&format!("[allow]\nnetworks = [\"::1\"]\nfiles = [{good:?}]\n")).allow;
    let networks: Vec<String> = allow.read().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["::1/128", "192.0.2.7/32", "10.0.0.0/8"]);
    allow.files.extend([bad.clone(), none.clone()]);
    let errors = allow.read().unwrap_err().to_string();
    assert_eq!(errors.lines().count(), 2, "{errors}");
    assert!(errors.starts_with(&format!("{}:1:1: \"localhost\" is not an address", bad.display())), "{errors}");
    assert!(errors.contains(&format!("{}: cannot read the file: No such file", none.display())), "{errors}");
}

#[test]
fn full_example_equals_built_in_settings() {
    let text = example("examples/portsentry.toml");
    assert_eq!(read(&text), Config::default());
}

/// The dotted keys of a TOML text, including those that are commented out as `# key = value`.
fn written_keys(text: &str) -> Vec<String> {
    let mut table = String::new();
    let mut keys = Vec::new();
    for line in text.lines() {
        if let Some(header) = line.strip_prefix('[') {
            table = format!("{}.", header.trim_end_matches(']'));
        } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ")
            && key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        {
            keys.push(format!("{table}{key}"));
        }
    }
    keys
}

#[test]
fn full_example_has_every_key_once() {
    let mut keys = written_keys(&example("examples/portsentry.toml"));
    keys.sort();
    assert_eq!(keys, Config::keys());
    assert!(keys.len() >= 30, "{keys:?}");
}

#[test]
fn minimal_example_changes_only_its_keys() {
    let config = read(&example("examples/minimal.toml"));
    let mut expected = Config { expire: Expiry::After(Duration::from_secs(7 * 86_400)), ..Config::default() };
    expected.allow.networks.clone_from(&config.allow.networks);
    assert_eq!(config, expected);
    assert_eq!(config.allow.networks.len(), 3);
}

#[test]
fn settings_page_has_every_key() {
    let page = example("docs/configuration.md");
    let row =
        |line: &str| line.strip_prefix("| `").and_then(|rest| rest.split_once('`')).map(|(key, _)| key.to_owned());
    let mut rows: Vec<String> = page.lines().filter_map(row).collect();
    rows.sort();
    assert_eq!(rows, Config::keys());
}

proptest! {
    #[test]
    fn arbitrary_text_causes_no_panic(text in "\\PC{0,200}") {
        let _ = Config::parse("f", &text);
    }

    #[test]
    fn toml_errors_have_positions(
        lines in prop::collection::vec("(\\[{0,2}(tcp|detect|block|block\\.nft|x)\\]{0,2}|(expire|tcp\\.mode|window|ports|networks|size|\"q\\\\n\") ?= ?(\"[a-z0-9,-]{0,9}\"|\\[[\"a,1]{0,6}\\]?|[0-9x_-]{1,25}|true|\"\"\"|\\{a=1\\}|1979-05-27))", 0..12),
    ) {
        let text = lines.join("\n");
        if let Err(errors) = Config::parse("f", &text) {
            prop_assert!(errors.iter().count() > 0);
            for error in errors.iter() {
                let shown = error.to_string();
                prop_assert!(!shown.contains('\n'), "{}", shown);
                if let Some(line) = error.line {
                    prop_assert!((1..=text.lines().count() + 1).contains(&line), "{}", shown);
                }
            }
        }
    }

    #[test]
    fn ignore_file_reader_never_panics(text in "([0-9./#: a-f]{0,12}\n){0,9}") {
        let entries = text.lines().filter(|line| !line.split('#').next().unwrap_or("").trim().is_empty()).count();
        let found = match portsentry::config::ignore_file::parse("f", &text) {
            Ok(networks) => networks.len(),
            Err(errors) => {
                prop_assert!(errors.iter().count() <= entries);
                entries
            }
        };
        prop_assert_eq!(found, entries);
    }

    #[test]
    fn any_expiry_reads_back_as_shown(seconds in 1_u64..315_576_000) {
        let expiry = Expiry::After(Duration::from_secs(seconds));
        prop_assert_eq!(parse_expiry(&expiry.to_string()), Ok(expiry));
    }
}
