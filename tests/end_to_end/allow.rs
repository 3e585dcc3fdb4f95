//! Tests names and files of the allow-list: which addresses they protect, and when the protection begins and ends.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portsentry::ledger::Ending;
use portsentry::types::BanTarget;

use crate::name_server::{NameServer, Query};
use netns_lab::daemon::Daemon;
use netns_lab::{Lab, TIMEOUT, eventually, soon, within};

const CLOSED: [u16; 6] = [23, 79, 111, 512, 513, 514];
const NAME: &str = "monitor.lab.example";
const NAMES: &str = "[allow]\nnames = [\"monitor.lab.example.\"]\n";

/// The reply of a name server to every query.
#[derive(Clone)]
enum Reply {
    Addresses(Vec<IpAddr>),
    /// The server cannot resolve the name (SERVFAIL).
    Fails,
    Nothing,
}

/// A name server whose reply the test changes.
struct ChangingServer {
    reply: Arc<Mutex<Reply>>,
    server: NameServer,
}

impl ChangingServer {
    /// Serves on `host`, which becomes the victim's resolver.
    fn start(lab: &Lab, host: &str, reply: Reply) -> Self {
        let reply = Arc::new(Mutex::new(reply));
        let current = Arc::clone(&reply);
        let answer = move |query: &Query<'_>| Some((Duration::ZERO, answer(query, &current.lock().unwrap())?));
        Self { reply, server: NameServer::start(lab, host, answer) }
    }

    /// Changes the reply and makes the victim resolve its names again by a change of its resolv.conf. Returns the number
    /// of queries before.
    fn set_reply(&self, lab: &Lab, host: &str, reply: Reply) -> usize {
        *self.reply.lock().unwrap() = reply;
        let before = self.server.query_count();
        let text = format!("# {:?}\nnameserver {}\n", Instant::now(), lab.v4(host));
        lab.write("resolv.conf", &text);
        before
    }

    /// Waits for a query after the first `before` ones.
    fn expect_query(&self, before: usize) {
        assert!(soon(|| self.server.query_count() > before), "the name server received no query");
    }
}

fn answer(&Query { id, question, kind, .. }: &Query<'_>, reply: &Reply) -> Option<Vec<u8>> {
    let (code, addresses) = match reply {
        Reply::Addresses(addresses) => (0, addresses.as_slice()),
        Reply::Fails => (2, &[][..]),
        Reply::Nothing => return None,
    };
    let data = addresses.iter().filter_map(|address| match (address, kind) {
        (IpAddr::V4(v4), 1) => Some(v4.octets().to_vec()),
        (IpAddr::V6(v6), 28) => Some(v6.octets().to_vec()),
        _ => None,
    });
    let records: Vec<Vec<u8>> = data
        .map(|data| {
            let length = u16::try_from(data.len()).expect("4 or 16").to_be_bytes();
            [&[0xc0, 12][..], &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 1], &length, &data].concat()
        })
        .collect();
    let count = u16::try_from(records.len()).expect("a few").to_be_bytes();
    let flags = [0x81, 0x80 | code];
    Some([id, &flags, &[0, 1], &count, &[0; 4], question, &records.concat()].concat())
}

/// Asserts that `host` is not banned although it probes many closed ports. `culprit` is banned after it.
fn assert_not_banned(lab: &Lab, host: &str, culprit: &str) {
    // A log line may be written slightly before the kernel's set changes.
    for (set, address) in [("allowed", lab.v4(host).to_string()), ("allowed6", lab.v6(host).to_string())] {
        assert!(soon(|| lab.set_text(set).contains(&address)), "{}", lab.set_text(set));
    }
    lab.probe_v4(host, &CLOSED);
    lab.probe(host, lab.v6(host).into(), lab.victim_v6(host).into(), &CLOSED);
    lab.provoke_ban(culprit);
    let banned = lab.banned();
    assert!(!banned.contains(&lab.v4(host).into()) && !banned.contains(&lab.v6_network(host).into()), "{banned:?}");
}

