//! Tests that `portsentry check` and the start refuse the same configurations.

use std::net::TcpListener;
use std::time::Duration;

use netns_lab::daemon::{Daemon, binary};
use netns_lab::{Lab, TIMEOUT, within};

/// One fragment per group is drawn; an empty one keeps the default. `DIR` is the lab's folder, 2323 and 9800 are ports
/// in use by another program, and `nosuch0` does not exist.
const GROUPS: [&[&str]; 9] = [
    &["", "", "interfaces = [\"attacker\"]", "interfaces = [\"nosuch0\"]", "expire = \"never\"", "expire = \"-1h\""],
    &[
        "",
        "[tcp]\nmode = \"off\"",
        "[tcp]\nmode = \"connect\"\nports = \"23,79,6000-6005\"",
        "[tcp]\nmode = \"connect\"\nports = \"23,2323\"",
        "[tcp]\nmode = \"stealth\"\nports = \"1-1023\"",
        "[tcp]\nblock = false",
        "[tcp]\nblock = \"run\"",
        "[tcp]\nadvanced_ports = \"1-65535\"",
    ],
    &["", "[udp]\nmode = \"connect\"\nports = \"69,6900\"", "[udp]\nmode = \"off\"", "[udp]\nblock = true"],
    &["", "", "[detect]\nscan_trigger = 0", "[detect]\nscan_trigger = 16", "[detect]\nsctp = true\nicmp = true"],
    &[
        "",
        "[block]\nmethod = [\"nft\", \"route\"]",
        "[block]\nmethod = [\"route\"]\n[block.route]\nvia = \"10.77.1.77\"",
        "[block]\nmethod = [\"nft\", \"hosts-deny\"]\n[block.hosts_deny]\nfile = \"DIR/hosts.deny\"",
        "[block]\nmethod = [\"hosts-deny\"]\n[block.hosts_deny]\nfile = \"/nosuch/hosts.deny\"",
        "[block]\nmethod = [\"hosts-deny\"]\n[block.hosts_deny]\nfile = \"DIR/hosts.deny\"\nline = \"ALL: $TARGER$\"",
        "[block]\nmethod = [\"nft\", \"run\"]\n[block.run]\ncommand = [\"/bin/true\"]",
        "[block]\nmethod = [\"nft\", \"run\"]\n[block.run]\ncommand = [\"/nosuch/program\"]",
        "[notify]\ncommand = [\"/bin/true\"]",
        "[block.run]\nexpire_command = [\"/nosuch/program\"]",
        "[notify]\ncommand = [\"/nosuch/program\"]",
        "[block]\nmethod = [\"run\"]\n[block.run]\ncommand = [\"/bin/true\", \"$TARGET$\"]\nfirst = true",
        "[block]\nmethod = [\"nft\", \"run\"]",
    ],
    &["", "[block.nft]\naction = \"reject\"", "[block.nft]\nlog_drops = \"5/minute\"", "[block.nft]\nsize = 0"],
    &["", "", "[trap]\nudp = true", "[trap]\ntcp = false"],
    &[
        "",
        "[metrics]\nlisten = \"127.0.0.1:9801\"",
        "[metrics]\nlisten = \"127.0.0.1:9800\"",
        "[metrics]\nlisten = \"192.0.2.1:9801\"",
    ],
    &[
        "",
        "[report]\njson_file = \"DIR/events.json\"",
        "[report]\njson_file = \"/nosuch/events.json\"",
        "[report]\nlog = \"stderr\"",
        "[allow]\nfiles = [\"/nosuch/ignore\"]",
        "[allow]\nnetworks = [\"0.0.0.0/0\"]",
        "[allow]\nnames = [\"monitor.invalid\"]",
    ],
];

