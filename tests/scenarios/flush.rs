//! Tests the repair of a flushed ruleset during a scan.

use std::time::{Duration, Instant};

use netns_lab::daemon::Daemon;
use netns_lab::services::Services;
use netns_lab::{Lab, slowness};

/// The last ports in the scan's order.
const SERVED: [u16; 8] = [1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008];

#[test]
fn flush_during_scan_is_repaired_in_time() {
    let lab = Lab::new(&["attacker"]);
    let _services = Services::open(&lab, &SERVED);
    let (attacker, target) = lab.ends_v4("attacker");
    assert_eq!(
        lab.nmap("attacker", target, &["-sS", "-p1001-1008"]).open.len(),
        8,
        "without the program the scanner finds all services"
    );
    let daemon = Daemon::start_configured(&lab, "expire = \"1h\"\n", &[]);
    // The ports are scanned in order, and slowly enough for three flushes.
    let (rate, wait) = (format!("{}", 100 / slowness()), format!("{}ms", 100 * slowness()));
    let pace = ["--min-rate", &rate, "--max-rate", &rate, "--max-rtt-timeout", &wait, "--max-retries", "0"];
    let slow = [&["-sS", "-r", "-p1-1008"], &pace[..]].concat();
    let scan = std::thread::scope(|scope| {
        let scan = scope.spawn(|| lab.nmap("attacker", target, &slow));
        let begin = Instant::now();
        let mut before = lab.expect_ban(attacker);
        for flush in ["flush ruleset", "delete table inet portsentry", "flush table inet portsentry"] {
            std::thread::sleep(Duration::from_millis(200));
            lab.nft(flush);
            let after = lab.expect_ban(attacker);
            assert!(after.timeout == before.timeout && after.expires <= before.expires, "{before:?} became {after:?}");
            before = after;
        }
        // The served ports come last, after ten seconds. On a machine that is too slow the test proves nothing.
        assert!(
            !scan.is_finished() && begin.elapsed() < Duration::from_secs(9) * slowness(),
            "it took {:?}",
            begin.elapsed()
        );
        scan.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    assert!(scan.open.is_empty(), "{scan:?}");
    daemon.expect_line(
        "table inet portsentry was missing and has been created again; bans restored with their remaining time: 1",
    );
    let log = daemon.stop();
    assert_eq!(log.matches(&format!("Host {attacker} has been blocked")).count(), 1, "one scan is one ban: {log}");
}