/// How the last ban of `address` ended, from the ledger. The program must have ended.
fn ending(lab: &Lab, address: IpAddr) -> Option<Ending> {
    let entries = lab.read_ledger(|ledger| ledger.bans_of(BanTarget::containing(address))).expect("it can be read");
    entries.items.into_iter().next_back().and_then(|entry| entry.ended).map(|ended| ended.how)
}

#[test]
fn allowed_name_is_exempt_with_reason() {
    let lab = Lab::new(&["dns", "friend", "attacker", "other"]);
    let (v4, v6) = (lab.v4("friend"), lab.v6("friend"));
    let _server = ChangingServer::start(&lab, "dns", Reply::Addresses(vec![v4.into(), v6.into()]));
    let daemon = Daemon::start_configured(&lab, NAMES, &["--expire", "24h"]);
    daemon.expect_line(&format!("adminalert: {NAME}. on the allow-list resolves to {v4}, {v6}"));
    assert_not_banned(&lab, "friend", "attacker");
    let reason = "the source is the address of a name on the allow-list, which is never blocked";
    for address in [v4.to_string(), v6.to_string()] {
        let logged = || daemon.lines_with(&address).iter().any(|line| line.ends_with(reason));
        assert!(soon(logged), "{:?}", daemon.lines_with(&address));
    }
    assert!(lab.set_text("allowed").contains(&v4.to_string()) && lab.set_text("allowed6").contains(&v6.to_string()));
    daemon.stop();
}

#[test]
fn silent_name_server_delays_no_start() {
    let lab = Lab::new(&["dns", "attacker"]);
    let server = ChangingServer::start(&lab, "dns", Reply::Nothing);
    let daemon = Daemon::start_configured(&lab, NAMES, &["--expire", "24h"]);
    // A single query takes glibc five seconds to time out.
    assert_eq!(daemon.lines_with("cannot be resolved"), [""; 0], "the start did not wait for the look-up");
    eventually("the lookup is running", || server.server.query_count() > 0);
    lab.provoke_ban("attacker");
    // Asserts that it ends within a second.
    daemon.stop();
}

#[test]
fn unresolvable_name_keeps_its_addresses() {
    let lab = Lab::new(&["dns", "friend", "attacker", "other"]);
    let friend = IpAddr::from(lab.v4("friend"));
    let server = ChangingServer::start(&lab, "dns", Reply::Fails);
    let daemon = Daemon::start_configured(&lab, NAMES, &["--expire", "24h"]);
    let failed = format!("adminalert: ERROR: {NAME}. on the allow-list cannot be resolved: ");
    assert!(daemon.expect_line(&failed).ends_with("until it can be resolved, it exempts no address"));
    let both = Reply::Addresses(vec![friend, lab.v6("friend").into()]);
    server.set_reply(&lab, "dns", both.clone());
    daemon.expect_line(&format!("{NAME}. on the allow-list can be resolved again, to {friend}"));
    for _ in 0..2 {
        let before = server.set_reply(&lab, "dns", Reply::Fails);
        server.expect_query(before);
    }
    daemon.expect_line("its last addresses stay exempt");
    assert_not_banned(&lab, "friend", "attacker");
    server.set_reply(&lab, "dns", both);
    let again =
        || (daemon.lines_with("can be resolved again").len() == 2).then(|| daemon.lines_with("can be resolved again"));
    let lines = within(TIMEOUT, again).expect("it works again");
    assert!(lines[1].ends_with("can be resolved again"), "the addresses are the same as before: {lines:?}");
    assert_eq!(daemon.lines_with(&failed).len(), 2, "each outage is reported once");
    daemon.stop();
}

