//! Tests `portsentry import` as a program: its output streams, the files that it writes, and its exit codes.

use super::{assert_valid, corpus};
use std::process::Command;

fn import() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portsentry"));
    command.arg("import");
    command
}

#[test]
fn import_separates_result_and_notes() {
    let output = import().arg(corpus("odd.conf")).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_valid(&out);
    assert!(
        err.lines().all(|line| line.starts_with("portsentry: ")) && err.contains("odd.conf:13: KILL_ROUTE: left out"),
        "{err}"
    );
    let output = import().arg("--json").arg(corpus("odd.conf")).output().unwrap();
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["toml"], out);
    assert_eq!(object["notes"].as_array().unwrap().len(), err.lines().count());
    let note = object["notes"].as_array().unwrap().iter().find(|note| note["key"] == "KILL_ROUTE").unwrap();
    assert_eq!((note["line"].as_u64(), note["file"].as_str()), (Some(13), corpus("odd.conf").to_str()));
    assert_eq!(note.get("column"), None, "a note is about a whole line");
}

#[test]
fn existing_file_is_replaced_only_by_force() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("portsentry.toml");
    let import = |force: bool| {
        let mut command = import();
        command.arg(corpus("stock-2.0.conf")).arg("-o").arg(&path).args(force.then_some("--force")).output().unwrap()
    };
    assert_eq!(import(false).status.code(), Some(0));
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(written.contains("mode = \"stealth\""));
    std::fs::write(&path, "mine").unwrap();
    let refused = import(false);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("add --force to replace it"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    assert_eq!(import(true).status.code(), Some(0));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), written);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no other file is left");
}

#[test]
fn exit_codes_distinguish_failures() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large");
    std::fs::write(&large, "TCP_PORTS=\"1\"\n".repeat(80_000)).unwrap();
    let unreadable = dir.path().join("unreadable");
    std::fs::write(&unreadable, format!("TCP_PORTS=\"1\"\nIGNORE_FILE=\"{}\"\n", dir.path().display())).unwrap();
    let code = |words: &[&str]| import().args(words).output().unwrap().status.code();
    let stock = corpus("stock-2.0.conf");
    let stock = stock.to_str().unwrap();
    assert_eq!(code(&["/nonexistent/portsentry.conf"]), Some(1));
    assert_eq!(code(&[stock, "--ignore", "/nonexistent"]), Some(1));
    assert_eq!(code(&[stock, "-o", "/nonexistent/portsentry.toml"]), Some(1));
    assert_eq!(code(&[dir.path().to_str().unwrap()]), Some(1));
    assert_eq!(code(&[stock, "--force"]), Some(2));
    assert_eq!(code(&[stock, "--json", "-o", "x"]), Some(2));
    assert_eq!(code(&[concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]), Some(78));
    assert_eq!(code(&[large.to_str().unwrap()]), Some(78));
    assert_eq!(code(&[unreadable.to_str().unwrap()]), Some(78));
    assert_eq!(code(&[stock, "--ignore", stock]), Some(78));
}

#[test]
fn invalid_ignore_file_is_reported_by_check() {
    let dir = tempfile::tempdir().unwrap();
    let (config, ignore) = (dir.path().join("portsentry.conf"), dir.path().join("portsentry.ignore"));
    std::fs::write(&config, format!("TCP_PORTS=\"1\"\nIGNORE_FILE=\"{}\"\n", ignore.display())).unwrap();
    std::fs::write(&ignore, "127.0.0.1\nlocalhost\n").unwrap();
    let errors = || {
        let output = import().arg(&config).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(errors().contains("portsentry.ignore:2: \"localhost\" is not an address"));
    std::fs::remove_file(&ignore).unwrap();
    assert!(errors().contains("portsentry.ignore: No such file"));
}

#[test]
fn ignore_entries_survive_purge_of_classic() {
    let dir = tempfile::tempdir().unwrap();
    let (config, ignore) = (dir.path().join("portsentry.conf"), dir.path().join("portsentry.ignore"));
    std::fs::write(&config, format!("TCP_PORTS=\"1\"\nIGNORE_FILE=\"{}\"\n", ignore.display())).unwrap();
    std::fs::write(&ignore, "127.0.0.1\nlocalhost\n192.0.2.7\n0.0.0.0/0\n").unwrap();
    let networks = || {
        let output = import().arg(&config).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        let toml = String::from_utf8(output.stdout).unwrap();
        assert_valid(&toml);
        assert!(!toml.contains("\nfiles"), "{toml}");
        toml.lines().find(|line| line.starts_with("networks")).map(str::to_owned)
    };
    assert_eq!(networks().as_deref(), Some("networks = [\"127.0.0.1\", \"192.0.2.7\"]"));
    // Debian builds the ignore file from this one.
    std::fs::write(dir.path().join("portsentry.ignore.static"), "198.51.100.0/24").unwrap();
    assert_eq!(networks().as_deref(), Some("networks = [\"198.51.100.0/24\"]"));
    std::fs::remove_file(dir.path().join("portsentry.ignore.static")).unwrap();
    std::fs::remove_file(&ignore).unwrap();
    assert_eq!(networks(), None);
}
