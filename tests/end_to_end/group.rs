//! Tests the commands of a user without root: a member of the daemon's group may query, another user may not.

use std::path::PathBuf;
use std::process::{Command, Output};

use netns_lab::daemon::{Daemon, binary};
use netns_lab::{Lab, eventually, install_program};
use serde_json::Value;

use crate::schema::Schema;

/// The group of the daemon, and the ids of a user that is not the daemon's.
const GROUP: u32 = 4_712;
const USER: u32 = 4_713;

struct Users {
    lab: Lab,
    program: PathBuf,
}

impl Users {
    /// A host on which the daemon runs as a user of its own, with a copy of the program that every user can run.
    fn new() -> Self {
        let lab = Lab::new(&["attacker"]);
        lab.add_service_user(4_711, GROUP);
        let program = lab.path("program");
        install_program(&binary(), &program);
        Self { lab, program }
    }

    /// A command of a user with this group.
    fn command(&self, group: u32, program: &str) -> Command {
        let mut command = self.lab.command("victim", "setpriv");
        command.arg(format!("--reuid={USER}")).arg(format!("--regid={group}")).args(["--clear-groups", program]);
        command.current_dir("/");
        command
    }

    fn run(&self, group: u32, words: &[&str]) -> Output {
        let mut command = self.command(group, self.program.to_str().unwrap());
        command.args(words).arg("--socket").arg(self.lab.path("socket")).output().unwrap()
    }

    /// The JSON that a member of the daemon's group reads.
    fn member(&self, words: &[&str]) -> Value {
        let output = self.run(GROUP, &[words, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{words:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What bash inserts for TAB at the end of `line`, typed by a user with this group.
    fn completed(&self, group: u32, line: &str) -> Vec<String> {
        let directory = self.lab.path("bin");
        std::fs::create_dir_all(&directory).unwrap();
        let (program, socket) = (self.program.display(), self.lab.path("socket"));
        let script = format!("#!/bin/sh\nexec {program} \"$@\" --socket {}\n", socket.display());
        let wrapper = self.lab.program("wrapper", &script);
        install_program(&wrapper, &directory.join("portsentry"));
        let ask = r#"
            PATH=$1:$PATH; . <("$2" completions bash); COMP_LINE=$3; COMP_POINT=${#3}
            read -ra COMP_WORDS <<<"$3"; COMP_WORDS+=(""); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            function=$(complete -p portsentry); function=${function##*-F }; function=${function%% *}
            "$function" portsentry "" "${COMP_WORDS[COMP_CWORD-1]}"
            printf '%s\n' "${COMPREPLY[@]}""#;
        let mut bash = self.command(group, "bash");
        let output =
            bash.args(["--norc", "-c", ask, "bash"]).arg(directory).arg(&self.program).arg(line).output().unwrap();
        assert!(output.stderr.is_empty(), "{output:?}");
        text(&output.stdout).lines().map(str::to_owned).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn subjects(list: &Value) -> Vec<String> {
    list["bans"].as_array().unwrap().iter().map(|ban| ban["subject"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn group_member_lists_bans_without_root() {
    if !netns_lab::has_other_users() {
        return;
    }
    let host = Users::new();
    let lab = &host.lab;
    let daemon = Daemon::start_configured(lab, "expire = \"1h\"\n", &[]);
    let attacker = lab.provoke_ban("attacker").to_string();
    lab.succeed(&["block", "2001:db8:7::7", "--expire", "never", "--reason", "a \"word\""]);
    // More than two pages, all with the same end.
    let many: Vec<String> = (1..=150).map(|last| format!("203.0.113.{last} timeout 2h")).collect();
    lab.nft(&format!("add element inet portsentry blocked {{ {} }}", many.join(", ")));
    eventually("the daemon lists every ban", || host.member(&["list"])["bans"].as_array().unwrap().len() == 152);

    let (root, member) = (lab.ask(&["list"]), host.member(&["list"]));
    Schema::of("list").check(&member);
    assert_eq!((&root["kernel"], &member["kernel"]), (&true.into(), &false.into()));
    let mut expected = subjects(&root);
    expected.sort_unstable();
    let mut found = subjects(&member);
    found.sort_unstable();
    assert_eq!(found, expected);
    let of = |list: &Value, subject: &str| {
        list["bans"].as_array().unwrap().iter().find(|ban| ban["subject"] == subject).unwrap().clone()
    };
    for subject in [attacker.as_str(), "2001:db8:7::/64"] {
        let (mut root, mut member) = (of(&root, subject), of(&member, subject));
        assert_eq!((&root["in_kernel"], &member["in_kernel"]), (&true.into(), &Value::Null));
        // The kernel counts the remaining time by itself, and rounds it.
        for ban in [&mut root, &mut member] {
            ban.as_object_mut().unwrap().retain(|key, _| !["in_kernel", "expires", "left_s"].contains(&key.as_str()));
        }
        assert_eq!(root, member);
    }

    for (words, count) in [
        (&["list", &attacker][..], 1),
        (&["list", "203.0.113.0/24"], 150),
        (&["list", "192.0.2.1"], 0),
        (&["list", "--since", "1h", "--sort", "hits"], 152),
    ] {
        assert_eq!(subjects(&host.member(words)).len(), count, "{words:?}");
    }
    let output = host.run(GROUP, &["list"]);
    let table = text(&output.stdout);
    let row = table.lines().find(|line| line.contains(&attacker)).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(row[..3], [&attacker, "syn", "forgeable"], "{table}");
    let notes = text(&output.stderr);
    assert!(notes.lines().count() == 1 && notes.contains("this user cannot query the kernel; `sudo portsentry list`"));
    let refused = host.run(GROUP, &["unblock", &attacker]);
    assert!(refused.status.code() == Some(1) && text(&refused.stderr).contains("run this with sudo"), "{refused:?}");

    let completed = host.completed(GROUP, "portsentry unblock ");
    assert_eq!(completed.len(), 152, "{completed:?}");
    assert!(completed.contains(&attacker) && completed.contains(&"2001:db8:7::/64".to_owned()), "{completed:?}");
    daemon.stop();
}

#[test]
fn other_user_is_told_the_remedy() {
    if !netns_lab::has_other_users() {
        return;
    }
    let host = Users::new();
    let daemon = Daemon::start_configured(&host.lab, "expire = \"1h\"\n", &[]);
    for words in [&["list"][..], &["list", "192.0.2.7"], &["status"], &["explain", "192.0.2.7"], &["events"]] {
        let output = host.run(USER, words);
        let error = text(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{words:?}: {output:?}");
        assert!(
            error.contains("run this with sudo, or ") && error.contains("`sudo adduser USER portsentry`"),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let error = text(&host.run(USER, &["unblock", "192.0.2.7"]).stderr);
    assert!(error.contains("run this with sudo") && !error.contains("adduser"), "members may not change bans: {error}");
    assert_eq!(host.completed(USER, "portsentry unblock "), [""]);
    daemon.stop();
    let error = text(&host.run(GROUP, &["list"]).stderr);
    assert!(error.contains("run this with sudo") && !error.contains("adduser"), "no daemon can be asked: {error}");
}