#[test]
fn moved_name_protects_both_addresses_briefly() {
    let lab = Lab::new(&["dns", "old", "new", "attacker", "other"]);
    let server = ChangingServer::start(&lab, "dns", Reply::Addresses(vec![lab.v4("old").into(), lab.v6("old").into()]));
    let daemon = Daemon::start_configured(&lab, NAMES, &["--expire", "24h"]);
    daemon.expect_line(&format!("on the allow-list resolves to {}", lab.v4("old")));
    // The address is banned until the name moves to it.
    let new = lab.provoke_ban("new");
    server.set_reply(&lab, "dns", Reply::Addresses(vec![new, lab.v6("new").into()]));
    daemon.expect_line(&format!("{NAME}. on the allow-list now also resolves to {new}"));
    daemon.expect_line(&format!("adminalert: Host {new} has been unblocked by the allow-list"));
    lab.expect_banned(&[]);
    assert_not_banned(&lab, "new", "attacker");
    assert_not_banned(&lab, "old", "other");
    daemon.stop();
    assert_eq!(ending(&lab, new), Some(Ending::Lifted { by: "the allow-list".to_owned() }));
}

#[test]
fn name_with_impossible_address_protects_nothing() {
    let lab = Lab::new(&["dns", "attacker"]);
    let hostile = ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "169.254.7.7", "::", "ff02::1", "fe80::1"];
    // The victim's own address is protected in any case, so the name is not the reason.
    let own = IpAddr::from(lab.victim_v4("attacker"));
    let answer = hostile.iter().map(|text| text.parse().unwrap()).chain([own]).collect();
    let _server = ChangingServer::start(&lab, "dns", Reply::Addresses(answer));
    let daemon = Daemon::start_configured(&lab, NAMES, &["--expire", "24h"]);
    daemon.expect_line(&format!("{NAME}. on the allow-list resolves to {own}"));
    lab.provoke_ban("attacker");
    let allowed = [lab.set_text("allowed"), lab.set_text("allowed6")].concat();
    let words: Vec<&str> = allowed.split(|letter: char| letter.is_whitespace() || letter == ',').collect();
    assert!(words.contains(&own.to_string().as_str()), "{allowed}");
    for text in ["0.0.0.0", "224.0.0.1", "255.255.255.255", "169.254.7.7", "ff02::1", "fe80::1"] {
        assert!(!words.contains(&text), "{text}: {allowed}");
    }
    daemon.stop();
}

#[test]
fn etc_hosts_name_needs_no_server() {
    let lab = Lab::new(&["friend", "attacker", "other"]);
    let line = |addresses: &[String]| addresses.iter().map(|one| format!("{one} {NAME}\n")).collect::<String>();
    let config = lab.write("portsentry.toml", &format!("[allow]\nnames = [\"{NAME}\"]\n"));
    let daemon = Daemon::start(&lab, &["--config", config.to_str().unwrap()]);
    daemon.expect_line("cannot be resolved");
    lab.write("hosts", &line(&[lab.v4("friend").to_string(), lab.v6("friend").to_string()]));
    daemon.expect_line(&format!("can be resolved again, to {}", lab.v4("friend")));
    assert_not_banned(&lab, "friend", "attacker");
    daemon.stop();
}

#[test]
fn ignore_file_change_lifts_bans() {
    let lab = Lab::new(&["friend", "attacker", "other"]);
    let file = lab.write("ignore", "# nobody yet\n");
    let daemon = Daemon::start_configured(&lab, &format!("[allow]\nfiles = [{file:?}]\n"), &["--expire", "24h"]);
    let friend = lab.provoke_ban("friend");
    lab.write("ignore", &format!("{friend}\n{}\n", lab.v6("friend")));
    daemon.expect_line("ignore was reloaded and now allows 2 networks");
    daemon.expect_line(&format!("adminalert: Host {friend} has been unblocked by the allow-list"));
    lab.expect_banned(&[]);
    assert_not_banned(&lab, "friend", "attacker");

    lab.write("ignore", "nobody in particular\n");
    daemon.expect_line(&format!("{}:1:1: \"nobody in particular\" is not an address", file.display()));
    daemon.expect_line("its previous entries stay allowed (2)");
    assert_not_banned(&lab, "friend", "attacker");

    // Replaced by rename, as editors do.
    let new = lab.write("new", "192.0.2.7\n");
    std::fs::rename(new, &file).unwrap();
    daemon.expect_line("ignore was reloaded and now allows 1 network");
    lab.probe_until_banned("friend", lab.victim_v4("friend").into());
    assert_eq!(daemon.lines_with("nobody in particular").len(), 1, "it is reported once");
    daemon.stop();
}

