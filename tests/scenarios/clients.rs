//! Tests that clients of this host are not banned while a service is down, and that a scanner gains little from each
//! exception.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::time::{Duration, SystemTime};

use portsentry::engine::Service;
use portsentry::ledger::{Ledger, LedgerChange, services};
use portsentry::types::{BanTarget, Protocol};
use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;

use netns_lab::daemon::Daemon;
use netns_lab::raw::{self, ACK, FIN};
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT, soon, within};

const SERVED: [u16; 3] = [80, 443, 3306];

/// Writes into the lab's ledger that these ports were last served `ago`, as after a reboot.
fn remember(lab: &Lab, ports: &[u16], ago: Duration) {
    let (mut ledger, _) = Ledger::open(&netns_lab::own_state(&lab.path("state"))).unwrap();
    let served = SystemTime::now() - ago;
    let families: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let service = |port: &u16| families.map(|address| Service { protocol: Protocol::Tcp, port: *port, address });
    let changes: Vec<LedgerChange> =
        ports.iter().flat_map(service).map(|service| LedgerChange::Served(service, served)).collect();
    ledger.write(&changes).unwrap();
}

/// The ports that the ledger remembers.
fn remembered(lab: &Lab) -> Vec<(u16, SystemTime)> {
    let mut found = lab.read_ledger(|ledger| services::remembered(ledger, 1_000)).unwrap().items;
    found.sort_by_key(|(service, _)| *service);
    found.into_iter().map(|(service, served)| (service.port, served)).collect()
}

#[test]
fn clients_of_remembered_services_are_not_banned() {
    let lab = Lab::new(&["client", "scanner", "other"]);
    remember(&lab, &SERVED, Duration::from_secs(6 * 86_400));
    // The daemon starts before the services.
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let trapped = lab.trapped_ports();
    assert!(SERVED.iter().all(|port| !trapped.contains(port)), "the kernel's trap omits them");
    for (source, target) in lab.ends("client") {
        for _ in 0..5 {
            lab.probe("client", source, target, &SERVED);
        }
    }
    // A scanner that knows the rule may probe these ports and the usual number of others, but no more.
    let (source, target) = lab.ends_v4("scanner");
    lab.probe("scanner", source, target, &[80, 443, 3306, 901, 902]);
    let other = lab.provoke_ban("other");
    assert_eq!(lab.banned(), [other], "two closed ports are forgiven");
    lab.probe("scanner", source, target, &[903]);
    lab.expect_ban(source);
    daemon.stop();
}

#[test]
fn remembered_services_are_shown_and_forgotten() {
    let lab = Lab::new(&["client", "other"]);
    let day = Duration::from_secs(86_400);
    remember(&lab, &SERVED, day);
    remember(&lab, &[25], 8 * day);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let status = lab.ask(&["status"]);
    let services = status["services"].as_array().unwrap();
    assert_eq!(services.len(), 6, "a port that was not served for eight days is forgotten: {status}");
    let first = &services[0];
    assert_eq!((&first["proto"], &first["port"], &first["served"]), (&"tcp".into(), &80.into(), &false.into()));
    let output = lab.operate(&["status"]).out;
    let line = "services    remembered: 80/tcp 443/tcp 3306/tcp; stopped now: 80/tcp 443/tcp 3306/tcp";
    assert!(output.contains(line), "{output}");
    let client = lab.v4("client").to_string();
    assert_eq!(lab.ask(&["explain", &client])["unserved"], serde_json::json!(["80/tcp", "443/tcp", "3306/tcp"]));

    // A service that starts is shown as served; when it stops, the ledger records until when it was served.
    let up = SystemTime::now();
    let services = Services::open(&lab, &[443]);
    let served = || lab.ask(&["status"])["services"][2]["served"].as_bool().filter(|served| *served);
    assert!(within(TIMEOUT, served).is_some());
    drop(services);
    let noted = || remembered(&lab).iter().any(|(port, served)| *port == 443 && *served >= up);
    assert!(soon(noted), "{:?}", remembered(&lab));

    assert_eq!(lab.operate(&["forget-service", "443/udp"]).code, Some(1), "no such service");
    for (port, line) in [("80/tcp", "services forgotten: 2\n"), ("443", "services forgotten: 2\n")] {
        let output = lab.operate(&["forget-service", port]);
        assert_eq!((output.code, output.out.as_str()), (Some(0), line), "{output:?}");
    }
    daemon.expect_line("has removed the service on port 443 from the remembered services");
    daemon.stop();
    assert!(remembered(&lab).iter().all(|(port, _)| *port == 3306), "{:?}", remembered(&lab));

    // When they are closed and forgotten, probes of them count again.
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let (source, target) = lab.ends_v4("client");
    lab.probe("client", source, target, &[25, 80, 3306, 901]);
    lab.expect_ban(source);
    daemon.stop();
}

