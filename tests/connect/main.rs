//! Tests connect mode from an operator's view: the program listens on the listed ports, and only connections that its
//! listeners accept count. Each test has its own network.

#![cfg(test)]

mod every_port;
mod lacking;
mod surroundings;

mod tests {
    use std::io::{ErrorKind, Read as _};
    use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::time::Duration;

    use rustix::process::Signal;

    use netns_lab::daemon::Daemon;
    use netns_lab::services::Services;
    use netns_lab::{Lab, PROMPT_TIMEOUT, TIMEOUT, enter, raw, slowness};

    const TCP: &str = "[tcp]\nports = \"7001-7010\"\nport_banner = \"Go away.\\r\\n\"\n[udp]\nmode = \"off\"\n";
    const BANNER: &str = "Go away.\r\n";

    /// Connects to each port and returns what it read until the end of the connection.
    fn connect(lab: &Lab, host: &str, target: IpAddr, ports: &[u16]) -> Vec<String> {
        let read = |port: &u16| {
            let mut stream = TcpStream::connect_timeout(&SocketAddr::new(target, *port), TIMEOUT).expect("it is open");
            stream.set_read_timeout(Some(TIMEOUT)).expect("more than zero");
            let mut received = String::new();
            stream.read_to_string(&mut received).expect("the connection closes cleanly");
            received
        };
        lab.inside(host, || ports.iter().map(read).collect())
    }

    /// Makes a host connect to the port that bans it. The connection is cut, at the latest when it is closed.
    fn connect_to_be_banned(lab: &Lab, host: &str, port: u16) -> IpAddr {
        let target = SocketAddr::new(lab.victim_v4(host).into(), port);
        drop(lab.inside(host, || TcpStream::connect_timeout(&target, TIMEOUT)));
        lab.expect_ban(lab.v4(host).into()).address
    }

    /// Makes a host complete connections until it is banned. All earlier connections have been judged by then.
    fn connect_until_banned(lab: &Lab, host: &str, [first, second, third]: [u16; 3]) -> IpAddr {
        connect(lab, host, lab.victim_v4(host).into(), &[first, second]);
        connect_to_be_banned(lab, host, third)
    }

    fn alert(host: IpAddr, protocol: &str, port: u16) -> String {
        format!("from host: {host}/{host} to {protocol} port: {port}")
    }

    #[test]
    fn completed_connections_ban_half_open_do_not() {
        let lab = Lab::new(&["sly", "attacker"]);
        let daemon = Daemon::start_configured(&lab, TCP, &["-tcp"]);
        let scan = lab.nmap("sly", lab.victim_v4("sly").into(), &["-sS", "-p7001-7010"]);
        assert_eq!(scan.open, (7001..=7010).collect(), "every decoy looks open");
        lab.nmap("sly", lab.victim_v4("sly").into(), &["-sF", "-p7001-7010", "--max-retries", "0"]);

        let (attacker, victim) = lab.ends_v4("attacker");
        let repeated = connect(&lab, "attacker", victim, &[7001, 7001, 7002, 7001, 7002]);
        assert_eq!(repeated, [BANNER; 5], "repeated probes of one port count once");
        daemon.expect_line(&format!("attackalert: Connect {}", alert(attacker, "TCP", 7002)));
        assert!(lab.banned().is_empty());
        connect_to_be_banned(&lab, "attacker", 7003);
        daemon.expect_line(&format!("attackalert: Host {attacker} has been blocked via nftables set"));

        assert_eq!(lab.banned(), [attacker]);
        assert_eq!(daemon.lines_with(&lab.v4("sly").to_string()), [""; 0]);
        assert!(!lab.is_served("attacker", victim, 7004, Duration::from_millis(300)));
        let log = daemon.stop();
        assert_eq!(log.matches("attackalert: Connect from host").count(), 3, "{log}");
        for port in 7001..=7010 {
            let line = format!("adminalert: Going into listen mode on TCP port: {port}\n");
            assert!(log.contains(&line), "each port is announced in its own line, as in classic PortSentry: {log}");
        }
        assert!(log.find("Going into listen mode") < log.find("is now active"), "{log}");
    }