#[test]
fn check_and_start_refuse_alike() {
    let rounds = std::env::var("CHECK_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    let lab = Lab::new(&["attacker"]);
    let _taken = lab.inside("victim", || {
        [2323, 9800].map(|port| TcpListener::bind(("0.0.0.0", port)).expect("the namespace is new"))
    });
    lab.write("hosts.deny", "");
    let mut draws = Draws(0x9e37_79b9_7f4a_7c15);
    let (mut refused, mut accepted) = (0, 0);
    for round in 0..rounds {
        let drawn: Vec<&str> = GROUPS.iter().map(|group| group[draws.below(group.len())]).collect();
        let text = merge(&drawn).replace("DIR", lab.path("").to_str().unwrap().trim_end_matches('/'));
        let file = lab.write("drawn.toml", &text);
        let check = lab.command("victim", binary().to_str().unwrap()).arg("check").arg(&file).output().unwrap();
        let (starts, log) = start(&lab, file.to_str().unwrap());
        let output = String::from_utf8_lossy(&check.stdout).into_owned() + &String::from_utf8_lossy(&check.stderr);
        assert_eq!(
            check.status.success(),
            starts,
            "round {round}\n{text}\noutput of check:\n{output}\nlog of the start:\n{log}"
        );
        *(if starts { &mut accepted } else { &mut refused }) += 1;
    }
    assert!(refused > 0 && accepted > 0, "{refused} refused, {accepted} accepted: both must occur");
}

#[test]
fn check_and_start_agree_on_state() {
    if !netns_lab::has_other_users() {
        return;
    }
    let lab = Lab::new(&["attacker"]);
    let file = lab.write("state.toml", "");
    let states = ["missing", "roots", "mixed", "foreign", "foreign-file"].map(|name| lab.path(name));
    let [_, roots, mixed, foreign, foreign_file] = &states;
    for folder in [roots, mixed, foreign, foreign_file] {
        std::fs::create_dir(folder).unwrap();
    }
    lab.write("roots/ledger.sqlite-wal", "");
    lab.write("mixed/notes", "");
    let ledger = lab.write("foreign-file/ledger.sqlite", "");
    for path in [foreign, &ledger] {
        std::os::unix::fs::chown(path, Some(4_242), Some(4_243)).unwrap();
    }
    for (state, (refused, reason)) in states.iter().zip([
        (false, None),
        (false, None),
        (true, Some("it holds \"notes\", which is no file of portsentry's".to_owned())),
        (false, Some(format!("{} belongs to user 4242", foreign.display()))),
        (false, Some(format!("{} belongs to user 4242", ledger.display()))),
    ]) {
        let place = ["--state-dir", state.to_str().unwrap()];
        let mut check = lab.command("victim", "sh");
        check.args(["-c", "for file in passwd group; do mount --bind \"$0/$file\" /etc/$file; done; exec \"$@\""]);
        check.arg(lab.path("")).arg(binary()).arg("check").arg(&file).args(place);
        let check = check.output().unwrap();
        let output = String::from_utf8_lossy(&check.stdout).into_owned() + &String::from_utf8_lossy(&check.stderr);
        let (starts, log) = start_with(&lab, &[&["--config", file.to_str().unwrap()], &place[..]].concat());
        assert_eq!((check.status.success(), starts), (!refused, !refused), "{}\n{output}\n{log}", state.display());
        match reason {
            None => assert!(!output.contains("--state-dir") && !log.contains("ERROR"), "{output}\n{log}"),
            Some(reason) => assert!(output.contains(&reason) && log.contains(&reason), "{reason}\n{output}\n{log}"),
        }
    }
}

/// Starts the daemon with this file; returns whether it watches, and its log.
fn start(lab: &Lab, file: &str) -> (bool, String) {
    start_with(lab, &["--config", file])
}

fn start_with(lab: &Lab, arguments: &[&str]) -> (bool, String) {
    let mut daemon = Daemon::spawn(lab, &[], arguments);
    let watches = |daemon: &Daemon| !daemon.lines_with("is now active and listening").is_empty();
    let started = within(TIMEOUT, || match (watches(&daemon), daemon.is_running()) {
        (true, _) => Some(true),
        (false, false) => Some(watches(&daemon)),
        (false, true) => None,
    });
    let started = started.expect("it watches or exits");
    std::thread::sleep(Duration::from_millis(20));
    let log = daemon.lines_with("").join("\n");
    if started {
        daemon.stop();
    }
    (started, log)
}

/// The fragments as one document: top-level keys first, each table once.
fn merge(fragments: &[&str]) -> String {
    let (tables, lines): (Vec<&str>, Vec<&str>) = fragments.iter().partition(|text| text.starts_with('['));
    lines.into_iter().chain(tables).filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n") + "\n"
}

/// A xorshift generator (Marsaglia, 2003): the same draws in every run.
struct Draws(u64);

impl Draws {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}
