//! Tests the classic text files as scripts and fail2ban's filter read them.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use portsentry::ledger::{BLOCKED, BanAuthor, BanRecord, HISTORY, LedgerError, LegacyFiles};
use portsentry::types::{Backend, BanTarget, Expiry, Protocol};
use proptest::prelude::*;
use regex::Regex;

use super::support::{State, at, ban, source, summary, target};

/// fail2ban's stock filter, with its <HOST> replaced by a pattern for addresses.
fn filter() -> Regex {
    let v4 = r"(?:\d{1,3}\.){3}\d{1,3}";
    let v6 = r"(?:[0-9a-fA-F]{1,4}::?|::){1,7}(?:[0-9a-fA-F]{1,4}|:)";
    Regex::new(&format!(r"\/(?:::f{{4,6}}:)?(?P<host>{v4}|\[?{v6}\]?) Port\: [0-9]+ (TCP|UDP) Blocked$")).unwrap()
}

fn host(line: &str) -> Option<IpAddr> {
    filter().captures(line).map(|found| found["host"].parse().unwrap())
}

fn classic(state: &State) -> LegacyFiles {
    LegacyFiles::open(&state.path()).unwrap()
}

fn append(classic: &mut LegacyFiles, bans: &[BanRecord]) {
    bans.iter().for_each(|ban| classic.add(ban));
    classic.append().unwrap();
}