#[test]
fn allowed_at_start_is_unblocked() {
    let lab = Lab::new(&["friend", "attacker"]);
    let (friend, attacker) = {
        let daemon = Daemon::start(&lab, &["--expire", "24h"]);
        let banned = (lab.provoke_ban("friend"), lab.provoke_ban("attacker"));
        daemon.stop();
        banned
    };
    let configuration = format!("[allow]\nnetworks = [\"{friend}/31\"]\n");
    for swept in [false, true] {
        if swept {
            // As after a reboot: bans restored from the ledger are checked against the allow-list too.
            lab.nft("delete table inet portsentry");
        }
        let daemon = Daemon::start_configured(&lab, &configuration, &["--expire", "24h"]);
        if !swept {
            daemon.expect_line(&format!("adminalert: Host {friend} has been unblocked by the allow-list"));
        }
        lab.expect_ban(attacker);
        lab.expect_banned(&[attacker]);
        daemon.stop();
        assert_eq!(ending(&lab, friend), Some(Ending::Lifted { by: "the allow-list".to_owned() }));
        assert_eq!(ending(&lab, attacker), None);
    }
}

#[test]
fn allowed_address_in_blocked_64_passes() {
    let lab = Lab::new(&["friend", "attacker"]);
    let file = lab.write("ignore", "");
    let daemon = Daemon::start_configured(&lab, &format!("[allow]\nfiles = [{file:?}]\n"), &["--expire", "24h"]);
    let (friend, network) = (lab.v6("friend"), IpAddr::from(lab.v6_network("friend")));
    lab.probe("friend", friend.into(), lab.victim_v6("friend").into(), &CLOSED);
    lab.expect_ban(network);
    lab.write("ignore", &format!("{friend}\n"));
    let passes = || lab.set_text("allowed6").contains(&friend.to_string());
    assert!(soon(passes));
    let attacker = lab.provoke_ban("attacker");
    assert_eq!(lab.banned(), [attacker, network]);
    lab.write("ignore", &format!("{network}/64\n"));
    daemon.expect_line("has been unblocked by the allow-list");
    lab.expect_banned(&[attacker]);
    daemon.stop();
}

#[test]
fn ignore_entry_lifts_thousand_bans() {
    let lab = Lab::new(&["attacker"]);
    let file = lab.write("ignore", "");
    let daemon = Daemon::start_configured(&lab, &format!("[allow]\nfiles = [{file:?}]\n"), &["--expire", "24h"]);
    let addresses: Vec<String> = (0..1_000).map(|n| format!("10.99.{}.{}", n / 250, n % 250 + 1)).collect();
    let elements: Vec<String> = addresses.iter().map(|address| format!("{address} timeout 1h")).collect();
    let commands = format!("add element inet portsentry blocked {{ {} }}\n", elements.join(", "));
    let commands = lab.write("bans.nft", &commands);
    lab.load_rules(&commands);
    let attacker = lab.provoke_ban("attacker");
    assert_eq!(lab.banned().len(), 1_001);
    assert!(soon(|| lab.ask(&["status"])["bans"]["intended"] == 1_001), "{}", lab.ask(&["status"])["bans"]);
    lab.write("ignore", "10.99.0.0/16\n");
    assert!(soon(|| lab.banned() == [attacker]), "{} are left", lab.banned().len());
    daemon.stop();
    for address in addresses {
        let lifted = Some(Ending::Lifted { by: "the allow-list".to_owned() });
        assert_eq!(ending(&lab, address.parse().unwrap()), lifted, "{address}");
    }
}
