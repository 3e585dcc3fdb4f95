//! Tests the lab itself without the program, because the other tests rely on it.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use netns_lab::scan::Ban;
use netns_lab::services::{EIGHT, Services};
use netns_lab::{Lab, TIMEOUT, eventually};

#[test]
fn unprotected_host_shows_eight_services() {
    let lab = Lab::new(&["attacker"]);
    let _services = Services::open(&lab, &EIGHT);
    for target in [IpAddr::from(lab.victim_v4("attacker")), lab.victim_v6("attacker").into()] {
        let scan = lab.nmap("attacker", target, &["-sS", "-p1-1024"]);
        assert_eq!(scan.open, EIGHT.into(), "{scan:?}");
        assert_eq!(scan.count("closed"), 1016, "{scan:?}");
    }
}

#[test]
fn extra_addresses_reach_the_services() {
    let lab = Lab::new(&["attacker", "third"]);
    let _services = Services::open(&lab, &EIGHT);
    let extra = lab.add_addresses("attacker", 10..12);
    assert_eq!(lab.served("attacker", lab.victim_v4("attacker").into(), &EIGHT, 3), 24);
    assert_eq!(lab.served("third", lab.victim_v4("third").into(), &EIGHT, 1), 8);
    assert_eq!(lab.served("third", lab.victim_v6("third").into(), &EIGHT, 1), 8);
    let ping = lab.run("victim", "ping", &["-c1", "-W5", &extra[1].to_string()]);
    assert!(ping.contains("1 received"), "{ping}");
}

#[test]
fn manual_set_prints_as_in_nft() {
    let lab = Lab::new(&["attacker"]);
    let _services = Services::open(&lab, &[80]);
    let victim = lab.victim_v4("attacker").into();
    assert_eq!(lab.set("blocked"), [], "no table yet");
    let rules = "table inet portsentry {
        set blocked { type ipv4_addr; flags dynamic,timeout; size 16; }
        set blocked6 { type ipv6_addr; flags dynamic,timeout; size 16; }
        chain prerouting { type filter hook prerouting priority raw - 10; ip saddr @blocked drop; }
    }
    add element inet portsentry blocked { 10.77.1.2 timeout 24h, 10.77.9.9 }
    add element inet portsentry blocked6 { fd77:0:0:1:: timeout 90m }";
    lab.nft(rules);
    let v4 = lab.set("blocked");
    assert_eq!(
        v4.iter().find(|ban| ban.address == lab.v4("attacker")).and_then(|ban| ban.timeout),
        Some(Duration::from_secs(86_400))
    );
    assert!(v4.contains(&Ban { address: "10.77.9.9".parse().unwrap(), timeout: None, expires: None }), "{v4:?}");
    let v6 = lab.expect_ban(lab.v6_network("attacker").into());
    assert!(v6.expires < v6.timeout && v6.expires > Some(Duration::from_secs(5000)), "{v6:?}");
    assert!(!lab.is_served("attacker", victim, 80, Duration::from_millis(300)));
    lab.nft("flush set inet portsentry blocked");
    assert!(lab.is_served("attacker", victim, 80, TIMEOUT));
}

#[test]
fn probe_is_one_packet_from_chosen_address() {
    let lab = Lab::new(&["attacker"]);
    let source = lab.add_addresses("attacker", 20..21)[0];
    let rules = format!(
        "table inet count {{
            chain arriving {{
                type filter hook prerouting priority raw;
                ip saddr {source} tcp flags & (syn | ack) == syn counter
            }}
        }}"
    );
    lab.nft(&rules);
    lab.probe("attacker", source.into(), lab.victim_v4("attacker").into(), &[1, 2, 3]);
    let counted = || lab.nft("list table inet count");
    // On a busy machine packets may be delayed.
    eventually("the packets arrive", || counted().contains("counter packets 3 "));
    lab.run("attacker", "ping", &["-c1", "-W5", &lab.victim_v4("attacker").to_string()]);
    assert!(counted().contains("counter packets 3 "), "no other packet follows: {}", counted());
}

#[test]
fn dropped_lab_leaves_nothing_behind() {
    let names = std::sync::Mutex::new(Vec::new());
    let outcome = std::panic::catch_unwind(|| {
        let lab = Lab::new(&["attacker"]);
        *names.lock().unwrap() = ["victim", "attacker"].map(|host| lab.namespace(host).name().to_owned()).into();
        let exist = names.lock().unwrap().iter().all(|name| Path::new("/run/netns").join(name).exists());
        std::panic::resume_unwind(Box::new(exist));
    });
    assert!(*outcome.unwrap_err().downcast::<bool>().unwrap(), "the namespaces existed");
    for name in names.into_inner().unwrap() {
        assert!(!Path::new("/run/netns").join(&name).exists(), "{name} is still there");
    }
}
