//! Tests `block.nft.log_drops`: the kernel's own log lines about dropped packets.

use std::time::Instant;

use netns_lab::daemon::Daemon;
use netns_lab::{Lab, TIMEOUT, eventually, within};

/// Makes the kernel log packets of all network namespaces. The switch applies to the whole machine and is restored on
/// drop.
struct AllNamespaces(String);

const SWITCH: &str = "/proc/sys/net/netfilter/nf_log_all_netns";

impl AllNamespaces {
    /// `None` if it cannot be switched, as in a container.
    fn log() -> Option<Self> {
        let before = std::fs::read_to_string(SWITCH).ok()?;
        std::fs::write(SWITCH, "1").ok()?;
        Some(Self(before))
    }
}

impl Drop for AllNamespaces {
    fn drop(&mut self) {
        let _ = std::fs::write(SWITCH, &self.0);
    }
}

#[test]
fn dropped_packets_are_logged_at_limited_rate() {
    let Some(_switched) = AllNamespaces::log() else {
        return eprintln!("skipped: {SWITCH} is read-only here, so the kernel logs no packets of a lab");
    };
    // The interface has its host's name, which distinguishes the lines of this test from others.
    let host = format!("log{}", std::process::id());
    let lab = Lab::new(&[&host]);
    let daemon = Daemon::start_configured(&lab, "expire = \"1h\"\n[block.nft]\nlog_drops = \"3/minute\"\n", &[]);
    let begin = Instant::now();
    let attacker = lab.provoke_ban(&host);
    let ports: Vec<u16> = (2_000..2_100).collect();
    lab.probe(&host, attacker, lab.victim_v4(&host).into(), &ports);
    let prefix = format!("Portsentry: dropping: IN={host} ");
    let logged = || {
        let log = lab.run("victim", "dmesg", &[]);
        log.lines().filter(|line| line.contains(&prefix)).map(str::to_owned).collect::<Vec<_>>()
    };
    let source = format!("SRC={attacker} ");
    eventually("the kernel logs drops", || !logged().is_empty());
    let dropped = || {
        let rules = lab.nft("list table inet portsentry");
        let counts = rules.split("packets ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<u32>().ok());
        (counts.sum::<u32>() >= 100).then_some(())
    };
    assert!(within(TIMEOUT, dropped).is_some(), "{}", lab.nft("list ruleset"));
    let lines = logged();
    // A burst of five, and one more per twenty seconds.
    let most = 5 + usize::try_from(begin.elapsed().as_secs() / 20).unwrap() + 1;
    assert!(lines.iter().all(|line| line.contains(&source)), "{lines:?}");
    assert!(lines.len() <= most, "{} lines for a hundred packets: {lines:?}", lines.len());
    daemon.stop();
}