    #[test]
    fn repeated_packet_gets_line_of_its_mode() {
        let lab = Lab::new(&["attacker", "other"]);
        // Only hosts.deny, so later connections still arrive, as with classic PortSentry and TCP wrappers.
        let file = lab.write("hosts.deny", "");
        let text = format!(
            "[tcp]\nports = \"7001-7010\"\nport_banner = \"Go away.\\r\\n\"\n\
             [block]\nmethod = [\"hosts-deny\"]\n[block.hosts_deny]\nfile = {file:?}\n"
        );
        let daemon = Daemon::start_configured(&lab, &text, &["-tcp", "-sudp", "--no-sandbox"]);
        let [attacker, other] = ["attacker", "other"].map(|host| {
            connect(&lab, host, lab.victim_v4(host).into(), &[7001, 7002, 7003]);
            let source = IpAddr::from(lab.v4(host));
            daemon.expect_line(&format!("attackalert: Host {source} has been blocked via wrappers"));
            source
        });
        connect(&lab, "attacker", lab.victim_v4("attacker").into(), &[7004]);
        let line = daemon.expect_line(&format!("attackalert: Host: {attacker}"));
        assert_eq!(line, format!("attackalert: Host: {attacker} is already blocked. Ignoring"), "TCP in connect mode");
        lab.inside("other", || {
            let socket = UdpSocket::bind((lab.v4("other"), 0)).expect("a free port");
            socket.send_to(b"x", (lab.victim_v4("other"), 69)).expect("a route");
        });
        let line = daemon.expect_line(&format!("attackalert: Host: {other}"));
        assert_eq!(
            line,
            format!("attackalert: Host: {other}/{other} is already blocked Ignoring"),
            "UDP in stealth mode"
        );
        daemon.stop();
    }

    #[test]
    fn connect_scan_is_banned_over_both_families() {
        let lab = Lab::new(&["attacker", "six"]);
        lab.sysctl("net.ipv6.bindv6only=1");
        let daemon = Daemon::start_configured(&lab, TCP, &["-tcp", "--expire", "1h"]);
        lab.nmap("attacker", lab.victim_v4("attacker").into(), &["-sT", "-p7001-7010", "--max-retries", "0"]);
        lab.nmap("six", lab.victim_v6("six").into(), &["-sT", "-p7001-7010", "--max-retries", "0"]);
        for (address, set) in [(lab.v4("attacker").into(), "blocked"), (lab.v6_network("six").into(), "blocked6")] {
            assert_eq!(lab.expect_ban(address).timeout, Some(Duration::from_secs(3_600)));
            daemon.expect_line(&format!("via nftables set inet portsentry {set} for 1h"));
        }
        daemon.expect_line(&format!("attackalert: Connect from host: {0}/{0} to TCP port: 70", lab.v4("attacker")));
        daemon.expect_line(&format!("attackalert: Connect from host: {0}/{0} to TCP port: 70", lab.v6("six")));
        daemon.stop();
    }

    #[test]
    fn decoys_work_without_ipv6() {
        let lab = Lab::new(&["attacker"]);
        lab.sysctl("net.ipv6.conf.all.disable_ipv6=1");
        let daemon = Daemon::start_configured(&lab, TCP, &["-tcp", "--scan-trigger", "0"]);
        let attacker = connect_to_be_banned(&lab, "attacker", 7005);
        daemon.expect_line("has been blocked");
        let log = daemon.stop();
        let (probe, ban) = (log.find(&alert(attacker, "TCP", 7005)), log.find("has been blocked"));
        assert!(probe.is_some() && probe < ban, "the probe is logged before the ban: {log}");
    }

