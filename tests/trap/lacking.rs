//! Tests the program on a kernel that lacks an expression of the trap's rules.

use netns_lab::Lab;
use netns_lab::daemon::Daemon;

#[test]
#[ignore = "for a kernel that finds no module nft_socket, as tests/kernels.sh boots one"]
fn blocking_works_without_nft_socket() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, "[trap]\ntcp = true\n", &["--expire", "24h"]);
    let line = daemon.expect_line("the kernel's trap ([trap]) is disabled");
    assert!(line.contains("the kernel refused the rule `socket transparent 0 return`"), "{line}");
    assert!(line.contains("nft_socket"), "{line}");
    lab.probe_until_banned("attacker", lab.victim_v4("attacker").into());
    daemon.expect_line(&format!("attackalert: Host {} has been blocked", lab.v4("attacker")));
    let log = daemon.stop();
    assert_eq!(log.matches("the kernel's trap ([trap]) is disabled").count(), 1, "{log}");
}