#[test]
fn line_equals_classic_line() {
    let state = State::new();
    append(&mut classic(&state), &[ban(target("192.0.2.7"), at(0), 60), ban(target("2001:db8::1"), at(1), 60)]);
    assert_eq!(
        state.read(HISTORY),
        "1795242733 - 11/21/2026 06:32:13 Host: 192.0.2.7/192.0.2.7 Port: 23 TCP Blocked\n\
         1795242734 - 11/21/2026 06:32:14 Host: 2001:db8::bad/2001:db8::bad Port: 23 TCP Blocked\n"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fail2ban_finds_host_in_ban_lines(
        address in any::<IpAddr>(), port in any::<u16>(), udp in any::<bool>(), second in 0..4_000_000_000_u64
    ) {
        prop_assume!(address.to_canonical() == address);
        let state = State::new();
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        let since = std::time::UNIX_EPOCH + Duration::from_secs(second);
        let mut banned = ban(BanTarget::containing(address), since, 60);
        banned.source = address;
        banned.ports = vec![(protocol, port), (Protocol::Tcp, 1)];
        append(&mut classic(&state), &[banned]);
        let text = state.read(HISTORY);
        let line = text.strip_suffix('\n').unwrap();
        prop_assert_eq!(host(line), Some(address), "{}", line);
        let expected = format!(" Port: {port} {} Blocked", protocol.name());
        let prefix = format!("{second} - ");
        prop_assert!(line.starts_with(&prefix) && line.ends_with(&expected));
    }
}

#[test]
fn forged_mapped_address_bans_no_ipv4() {
    let state = State::new();
    let mut banned = ban(target("::ffff:192.0.2.1"), at(0), 60);
    banned.source = "::ffff:192.0.2.1".parse().unwrap();
    append(&mut classic(&state), &[banned]);
    let text = state.read(HISTORY);
    assert!(!text.contains("192.0.2.1"), "{text}");
    assert_eq!(host(text.trim_end()), None);
}

#[test]
fn operator_ban_has_port_0_in_history() {
    let state = State::new();
    let ban_by = |author| BanRecord::wanted_by(author, target("198.51.100.9"), at(0), Expiry::Never, Backend::Nft);
    append(&mut classic(&state), &[ban_by(BanAuthor::Operator), ban_by(BanAuthor::Import)]);
    let text = state.read(HISTORY);
    assert_eq!(text.lines().count(), 1);
    assert!(text.ends_with("198.51.100.9/198.51.100.9 Port: 0 TCP Blocked\n"), "{text}");
}

#[test]
fn sctp_ban_is_not_matched_by_fail2ban() {
    let state = State::new();
    let mut banned = ban(source(1), at(0), 60);
    banned.ports = vec![(Protocol::Sctp, 36_412)];
    append(&mut classic(&state), &[banned]);
    assert!(state.read(HISTORY).ends_with("Port: 36412 SCTP Blocked\n"));
    assert_eq!(host(state.read(HISTORY).trim_end()), None);
}

#[test]
fn history_survives_restart_and_torn_line() {
    let state = State::new();
    append(&mut classic(&state), &[ban(source(1), at(0), 60)]);
    OpenOptions::new().append(true).open(state.file(HISTORY)).unwrap().write_all(b"1795242733 - 11/2").unwrap();
    append(&mut classic(&state), &[ban(source(2), at(1), 60)]);
    let text = state.read(HISTORY);
    let hosts: Vec<_> = text.lines().map(host).collect();
    assert_eq!(hosts, [Some(source(1).element()), None, Some(source(2).element())]);
    assert!(text.ends_with('\n'));
}

#[test]
fn history_exists_before_first_ban() {
    let state = State::new();
    let _classic = classic(&state);
    assert_eq!(state.read(HISTORY), "", "fail2ban stops if the file of a jail is missing");
    assert_eq!(fs::metadata(state.file(HISTORY)).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn rotated_history_is_kept() {
    let state = State::new();
    let mut classic = classic(&state);
    append(&mut classic, &[ban(source(1), at(0), 60)]);
    fs::rename(state.file(HISTORY), state.file("portsentry.history.1")).unwrap();
    append(&mut classic, &[ban(source(2), at(1), 60)]);
    // As logrotate's `create` directive does.
    fs::rename(state.file(HISTORY), state.file("portsentry.history.2")).unwrap();
    fs::write(state.file(HISTORY), "").unwrap();
    fs::set_permissions(state.file(HISTORY), Permissions::from_mode(0o640)).unwrap();
    append(&mut classic, &[ban(source(3), at(2), 60)]);
    for (name, number) in [("portsentry.history.1", 1), ("portsentry.history.2", 2), (HISTORY, 3)] {
        let text = state.read(name);
        assert_eq!(text.lines().map(host).collect::<Vec<_>>(), [Some(source(number).element())], "{name}");
    }
    assert_eq!(fs::metadata(state.file(HISTORY)).unwrap().mode() & 0o777, 0o640);
}

#[test]
fn unrotated_history_stops_at_bound() {
    let state = State::new();
    let mut classic = classic(&state);
    append(&mut classic, &[ban(source(1), at(0), 60)]);
    let file = OpenOptions::new().write(true).open(state.file(HISTORY)).unwrap();
    file.set_len(256 << 20).unwrap();
    classic.add(&ban(source(2), at(1), 60));
    let error = classic.append().unwrap_err().to_string();
    assert!(error.contains("rotate it"), "{error}");
    assert_eq!(file.metadata().unwrap().len(), 256 << 20);
    fs::remove_file(state.file(HISTORY)).unwrap();
    classic.append().unwrap();
    assert_eq!(host(state.read(HISTORY).trim_end()), Some(source(2).element()), "the waiting line was written");
}

#[test]
fn dropped_lines_are_counted() {
    let state = State::new();
    let mut classic = classic(&state);
    (0..20_000).for_each(|number| classic.add(&ban(source(number), at(0), 60)));
    let lost = classic.left_out();
    classic.append().unwrap();
    let written = state.read(HISTORY).lines().count() as u64;
    assert!(lost > 0 && written > 10_000);
    assert_eq!(written + lost, 20_000);
    assert_eq!(classic.left_out(), lost);
}

#[test]
fn replaced_list_keeps_mode_and_group() {
    let state = State::new();
    let classic = classic(&state);
    let bans: Vec<_> = (0..50).map(|number| ban(source(number), at(0), 60)).collect();
    classic.rewrite(bans.iter().map(summary)).unwrap();
    let old = fs::metadata(state.file(BLOCKED)).unwrap();
    assert_eq!(old.mode() & 0o777, 0o600);
    fs::set_permissions(state.file(BLOCKED), Permissions::from_mode(0o644)).unwrap();
    // A program that has the old file open keeps reading it.
    let reader = fs::File::open(state.file(BLOCKED)).unwrap();
    fs::write(state.file("portsentry.blocked.new"), "left by a crash").unwrap();
    classic.rewrite(bans[..1].iter().map(summary)).unwrap();
    let new = fs::metadata(state.file(BLOCKED)).unwrap();
    assert_eq!((new.mode() & 0o777, new.gid()), (0o644, old.gid()));
    assert_ne!(new.ino(), old.ino());
    assert_eq!(std::io::read_to_string(reader).unwrap().lines().count(), 50);
    assert_eq!(state.read(BLOCKED).lines().map(host).collect::<Vec<_>>(), [Some(source(0).element())]);
    assert!(!state.file("portsentry.blocked.new").exists());
    classic.rewrite([]).unwrap();
    assert_eq!(state.read(BLOCKED), "");
}

#[test]
fn linked_text_file_is_not_written() {
    let state = State::new();
    let mut classic = classic(&state);
    let precious = state.file("precious");
    fs::write(&precious, "precious").unwrap();
    fs::remove_file(state.file(HISTORY)).unwrap();
    symlink(&precious, state.file(HISTORY)).unwrap();
    symlink(&precious, state.file(BLOCKED)).unwrap();
    let banned = ban(source(1), at(0), 60);
    classic.add(&banned);
    assert!(matches!(classic.append(), Err(LedgerError::Link(_))));
    assert!(matches!(classic.rewrite([summary(&banned)]), Err(LedgerError::Link(_))));
    assert_eq!(state.read("precious"), "precious");
}