    #[test]
    fn port_in_use_is_left_to_service() {
        let lab = Lab::new(&["client", "attacker"]);
        let services = Services::open(&lab, &[7001, 7002, 7003, 7005]);
        let daemon = Daemon::start_configured(&lab, TCP, &["-tcp"]);
        daemon.expect_line("adminalert: no decoy is opened on ports that are in use: TCP 7001-7003,7005; these");
        let client = lab.victim_v4("client").into();
        assert_eq!(lab.served("client", client, &[7001, 7002, 7003, 7005], 3), 12, "the service answers, not a decoy");
        assert_eq!(connect(&lab, "client", client, &[7004]), [BANNER]);
        let attacker = connect_until_banned(&lab, "attacker", [7006, 7007, 7008]);
        assert_eq!(lab.banned(), [attacker]);
        daemon.stop();
        drop(services);
    }

    #[test]
    fn connect_mode_refuses_if_ports_in_use() {
        let lab = Lab::new(&[]);
        let _services = Services::open(&lab, &[7001, 7002]);
        let path = lab.write("portsentry.toml", "tcp.ports = \"7001,7002\"\nudp.mode = \"off\"\n");
        let ended = Daemon::run_to_end(&lab, &[], &["--config", path.to_str().unwrap(), "-tcp"]);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.log.contains("all TCP ports 7001-7002 are in use; list other ports"), "{ended:?}");
        assert!(!ended.log.contains("active and listening"), "{ended:?}");
    }

    #[test]
    fn low_descriptor_limit_is_reported_with_remedy() {
        let lab = Lab::new(&["attacker"]);
        // Without nftables there is one socket per port.
        let text = "tcp.ports = \"2001-4000\"\nudp.mode = \"off\"\nblock.method = [\"route\"]\n";
        let path = lab.write("many.toml", text);
        let arguments = ["--config", path.to_str().unwrap(), "-tcp"];
        let ended = Daemon::run_to_end(&lab, &["prlimit", "--nofile=512:1024"], &arguments);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.log.contains("2000 decoys need 2064 file descriptors, but the hard limit is 1024"), "{ended:?}");
        assert!(ended.log.contains("LimitNOFILE=2064"), "{ended:?}");

        let daemon = Daemon::start_under(&lab, &["prlimit", "--nofile=512:2064"], &arguments);
        assert_eq!(lab.run("victim", "ss", &["-Hltn"]).lines().count(), 2_000);
        connect(&lab, "attacker", lab.victim_v4("attacker").into(), &[2001, 3000, 4000]);
        daemon.expect_line(&format!("attackalert: Host {} has been blocked via dropped route", lab.v4("attacker")));
        daemon.stop();
    }

    #[test]
    fn missing_right_to_low_ports_is_named() {
        let lab = Lab::new(&[]);
        let text = "tcp.ports = \"79,111,7001\"\nudp.mode = \"off\"\nblock.method = [\"route\"]\n";
        let path = lab.write("portsentry.toml", text);
        let wrapper = ["setpriv", "--bounding-set=-net_bind_service"];
        let ended = Daemon::run_to_end(&lab, &wrapper, &["--config", path.to_str().unwrap(), "-tcp"]);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.log.contains("TCP ports 79,111 need CAP_NET_BIND_SERVICE"), "{ended:?}");
    }

    /// Sends a datagram to each port; true if one was answered, if only with an error.
    fn send(lab: &Lab, host: &str, target: IpAddr, ports: &[u16]) -> bool {
        lab.inside(host, || {
            let answered = ports.iter().filter(|port| {
                let unspecified: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
                let socket = UdpSocket::bind((unspecified, 0)).expect("a UDP socket");
                socket.connect((target, **port)).expect("there is a route");
                socket.send(b"hello").expect("it goes out");
                socket.set_read_timeout(Some(Duration::from_millis(100))).expect("more than zero");
                !matches!(socket.recv(&mut [0; 16]), Err(error) if error.kind() == ErrorKind::WouldBlock)
            });
            answered.count() > 0
        })
    }

    #[test]
    fn datagrams_are_logged_and_never_answered() {
        for (block, six) in [(false, false), (true, false), (true, true)] {
            let lab = Lab::new(&["attacker"]);
            let text = format!("tcp.mode = \"off\"\n[udp]\nports = \"7001-7010\"\nblock = {block}\n");
            let daemon = Daemon::start_configured(&lab, &text, &["-udp"]);
            let (source, target, banned): (IpAddr, IpAddr, IpAddr) = if six {
                (lab.v6("attacker").into(), lab.victim_v6("attacker").into(), lab.v6_network("attacker").into())
            } else {
                (lab.v4("attacker").into(), lab.victim_v4("attacker").into(), lab.v4("attacker").into())
            };
            assert!(!send(&lab, "attacker", target, &[7001, 7001, 7002, 7003]), "an answer was sent");
            daemon.expect_line(&alert(source, "UDP", 7001));
            daemon.expect_line(&alert(source, "UDP", 7002));
            if block {
                lab.expect_ban(banned);
            } else {
                daemon.expect_line("attackalert: Ignoring UDP response per configuration file setting.");
                assert!(lab.banned().is_empty());
            }
            daemon.stop();
        }
    }

    #[test]
    fn stealth_mode_sees_only_own_ports() {
        let lab = Lab::new(&["fin", "other", "udp", "attacker"]);
        let text = "tcp.ports = \"7001-7010\"\n[udp]\nports = \"7001-7010\"\nblock = true\n";
        let daemon = Daemon::start_configured(&lab, text, &["-stcp", "-udp"]);
        assert_eq!(lab.run("victim", "ss", &["-Hltn"]), "");
        for kind in ["-sN", "-sF", "-sX"] {
            lab.nmap("other", lab.victim_v4("other").into(), &[kind, "-p7100-7110", "--max-retries", "0"]);
        }
        lab.nmap("fin", lab.victim_v4("fin").into(), &["-sF", "-p7001", "--max-retries", "0"]);
        lab.expect_ban(lab.v4("fin").into());
        send(&lab, "udp", lab.victim_v4("udp").into(), &[7001, 7002, 7003]);
        lab.expect_ban(lab.v4("udp").into());
        assert_eq!(daemon.lines_with(&lab.v4("other").to_string()), [""; 0]);
        daemon.stop();

        let daemon = Daemon::start_configured(&lab, text, &["-tcp", "-sudp"]);
        assert_eq!(lab.run("victim", "ss", &["-Hlun"]), "");
        send(&lab, "other", lab.victim_v4("other").into(), &[7001, 7002, 7003]);
        lab.expect_ban(lab.v4("other").into());
        connect_until_banned(&lab, "attacker", [7001, 7002, 7003]);
        daemon.stop();
    }

    #[test]
    fn stealth_mode_sees_flag_scans() {
        let lab = Lab::new(&["null", "fin", "xmas"]);
        let daemon = Daemon::start_configured(&lab, TCP, &["-stcp"]);
        for (host, kind, title) in [("null", "-sN", "NULL"), ("fin", "-sF", "FIN"), ("xmas", "-sX", "XMAS")] {
            lab.nmap(host, lab.victim_v4(host).into(), &[kind, "-p7001-7010", "--max-retries", "0"]);
            lab.expect_ban(lab.v4(host).into());
            daemon.expect_line(&format!(
                "attackalert: TCP {title} scan from host: {0}/{0} to TCP port: 70",
                lab.v4(host)
            ));
        }
        daemon.stop();
    }

    #[test]
    fn both_modes_of_protocol_are_usage_error() {
        let lab = Lab::new(&[]);
        let ended = Daemon::run_to_end(&lab, &[], &["-tcp", "-stcp"]);
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    }

    #[test]
    fn connections_on_unlisted_interface_do_not_count() {
        let lab = Lab::new(&["unwatched", "attacker"]);
        let daemon = Daemon::start_configured(&lab, TCP, &["-tcp", "--interface", "attacker"]);
        connect(&lab, "unwatched", lab.victim_v4("unwatched").into(), &[7001, 7002, 7003, 7004]);
        lab.victim_ip("addr add 10.77.2.99/24 dev attacker");
        let attacker = IpAddr::from(lab.v4("attacker"));
        let banned = netns_lab::within(TIMEOUT, || {
            // The address is new: the program must first learn of it from the kernel.
            let late = SocketAddr::new([10, 77, 2, 99].into(), 7001);
            for port in 7001..=7003 {
                let late = SocketAddr::new(late.ip(), port);
                lab.inside("attacker", || {
                    TcpStream::connect_timeout(&late, Duration::from_millis(300) * slowness()).map(drop)
                })
                .ok();
            }
            lab.banned().contains(&attacker).then_some(())
        });
        assert!(banned.is_some(), "decoys do not work on a later address");
        assert_eq!(lab.banned(), [attacker]);
        assert_eq!(daemon.lines_with(&lab.v4("unwatched").to_string()), [""; 0]);
        daemon.stop();
    }

    #[test]
    fn broadcast_to_decoy_is_not_a_probe() {
        let lab = Lab::new(&["neighbour"]);
        let text = "tcp.mode = \"off\"\n[udp]\nports = \"137,138,7001\"\nblock = true\n";
        let daemon = Daemon::start_configured(&lab, text, &["-udp", "--scan-trigger", "1"]);
        let source = lab.v4("neighbour");
        let [a, b, c, _] = source.octets();
        let mut wire = lab.wire("neighbour");
        for target in [[255, 255, 255, 255], [a, b, c, 255]] {
            wire.broadcast(&raw::udp(source.into(), IpAddr::from(target), (138, 138)));
        }
        // Two datagrams to this host arrive after the broadcasts: when they are judged, the broadcasts are too.
        for port in [137, 7001] {
            wire.send(&raw::udp(source.into(), lab.victim_v4("neighbour").into(), (5000, port)));
            daemon.expect_line(&alert(source.into(), "UDP", port));
            assert!(port != 137 || lab.banned().is_empty(), "one port is forgiven");
        }
        lab.expect_ban(source.into());
        assert!(daemon.lines_with(&alert(source.into(), "UDP", 138)).is_empty(), "broadcasts are not probes");
        daemon.stop();
    }

    #[test]
    fn allowed_connection_flood_hides_no_scan() {
        let lab = Lab::new(&["friend", "attacker", "late"]);
        let friend = lab.v4("friend");
        let daemon = Daemon::start_configured(&lab, &format!("allow.networks = [\"{friend}\"]\n{TCP}"), &["-tcp"]);
        let (target, done, connections) = (lab.victim_v4("friend"), AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for port in [7001, 7002] {
                let (lab, done, connections) = (&lab, &done, &connections);
                scope.spawn(move || {
                    enter(lab.namespace("friend").name());
                    while !done.load(Ordering::Relaxed) && connections.load(Ordering::Relaxed) < 20_000 {
                        let stream =
                            TcpStream::connect_timeout(&(target, port).into(), Duration::from_secs(1) * slowness());
                        connections.fetch_add(u32::from(stream.is_ok()), Ordering::Relaxed);
                    }
                });
            }
            let flooded = netns_lab::within(TIMEOUT, || (connections.load(Ordering::Relaxed) > 500).then_some(()));
            assert!(flooded.is_some(), "the flood did not start");
            connect_until_banned(&lab, "attacker", [7003, 7004, 7005]);
            connect_until_banned(&lab, "late", [7001, 7002, 7003]);
            let (ended, took) = daemon.end_by(Signal::TERM);
            done.store(true, Ordering::Relaxed);
            assert!(ended.status.success() && took < PROMPT_TIMEOUT * slowness(), "{took:?} {ended:?}");
            assert!(ended.log.contains(&format!("Connect from {friend} to TCP port")), "{}", ended.log);
        });
        assert!(!lab.banned().contains(&friend.into()));
    }
}