/// Makes the next start of the daemon the first one since a boot.
fn reboot(lab: &Lab) {
    let (mut ledger, _) = Ledger::open(&netns_lab::own_state(&lab.path("state"))).unwrap();
    ledger.enter_boot("another boot").unwrap();
}

#[test]
fn boot_delays_bans_until_services_start() {
    let lab = Lab::new(&["client", "scanner", "banned"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let (banned, own) = lab.ends_v4("banned");
    lab.probe("banned", banned, own, &[921, 922, 923]);
    lab.expect_ban(banned);
    daemon.stop();
    lab.nft("flush ruleset");
    remember(&lab, &[80], Duration::from_secs(60));
    reboot(&lab);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    daemon.expect_line(
        "this host has just booted: until its services have started, no source is banned, for at most 60 s",
    );
    lab.expect_banned(&[banned]);
    // The client probes services that the ledger does not know; the scanner exploits that the host has just booted.
    for (source, target) in lab.ends("client") {
        lab.probe("client", source, target, &[901, 902, 903, 904]);
    }
    let (scanner, target) = lab.ends_v4("scanner");
    lab.probe("scanner", scanner, target, &[911, 912, 913]);
    let probed = || daemon.lines_with(&format!("from host: {scanner}/{scanner}")).get(2).map(drop);
    assert!(within(TIMEOUT, probed).is_some(), "its probes are logged");
    lab.expect_banned(&[banned]);
    assert!(lab.ports("trapped").is_empty(), "the kernel's trap is not armed");

    let _services = Services::open(&lab, &[80, 901, 902, 903]);
    daemon.expect_line("the services of this host have started: sources are banned from now on");
    lab.expect_ban(scanner);
    let mut both = [banned, scanner];
    both.sort_unstable();
    lab.expect_banned(&both);
    assert!(soon(|| !lab.ports("trapped").is_empty()));
    daemon.stop();

    // A restart without a reboot does not delay bans.
    lab.nft("flush ruleset");
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let (client, target) = lab.ends_v4("client");
    lab.probe("client", client, target, &[911, 912, 913]);
    lab.expect_ban(client);
    assert!(daemon.lines_with("has just booted").is_empty());
    daemon.stop();
}

#[test]
fn ban_of_client_is_lifted_when_served() {
    let lab = Lab::new(&["client", "scanner"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let clients = lab.ends("client");
    let (scanner, target) = lab.ends_v4("scanner");
    clients.iter().for_each(|(client, target)| lab.probe("client", *client, *target, &[901, 902, 903]));
    lab.probe("scanner", scanner, target, &[911, 912, 913]);
    let mut all = [clients[0].0, lab.v6_network("client").into(), scanner];
    all.sort_unstable();
    lab.expect_banned(&all);
    daemon.stop();
    // As after ten minutes in which two of them were served.
    remember(&lab, &[902, 903], Duration::from_secs(60));
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    lab.expect_banned(&all);
    let _services = Services::open(&lab, &[902]);
    daemon.expect_line("bans lifted by portsentry, because the ports belong to services of this host: 2");
    lab.expect_banned(&[scanner]);
    assert_eq!(lab.served("client", clients[0].1, &[902], 1), 1);
    let explained = lab.ask(&["explain", &clients[0].0.to_string()]);
    assert_eq!(explained["strikes"], 0, "the lifted ban is no strike: {explained}");
    daemon.stop();
}

/// A listener of this user in the victim.
fn listen_as(lab: &Lab, user: u32, port: u16) -> TcpListener {
    lab.inside("victim", || {
        let user = Uid::from_raw(user);
        set_thread_res_uid(user, user, user).unwrap();
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()
    })
}

/// Exporters and similar services run as dynamic users of systemd, or as nobody in a container on the host's network.
#[test]
fn dynamic_user_service_lifts_ban() {
    if !netns_lab::has_other_users() {
        return;
    }
    let lab = Lab::new(&["first", "second", "third"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let ports = [("first", [8_080, 9_000, 9_090]), ("second", [8_443, 9_200, 5_432]), ("third", [8_000, 8_088, 8_888])];
    let [first, second, third] = ports.map(|(host, ports)| {
        let (source, target) = lab.ends_v4(host);
        lab.probe(host, source, target, &ports);
        lab.expect_ban(source);
        source
    });
    let _person = listen_as(&lab, 1_000, 8_088);
    let _nobody = listen_as(&lab, 65_534, 9_200);
    let _dynamic = listen_as(&lab, 61_184, 9_090);
    lab.expect_banned(&[third]);
    for lifted in [first, second] {
        let explained = lab.ask(&["explain", &lifted.to_string()]);
        assert_eq!(explained["strikes"], 0, "a lifted ban is no strike: {explained}");
    }
    daemon.stop();
}

#[test]
fn guessing_mail_client_is_not_banned() {
    let lab = Lab::new(&["client", "scanner", "other"]);
    let _services = Services::open(&lab, &[993, 465]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    assert!(lab.trapped_ports().contains(&901));
    let related = lab.ports("related");
    assert!(
        related.contains(&143) && !related.contains(&901),
        "the kernel holds for them and does not count: {related:?}"
    );
    let guessed = [993, 143, 995, 110, 465, 587, 25];
    for (client, target) in lab.ends("client") {
        lab.probe("client", client, target, &guessed);
    }
    // The scanner that knows the rule may probe one more closed port, but not two.
    let (scanner, target) = lab.ends_v4("scanner");
    lab.probe("scanner", scanner, target, &[&guessed[..], &[901]].concat());
    let other = lab.provoke_ban("other");
    assert_eq!(lab.banned(), [other]);
    lab.probe("scanner", scanner, target, &[902]);
    lab.expect_ban(scanner);
    daemon.stop();
}

/// A mail program guesses ports at a host without mail. The trap counts them and bans it, until the daemon sees no other
/// probes and lifts the ban.
#[test]
fn trap_ban_of_mail_guesser_is_lifted() {
    let lab = Lab::new(&["client", "scanner"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let trapped = lab.trapped_ports();
    assert!(trapped.contains(&143), "without a mail service the trap counts mail ports");
    let guessed = [443, 80, 993, 143, 995, 110, 465, 587, 25];
    let (client, target) = lab.ends_v4("client");
    lab.probe("client", client, target, &guessed);
    // The scanner probes the same ports and one more.
    let (scanner, target) = lab.ends_v4("scanner");
    lab.probe("scanner", scanner, target, &[&guessed[..], &[901]].concat());
    lab.expect_ban(scanner);
    daemon.expect_line(&format!("the kernel's trap blocked {client} without valid evidence"));
    assert_eq!(lab.banned(), [scanner]);
    let explained = lab.ask(&["explain", &client.to_string()]);
    assert_eq!((&explained["blocked"], &explained["strikes"]), (&serde_json::Value::Null, &0.into()), "{explained}");
    daemon.stop();
}

/// Makes a bridge of these hosts' links, with the victim's addresses.
fn bridge(lab: &Lab, guests: &[&str]) {
    lab.victim_ip("link add br0 type bridge");
    lab.victim_ip("link set br0 up");
    for guest in guests {
        lab.victim_ip(&format!("addr add {}/24 dev br0", lab.victim_v4(guest)));
        enslave(lab, guest);
    }
}

fn enslave(lab: &Lab, guest: &str) {
    lab.victim_ip(&format!("addr flush dev {guest}"));
    lab.victim_ip(&format!("link set {guest} master br0"));
}

fn without_port(guest: IpAddr) -> String {
    format!("Host {guest} has been unblocked by portsentry, because its interface no longer exists")
}

#[test]
fn container_ban_ends_with_bridge_port() {
    let lab = Lab::new(&["guest", "kept", "outside"]);
    bridge(&lab, &["guest", "kept"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let [guest, kept] = ["guest", "kept"].map(|host| lab.provoke_ban(host));
    let outside = lab.provoke_ban("outside");
    daemon.expect_line(&format!("Host {outside} has been blocked"));
    // A ban by an operator has no bridge port.
    assert_eq!(lab.operate(&["block", &kept.to_string(), "--expire", "48h"]).code, Some(0));
    lab.cut("guest");
    lab.cut("kept");
    daemon.expect_line(&without_port(guest));
    lab.expect_banned(&[kept, outside]);
    assert!(daemon.lines_with(&without_port(kept)).is_empty());
    daemon.stop();
}

#[test]
fn container_ban_ends_after_restart() {
    let lab = Lab::new(&["gone", "guest", "outside"]);
    bridge(&lab, &["gone", "guest"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let [gone, guest, outside] = ["gone", "guest", "outside"].map(|host| lab.provoke_ban(host));
    daemon.expect_line(&format!("Host {outside} has been blocked"));
    daemon.stop();
    // The port of the next container has the same name.
    lab.cut("gone");
    lab.link("gone");
    enslave(&lab, "gone");
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    daemon.expect_line(&without_port(gone));
    lab.expect_banned(&[guest, outside]);
    assert!(daemon.lines_with(&without_port(guest)).is_empty(), "its port exists");
    lab.cut("guest");
    daemon.expect_line(&without_port(guest));
    lab.expect_banned(&[outside]);
    daemon.stop();
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    lab.provoke_ban("gone");
    assert_eq!(lab.banned(), [gone, outside], "the ledger has recorded the ends");
    daemon.stop();
}

/// The name of the bridge port that the ledger has recorded for the only ban of `target`.
fn recorded_port(lab: &Lab, target: BanTarget) -> Option<String> {
    let bans = lab.read_ledger(|ledger| ledger.bans_of(target)).unwrap().items;
    bans.first()?.ban.guest_port.map(|port| port.name().to_owned())
}

/// A connection to a decoy does not show its bridge port: the kernel's tables do.
#[test]
fn container_ban_on_decoys_ends_with_port() {
    let lab = Lab::new(&["guest", "gone", "six", "outside"]);
    bridge(&lab, &["guest", "gone", "six"]);
    // With br_netfilter, the kernel would refuse connections to decoys through the bridge.
    let passed = ["net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0"];
    lab.run("victim", "sysctl", &["-eqw", passed[0], passed[1]]);
    lab.victim_ip(&format!("addr add {}/64 dev br0 nodad", lab.victim_v6("six")));
    let decoys = "[tcp]\nmode = \"connect\"\nports = \"7001-7010\"\n[udp]\nmode = \"off\"\n";
    let daemon = Daemon::start_configured(&lab, decoys, &["--expire", "24h"]);
    assert!(soon(|| lab.ports("trapped").contains(&7001)), "decoys serve");
    let sources = [("guest", 0), ("gone", 0), ("six", 1), ("outside", 0)].map(|(host, family)| {
        let (source, target) = lab.ends(host)[family];
        lab.connect(host, source, target, &[7001, 7002, 7003]);
        source
    });
    let [guest, gone, six, outside] = sources;
    for (host, source) in [("guest", guest), ("gone", gone), ("six", six)] {
        let port = within(TIMEOUT, || recorded_port(&lab, BanTarget::containing(source)));
        assert_eq!(port.as_deref(), Some(host));
    }
    let network = IpAddr::from(lab.v6_network("six"));
    lab.expect_banned(&[guest, gone, outside, network]);
    lab.cut("guest");
    daemon.expect_line(&without_port(guest));
    lab.cut("six");
    daemon.expect_line("unblocked by portsentry, because its interface no longer exists");
    lab.expect_banned(&[gone, outside]);
    daemon.stop();
    lab.cut("gone");
    lab.link("gone");
    enslave(&lab, "gone");
    let daemon = Daemon::start_configured(&lab, decoys, &["--expire", "24h"]);
    daemon.expect_line(&without_port(gone));
    lab.expect_banned(&[outside]);
    assert_eq!(recorded_port(&lab, BanTarget::containing(outside)), None, "it is no guest");
    daemon.stop();
}

/// A ban that is decided without a packet, at the end of settling.
#[test]
fn waiting_container_ban_ends_with_port() {
    let lab = Lab::new(&["guest", "outside"]);
    bridge(&lab, &["guest"]);
    remember(&lab, &SERVED, Duration::from_secs(86_400));
    reboot(&lab);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    daemon.expect_line("this host has just booted");
    let sources = ["guest", "outside"].map(|host| {
        let (source, target) = lab.ends_v4(host);
        lab.probe(host, source, target, &[901, 902, 903]);
        source
    });
    // Once all remembered services are served, settling ends.
    let _services = Services::open(&lab, &SERVED);
    lab.expect_banned(&sources);
    lab.cut("guest");
    daemon.expect_line(&without_port(sources[0]));
    lab.expect_banned(&sources[1..]);
    daemon.stop();
}

#[test]
fn changed_port_range_is_followed() {
    let lab = Lab::new(&["other"]);
    let settings = "[udp]\nblock = true\nadvanced_ports = \"53-999,20000-20010\"\n[trap]\nudp = true\n";
    let daemon = Daemon::start_configured(&lab, settings, &["--expire", "24h"]);
    let expect_trapped = |is_trapped| {
        let trapped = || lab.ports("trapped_udp").contains(&20_005) == is_trapped;
        assert!(soon(trapped), "{:?}", lab.ports("trapped_udp"));
    };
    expect_trapped(true);
    lab.sysctl("net.ipv4.ip_local_port_range=20000 20999");
    expect_trapped(false);
    lab.sysctl("net.ipv4.ip_local_port_range=32768 60999");
    expect_trapped(true);
    daemon.stop();
}

#[test]
fn late_acks_are_reported_without_ban() {
    let lab = Lab::new(&["peer", "other"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    for (peer, target) in lab.ends("peer") {
        let mut wire = lab.wire("peer");
        for port in 901..=910 {
            [ACK, ACK | FIN].into_iter().for_each(|flags| wire.send(&raw::tcp(peer, target, port, flags)));
        }
        daemon.expect_line(&format!("from host: {peer}/{peer} to"));
    }
    let other = lab.provoke_ban("other");
    assert_eq!(lab.banned(), [other]);
    // ACKs excuse no later SYN of the same source.
    let (peer, target) = lab.ends_v4("peer");
    lab.probe("peer", peer, target, &[911, 912, 913]);
    lab.expect_ban(peer);
    daemon.stop();
}

#[test]
fn clients_are_not_banned_after_full_restart() {
    let lab = Lab::new(&["clients", "other"]);
    let clients = lab.add_addresses("clients", 100..200);
    remember(&lab, &SERVED, Duration::from_secs(60));
    let services = Services::open(&lab, &SERVED);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    // An upgrade restarts the services and the daemon, while the clients keep connecting.
    drop(services);
    daemon.stop();
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let target = lab.victim_v4("clients").into();
    for _ in 0..3 {
        clients.iter().for_each(|client| lab.probe("clients", (*client).into(), target, &SERVED));
    }
    let other = lab.provoke_ban("other");
    assert_eq!(lab.banned(), [other]);
    let _services = Services::open(&lab, &SERVED);
    assert_eq!(lab.served("clients", target, &SERVED, 1), 3);
    daemon.stop();
}

#[test]
fn early_restart_bans_no_clients() {
    let lab = Lab::new(&["clients", "scanner", "other"]);
    let clients = lab.add_addresses("clients", 100..200);
    let services = Services::open(&lab, &SERVED);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let written = || {
        let open = lab.read_ledger(|ledger| services::listeners(ledger, 100)).unwrap().items;
        (open.iter().filter(|(service, gone)| SERVED.contains(&service.port) && gone.is_none()).count() == 6)
            .then_some(())
    };
    assert!(within(TIMEOUT, written).is_some(), "open ports are recorded at once");
    // An upgrade restarts the services and the daemon twice, before any listener has lasted for ten minutes.
    drop(services);
    daemon.stop();
    Daemon::start(&lab, &["--expire", "24h"]).stop();
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let trapped = lab.trapped_ports();
    assert!(SERVED.iter().all(|port| !trapped.contains(port)), "the kernel's trap omits them");
    let target = lab.victim_v4("clients").into();
    for _ in 0..3 {
        clients.iter().for_each(|client| lab.probe("clients", (*client).into(), target, &SERVED));
    }
    // The rule forgives the scanner no other port.
    let (scanner, own) = lab.ends_v4("scanner");
    lab.probe("scanner", scanner, own, &[80, 443, 3306, 901, 902]);
    let other = lab.provoke_ban("other");
    assert_eq!(lab.banned(), [other]);
    lab.probe("scanner", scanner, own, &[903]);
    lab.expect_ban(scanner);
    daemon.stop();
}

#[test]
fn started_service_lifts_client_ban() {
    let lab = Lab::new(&["client", "scanner", "other"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let (client, target) = lab.ends_v4("client");
    let (scanner, own) = lab.ends_v4("scanner");
    lab.probe("client", client, target, &SERVED);
    lab.probe("scanner", scanner, own, &[911, 912, 913]);
    let mut both = [client, scanner];
    both.sort_unstable();
    lab.expect_banned(&both);
    let services = Services::open(&lab, &SERVED);
    daemon.expect_line(&format!(
        "Host {client} has been unblocked by portsentry, because the ports belong to services of this host"
    ));
    lab.expect_banned(&[scanner]);
    assert_eq!(lab.served("client", target, &SERVED, 1), 3);
    // From then on it is treated like any other source.
    lab.probe("client", client, target, &[901, 902]);
    let other = lab.provoke_ban("other");
    let mut banned = [scanner, other];
    banned.sort_unstable();
    lab.expect_banned(&banned);
    lab.probe("client", client, target, &[903]);
    lab.expect_ban(client);
    drop(services);
    daemon.stop();
}

#[test]
fn port_served_since_probe_stops_counting() {
    let lab = Lab::new(&["client", "other"]);
    let daemon = Daemon::start_configured(&lab, "[trap]\ntcp = false\n", &["--expire", "24h"]);
    let (client, target) = lab.ends_v4("client");
    lab.probe("client", client, target, &[901, 902]);
    let probed = || lab.ask(&["explain", &client.to_string()])["suspected"][0]["distinct_ports"].as_u64();
    assert!(within(TIMEOUT, || probed().filter(|ports| *ports == 2)).is_some());
    // A burst of probes is looked up only once, and a service takes longer to start.
    std::thread::sleep(Duration::from_millis(600));
    let _services = Services::open(&lab, &[901, 902]);
    lab.probe("client", client, target, &[903, 904]);
    let other = lab.provoke_ban("other");
    assert_eq!(lab.banned(), [other], "only two closed ports count");
    lab.probe("client", client, target, &[905]);
    lab.expect_ban(client);
    daemon.stop();
}

#[test]
fn connected_peer_is_banned_at_eighth_port() {
    let lab = Lab::new(&["peer", "other"]);
    let (peer, target) = lab.ends_v4("peer");
    let listener = lab.inside("victim", || TcpListener::bind((target, 80)).unwrap());
    let connect = || TcpStream::connect_timeout(&(target, 80).into(), TIMEOUT).unwrap();
    let held = (lab.inside("peer", connect), listener.accept().unwrap());
    let daemon = Daemon::start_configured(&lab, "[trap]\ntcp = false\n", &["--expire", "24h"]);
    // Until its connection is known, the source is treated like any other.
    let connected = || lab.ask(&["explain", &peer.to_string()])["connected"].as_bool().filter(|known| *known);
    assert!(within(TIMEOUT, connected).is_some());
    lab.probe("peer", peer, target, &[901, 902, 903, 904, 905, 906, 907]);
    let other = lab.provoke_ban("other");
    assert_eq!(lab.banned(), [other]);
    lab.probe("peer", peer, target, &[908]);
    lab.expect_ban(peer);
    daemon.stop();
    drop(held);
}

#[test]
fn peer_of_published_port_counts_as_connected() {
    let lab = Lab::new(&["peer", "container", "other"]);
    let (peer, target) = lab.ends_v4("peer");
    let container = IpAddr::from(lab.v4("container"));
    lab.publish(&format!("ip daddr {target} tcp dport 8080"), format_args!("{container}:80"));
    let listener = lab.inside("container", || TcpListener::bind((container, 80)).unwrap());
    let daemon = Daemon::start_configured(&lab, "[trap]\ntcp = false\n", &["--expire", "24h"]);
    // A visit that ends before the connections are listed.
    drop(lab.inside("peer", || TcpStream::connect_timeout(&(target, 8_080).into(), TIMEOUT).unwrap()));
    drop(listener.accept().unwrap());
    let connected = || lab.ask(&["explain", &peer.to_string()])["connected"].as_bool().filter(|known| *known);
    assert!(within(TIMEOUT, connected).is_some());
    lab.probe("peer", peer, target, &[901, 902, 903, 904, 905, 906, 907]);
    let other = lab.provoke_ban("other");
    assert_eq!(lab.banned(), [other]);
    lab.probe("peer", peer, target, &[908]);
    lab.expect_ban(peer);
    daemon.stop();
}

/// Clients of an own and of a published service whose connections end before the restart, so that only the ledger knows
/// them.
#[test]
fn peers_stay_known_across_restart() {
    let lab = Lab::new(&["peer", "visitor", "container", "other"]);
    let (peer, target) = lab.ends_v4("peer");
    let (visitor, published) = lab.ends_v4("visitor");
    let container = IpAddr::from(lab.v4("container"));
    lab.publish(&format!("ip daddr {published} tcp dport 8080"), format_args!("{container}:80"));
    // Connection tracking lists connections for a while after their end.
    lab.sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait=1");
    let own = lab.inside("victim", || TcpListener::bind((target, 80)).unwrap());
    let inner = lab.inside("container", || TcpListener::bind((container, 80)).unwrap());
    let start = || Daemon::start(&lab, &["--expire", "24h"]);
    let is_connected = |source: IpAddr| lab.ask(&["explain", &source.to_string()])["connected"].as_bool();
    let both = || [peer, visitor].into_iter().all(|source| is_connected(source) == Some(true)).then_some(());
    let daemon = start();
    let connect = |host: &str, address: IpAddr, port| {
        lab.inside(host, || TcpStream::connect_timeout(&(address, port).into(), TIMEOUT).unwrap())
    };
    let held = (connect("peer", target, 80), own.accept().unwrap(), connect("visitor", published, 8_080));
    let inner_end = inner.accept().unwrap();
    assert!(within(TIMEOUT, both).is_some(), "both are connected");
    drop((held, inner_end));
    daemon.stop();
    let stored = lab.read_ledger(|ledger| services::known_peers(ledger, 9)).unwrap().items;
    assert_eq!(stored.len(), 2, "{stored:?}");
    assert!(stored.iter().all(|peer| peer.since <= peer.last), "{stored:?}");

    let daemon = start();
    assert_eq!(both(), Some(()), "from the start");
    let known = || (lab.set("peers").len() == 2).then_some(());
    assert!(within(TIMEOUT, known).is_some(), "the kernel's trap knows them too: {}", lab.set_text("peers"));
    lab.trapped_ports();
    for (host, source, address) in [("peer", peer, target), ("visitor", visitor, published)] {
        lab.probe(host, source, address, &[901, 902, 903, 904, 905, 906, 907]);
    }
    let other = lab.provoke_ban("other");
    assert_eq!(lab.banned(), [other], "known sources are forgiven seven ports");
    // Stored peers are forgiven no more than others.
    lab.probe("peer", peer, target, &[908]);
    lab.expect_ban(peer);
    daemon.stop();

    // Without the ledger, the visitor is unknown.
    std::fs::remove_dir_all(lab.path("state")).unwrap();
    let daemon = start();
    assert_eq!(is_connected(visitor), Some(false));
    lab.trapped_ports();
    lab.probe("visitor", visitor, published, &[911, 912, 913]);
    lab.expect_ban(visitor);
    daemon.stop();
}

#[test]
fn trap_counts_connected_peer_to_eight() {
    let lab = Lab::new(&["peer", "other"]);
    let ends = lab.ends("peer");
    let target = ends[0].1;
    let listeners = ends.map(|(_, target)| lab.inside("victim", || TcpListener::bind((target, 80)).unwrap()));
    let held = [0, 1].map(|end| {
        let connect = || TcpStream::connect_timeout(&(ends[end].1, 80).into(), TIMEOUT).unwrap();
        (lab.inside("peer", connect), listeners[end].accept().unwrap())
    });
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let known = || (lab.set("peers").len() == 1 && lab.set("peers6").len() == 1).then_some(());
    assert!(within(TIMEOUT, known).is_some(), "{} {}", lab.set_text("peers"), lab.set_text("peers6"));
    lab.trapped_ports();
    // The kernel alone, while the program is stopped.
    let banned = daemon.frozen(|| {
        for (peer, target) in ends {
            lab.probe("peer", peer, target, &[901, 902, 903, 904, 905, 906, 907]);
        }
        let other = lab.provoke_ban("other");
        assert_eq!(lab.banned(), [other], "a connected source is forgiven seven ports");
        for (peer, target) in ends {
            lab.probe("peer", peer, target, &[908]);
        }
        let mut banned = vec![ends[0].0, lab.v6_network("peer").into(), other];
        banned.sort_unstable();
        lab.expect_banned(&banned);
        banned
    });
    // The program agrees; a banned source loses the extra tolerance.
    daemon.expect_line(&format!("Host {} has been blocked", ends[0].0));
    lab.expect_banned(&banned);
    let forgotten = || lab.set("peers").is_empty() && lab.set("peers6").is_empty();
    assert!(soon(forgotten), "{}", lab.set_text("peers"));
    drop(held);
    let gone = || lab.ask(&["explain", &target.to_string()])["connected"].as_bool().filter(|known| !known);
    assert!(within(TIMEOUT, gone).is_some());
    daemon.stop();
}
